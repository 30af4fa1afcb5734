package drill

// What a drill would do, if it were begun now: `drill run --dry-run`.

import (
	"fmt"
	"time"

	"understudy/ownership"
)

// Plan is a drill that is not run.
type Plan struct {
	Spec Spec `json:"spec"`
	// Host would run it.
	Host ownership.HostID `json:"host"`
	From ownership.HostID `json:"from,omitempty"`
	To   ownership.HostID `json:"to,omitempty"`
	// Possible: every condition holds right now.
	Possible   bool        `json:"possible"`
	Conditions []Condition `json:"conditions"`
	Steps      []string    `json:"steps"`
	// Outage is what the guest's clients are expected to see.
	Outage Expected `json:"outage"`
	// Risks are what may go wrong all the same.
	Risks []string `json:"risks"`
}

// Expected is a time, and why.
type Expected struct {
	Time time.Duration `json:"time_ns"`
	Why  string        `json:"why"`
}

// loading is what a takeover takes once it is granted: some 3 ms were measured;
// a busy host takes more.
const loading = 50 * time.Millisecond

// MakePlan tells what the drill would do.
func MakePlan(s Spec, host ownership.HostID, v View) Plan {
	s.SetDefaults()
	p := Plan{Spec: s, Host: host, Conditions: Conditions(s, v), Steps: []string{}, Risks: []string{}}
	log, _ := v.log(s.Guest)
	p.From, p.To = log.Owner, log.Backup.Host
	_, wrong := missing(p.Conditions)
	p.Possible = !wrong
	if p.From == host && s.Kind != Bubble && p.From != "" {
		p.Possible = false
		p.Conditions = append(p.Conditions, Condition{"the drill runs elsewhere", false, fmt.Sprintf("%s would run it, and owns the guest", host)})
	}
	from, to := orWord(string(p.From), "its owner"), orWord(string(p.To), "its backup")
	step := func(format string, a ...any) { p.Steps = append(p.Steps, fmt.Sprintf(format, a...)) }
	step("measure the clocks of all hosts, and watch for %v", quiet)
	switch s.Kind {
	case Switchover:
		step("ask %s for a switchover to %s", from, to)
	case Failover:
		faultFor := (&run{spec: s, view: v}).faultFor()
		step("strike %s: %s", from, map[Fault]string{
			Kill:   "kill its daemon and the guest there; the daemon is started again",
			Freeze: fmt.Sprintf("stop its daemon and the guest there for %v", faultFor),
			Cut:    fmt.Sprintf("cut it off from the other hosts for %v", faultFor),
		}[s.Fault])
		if s.Fault == Kill {
			p.Risks = append(p.Risks, "every guest that "+from+" runs is struck with its daemon")
		}
	case Bubble:
		step("start the copy of %s on %s in isolation, from its last commit", s.Guest, to)
	}
	if s.Kind != Bubble {
		step("wait until %s runs the guest and it is heard", to)
	}
	if len(s.Check) > 0 {
		where := "on " + string(host)
		if s.Kind == Bubble {
			where = "inside the bubble"
		}
		step("run %s %s, for at most %v", s.Check[0], where, s.CheckTimeout)
	}
	switch {
	case s.Kind == Bubble:
		step("throw the copy away")
	case s.Stay:
		step("wait until the guest is protected; it stays on %s", to)
	default:
		step("wait until the guest is protected, switch it over to %s again, and wait until it is protected there", from)
	}
	step("compare all memory of both hosts, and see held output leave")
	p.Outage = expect(s, v)
	if s.Kind == Failover {
		p.Risks = append(p.Risks, "the guest has no backup from the strike until it is synchronised again: a second failure in that time loses it")
	}
	return p
}

// expect is the outage of a drill, by what the owner measures now.
func expect(s Spec, v View) Expected {
	log, _ := v.log(s.Guest)
	owner, _ := v.at(log.Owner, s.Guest)
	var lag time.Duration
	if owner.Primary != nil {
		lag = owner.Primary.Lag.P99
	}
	lease := v.lease()
	switch s.Kind {
	case Bubble:
		return Expected{0, "the guest is not touched"}
	case Switchover:
		return Expected{lag + loading, fmt.Sprintf("a last checkpoint (%s, p99 of the commit lag), then loading (some ms, %v on a busy host); no lease is waited for", about(lag), loading)}
	}
	e := Expected{lease + lag + loading, fmt.Sprintf("the owner's lease (%v) has to run out, then loading (some ms, %v on a busy host); what waits for its commit (%s, p99) waits as well", lease, loading, about(lag))}
	if v.leader() == log.Owner {
		e.Time += lease
		e.Why += fmt.Sprintf("; %s leads the ownership log: a new leader is elected first, and waits out a lease of its own", log.Owner)
	}
	return e
}
