package service

// What keeps the guest busy: the writer that dirties memory and the loop that
// computes.

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// writer owns one goroutine that dirties pages at each interval until stop.
type writer struct {
	request dirtyRequest
	quit    chan struct{}
	done    chan struct{}

	mu        sync.Mutex // held while an interval's pages are written
	area      *dirtyArea
	intervals uint64
	late      uint64
}

func startWriter(r dirtyRequest) (*writer, error) {
	a, err := newDirtyArea(r.area, r.stamp, r.random)
	if err != nil {
		return nil, err
	}
	w := &writer{request: r, area: a, quit: make(chan struct{}), done: make(chan struct{})}
	go w.run()
	return w, nil
}

// stop ends the goroutine and gives the area back.
func (w *writer) stop() {
	close(w.quit)
	<-w.done
	w.area.area.close()
}

func (w *writer) run() {
	defer close(w.done)
	due := time.Now().Add(w.request.every)
	timer := time.NewTimer(w.request.every)
	defer timer.Stop()
	for {
		select {
		case <-w.quit:
			return
		case <-timer.C:
		}
		w.mu.Lock()
		w.area.visit(w.request.pages)
		w.intervals++
		// An interval that was missed is counted, not made up for: a burst of
		// many intervals at once would dirty more than n pages.
		due = due.Add(w.request.every)
		if now := time.Now(); !due.After(now) {
			w.late++
			due = now.Add(w.request.every)
		}
		w.mu.Unlock()
		timer.Reset(time.Until(due))
	}
}

// loopBatch is how many iterations are done between two looks at the clock.
const loopBatch = 20_000

// loop computes n iterations on x; its result keeps the compiler from leaving
// the loop out.
func loop(x uint64, n int) uint64 {
	for range n {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
	}
	return x
}

// work computes for d and returns the iterations done.
func work(ctx context.Context, d time.Duration) uint64 {
	end := time.Now().Add(d)
	x, n := uint64(1), uint64(0)
	for time.Now().Before(end) && ctx.Err() == nil {
		x = loop(x, loopBatch)
		n += loopBatch
	}
	runtime.KeepAlive(x)
	return n
}

// background is the same loop on a thread of the lowest priority. start and
// stop are called under control.mu.
type background struct {
	iterations atomic.Uint64
	quit, done chan struct{}
}

func (b *background) start() error {
	if b.quit != nil {
		return nil
	}
	b.quit, b.done = make(chan struct{}), make(chan struct{})
	niced := make(chan error)
	go func() {
		defer close(b.done)
		// Never unlocked: the thread ends with the goroutine, and its
		// priority with it.
		runtime.LockOSThread()
		err := unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), 19)
		niced <- err
		if err != nil {
			return
		}
		x := uint64(1)
		for {
			select {
			case <-b.quit:
				runtime.KeepAlive(x)
				return
			default:
				x = loop(x, loopBatch)
				b.iterations.Add(loopBatch)
			}
		}
	}()
	if err := <-niced; err != nil {
		b.stop()
		return fmt.Errorf("lower the loop's priority: %w", err)
	}
	return nil
}

func (b *background) stop() {
	if b.quit != nil {
		close(b.quit)
		<-b.done
		b.quit, b.done = nil, nil
	}
}

// availableMemory is MemAvailable of /proc/meminfo (proc(5)), in bytes.
func availableMemory() (int64, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, fmt.Errorf("ask for the available memory: %w", err)
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var kib int64
		if rest, ok := strings.CutPrefix(lines.Text(), "MemAvailable:"); ok {
			if _, err := fmt.Sscanf(rest, "%d kB", &kib); err != nil {
				return 0, fmt.Errorf("ask for the available memory: /proc/meminfo says %q", lines.Text())
			}
			return kib << 10, nil
		}
	}
	return 0, fmt.Errorf("ask for the available memory: /proc/meminfo has no MemAvailable")
}
