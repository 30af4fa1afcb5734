package disk

import (
	"context"
	"errors"
	"fmt"

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
// its process. Memory of zeros is a journal that is not there. HeldBytes and
// JournalDir mean nothing.
func NewByHand(c SetConfig, memory []byte) (*Set, error) {
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
		unfenced: c.Unfenced, guard: c.Guard, clock: c.Clock, index: c.Index, log: c.Log, dirty: newDirtyPages(c.Pages),
		held: newHeld(j, uint64(c.HeldBytes)), asOf: ^uint64(0),
		pressure: make(chan struct{}, 1), done: make(chan struct{}), stop: func() {},
	}
	for i, d := range c.Disks {
		s.disks = append(s.disks, newDevice(s, epoch.DiskID(i), d))
	}
	s.syncAllLocked()
	if found {
		if err := s.recover(); err != nil {
			return nil, fmt.Errorf("disks: %w", err)
		}
	}
	return s, nil
}

// ByHandMemory returns memory for NewByHand. It costs nothing until it is used.
func ByHandMemory() ([]byte, error) {
	return unix.Mmap(-1, 0, ByHandBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
}

// FreeByHand gives such memory back; no Set may use it any more.
func FreeByHand(memory []byte) error { return unix.Munmap(memory) }

// Work lets the flusher of each disk do one job, if it has one, and reports
// whether any had. A store's Acquire must not wait; it fails while another host
// is the writer.
func (s *Set) Work() (did bool) {
	ended, cancel := context.WithCancel(context.Background())
	cancel() // a lock that is not to be had is asked for again
	for _, d := range s.disks {
		var err error
		switch d.next() {
		case jobAcquire:
			err = d.acquire(ended)
		case jobSettle:
			err = d.settle()
		case jobFlush:
			err = d.flushBatch()
		default:
			continue
		}
		d.after(err)
		did = true
		if err != nil && !errors.Is(err, errPaused) {
			d.failures++
		} else {
			d.failures = 0
		}
	}
	return did
}

// DrainByHand is Drain, after one job of each flusher.
func (s *Set) DrainByHand() error {
	s.mu.Lock()
	s.draining++
	s.mu.Unlock()
	s.Work()
	s.mu.Lock()
	s.draining--
	s.mu.Unlock()
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	return s.Drain(ended)
}
