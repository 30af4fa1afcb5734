package simulation

// The disk under a host's disk.Set: a block is a number, that of the write that
// wrote it last, as a page is.

import (
	"context"
	"encoding/binary"
	"errors"

	"understudy/epoch"
)

const (
	blocks      = 12 // of the guest's disk, a page each
	diskSectors = blocks * epoch.PageSectors
)

// content is what a disk holds.
type content [blocks]uint64

// pageOf writes the bytes of a page, or block, that holds v.
func pageOf(dst []byte, v uint64) {
	clear(dst)
	binary.LittleEndian.PutUint64(dst, v)
}

func valueOf(page []byte) uint64 { return binary.LittleEndian.Uint64(page) }

// media are the bytes, and who may write them.
type media struct {
	now, durable content
	unsynced     [blocks]bool
	shared       bool
	writer       *store
	generation   epoch.Generation
}

// losePower loses of what is not durable a part.
func (m *media) losePower(w *world) {
	for b := range m.unsynced {
		if m.unsynced[b] && w.chance(0.5) {
			m.durable[b] = m.now[b]
		}
		m.unsynced[b] = false
	}
	m.now = m.durable
}

// store is one daemon's way to a media. It implements disk.Store.
type store struct {
	m    *media
	d    *daemon
	dead bool
}

var (
	errStale = errors.New("another owner has begun since")
	errDead  = errors.New("the daemon is dead")
	errDisk  = errors.New("input/output error")
	errLate  = errors.New("on its way when the host stood still")
	errOther = errors.New("another host has the lock")
)

func (s *store) Sectors() uint64 { return diskSectors }
func (s *store) Shared() bool    { return s.m.shared }
func (s *store) Close() error    { return nil }

func (s *store) fails() error {
	w := s.d.w
	switch {
	case s.dead:
		return errDead
	case w.now < s.d.h.diskFails, w.chance(w.faults.diskFails):
		return errDisk
	}
	return nil
}

func (s *store) ReadAt(p []byte, sector uint64) error {
	if err := s.fails(); err != nil {
		return err
	}
	for b := sector / epoch.PageSectors; len(p) > 0; b, p = b+1, p[epoch.PageSize:] {
		pageOf(p[:epoch.PageSize], s.m.now[b])
	}
	return nil
}

func (s *store) WriteAt(p []byte, sector uint64) error {
	values := make([]uint64, 0, blocks)
	for ; len(p) > 0; p = p[epoch.PageSize:] {
		values = append(values, valueOf(p))
	}
	return s.change(sector, values)
}

func (s *store) Zero(sector uint64, sectors uint32, _ bool) error {
	return s.change(sector, make([]uint64, sectors/epoch.PageSectors))
}

// change writes. Who dies in it has written all, nothing or a part; what somebody
// has begun who then stands still lands when he wakes up, whatever the clock
// says.
func (s *store) change(sector uint64, values []uint64) error {
	if err := s.fails(); err != nil {
		if errors.Is(err, errDisk) && s.d.w.breach == failureSwallowed {
			return nil
		}
		return err
	}
	w, first := s.d.w, int(sector/epoch.PageSectors)
	w.oracle.began(s)
	switch {
	case w.at(s.d, s.d.stepOfWrite()):
		for i, v := range values[:w.dice.IntN(len(values)+1)] { // before the lock fell
			s.m.now[first+i], s.m.unsynced[first+i] = v, true
		}
		return errDead
	case s.dead:
		return errDead
	case s.d.isFrozen():
		w.after(s.d.frozen-w.now, func() {
			if !s.dead {
				s.land(first, values)
			}
		})
		return errLate
	}
	s.land(first, values)
	return nil
}

func (s *store) land(first int, values []uint64) {
	w := s.d.w
	w.say(s.d.h.name, "      disk: block %d and on: %v", first, values)
	for i, v := range values {
		w.oracle.landed(s, first+i, v)
		s.m.now[first+i], s.m.unsynced[first+i] = v, true
	}
}

func (s *store) Sync() error {
	if err := s.fails(); err != nil {
		return err
	}
	if s.d.w.at(s.d, stepFlushSync) || s.dead {
		return errDead
	}
	if s.d.w.breach == syncLies {
		return nil
	}
	s.d.w.say(s.d.h.name, "      disk: durable")
	s.m.durable = s.m.now
	s.m.unsynced = [blocks]bool{}
	s.d.w.oracle.synced(s)
	return nil
}

func (s *store) Acquire(_ context.Context, g epoch.Generation) error {
	switch {
	case s.dead:
		return errDead
	case !s.m.shared:
		return nil
	case s.m.writer != nil && s.m.writer != s && s.d.w.breach != lockIgnored:
		return errOther
	case g < s.m.generation: // the record on the disk names a later owner
		return errStale
	}
	s.m.writer, s.m.generation = s, g
	return nil
}

func (s *store) Release() error {
	if s.m.writer == s {
		s.m.writer = nil
	}
	return nil
}

// die is the end of the daemon: the kernel takes its locks.
func (s *store) die() {
	s.dead = true
	_ = s.Release()
}
