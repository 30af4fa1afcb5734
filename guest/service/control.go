package service

// The control service: requests on any number of connections act on one
// control. Lock order: control.mu, then writer.mu.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// control owns the writer, the background loop and the disk's work; close ends
// them.
type control struct {
	cfg    Config
	static area
	disk   disk
	loads  loads

	mu     sync.Mutex
	writer *writer // nil unless dirtying
	speed  background
}

func (c *control) handle(ctx context.Context, peer *conn) error {
	for {
		words, err := peer.request()
		if err != nil {
			return err
		}
		answer, err := c.do(ctx, peer, words)
		if errors.Is(err, io.EOF) {
			return err
		}
		if err != nil {
			answer = "error " + oneLine(err)
		}
		if _, err := fmt.Fprintln(peer, answer); err != nil {
			return err
		}
		if err == nil && len(words) == 1 {
			switch action := PowerAction(words[0]); action {
			case Poweroff, Reboot, Panic:
				c.cfg.Log.Info("a client asks for it", "action", action)
				c.cfg.Power(action)
			}
		}
	}
}

// do carries out one request and returns the answer. The error is io.EOF when the
// connection is of no more use. Only few requests read or write more of peer.
func (c *control) do(ctx context.Context, peer *conn, words []string) (string, error) {
	verb, args := "", []string(nil)
	if len(words) > 0 {
		verb, args = words[0], words[1:]
	}
	switch request := strings.Join(words, " "); {
	case request == "boot":
		return "boot " + c.cfg.BootID, nil
	case request == "uptime":
		return fmt.Sprintf("uptime %d %d", monotonic(), time.Now().UnixNano()), nil
	case request == "dirty":
		return c.dirtyStatus()
	case request == "dirty stop":
		c.stopWriter()
		return "ok", nil
	case verb == "dirty":
		return c.dirty(args)
	case verb == "work" && len(args) == 1:
		d, err := duration("duration", args[0], time.Millisecond, time.Hour)
		if err != nil {
			return "", err
		}
		begin := time.Now()
		iterations := work(ctx, d)
		return fmt.Sprintf("work %d %d", iterations, time.Since(begin).Nanoseconds()), nil
	case request == "speed":
		return fmt.Sprintf("speed %d %d", c.speed.iterations.Load(), monotonic()), nil
	case request == "speed start":
		return "ok", c.startSpeed()
	case request == "speed stop":
		c.stopSpeed()
		return "ok", nil
	case request == "check":
		return c.check()
	case verb == "disk":
		return c.disk.handle(ctx, peer, args)
	case verb == "run":
		return c.loads.handle(ctx, peer, args)
	case request == string(Poweroff), request == string(Reboot), request == string(Panic):
		if c.cfg.Power == nil {
			return "", fmt.Errorf("this machine cannot be told to %s", verb)
		}
		return "ok", nil
	}
	return "", fmt.Errorf("unknown request %q; known are boot, uptime, dirty, work, speed, check, disk, run, poweroff, reboot, panic", strings.Join(words, " "))
}

func (c *control) close() {
	c.stopWriter()
	c.stopSpeed()
	c.disk.close()
}

// monotonic is CLOCK_MONOTONIC in nanoseconds.
func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0 // cannot fail on Linux
	}
	return ts.Nano()
}

// dirtyRequest is a parsed "dirty pages=…".
type dirtyRequest struct {
	pages, area, stamp int // area in pages, stamp in bytes
	every              time.Duration
	random             bool
}

// maxAreaMiB bounds the dirty area; the machine's memory bounds it earlier.
const maxAreaMiB = 64 << 10

func parseDirty(args []string) (dirtyRequest, error) {
	r := dirtyRequest{area: 64 << 20 / pageSize, stamp: 8}
	seen := map[string]bool{}
	for _, arg := range args {
		key, value, _ := strings.Cut(arg, "=")
		if seen[key] {
			return r, fmt.Errorf("%s is given twice", key)
		}
		seen[key] = true
		var n int64
		var err error
		switch key {
		case "pages":
			n, err = number(key, value, 0, math.MaxInt32)
			r.pages = int(n)
		case "area":
			n, err = number(key, value, 1, maxAreaMiB)
			r.area = int(n) << 20 / pageSize
		case "bytes":
			n, err = number(key, value, 8, pageSize)
			r.stamp = int(n)
			if err == nil && n%8 != 0 {
				err = fmt.Errorf("bytes %d is not a multiple of 8", n)
			}
		case "every":
			r.every, err = duration(key, value, time.Millisecond, time.Hour)
		case "pattern":
			r.random = value == "random"
			if value != "random" && value != "seq" {
				err = fmt.Errorf("pattern %q is neither seq nor random", value)
			}
		default:
			err = fmt.Errorf("%q is none of pages, every, pattern, area, bytes", key)
		}
		if err != nil {
			return r, err
		}
	}
	for _, key := range []string{"pages", "every", "pattern"} {
		if !seen[key] {
			return r, fmt.Errorf("%s= is missing", key)
		}
	}
	if r.pages > r.area {
		return r, fmt.Errorf("%d distinct pages do not fit in an area of %d MiB, which has %d", r.pages, r.area*pageSize>>20, r.area)
	}
	return r, nil
}

func (c *control) dirty(args []string) (string, error) {
	r, err := parseDirty(args)
	if err != nil {
		return "", err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.endWriter() // its memory is free before the new area is taken
	if err := enoughMemory(r.area * pageSize); err != nil {
		return "", err
	}
	w, err := startWriter(r)
	if err != nil {
		return "", err
	}
	c.writer = w
	return fmt.Sprintf("ok area=%d", r.area*pageSize>>20), nil
}

// enoughMemory refuses an area that would set the kernel's out-of-memory killer
// on us. 16 MiB stay free.
func enoughMemory(need int) error {
	available, err := availableMemory()
	if err != nil {
		return err
	}
	if int64(need)+16<<20 > available {
		return fmt.Errorf("an area of %d MiB does not fit: %d MiB are available, 16 of them stay free", need>>20, available>>20)
	}
	return nil
}

func (c *control) dirtyStatus() (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.writer == nil {
		return "", errors.New("nothing is being dirtied")
	}
	c.writer.mu.Lock()
	defer c.writer.mu.Unlock()
	w := c.writer
	return fmt.Sprintf("dirty intervals=%d pages=%d late=%d", w.intervals, w.intervals*uint64(w.request.pages), w.late), nil
}

func (c *control) stopWriter() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.endWriter()
}

func (c *control) endWriter() {
	if c.writer != nil {
		c.writer.stop()
		c.writer = nil
	}
}

func (c *control) startSpeed() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.speed.start()
}

func (c *control) stopSpeed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.speed.stop()
}

func (c *control) check() (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := verifyStatic(c.static)
	dirty := 0
	if err == nil && c.writer != nil {
		c.writer.mu.Lock()
		dirty = c.writer.area.area.pages()
		err = c.writer.area.verify()
		c.writer.mu.Unlock()
	}
	var found *damage
	if errors.As(err, &found) {
		return found.Error(), nil
	}
	return fmt.Sprintf("ok pages=%d dirty=%d", c.static.pages(), dirty), err
}
