package daemon

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"understudy/bubble"
	"understudy/config"
	"understudy/drill"
	"understudy/status"
)

// TestConfiguredDrillsAreTheEngines: each key comes through, and what the
// configuration lets pass the engine does, too.
func TestConfiguredDrillsAreTheEngines(t *testing.T) {
	c, err := config.Parse([]byte(`
cluster = "lab"
[[host]]
name = "a"
address = "127.0.0.1:7001"
[[host]]
name = "b"
address = "127.0.0.1:7002"
[[host]]
name = "w"
address = "127.0.0.1:7003"
witness = true
[[guest]]
name = "g"
host = "a"
backup = "b"
kernel = "/boot/k"
[[guest.disk]]
path = "/srv/g.img"
mode = "shared"
unfenced = true
[[drill]]
name = "weekly"
guest = "g"
kind = "failover"
fault = "freeze"
fault_for = "12s"
check = ["/bin/check", "a"]
check_timeout = "7s"
probe = "192.0.2.10:22"
max_outage = "3s"
return = false
patience = "4m"
schedule = "Sun 03:00"
[[drill]]
name = "quiet"
guest = "g"
kind = "bubble"
`))
	if err != nil {
		t.Fatal(err)
	}
	h := hosts{config: func() *config.Config { return c }, peers: &Peers{self: "w"}}
	specs := h.specs()
	for i := range specs {
		if err := specs[i].Validate(); err != nil {
			t.Errorf("%+v: %v", specs[i], err)
		}
	}
	s := specs[0]
	if s.Name != "weekly" || s.Guest != "g" || s.Kind != drill.Failover || s.Fault != drill.Freeze || s.FaultFor != 12*time.Second || len(s.Check) != 2 || s.CheckTimeout != 7*time.Second ||
		s.Probe != "192.0.2.10:22" || s.MaxOutage != 3*time.Second || !s.Stay || s.Patience != 4*time.Minute || s.Schedule != "Sun 03:00" {
		t.Errorf("got %+v", s)
	}
	if specs[1].Stay || specs[1].Fault != "" {
		t.Errorf("got %+v", specs[1])
	}
	f, ok := h.Facts("g")
	if !ok || f.Host != "a" || f.Backup != "b" || !f.Shared || !f.Unfenced || f.DetachAfter != time.Second {
		t.Errorf("facts: %+v, %v", f, ok)
	}
	if _, ok := h.Facts("x"); ok {
		t.Error("there are facts of no guest")
	}
	if got := drill.Engine(h.Members(), f); got != "w" {
		t.Errorf("%s runs it", got)
	}
}

func TestWhatWasRefusedWasNotDone(t *testing.T) {
	lost := errors.New("the connection was reset")
	for _, c := range []struct {
		err  error
		want bool
	}{
		{&status.Refused{Status: http.StatusConflict, Why: "no"}, true}, {&status.Refused{Status: http.StatusNotFound, Why: "no"}, true},
		{&status.Refused{Status: http.StatusBadGateway, Why: "who knows"}, false}, {lost, false}, {nil, false},
	} {
		got := refused(c.err)
		if errors.Is(got, drill.ErrRefused) != c.want || !errors.Is(got, c.err) && c.err != nil || (got == nil) != (c.err == nil) {
			t.Errorf("%v: %v", c.err, got)
		}
	}
}

func TestWhatADrillIsToldOfABubble(t *testing.T) {
	got := bubbled(bubble.Result{Epoch: 7, RunsAfter: 90 * time.Millisecond, Commits: 12, HeldUpMost: 3 * time.Millisecond,
		Check: &bubble.Check{Exit: -1, TimedOut: true, Took: time.Second, Output: "slow"}})
	if got.Epoch != 7 || got.Started != 90*time.Millisecond || !got.Ended || !strings.Contains(got.Text, "12 epochs") || !strings.Contains(got.Text, "3ms at most") {
		t.Errorf("%+v", got)
	}
	if got.Check == nil || got.Check.Error == "" || got.Check.Output != "slow" || got.Check.Took != time.Second {
		t.Errorf("%+v", got.Check)
	}
	if bubbled(bubble.Result{}).Check != nil {
		t.Error("a check that was not there")
	}
}
