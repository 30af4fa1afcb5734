package config

import (
	"strings"
	"testing"
	"time"
)

const drillFile = simFile + `
[[drill]]
name = "weekly"
guest = "g"
kind = "failover"
check = ["/usr/local/bin/check", "a b"]
probe = "192.0.2.10:22"
max_outage = "3s"
schedule = "Sun 03:00"
[[drill]]
name = "quiet"
guest = "g"
kind = "bubble"
[[drill]]
name = "there"
guest = "g"
kind = "switchover"
return = false
patience = "1m"
`

func TestDrillsAreRead(t *testing.T) {
	c, err := Parse([]byte(drillFile))
	if err != nil {
		t.Fatal(err)
	}
	d := c.Drill[0]
	if d.Fault != FaultKill || d.CheckTimeout.Std() != 30*time.Second || d.Patience.Std() != 15*time.Minute || !d.Returns() || d.Schedule.String() != "Sun 03:00" {
		t.Errorf("the defaults: %+v", d)
	}
	if c.Drill[1].Fault != "" || c.Drill[2].Returns() {
		t.Errorf("got %+v", c.Drill[1:])
	}
	checkReadsBack(t, c)
}

func TestWrongDrills(t *testing.T) {
	for _, c := range []struct{ name, was, is, want string }{
		{"no name", `name = "weekly"`, ``, "drill[0].name"},
		{"the same name", `name = "quiet"`, `name = "weekly"`, "drill[1].name: there is another drill"},
		{"no such guest", "name = \"quiet\"\nguest = \"g\"", "name = \"quiet\"\nguest = \"h\"", "drill[1].guest: there is no guest"},
		{"no such kind", `kind = "bubble"`, `kind = "blast"`, "drill[1].kind"},
		{"a fault of a bubble", `kind = "bubble"`, "kind = \"bubble\"\nfault = \"kill\"", "is for a failover"},
		{"no such fault", `kind = "failover"`, "kind = \"failover\"\nfault = \"burn\"", "drill[0].fault"},
		{"too long a fault", `kind = "failover"`, "kind = \"failover\"\nfault_for = \"10m\"", "drill[0].fault_for"},
		{"a relative command", `"/usr/local/bin/check"`, `"check"`, "drill[0].check"},
		{"too long a command", `"a b"`, `"` + strings.Repeat("x", 5000) + `"`, "drill[0].check"},
		{"a probe without a port", `"192.0.2.10:22"`, `"192.0.2.10"`, "drill[0].probe"},
		{"a bare time", `max_outage = "3s"`, `max_outage = 3`, "drill[0].max_outage"},
		{"no patience", `patience = "1m"`, `patience = "1ms"`, "drill[2].patience"},
		{"a wrong schedule", `"Sun 03:00"`, `"sometimes"`, "schedule"},
		{"a bubble that stays", `kind = "bubble"`, "kind = \"bubble\"\nreturn = false", "drill[1].return"},
		{"an unknown key", `patience = "1m"`, `patient = "1m"`, "unknown key drill.patient"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if !strings.Contains(drillFile, c.was) {
				t.Fatalf("the file has no %q", c.was)
			}
			_, err := Parse([]byte(strings.Replace(drillFile, c.was, c.is, 1)))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
	if _, err := Parse([]byte(simFile + strings.Repeat("[[drill]]\n", 65))); err == nil || !strings.Contains(err.Error(), "at most 64") {
		t.Errorf("65 drills: %v", err)
	}
}

// TestTheExampleOfADrillIsOne: what a new file says of drills is right as soon as
// the comment signs are gone.
func TestTheExampleOfADrillIsOne(t *testing.T) {
	file := string(Example().Render())
	_, lines, found := strings.Cut(file, "# [[drill]]\n")
	if !found {
		t.Fatalf("the example has no drill:\n%s", file)
	}
	c, err := Parse([]byte(file + "\n[[drill]]\n" + strings.ReplaceAll("\n"+lines, "\n# ", "\n")))
	if err != nil || len(c.Drill) != 1 || c.Drill[0].Probe == "" {
		t.Errorf("%v: %+v", err, c)
	}
}
