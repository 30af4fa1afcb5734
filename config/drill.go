package config

// A drill, section [[drill]]: what `understudy drill run NAME` does, and when it
// is done by itself.

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// Drill is one drill. Package drill runs it.
type Drill struct {
	Name  string    `toml:"name"`
	Guest string    `toml:"guest"`
	Kind  DrillKind `toml:"kind"`
	// Fault is how a failover drill strikes the guest's host, FaultFor how long
	// that lasts; 0 is long enough for a takeover.
	Fault    DrillFault `toml:"fault"`
	FaultFor Duration   `toml:"fault_for"`
	// Check is a command with its arguments that finds the guest well, run
	// without a shell on the host that runs the drill; of a bubble, inside its
	// network.
	Check        []string `toml:"check"`
	CheckTimeout Duration `toml:"check_timeout"`
	// Probe is a TCP address of the guest, connected to all the time.
	Probe string `toml:"probe"`
	// MaxOutage is the longest outage that passes; 0 is any.
	MaxOutage Duration `toml:"max_outage"`
	// Return brings the guest back to where it was; nil is true.
	Return *bool `toml:"return"`
	// Patience bounds each wait for the guest to be protected again.
	Patience Duration `toml:"patience"`
	Schedule Schedule `toml:"schedule"`
}

// DrillKind is what a drill does.
type DrillKind string

const (
	DrillSwitchover DrillKind = "switchover"
	DrillFailover   DrillKind = "failover"
	DrillBubble     DrillKind = "bubble"
)

// DrillFault is how a failover drill strikes.
type DrillFault string

const (
	FaultKill   DrillFault = "kill"
	FaultFreeze DrillFault = "freeze"
	FaultCut    DrillFault = "cut"
)

// Returns reports whether the drill brings the guest back.
func (d Drill) Returns() bool { return d.Return == nil || *d.Return }

func (d *Drill) setDefaults() {
	if d.Kind == DrillFailover {
		or(&d.Fault, defaultFault)
	}
	or(&d.CheckTimeout, defaultCheckTimeout)
	or(&d.Patience, defaultPatience)
	if d.Returns() {
		d.Return = nil // what is said and what is meant are the same
	}
	if len(d.Check) == 0 {
		d.Check = nil
	}
}

func (v *validator) drillList(c *Config) {
	if len(c.Drill) > maxDrills {
		v.add("drill", "there are %d drills, at most %d", len(c.Drill), maxDrills)
	}
	names := map[string]bool{}
	for i, d := range c.Drill[:min(len(c.Drill), maxDrills)] {
		key := fmt.Sprintf("drill[%d].", i)
		v.name(key+"name", d.Name)
		if names[d.Name] {
			v.add(key+"name", "there is another drill %.40q", d.Name)
		}
		names[d.Name] = true
		v.drill(key, d, c)
	}
}

func (v *validator) drill(key string, d Drill, c *Config) {
	if _, ok := c.Guest(d.Guest); !ok {
		v.add(key+"guest", "there is no guest %.40q", d.Guest)
	}
	oneOf(v, key+"kind", d.Kind, DrillSwitchover, DrillFailover, DrillBubble)
	if d.Kind == DrillFailover {
		oneOf(v, key+"fault", d.Fault, FaultKill, FaultFreeze, FaultCut)
		if d.FaultFor != 0 {
			between(v, key+"fault_for", d.FaultFor, minFault, maxFault)
		}
	} else if d.Fault != "" || d.FaultFor != 0 {
		v.add(key+"fault", "is for a failover: leave it out")
	}
	if d.Kind == DrillBubble && !d.Returns() {
		v.add(key+"return", "a bubble moves nothing: leave it out")
	}
	v.check(key+"check", d.Check)
	between(v, key+"check_timeout", d.CheckTimeout, minCheckTimeout, maxCheckTimeout)
	between(v, key+"patience", d.Patience, minPatience, maxPatience)
	if d.MaxOutage != 0 {
		between(v, key+"max_outage", d.MaxOutage, minOutage, maxPatience)
	}
	if d.Probe != "" {
		if reason := checkAddress(d.Probe); reason != "" {
			v.add(key+"probe", "%.80q: %s", d.Probe, reason)
		}
	}
}

func (v *validator) check(key string, argv []string) {
	if len(argv) == 0 {
		return
	}
	total := 0
	for _, a := range argv {
		total += len(a)
		if strings.ContainsRune(a, 0) {
			v.add(key, "the argument %.40q has a NUL", a)
		}
	}
	switch {
	case len(argv) > maxArguments || total > maxArguments*64:
		v.add(key, "there are %d arguments of %d bytes, at most %d of %d", len(argv), total, maxArguments, maxArguments*64)
	case !path.IsAbs(argv[0]):
		v.add(key, "%.80q is not the absolute path of a command", argv[0])
	}
}

// drillExample is what a file says of drills that has none.
var drillExample = []string{"",
	"# A drill proves that a failure would be survived, measures it, and puts everything back:",
	"# understudy drill run NAME. Any number of them.",
	"# [[drill]]",
	`# name = "weekly"`,
	`# guest = "web"`,
	`# kind = "failover"                 # "switchover", "failover", or "bubble": the backup's copy in isolation`,
	`# fault = "kill"                    # of a failover: "kill", "freeze", "cut"; fault_for = "10s" is for how long`,
	`# check = ["/usr/local/bin/check"]  # exit status 0: the guest is well; run by the host that runs the drill`,
	`# check_timeout = "30s"`,
	`# probe = "192.0.2.10:22"           # a TCP port of the guest: the outage as a client sees it`,
	`# max_outage = "3s"                 # a longer one fails the drill`,
	`# return = true                     # bring the guest back to where it was`,
	`# patience = "15m"                  # for the guest to be protected again`,
	`# schedule = "Sun 03:00"            # or "daily 03:00", "every 6h"; local time of the host that runs it: the witness`,
}

func (w *writer) drillList(all []Drill) {
	if len(all) == 0 {
		w.text(drillExample...)
		return
	}
	for _, d := range all {
		w.text("", "[[drill]]")
		w.key("name", d.Name, "")
		w.key("guest", d.Guest, "")
		w.key("kind", string(d.Kind), `"switchover", "failover" or "bubble"`)
		if d.Kind == DrillFailover {
			w.option("fault", string(d.Fault), string(defaultFault), `"kill", "freeze", "cut"`)
			w.option("fault_for", d.FaultFor, Duration(0), "0s: long enough for a takeover")
		}
		w.list("check", slices.Clone(d.Check), "a command: exit status 0 means that the guest is well")
		w.option("check_timeout", d.CheckTimeout, defaultCheckTimeout, "")
		w.option("probe", d.Probe, "", "a TCP port of the guest: the outage as a client sees it")
		w.option("max_outage", d.MaxOutage, Duration(0), "a longer one fails the drill; 0s: any passes")
		w.option("return", d.Returns(), true, "bring the guest back to where it was")
		w.option("patience", d.Patience, defaultPatience, "for the guest to be protected again")
		w.option("schedule", d.Schedule.String(), "", `"Sun 03:00", "daily 03:00" or "every 6h"; local time of the host that runs it`)
	}
}
