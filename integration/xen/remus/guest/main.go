// Command guest is all that runs in the guest of the comparison: PID 1 of an initramfs
// with nothing else. Every other millisecond it writes pages as it was asked to, and
// shows that it runs: the page by which it is asked is found by its first bytes
// (cell.Page). Behind what it was asked for, it catches up a few pages at a time, and
// shows that it runs behind each few.
package main

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"understudy/integration/xen/remus/cell"
)

const (
	// tick is how often it does: what a gap is worth.
	tick = 2 * time.Millisecond
	// few is how many pages it writes at most before it shows that it runs: the first
	// write to a page since a checkpoint takes it up to a millisecond where Xen is
	// emulated.
	few = 16
)

func main() {
	runtime.LockOSThread()
	debug.SetGCPercent(-1) // it allocates nothing
	if err := run(); err != nil {
		fmt.Println("guest:", err)
	}
	select {}
}

func memory(pages int) ([]byte, error) {
	return unix.Mmap(-1, 0, pages*cell.PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_LOCKED|unix.MAP_POPULATE)
}

func run() error {
	first, err := memory(1)
	if err != nil {
		return fmt.Errorf("get a page: %w", err)
	}
	area, err := memory(cell.AreaPages)
	if err != nil {
		return fmt.Errorf("get %d pages: %w", cell.AreaPages, err)
	}
	w := writer{area: area, random: 1}
	w.write(cell.AreaPages, cell.PageSize) // no page is zero
	page := cell.NewPage(first)
	page.Begin()
	fmt.Println("guest: up")
	for before := now(); ; {
		if w.owed < 1 {
			pause := unix.NsecToTimespec(int64(tick))
			_ = unix.Nanosleep(&pause, nil) // woken up early, it looks early
		}
		at := now()
		page.Tick(w.due(page.Asked(), at-before))
		before = at
	}
}

// now is the guest's own time, which stands still when it does.
func now() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return 0 // every Linux has it
	}
	return time.Duration(t.Nano())
}

// writer writes pages of an area in turn.
type writer struct {
	area   []byte
	next   int
	random uint64
	owed   float64 // pages
}

// due writes a few pages of what is due after some more time has gone by, and returns
// how many. What it was asked for before it was asked for nothing is forgotten.
func (w *writer) due(l cell.Load, passed time.Duration) uint64 {
	w.owed = min(w.owed+float64(l.Pages)*passed.Seconds(), cell.AreaPages)
	if l.Pages == 0 {
		w.owed = 0
	}
	n := min(int(w.owed), few)
	w.owed -= float64(n)
	w.write(n, l.Bytes)
	return uint64(n)
}

func (w *writer) write(pages, bytes int) {
	for range pages {
		at := w.area[w.next*cell.PageSize:][:bytes]
		for i := 0; i+8 <= len(at); i += 8 {
			w.random ^= w.random << 13
			w.random ^= w.random >> 7
			w.random ^= w.random << 17
			binary.LittleEndian.PutUint64(at[i:], w.random)
		}
		w.next = (w.next + 1) % cell.AreaPages
	}
}
