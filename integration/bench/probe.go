package main

// The probe stands between a primary and its guest. Every other epoch is the
// primary's alone and its pause is a sample. At the end of the epochs between
// them, where the primary is about to pause, the probe first measures the floor
// or a migration on the same guest, and the primary's pause after it is not
// counted. So each kind of round follows an epoch in which the guest ran and
// dirtied its pages, and what the machine has to bear meanwhile hits all alike.
//
// What a floor round collects belongs to the primary: it gets those pages with
// its next collection.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"understudy/epoch"
	"understudy/hypervisor"
	"understudy/hypervisor/qemu"
	"understudy/primary"
)

// floorSample is one floor: what no checkpoint of this guest can do without.
type floorSample struct {
	Stop, Scan, Device, Copy, Cont time.Duration
	Pages                          uint64
}

// sum is the floor as it is defined: its steps one after the other.
func (f floorSample) sum() time.Duration { return f.Stop + f.Scan + f.Device + f.Copy + f.Cont }

// overlapped is a lower floor, of somebody with a second processor.
func (f floorSample) overlapped() time.Duration {
	return f.Stop + max(f.Device, f.Scan+f.Copy) + f.Cont
}

// round is what an epoch ends with.
type round uint8

const (
	roundPause round = iota
	roundFloor
	roundMigrate
)

// migrateEvery is how many rounds lie between two migrations.
const migrateEvery = 20

// roundAt is the kind of the i-th round: pauses and floors take turns.
func roundAt(i int) round {
	switch {
	case i%migrateEvery == migrateEvery-1:
		return roundMigrate
	case i%2 == 1:
		return roundFloor
	}
	return roundPause
}

// samples are what was measured in one scenario.
type samples struct {
	pauses     []primary.Cost
	floors     []floorSample
	migrations []time.Duration
}

type probe struct {
	*qemu.Guest
	memory []byte // our own mapping of the guest's memory
	target []byte // where a floor's memcpy goes, touched ahead
	stream *os.File
	found  *epoch.PageSet // scratch
	owed   *epoch.PageSet // collected by a floor, not yet seen by the primary
	state  []byte

	mu      sync.Mutex
	on      bool
	round   int
	current round
	taken   samples
	failure error
}

// targetBytes is room for any floor's pages; more go round in it.
const targetBytes = 128 << 20

func newProbe(g *qemu.Guest, images string) (_ *probe, err error) {
	p := &probe{Guest: g, found: epoch.NewPageSet(g.Pages()), owed: epoch.NewPageSet(g.Pages())}
	file, err := memoryOf(images)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if p.memory, err = unix.Mmap(int(file.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED); err != nil {
		return nil, fmt.Errorf("map the guest's memory: %w", err)
	}
	p.target, err = unix.Mmap(-1, 0, targetBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, errors.Join(err, unix.Munmap(p.memory))
	}
	_ = unix.Madvise(p.target, unix.MADV_HUGEPAGE) // a faster floor; without it it works as well
	for i := 0; i < len(p.target); i += epoch.PageSize {
		p.target[i] = 1
	}
	fd, err := unix.MemfdCreate("migration", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, errors.Join(err, unix.Munmap(p.memory), unix.Munmap(p.target))
	}
	p.stream = os.NewFile(uintptr(fd), "migration")
	return p, nil
}

// close destroys the guest.
func (p *probe) close() error {
	return errors.Join(p.Destroy(), unix.Munmap(p.memory), unix.Munmap(p.target), p.stream.Close())
}

// begin starts to measure; end returns what was measured.
func (p *probe) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.on, p.round, p.current, p.taken, p.failure = true, 0, roundMigrate, samples{}, nil
}

func (p *probe) end() (samples, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.on = false
	return p.taken, p.failure
}

// progress tells how many pauses have been measured.
func (p *probe) progress() (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.taken.pauses), p.failure
}

// observe gets the cost of each checkpoint from the primary.
func (p *probe) observe(c primary.Cost) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.on && p.current == roundPause {
		p.taken.pauses = append(p.taken.pauses, c)
	}
}

