// Package disktest has a disk store in memory for tests: one Media is the bytes,
// and each host reaches them through a Store of its own.
//
//	Store (one host's handle: hook, death) ── Media (bytes, lock)
//
// A Media knows which of its bytes are durable, so that a test can take the
// power away and lose any part of the rest.
package disktest

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"understudy/epoch"
)

const sectorSize = epoch.SectorSize

var (
	// ErrDead is returned by every call of a Store after Kill.
	ErrDead = errors.New("disktest: the host is dead")
	// ErrNotWriter is returned for a write by a host that has not the lock.
	ErrNotWriter = errors.New("disktest: not the writer")
	// ErrStale is returned by Acquire in a generation lower than the last.
	ErrStale = errors.New("disktest: the generation is over")
)

// Media is the bytes of a disk.
type Media struct {
	sectors uint64
	shared  bool

	mu         sync.Mutex
	changed    chan struct{}
	now        []byte
	durable    []byte
	unsynced   []change
	writer     *Store
	generation epoch.Generation
}

// change is a write that is not durable.
type change struct {
	sector uint64
	data   []byte
}

// NewMedia returns a disk of zeros. shared: its Stores say that both hosts reach
// the same bytes, and exclude each other as writers.
func NewMedia(sectors uint64, shared bool) *Media {
	return &Media{
		sectors: sectors, shared: shared, changed: make(chan struct{}),
		now: make([]byte, sectors*sectorSize), durable: make([]byte, sectors*sectorSize),
	}
}

// Bytes returns a copy of what a reader sees.
func (m *Media) Bytes() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]byte(nil), m.now...)
}

// Durable returns a copy of what would survive a loss of power that spares
// nothing.
func (m *Media) Durable() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]byte(nil), m.durable...)
}

// Set gives the disk its content.
func (m *Media) Set(content []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(m.now, content)
	copy(m.durable, content)
	m.unsynced = nil
}

// Unsynced returns how many sectors' writes are not durable.
func (m *Media) Unsynced() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for _, c := range m.unsynced {
		n += len(c.data) / sectorSize
	}
	return n
}

// LosePower keeps of the writes that are not durable those sectors that keep
// says, which is asked in the order in which they were written.
func (m *Media) LosePower(keep func() bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.unsynced {
		for at := 0; at < len(c.data); at += sectorSize {
			if keep() {
				copy(m.durable[c.sector*sectorSize+uint64(at):], c.data[at:at+sectorSize])
			}
		}
	}
	m.unsynced = nil
	copy(m.now, m.durable)
}

func (m *Media) tell() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// Op names a call of a Store.
type Op string

// The calls that a hook is told of.
const (
	Read    Op = "read"
	Write   Op = "write"
	Zero    Op = "zero"
	Sync    Op = "sync"
	Acquire Op = "acquire"
	Release Op = "release"
)

// Call is one call of a Store.
type Call struct {
	Op      Op
	Sector  uint64
	Sectors uint32
}

// Hook is asked before a call takes effect, without any lock: it may wait, and
// its error is the call's.
type Hook func(Call) error

// Store is one host's way to a Media. It implements disk.Store.
type Store struct {
	m *Media

	mu   sync.Mutex
	hook Hook
	dead bool
}

// Open returns a Store.
func (m *Media) Open() *Store { return &Store{m: m} }

// SetHook replaces the hook; nil: none.
func (s *Store) SetHook(h Hook) {
	s.mu.Lock()
	s.hook = h
	s.mu.Unlock()
}

// Kill ends the host: every call fails from now on, and its lock falls.
func (s *Store) Kill() {
	s.mu.Lock()
	s.dead = true
	s.mu.Unlock()
	s.drop()
}

func (s *Store) drop() {
	s.m.mu.Lock()
	if s.m.writer == s {
		s.m.writer = nil
		s.m.tell()
	}
	s.m.mu.Unlock()
}

func (s *Store) call(op Op, sector uint64, sectors uint32) error {
	s.mu.Lock()
	h := s.hook
	s.mu.Unlock()
	if h != nil {
		if err := h(Call{op, sector, sectors}); err != nil {
			return fmt.Errorf("%s of %d sectors from %d on: %w", op, sectors, sector, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead {
		return ErrDead
	}
	return nil
}

// Sectors is the size.
func (s *Store) Sectors() uint64 { return s.m.sectors }

// Shared says what NewMedia was told.
func (s *Store) Shared() bool { return s.m.shared }

func (s *Store) check(sector uint64, bytes int) error {
	if bytes%sectorSize != 0 || sector > s.m.sectors || uint64(bytes/sectorSize) > s.m.sectors-sector {
		return fmt.Errorf("disktest: %d bytes from sector %d on: outside the disk", bytes, sector)
	}
	return nil
}

// ReadAt reads.
func (s *Store) ReadAt(p []byte, sector uint64) error {
	if err := s.check(sector, len(p)); err != nil {
		return err
	}
	if err := s.call(Read, sector, uint32(len(p)/sectorSize)); err != nil {
		return err
	}
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	copy(p, s.m.now[sector*sectorSize:])
	return nil
}

// WriteAt writes; the bytes are durable after Sync.
func (s *Store) WriteAt(p []byte, sector uint64) error {
	if err := s.check(sector, len(p)); err != nil {
		return err
	}
	if err := s.call(Write, sector, uint32(len(p)/sectorSize)); err != nil {
		return err
	}
	return s.put(p, sector)
}

// Zero makes sectors zero.
func (s *Store) Zero(sector uint64, sectors uint32, _ bool) error {
	n := int(sectors) * sectorSize
	if err := s.check(sector, n); err != nil {
		return err
	}
	if err := s.call(Zero, sector, sectors); err != nil {
		return err
	}
	return s.put(make([]byte, n), sector)
}

func (s *Store) put(p []byte, sector uint64) error {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if s.m.shared && s.m.writer != s {
		return ErrNotWriter
	}
	copy(s.m.now[sector*sectorSize:], p)
	s.m.unsynced = append(s.m.unsynced, change{sector, append([]byte(nil), p...)})
	return nil
}

// Sync makes every write durable.
func (s *Store) Sync() error {
	if err := s.call(Sync, 0, 0); err != nil {
		return err
	}
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	for _, c := range s.m.unsynced {
		copy(s.m.durable[c.sector*sectorSize:], c.data)
	}
	s.m.unsynced = nil
	return nil
}

// Acquire waits for another host's lock.
func (s *Store) Acquire(ctx context.Context, g epoch.Generation) error {
	if err := s.call(Acquire, 0, 0); err != nil {
		return err
	}
	for {
		s.m.mu.Lock()
		if s.m.writer == nil || s.m.writer == s {
			stale := g < s.m.generation
			if !stale {
				s.m.writer, s.m.generation = s, g
			}
			s.m.mu.Unlock()
			if stale {
				return ErrStale
			}
			return nil
		}
		ch := s.m.changed
		s.m.mu.Unlock()
		select {
		case <-ch:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Release lets go.
func (s *Store) Release() error {
	if err := s.call(Release, 0, 0); err != nil {
		return err
	}
	s.drop()
	return nil
}

// Close lets go.
func (s *Store) Close() error {
	s.drop()
	return nil
}
