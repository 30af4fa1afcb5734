package xen

// This file is the backup's domain as a hypervisor.Standby: its memory is the image.
//
//	Maker.Make ─> Waiting: the domain is there, with all its memory
//	WritePages ─> Waiting.Memory
//	Load: what is missing is fetched ─> Waiting.Finish(tail) ─> a paused Domain
//	Reset: a new Waiting, with the memory of the old one
//	Run: the Domain goes on, as a Guest
//
// Of a domain whose Spec has a Tail the restore is over when Make returns: it is a
// whole domain that has never run, and Finish puts the guest's state in the place of
// the Tail's. Of any other (one with a device model, which takes a state only when it
// starts) the restore has yet to get the last piece of its stream.
//
// Load takes the tail as a whole or not at all. What a restore itself makes anew
// (State.Transient) is the toolstack's from then on: as it is committed, it is kept
// beside the domain.

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"understudy/epoch"
	"understudy/hypervisor"
)

// Maker makes domains that wait for their guest's state, and guests of them.
type Maker interface {
	// Make makes a domain with its memory, restored with the Spec's Tail if there is
	// one.
	Make(ctx context.Context, spec *Spec, frames *Frames) (Waiting, error)
	// Guest makes a Guest of a domain whose restore has ended, and which has yet to
	// run. It owns the domain, unless it fails.
	Guest(ctx context.Context, f *Finished, spec *Spec, frames *Frames, rings []uint64) (*Guest, error)
	// Named is called before such a domain runs.
	Named(f *Finished) error
}

// Finished is a domain that has come of a restore. It stands still.
type Finished struct {
	Number uint32
	Domain Domain
	Ask    Asker
}

// Waiting is a domain that has all but its guest's state.
type Waiting interface {
	// Memory is the domain's memory, the pages of its image in their order. It stays
	// readable until Discard, whatever becomes of the domain.
	Memory() []byte
	// Finish gives the domain its tail. The domain that comes of it stands still;
	// it owns the memory from here on. After an error the domain is gone or of no
	// use, and Discard is all that is left to do.
	Finish(ctx context.Context, tail []byte) (*Finished, error)
	// Discard ends the domain, if it is there, and frees the memory.
	Discard() error
}

// Standby is a domain that will take a guest over. It implements
// hypervisor.Standby.
type Standby struct {
	name   string
	maker  Maker
	spec   *Spec
	frames *Frames

	// life is held for reading by whoever touches memory.
	life    sync.RWMutex
	over    bool
	waiting Waiting
	ready   *Guest            // made by Load, not running yet
	done    *Finished         // what it was made of
	spoilt  bool              // it was given a tail by Load
	kept    map[uint64][]byte // by page: what the restore has made anew, as it was committed
}

var _ hypervisor.Standby = (*Standby)(nil)

// NewStandby makes a domain for the guest that spec describes.
func NewStandby(ctx context.Context, name string, maker Maker, from hypervisor.Spec) (*Standby, error) {
	spec, frames, err := ParseSpec(from)
	if err != nil {
		return nil, fmt.Errorf("stand by for guest %q: %w", name, err)
	}
	s := &Standby{name: name, maker: maker, spec: spec, frames: frames}
	if s.waiting, err = s.make(ctx); err != nil {
		return nil, fmt.Errorf("stand by for guest %q: %w", name, err)
	}
	if err := s.begin(); err != nil {
		return nil, fmt.Errorf("stand by for guest %q: %w", name, errors.Join(err, s.waiting.Discard()))
	}
	return s, nil
}

// begin makes the image zero.
func (s *Standby) begin() error {
	if s.restored() {
		d, err := ParseHead(s.spec.Head)
		if err != nil {
			return err
		}
		state, err := ParseTail(s.spec.Tail, d)
		if err != nil {
			return err
		}
		s.kept = map[uint64][]byte{}
		for _, page := range s.pagesOf(state.Transient()) {
			s.kept[page] = make([]byte, epoch.PageSize)
		}
	}
	s.wipe()
	return nil
}

// restored reports whether the domain's restore was over when Make returned.
func (s *Standby) restored() bool { return len(s.spec.Tail) > 0 }

// wipe makes an image zero, as every standby's is at first: a hypervisor that is
// told not to scrub memory, or scrubs it with a pattern, gives what is not. Pages
// that are zero are not written.
func (s *Standby) wipe() {
	for n := range s.Pages() {
		if page := s.page(n); !isZero(page) {
			clear(page)
		}
	}
}

