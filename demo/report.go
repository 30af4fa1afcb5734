package demo

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"understudy/backup"
	"understudy/demo/world"
	"understudy/primary"
)

// Report is the outcome of a demo. Durations are nanoseconds in JSON; those of
// a timeline count from the kill.
type Report struct {
	Guest           string        `json:"guest"`
	Profile         string        `json:"profile"`
	Lease           time.Duration `json:"lease_ns"`
	Seed            uint64        `json:"seed"`
	Started         time.Time     `json:"started"`
	FirstProtection time.Duration `json:"first_protection_ns"`
	Rounds          []Round       `json:"rounds"`
	Passed          bool          `json:"passed"`
	// Medians over all rounds.
	MedianFirstPacket  time.Duration `json:"median_first_packet_ns"`
	P99FirstPacket     time.Duration `json:"p99_first_packet_ns"`
	MedianGrantRunning time.Duration `json:"median_grant_to_running_ns"`
	MedianReprotected  time.Duration `json:"median_reprotected_ns"`
}

// Round is one lost host.
type Round struct {
	Number int    `json:"number"`
	Lost   string `json:"lost"`
	Taker  string `json:"taker"`

	// The timeline, from the kill; LastCommit is before it.
	LastCommit  time.Duration `json:"last_commit_ns"`
	Asked       time.Duration `json:"asked_ns"`
	Granted     time.Duration `json:"granted_ns"` // the lease was out
	Running     time.Duration `json:"running_ns"`
	FirstPacket time.Duration `json:"first_packet_ns"`
	Outage      time.Duration `json:"outage_ns"` // between two lines at the client
	Reprotected time.Duration `json:"reprotected_ns"`

	Pause     primary.Percentiles `json:"pause"`
	Lag       primary.Percentiles `json:"commit_lag"`
	RawBytes  uint64              `json:"raw_bytes"`
	WireBytes uint64              `json:"wire_bytes"`
	// Excluded pages were left out of checkpoints; Acked is the newest write to
	// the disk that the guest had acknowledged.
	Excluded uint64  `json:"excluded_pages"`
	Acked    uint64  `json:"acknowledged_writes"`
	Checks   []Check `json:"checks"`
}

// Check is one thing that had to hold.
type Check struct {
	What string `json:"what"`
	OK   bool   `json:"ok"`
	Why  string `json:"why,omitempty"`
}

func (r *Round) check(what string, err error) {
	c := Check{What: what, OK: err == nil}
	if err != nil {
		c.Why = err.Error()
	}
	r.Checks = append(r.Checks, c)
}

// Passed reports whether every check held.
func (r *Round) Passed() bool {
	return len(r.Checks) > 0 && !slices.ContainsFunc(r.Checks, func(c Check) bool { return !c.OK })
}

func (r *Round) failures() string {
	var bad []string
	for _, c := range r.Checks {
		if !c.OK {
			bad = append(bad, c.What+": "+c.Why)
		}
	}
	return strings.Join(bad, "; ")
}

// gap measures the outage at the client. What the guest had sent before may
// still arrive after the kill: the first packet is the one that ends the
// longest silence.
func (r *Round) gap(c *world.Client, killed time.Time) {
	var first world.Line
	if r.Outage, first = c.Outage(killed); first.Number != 0 {
		r.FirstPacket = first.At.Sub(killed)
	}
}

// mark takes the timeline from what the taker's daemon logged.
func (r *Round) mark(log []world.Entry, killed time.Time) {
	for _, e := range log {
		at := e.Time.Sub(killed)
		switch {
		case e.Msg == backup.LogAsking && r.Asked == 0:
			r.Asked = at
		case e.Msg == backup.LogGranted && r.Granted == 0:
			r.Granted = at
		case e.Msg == backup.LogRunning && r.Running == 0:
			r.Running = at
		}
	}
}

// finish sums up.
func (r *Report) finish() {
	r.Passed = len(r.Rounds) > 0
	var packet, running, again []time.Duration
	for i := range r.Rounds {
		one := &r.Rounds[i]
		r.Passed = r.Passed && one.Passed()
		packet = append(packet, one.FirstPacket)
		running = append(running, one.Running-one.Granted)
		again = append(again, one.Reprotected)
	}
	r.MedianFirstPacket, r.P99FirstPacket = quantile(packet, 50), quantile(packet, 99)
	r.MedianGrantRunning, r.MedianReprotected = quantile(running, 50), quantile(again, 50)
}

// quantile returns the p-th percentile, 0 of nothing.
func quantile(d []time.Duration, p int) time.Duration {
	if len(d) == 0 {
		return 0
	}
	d = slices.Clone(d)
	slices.Sort(d)
	return d[min(len(d)-1, len(d)*p/100)]
}

// Print writes the report for people.
func (r *Report) Print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	p := func(format string, a ...any) { _, _ = fmt.Fprintf(t, format, a...) } // Flush tells errors
	p("\nTimeline of each failover, in ms from the kill\n")
	p("round\tlost\tlast commit\tasked\tgranted\trunning\tfirst packet\toutage\tprotected again\tchecks\t\n")
	for i := range r.Rounds {
		o := &r.Rounds[i]
		verdict := "all held"
		if !o.Passed() {
			verdict = "FAILED"
		}
		p("%d\t%s\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%s\t\n", o.Number, o.Lost, ms(o.LastCommit), ms(o.Asked), ms(o.Granted),
			ms(o.Running), ms(o.FirstPacket), ms(o.Outage), ms(o.Reprotected), verdict)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	verdict := "every check held"
	if !r.Passed {
		verdict = "FAILED"
	}
	_, err := fmt.Fprintf(w, "\nlease %v, seed %d: kill to first packet %.0f ms (median), %.0f ms (p99); grant to running %.1f ms (median)\n%d of %d failovers: %s\n",
		r.Lease, r.Seed, ms(r.MedianFirstPacket), ms(r.P99FirstPacket), ms(r.MedianGrantRunning), r.good(), len(r.Rounds), verdict)
	for i := range r.Rounds {
		if o := &r.Rounds[i]; !o.Passed() && err == nil {
			_, err = fmt.Fprintf(w, "round %d: %s\n", o.Number, o.failures())
		}
	}
	return err
}

func (r *Report) good() (n int) {
	for i := range r.Rounds {
		if r.Rounds[i].Passed() {
			n++
		}
	}
	return n
}