// Pause is where a round of another kind comes in.
func (p *probe) Pause(ctx context.Context) error {
	p.mu.Lock()
	kind := roundPause
	if p.on {
		kind = roundAt(p.round)
		p.current = kind
		p.round++
	}
	p.mu.Unlock()
	var err error
	switch kind {
	case roundFloor:
		err = p.floor(ctx)
	case roundMigrate:
		err = p.migrate(ctx)
	}
	if err != nil {
		p.mu.Lock()
		p.failure = errors.Join(p.failure, err)
		p.mu.Unlock()
	}
	return p.Guest.Pause(ctx)
}

// CollectDirty adds what floor rounds have collected meanwhile.
func (p *probe) CollectDirty(set *epoch.PageSet) error {
	set.Union(p.owed)
	if err := p.Guest.CollectDirty(set); err != nil {
		return err
	}
	p.owed.Clear()
	return nil
}

// floor measures stop, an empty scan, the device state, one memcpy of the
// dirty pages from a mapping of the guest's memory to memory touched ahead, and
// cont.
func (p *probe) floor(ctx context.Context) error {
	var f floorSample
	at := time.Now()
	lap := func() time.Duration {
		now := time.Now()
		d := now.Sub(at)
		at = now
		return d
	}
	if err := p.Guest.Pause(ctx); err != nil {
		return err
	}
	f.Stop = lap()
	p.found.Clear()
	err := p.Guest.CollectDirty(p.found)
	if err != nil {
		p.owed.Fill()
		return errors.Join(err, p.Guest.Resume(ctx))
	}
	p.owed.Union(p.found)
	p.populate()
	lap() // making the scan empty is no part of the floor
	err = p.Guest.CollectDirty(p.owed)
	f.Scan = lap()
	if err == nil {
		p.state, err = p.AppendDeviceState(ctx, p.state[:0])
	}
	f.Device = lap()
	f.Pages = p.memcpy()
	f.Copy = lap()
	err = errors.Join(err, p.Guest.Resume(ctx))
	f.Cont = lap()
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.taken.floors = append(p.taken.floors, f)
	p.mu.Unlock()
	return nil
}

// populate fills our page tables for the pages that were found. They exist:
// the guest has written them.
func (p *probe) populate() {
	for first, count := range p.found.Runs {
		from, to := p.bytes(first, count)
		if from < to {
			_ = unix.Madvise(p.memory[from:to], unix.MADV_POPULATE_READ) // only speed is lost
		}
	}
}

// memcpy copies the pages that were found. The few outside main memory are
// left out.
func (p *probe) memcpy() (pages uint64) {
	into := p.target
	for first, count := range p.found.Runs {
		from, to := p.bytes(first, count)
		for from < to {
			if len(into) == 0 {
				into = p.target
			}
			n := copy(into, p.memory[from:to])
			into, from = into[n:], from+uint64(n)
			pages += uint64(n) / epoch.PageSize
		}
	}
	return pages
}

// bytes is where pages lie in main memory, empty if they do not.
func (p *probe) bytes(first epoch.GFN, count uint64) (from, to uint64) {
	size := uint64(len(p.memory))
	return min(uint64(first)*epoch.PageSize, size), min((uint64(first)+count)*epoch.PageSize, size)
}

// migrate measures a checkpoint by QEMU's own means, its dirty pages not
// included: stop, a migration stream without main memory, cont.
func (p *probe) migrate(ctx context.Context) error {
	if err := p.stream.Truncate(0); err != nil {
		return err
	}
	if _, err := p.stream.Seek(0, 0); err != nil {
		return err
	}
	begin := time.Now()
	if err := p.Guest.Pause(ctx); err != nil {
		return err
	}
	err := p.Migrate(ctx, p.stream)
	err = errors.Join(err, p.Guest.Resume(ctx))
	took := time.Since(begin)
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.taken.migrations = append(p.taken.migrations, took)
	p.mu.Unlock()
	return nil
}

var _ hypervisor.Guest = (*probe)(nil)