// zeroPage is what a page is compared with. Nothing writes to it.
var zeroPage [epoch.PageSize]byte

// isZero reports whether every byte of a page is zero. Its first word decides for most.
func isZero(page []byte) bool {
	return binary.NativeEndian.Uint64(page) == 0 && bytes.Equal(page, zeroPage[:])
}

// page is where a page of the image is.
func (s *Standby) page(n uint64) []byte {
	if kept, ok := s.kept[n]; ok {
		return kept
	}
	return s.memory()[n*epoch.PageSize:][:epoch.PageSize]
}

func (s *Standby) make(ctx context.Context) (Waiting, error) {
	w, err := s.maker.Make(ctx, s.spec, s.frames)
	if err == nil && uint64(len(w.Memory())) != s.frames.Pages()*epoch.PageSize {
		err = errors.Join(fmt.Errorf("%d bytes of memory are mapped, the image has %d pages", len(w.Memory()), s.frames.Pages()), w.Discard())
	}
	return w, err
}

// Pages returns the size of the image.
func (s *Standby) Pages() uint64 { return s.frames.Pages() }

// Fill has nothing to do: Load fetches what is missing before anything runs.
func (s *Standby) Fill(epoch.GFN, uint64) error { return nil }

// ReadPages copies pages of the image.
func (s *Standby) ReadPages(first epoch.GFN, dst []byte) error {
	s.life.RLock()
	defer s.life.RUnlock()
	if err := s.usable(first, len(dst)); err != nil {
		return fmt.Errorf("read pages of the standby of %q: %w", s.name, err)
	}
	copy(dst, s.memory()[uint64(first)*epoch.PageSize:])
	if len(s.kept) > 0 {
		for page, content := range s.kept {
			if at := page - uint64(first); page >= uint64(first) && at < uint64(len(dst))/epoch.PageSize {
				copy(dst[at*epoch.PageSize:], content)
			}
		}
	}
	return nil
}

// WritePages copies pages into the image.
func (s *Standby) WritePages(first epoch.GFN, data []byte) error {
	s.life.RLock()
	defer s.life.RUnlock()
	err := s.usable(first, len(data))
	if err == nil && s.spoilt {
		err = errors.New("its restore was given a device state already, Reset it first")
	}
	if err != nil {
		return fmt.Errorf("write pages of the standby of %q: %w", s.name, err)
	}
	// Page by page only where a page is kept: those of the toolstack are its own.
	for page := uint64(first); len(data) > 0; {
		count := uint64(len(data)) / epoch.PageSize
		for kept := range s.kept {
			if kept >= page {
				count = min(count, max(kept-page, 1))
			}
		}
		size := count * epoch.PageSize
		if kept, ok := s.kept[page]; ok {
			copy(kept, data[:size])
		} else {
			copy(s.memory()[page*epoch.PageSize:], data[:size])
		}
		data, page = data[size:], page+count
	}
	return nil
}

func (s *Standby) memory() []byte { return s.waiting.Memory() }

func (s *Standby) usable(first epoch.GFN, size int) error {
	switch {
	case s.over:
		return errOver
	case size%epoch.PageSize != 0 || uint64(first) > s.Pages() || uint64(size)/epoch.PageSize > s.Pages()-uint64(first):
		return fmt.Errorf("%d bytes from page %d on, the image has %d pages", size, first, s.Pages())
	}
	return nil
}

// Load gives the restore what is left of its stream.
func (s *Standby) Load(ctx context.Context, deviceState []byte, missing hypervisor.Filler) error {
	s.life.Lock()
	defer s.life.Unlock()
	err := ctx.Err()
	if err == nil {
		err = s.load(ctx, deviceState, missing)
	}
	if err != nil {
		return fmt.Errorf("load the state of guest %q: %w", s.name, err)
	}
	return nil
}

