package client

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// Control is a connection to the control service. Its methods are called by
// one goroutine at a time.
type Control struct{ line }

// NewControl takes over conn.
func NewControl(conn net.Conn) *Control { return &Control{newLine(conn)} }

// Close ends the connection; what was started in the guest goes on.
func (c *Control) Close() error { return c.conn.Close() }

// numbers asks for something that is answered with n numbers. Words key=value
// count as their value.
func (c *Control) numbers(ctx context.Context, request, want string, n int) ([]int64, error) {
	words, err := c.ask(ctx, request, want)
	if err != nil {
		return nil, err
	}
	if len(words) != n {
		return nil, fmt.Errorf("ask the guest %q: %d words in the answer %q, want %d", request, len(words), words, n)
	}
	list := make([]int64, n)
	for i, word := range words {
		if _, value, found := strings.Cut(word, "="); found {
			word = value
		}
		if list[i], err = strconv.ParseInt(word, 10, 64); err != nil {
			return nil, fmt.Errorf("ask the guest %q: in the answer %q: %w", request, words, err)
		}
	}
	return list, nil
}

// Boot returns the guest's boot id.
func (c *Control) Boot(ctx context.Context) (string, error) {
	words, err := c.ask(ctx, "boot", "boot")
	if err != nil {
		return "", err
	}
	return strings.Join(words, " "), nil
}

// Uptime returns the guest's CLOCK_MONOTONIC and its wall clock.
func (c *Control) Uptime(ctx context.Context) (monotonic time.Duration, wall time.Time, err error) {
	n, err := c.numbers(ctx, "uptime", "uptime", 2)
	if err != nil {
		return 0, time.Time{}, err
	}
	return time.Duration(n[0]), time.Unix(0, n[1]), nil
}

// Dirty is a load on the guest's memory.
type Dirty struct {
	// Pages is how many distinct pages are written to at each interval.
	Pages int
	// Every is the interval, 1 ms to 1 h.
	Every time.Duration
	// Random walks through the area in a shuffled order instead of in sequence.
	Random bool
	// AreaMiB is the size of the area walked through; 0 means 64 MiB.
	AreaMiB int
	// Bytes is how much of each page is overwritten, a multiple of 8; 0 means 8.
	Bytes int
}

// Dirty starts a load, in the place of one that is there.
func (c *Control) Dirty(ctx context.Context, d Dirty) error {
	pattern := "seq"
	if d.Random {
		pattern = "random"
	}
	request := fmt.Sprintf("dirty pages=%d every=%s pattern=%s", d.Pages, d.Every, pattern)
	if d.AreaMiB != 0 {
		request += fmt.Sprintf(" area=%d", d.AreaMiB)
	}
	if d.Bytes != 0 {
		request += fmt.Sprintf(" bytes=%d", d.Bytes)
	}
	_, err := c.ask(ctx, request, "ok")
	return err
}

// DirtyProgress is how far a load has come.
type DirtyProgress struct {
	Intervals int64
	Pages     int64
	// Late is the number of intervals that began after the next was due.
	Late int64
}

// DirtyProgress tells how far the load has come.
func (c *Control) DirtyProgress(ctx context.Context) (DirtyProgress, error) {
	n, err := c.numbers(ctx, "dirty", "dirty", 3)
	if err != nil {
		return DirtyProgress{}, err
	}
	return DirtyProgress{n[0], n[1], n[2]}, nil
}

// StopDirty ends the load and gives its memory back.
func (c *Control) StopDirty(ctx context.Context) error {
	_, err := c.ask(ctx, "dirty stop", "ok")
	return err
}

// Work computes for d in the guest, whose clock it goes by, and returns how
// many iterations that gave.
func (c *Control) Work(ctx context.Context, d time.Duration) (iterations int64, took time.Duration, err error) {
	n, err := c.numbers(ctx, "work "+d.String(), "work", 2)
	if err != nil {
		return 0, 0, err
	}
	return n[0], time.Duration(n[1]), nil
}

// StartSpeed starts the background loop.
func (c *Control) StartSpeed(ctx context.Context) error {
	_, err := c.ask(ctx, "speed start", "ok")
	return err
}

// StopSpeed stops the background loop.
func (c *Control) StopSpeed(ctx context.Context) error {
	_, err := c.ask(ctx, "speed stop", "ok")
	return err
}

// Speed returns the iterations of the background loop so far and the guest's
// CLOCK_MONOTONIC.
func (c *Control) Speed(ctx context.Context) (iterations int64, monotonic time.Duration, err error) {
	n, err := c.numbers(ctx, "speed", "speed", 2)
	if err != nil {
		return 0, 0, err
	}
	return n[0], time.Duration(n[1]), nil
}

// Check has the guest compare its memory with what it must hold, and returns
// how many pages it compared. Damage is an error.
func (c *Control) Check(ctx context.Context) (pages int64, err error) {
	n, err := c.numbers(ctx, "check", "ok", 2)
	if err != nil {
		return 0, fmt.Errorf("check the guest's memory: %w", err)
	}
	return n[0] + n[1], nil
}

// Poweroff switches the guest off. Like Reboot and Panic it ends the connection
// too.
func (c *Control) Poweroff(ctx context.Context) error { return c.end(ctx, "poweroff") }

// Reboot restarts the guest's kernel.
func (c *Control) Reboot(ctx context.Context) error { return c.end(ctx, "reboot") }

// Panic crashes the guest's kernel.
func (c *Control) Panic(ctx context.Context) error { return c.end(ctx, "panic") }

func (c *Control) end(ctx context.Context, how string) error {
	_, err := c.ask(ctx, how, "ok")
	return err
}
