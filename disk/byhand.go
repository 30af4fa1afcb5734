package disk

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"understudy/epoch"
)

// This file is a Set without goroutines, for a simulation that decides itself
// when a flusher works:
//
//	NewByHand ── every method as of any Set ── Work: one job of one flusher
//
// What would wait is called with a context that has ended: it then does all it
// can do at once, or says that it would have to wait.

// ByHandBytes is how much memory NewByHand wants.
const ByHandBytes = journalHeader + (MinHeldBytes+journalHeader-1)/journalHeader*journalHeader + (maxRecord+journalHeader-1)/journalHeader*journalHeader

// NewByHand is NewSet, but that no goroutine is started, and that held writes
// are kept in memory, which outlives the Set as a journal in JournalDir outlives
// its process. Memory of zeros is a journal that is not there. HeldBytes may be as
// small as one likes, at most MinHeldBytes, which 0 means; one write always finds
// room. JournalDir means nothing.
func NewByHand(c SetConfig, memory []byte) (*Set, error) {
	limit := uint64(MinHeldBytes)
	if c.HeldBytes > 0 {
		limit = min(limit, uint64(c.HeldBytes))
	}
	c.HeldBytes, c.JournalDir = MinHeldBytes, ""
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("disks: %w", err)
	}
	if len(memory) != ByHandBytes {
		return nil, fmt.Errorf("disks: %d bytes for held writes, want %d", len(memory), ByHandBytes)
	}
	j := &journal{mem: memory, ring: memory[journalHeader:]}
	found := j.word(0).Load() != 0
	if !found {
		j.format()
	}
	s := &Set{
		clock: c.Clock, index: c.Index, log: c.Log, dirty: newDirtyPages(c.Pages), held: newHeld(j, limit),
		pressure: make(chan struct{}, 1), done: make(chan struct{}), stop: func() {},
	}
	s.core = core{unfenced: c.Unfenced, guard: c.Guard, log: s.held.entries, asOf: ^uint64(0)}
	for i, d := range c.Disks {
		s.disks = append(s.disks, newDevice(s, epoch.DiskID(i), d))
	}
	s.syncAllLocked()
	if found {
		if err := s.recover(); err != nil {
			return nil, fmt.Errorf("disks: %w", err)
		}
	}
	s.recovered.Missing = s.recovered.Generation == 0
	return s, nil
}

// ByHandMemory returns memory for NewByHand. It costs nothing until it is used.
func ByHandMemory() ([]byte, error) {
	return unix.Mmap(-1, 0, ByHandBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
}

// FreeByHand gives such memory back; no Set may use it any more.
func FreeByHand(memory []byte) error { return unix.Munmap(memory) }

// Worked says what flushers have done.
type Worked struct {
	Did     bool          // something
	Flushed bool          // a batch is durable, and reported
	Again   time.Duration // one of them waits so long before it tries anew what failed; 0: none does
}

// Work lets the flusher of each disk take one action, so that anything may happen
// between two of them. A store's Acquire must not wait; it fails while another host
// is the writer.
func (s *Set) Work() (w Worked) {
	ended, cancel := context.WithCancel(context.Background())
	cancel() // a lock that is not to be had is asked for again
	for _, d := range s.disks {
		switch a := d.next(ended); a.do {
		case doEnd:
		case doWait:
			if a.until != 0 {
				w.Again = max(w.Again, a.until.Sub(s.clock.Now()))
			}
		default:
			d.carryOut(a)
			w.Did, w.Flushed = true, w.Flushed || a.do == doReport
		}
	}
	return w
}

// DrainByHand is Drain, after one action of each flusher.
func (s *Set) DrainByHand() error {
	s.mu.Lock()
	s.core.drain(1)
	s.mu.Unlock()
	s.Work()
	s.mu.Lock()
	s.core.drain(-1)
	s.mu.Unlock()
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	return s.Drain(ended)
}