func (s *Standby) load(ctx context.Context, tail []byte, missing hypervisor.Filler) error {
	if err := s.usable(0, 0); err != nil {
		return err
	}
	if s.spoilt {
		return errors.New("its restore was given a device state already, Reset it first")
	}
	d, err := ParseHead(s.spec.Head)
	if err != nil {
		return err
	}
	state, err := ParseTail(tail, d)
	if err != nil {
		return err
	}
	if err := s.spec.suits(state); err != nil {
		return err
	}
	if err := s.fetch(missing); err != nil {
		return err
	}
	if err := s.keep(state); err != nil {
		return err
	}
	s.spoilt = true
	done, err := s.waiting.Finish(ctx, tail)
	if err != nil {
		return err
	}
	s.done = done
	g, err := s.maker.Guest(ctx, done, s.spec, s.frames, state.Transient())
	if err != nil {
		return errors.Join(err, done.Domain.Destroy()) // its memory is the image still
	}
	s.ready = g
	return nil
}

// fetch brings every page that is missing. A page that cannot be had leaves the
// image as it was.
func (s *Standby) fetch(missing hypervisor.Filler) error {
	if missing == nil {
		return nil
	}
	set := epoch.NewPageSet(s.Pages())
	missing.Missing(set)
	for first, count := range set.Runs {
		for page := first; page < first+epoch.GFN(count); page++ {
			if err := missing.Content(page, s.page(uint64(page))); err != nil {
				return fmt.Errorf("page %d: %w", page, err)
			}
			missing.Filled(page)
		}
	}
	return nil
}

// keep copies what the restore will make anew, if it has not yet.
func (s *Standby) keep(state *State) error {
	pages := s.pagesOf(state.Transient())
	if s.restored() {
		if !slices.Equal(pages, slices.Sorted(maps.Keys(s.kept))) {
			return fmt.Errorf("its rings are at the pages %d, and were at %d when its domain was made", pages, slices.Sorted(maps.Keys(s.kept)))
		}
		return nil
	}
	s.kept = map[uint64][]byte{}
	for _, page := range pages {
		s.kept[page] = bytes.Clone(s.memory()[page*epoch.PageSize:][:epoch.PageSize])
	}
	return nil
}

// pagesOf are the pages of frames that are of the image, in their order.
func (s *Standby) pagesOf(frames []uint64) (pages []uint64) {
	for _, frame := range frames {
		if page, ok := s.frames.Page(frame); ok {
			pages = append(pages, uint64(page))
		}
	}
	return pages
}

// Reset makes a new domain with the same memory. It takes as much memory again for
// as long as it copies.
func (s *Standby) Reset(ctx context.Context) error {
	s.life.Lock()
	defer s.life.Unlock()
	err := ctx.Err()
	if s.over {
		err = errOver
	}
	if err != nil {
		return fmt.Errorf("reset the standby of %q: %w", s.name, err)
	}
	fresh, err := s.make(ctx)
	if err != nil {
		return fmt.Errorf("reset the standby of %q: %w", s.name, err)
	}
	for n := range s.Pages() {
		if _, kept := s.kept[n]; !kept || !s.restored() {
			copy(fresh.Memory()[n*epoch.PageSize:], s.page(n))
		}
	}
	err = errors.Join(s.unload(), s.waiting.Discard())
	s.waiting, s.spoilt = fresh, false
	if !s.restored() {
		s.kept = nil
	}
	if err != nil {
		return fmt.Errorf("reset the standby of %q: end its former domain: %w", s.name, err)
	}
	return nil
}

// Run lets the domain that was loaded go on.
func (s *Standby) Run(ctx context.Context) (hypervisor.Guest, error) {
	s.life.Lock()
	defer s.life.Unlock()
	if s.over || s.ready == nil {
		return nil, fmt.Errorf("run guest %q: nothing is loaded", s.name)
	}
	g := s.ready
	err := ctx.Err()
	if err == nil {
		err = s.maker.Named(s.done)
	}
	if err == nil {
		err = g.Resume(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("run guest %q: %w", s.name, err)
	}
	s.over, s.ready, s.done = true, nil, nil
	return g, nil
}

// Destroy ends the domain and frees the image.
func (s *Standby) Destroy() error {
	s.life.Lock()
	defer s.life.Unlock()
	if s.over {
		return nil
	}
	s.over = true
	if err := errors.Join(s.unload(), s.waiting.Discard()); err != nil {
		return fmt.Errorf("destroy the standby of %q: %w", s.name, err)
	}
	return nil
}

// unload ends what has come of a Load.
func (s *Standby) unload() (err error) {
	if s.ready != nil {
		err = s.ready.Destroy()
	} else if s.done != nil { // no guest could be made of it
		err = s.done.Domain.Close()
	}
	s.ready, s.done = nil, nil
	return err
}
