package sim

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"
)

// ClientConfig says whom a Client talks to.
type ClientConfig struct {
	Guest net.HardwareAddr // the guest's address
	MAC   net.HardwareAddr // the client's own
	NIC   NIC
	// Probe is how long the client waits for a frame before it asks again.
	// Zero means DefaultProbe; an outage is measured as finely as this.
	Probe time.Duration
	// OnLine, if not nil, is called with each line, in order, from Run's
	// goroutine. It must return soon and must not call the Client.
	OnLine func(Line)
	// OnViolation, if not nil, is called with each breach, likewise.
	OnViolation func(Violation)
}

// DefaultProbe is the default of ClientConfig.Probe.
const DefaultProbe = 10 * time.Millisecond

// Client holds one connection to a guest and keeps the record of what the
// guest said. Run does the work; the other methods may be called meanwhile.
type Client struct {
	cfg ClientConfig
	buf [FrameSize]byte

	mu      sync.Mutex
	session session
	report  Report
	changed chan struct{} // closed and replaced at every line and violation
}

// Report is what a client can say of the guest so far.
type Report struct {
	Open  bool   `json:"open"`
	Boot  string `json:"boot"`  // hexadecimal
	Lines uint64 `json:"lines"` // delivered in order, none missing
	First Line   `json:"first"`
	Last  Line   `json:"last"`
	// LongestGap is the longest time between two lines; Gap is the line that
	// ended it.
	LongestGap time.Duration `json:"longest_gap_ns"`
	Gap        Line          `json:"gap"`
	// RoundTrip is the time the last answered probe took, to the guest and
	// back through the hold of its output; zero if there was none yet.
	RoundTrip time.Duration `json:"round_trip_ns"`
	// Violations are the first maxViolations breaches, of Breaches in all.
	Violations []Violation `json:"violations"`
	Breaches   uint64      `json:"breaches"`
}

const maxViolations = 32

// Err returns nil if the guest kept every promise so far.
func (r Report) Err() error {
	if r.Breaches == 0 {
		return nil
	}
	return fmt.Errorf("the guest broke its word %d times, first after line %d: %v", r.Breaches, r.Lines, r.Violations[0])
}

// NewClient prepares a connection. Nothing is sent before Run.
func NewClient(cfg ClientConfig) (*Client, error) {
	if len(cfg.Guest) != 6 || len(cfg.MAC) != 6 || cfg.MAC[0]&1 != 0 || cfg.NIC == nil || cfg.Probe < 0 {
		return nil, fmt.Errorf("sim client: guest %q, own MAC %q, card %v, probe %v: want two addresses of 6 bytes, a card and a time",
			cfg.Guest, cfg.MAC, cfg.NIC, cfg.Probe)
	}
	if cfg.Probe == 0 {
		cfg.Probe = DefaultProbe
	}
	c := &Client{cfg: cfg, changed: make(chan struct{})}
	var id [8]byte
	rand.Read(id[:]) //nolint:errcheck // never fails, see crypto/rand
	c.session = session{
		guest: [6]byte(cfg.Guest), self: [6]byte(cfg.MAC), conn: binary.LittleEndian.Uint64(id[:]),
		emit: c.line, complain: c.violation,
	}
	return c, nil
}

// Run holds the connection until ctx is over, then closes it and returns nil.
// It returns an error if the network card goes away.
func (c *Client) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			c.send(c.session.end)
			return nil
		case frame, ok := <-c.cfg.NIC.Receive():
			if !ok {
				return errors.New("sim client: its network card is gone")
			}
			if c.receive(frame) {
				timer.Reset(c.cfg.Probe)
			}
		case <-timer.C:
			c.send(c.session.tick)
			timer.Reset(c.cfg.Probe)
		}
	}
}

// receive handles one frame and reports whether the guest is speaking.
func (c *Client) receive(frame []byte) bool {
	now := time.Now()
	c.mu.Lock()
	before := c.session.frames
	var out message
	answer := c.session.receive(now, frame, &out)
	heard := c.session.frames != before
	if heard {
		c.note(now, frame)
	}
	c.mu.Unlock()
	if answer {
		out.put(c.buf[:])
		c.cfg.NIC.Send(c.buf[:])
	}
	return heard
}

// note keeps what the frame says beside its lines. The lock is held.
func (c *Client) note(now time.Time, frame []byte) {
	var msg message
	if msg.parse(frame) == nil && msg.stamp != 0 && (msg.kind == kindStatus || msg.kind == kindWelcome) {
		c.report.RoundTrip = now.Sub(time.Unix(0, int64(msg.stamp)))
	}
	if c.session.open && !c.report.Open {
		c.report.Open = true
		c.notify()
	}
}

func (c *Client) send(make func(now time.Time, out *message)) {
	var out message
	c.mu.Lock()
	make(time.Now(), &out)
	c.mu.Unlock()
	out.put(c.buf[:])
	c.cfg.NIC.Send(c.buf[:])
}

// line records a delivered line. The lock is held.
func (c *Client) line(l Line) {
	r := &c.report
	if r.Lines == 0 {
		r.First = l
	} else if gap := l.At.Sub(r.Last.At); gap > r.LongestGap {
		r.LongestGap, r.Gap = gap, l
	}
	r.Lines, r.Last = l.Number, l
	c.notify()
	if c.cfg.OnLine != nil {
		c.cfg.OnLine(l)
	}
}

// violation records a breach. The lock is held.
func (c *Client) violation(v Violation) {
	c.report.Breaches++
	if len(c.report.Violations) < maxViolations {
		c.report.Violations = append(c.report.Violations, v)
	}
	c.notify()
	if c.cfg.OnViolation != nil {
		c.cfg.OnViolation(v)
	}
}

func (c *Client) notify() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// Report returns what is known so far.
func (c *Client) Report() Report {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.report
	r.Violations = slices.Clone(r.Violations)
	if r.Open {
		r.Boot = fmt.Sprintf("%x", c.session.boot)
	}
	return r
}

// WaitLine waits until the client has got line n. It returns early, with an
// error, if the guest breaks its word or ctx is over.
func (c *Client) WaitLine(ctx context.Context, n uint64) error {
	for {
		c.mu.Lock()
		r, changed := c.report, c.changed
		c.mu.Unlock()
		if err := r.Err(); err != nil {
			return err
		}
		if r.Lines >= n {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for line %d, %d have come: %w", n, r.Lines, ctx.Err())
		}
	}
}
