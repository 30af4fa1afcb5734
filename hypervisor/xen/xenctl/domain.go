//go:build xen

package xenctl

// This file is a running domain as package xen wants it: a mapping of all of its
// memory, its log, its grant table and a channel on which Xen tells of its end.

import (
	"context"
	"errors"
	"fmt"
	"time"

	"understudy/epoch"
	"understudy/hypervisor/xen"
	"understudy/hypervisor/xen/xenstore"
)

// Domain is a running PVH or HVM domain. It implements xen.Domain.
type Domain struct {
	host     *Host
	number   uint32
	emulator *xen.Emulator // nil: PVH
	logs     bool          // the device model does

	memory   *Mapping
	frames   *xen.Frames // of memory
	moves    *Moves
	batch    *Batch
	log      *DirtyLog
	table    *GrantTable
	channel  *Channel
	released *xenstore.Watch // tells of domains that have ended

	// How far the pages are compared with what is mapped (Moved).
	unseen uint64    // pages that have not been since they may have moved
	patrol uint64    // the next of them
	paused time.Time // when the last was
}

var _ xen.Domain = (*Domain)(nil)

// take takes a domain on: its frames are mapped, and its writes are logged from
// here on. The mapping stays the caller's if it fails.
//
// What tells a guest's balloon how much memory to have is removed, and with it what
// `xl mem-set` goes by: a balloon may take memory away, but what it gives back would be
// other memory than is mapped.
func (h *Host) take(ctx context.Context, number uint32, memory *Mapping, frames *xen.Frames) (_ *Domain, err error) {
	d := &Domain{host: h, number: number, frames: frames}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	if d.emulator, err = h.emulator(ctx, number); err != nil {
		return nil, err
	}
	if err = h.store.Remove(ctx, 0, fmt.Sprintf("/local/domain/%d/memory/target", number)); err != nil {
		return nil, err
	}
	if d.moves, err = h.control.Moves(number, d.emulator != nil, func(frame uint64) []byte {
		p, ok := frames.Page(frame)
		if !ok {
			return nil
		}
		return memory.Bytes()[uint64(p)*epoch.PageSize:][:epoch.PageSize]
	}); err != nil {
		return nil, err
	}
	if d.table, err = h.control.Grants(number); err != nil {
		return nil, err
	}
	if d.log, err = h.control.LogDirty(number); err != nil {
		return nil, err
	}
	if d.batch, err = h.control.Batch(number); err != nil {
		return nil, err
	}
	port, err := h.control.AllocPort(number)
	if err != nil {
		return nil, err
	}
	if d.channel, err = h.control.Suspend(number, port); err != nil {
		return nil, err
	}
	if d.released, err = h.store.Watch(ctx, "@releaseDomain"); err != nil {
		return nil, err
	}
	d.memory = memory
	return d, nil
}

// The device model's connection that libxl makes for statistics, beside its own, and
// where its state is put for a moment. /var/run is a tmpfs.
const (
	monitorPath  = "/var/run/xen/qmp-libxenstat-%d"
	emulatorPath = "/var/run/xen"
)

// emulator takes a domain's device model on; nil: it has none.
func (h *Host) emulator(ctx context.Context, number uint32) (*xen.Emulator, error) {
	kind, err := h.store.Read(ctx, 0, fmt.Sprintf("/libxl/%d/type", number))
	if err != nil {
		return nil, fmt.Errorf("ask the toolstack for the type of domain %d: %w", number, err)
	}
	if kind != string(xen.HVM) {
		return nil, nil
	}
	m, err := h.monitor(ctx, fmt.Sprintf(monitorPath, number))
	if err != nil {
		return nil, fmt.Errorf("the device model of domain %d: %w", number, err)
	}
	e, err := xen.NewEmulator(m, emulatorPath)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the device model of domain %d: %w", number, err), m.Close())
	}
	return e, nil
}

// Info is Control.Info.
func (d *Domain) Info() (xen.Info, error) { return d.host.control.Info(d.number) }

// Memory is the mapping. Our own disk back end writes to it, too.
func (d *Domain) Memory() []byte { return d.memory.Bytes() }

// Plot is the domain with its mappings.
func (d *Domain) Plot() xen.Plot {
	return xen.Plot{
		Domain: d.number, Memory: d.memory.Bytes(), Grants: d.table.Grants(), Store: d.host.store,
		Bind: func(port uint32) (xen.Channel, error) {
			p, err := d.host.control.Bind(d.number, port)
			if err != nil {
				return nil, err
			}
			return p, nil
		},
	}
}

// Answers is Control.CallbackSet.
func (d *Domain) Answers() (bool, error) { return d.host.control.CallbackSet(d.number) }

// Still is Emulator.Still.
func (d *Domain) Still(ctx context.Context) error {
	if d.emulator == nil {
		return nil
	}
	return d.emulator.Still(ctx)
}

// Clean is DirtyLog.Clean. It has nothing of what a device model writes that does not
// log, which it does only when the guest has drivers for Xen: before, nothing can
// suspend it.
func (d *Domain) Clean() (words []uint64, whole bool, err error) {
	whole = d.emulator == nil || d.logs
	if !whole {
		if err := d.begin(); err != nil {
			return nil, false, err
		}
	}
	words, err = d.log.Clean()
	return words, whole, err
}

// begin has the device model log, if it is time to.
func (d *Domain) begin() error {
	up, err := d.host.control.CallbackSet(d.number)
	if err != nil || !up {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), monitorPatience)
	defer cancel()
	if err := d.emulator.Log(ctx); err != nil {
		return fmt.Errorf("domain %d: %w", d.number, err)
	}
	d.logs = true
	return nil
}

// What of the image a pause compares with what is mapped, if there is any reason to:
// patrolSlice pages, or all of it if the last pause is longer ago than patrolPause (a
// file is saved, protection begins).
const (
	patrolSlice = 512
	patrolPause = 5 * time.Second
)

// Moved compares pages with what is mapped until each has been since Moves.Told has
// said that some may be elsewhere. To compare all of the image takes as long as to map
// it, and a guest whose hypercalls are not understood (a 32-bit one) has it told in
// every pause. So a pause of many compares a slice.
func (d *Domain) Moved() (uint64, error) {
	told, err := d.moves.Told()
	if err != nil {
		return 0, err
	}
	if told {
		d.unseen = d.frames.Pages()
	}
	first, count := d.patrol, min(d.unseen, patrolSlice, d.frames.Pages()-d.patrol)
	if time.Since(d.paused) > patrolPause && d.unseen > 0 {
		first, count = 0, d.frames.Pages()
	}
	d.paused = time.Now()
	if count == 0 {
		return 0, nil
	}
	info, err := d.Info()
	if err != nil {
		return 0, err
	}
	moved, err := d.memory.Displaced(d.number, d.frames, first, count, d.table, info.Shared)
	if err != nil || moved > 0 {
		return moved, err // and again, if there is another pause
	}
	d.patrol, d.unseen = (first+count)%d.frames.Pages(), d.unseen-min(d.unseen, count)
	return 0, nil
}

// Limit is Control.Limit.
func (d *Domain) Limit(pages uint64) error { return d.host.control.Limit(d.number, pages) }

// Written reads the grant table.
func (d *Domain) Written(yield func(frame uint64) bool) error {
	d.table.Grants().Written(yield)
	return nil
}

// State is Batch.State, and the device model's.
func (d *Domain) State(ctx context.Context, s *xen.State) (err error) {
	if err := d.batch.State(s); err != nil || d.emulator == nil {
		return err
	}
	if s.Emulator, err = d.emulator.AppendState(ctx, s.Emulator[:0]); err != nil {
		return fmt.Errorf("domain %d: %w", d.number, err)
	}
	return nil
}

// Resume is Batch.Resume, and Emulator.Go before it. A domain that was made and never
// ran is unpaused instead.
func (d *Domain) Resume(ctx context.Context) error {
	info, err := d.Info()
	switch {
	case err != nil:
		return err
	case !info.Shutdown && info.Paused && d.emulator == nil:
		return d.host.control.Unpause(d.number)
	case !info.Shutdown && info.Paused:
		return d.host.with(func(t *Toolstack) error { return t.Unpause(d.number) })
	case d.emulator == nil:
		return d.batch.Resume()
	}
	if err := d.emulator.Go(ctx); err != nil {
		// Without a connection to it the toolstack, which makes its own, may still do it.
		if resumed := d.host.with(func(t *Toolstack) error { return t.Resume(d.number) }); resumed != nil {
			return fmt.Errorf("domain %d: %w", d.number, errors.Join(err, resumed))
		}
		return nil
	}
	if err := d.batch.Resume(); err != nil {
		return errors.Join(err, d.emulator.Still(ctx))
	}
	return nil
}

// Await is Channel.Wait.
func (d *Domain) Await(ctx context.Context) error { return d.channel.Wait(ctx, d.released.Changed) }

// Destroy is Toolstack.Destroy.
func (d *Domain) Destroy() error { return d.host.Destroy(d.number) }

// monitorPatience bounds what is said to a device model by nobody who waits.
const monitorPatience = 5 * time.Second

// Close lets go of the domain. Its log ends.
func (d *Domain) Close() error {
	var errs []error
	if d.released != nil {
		errs = append(errs, d.released.End(context.Background()))
	}
	if d.channel != nil {
		errs = append(errs, d.channel.Close())
	}
	if d.log != nil {
		errs = append(errs, d.log.Close())
	}
	if d.moves != nil {
		errs = append(errs, d.moves.Close())
	}
	if d.batch != nil {
		d.batch.Close()
	}
	if d.table != nil {
		errs = append(errs, d.table.Close())
	}
	if d.emulator != nil {
		ctx, cancel := context.WithTimeout(context.Background(), monitorPatience)
		defer cancel()
		errs = append(errs, d.emulator.Close(ctx))
	}
	if d.memory != nil {
		errs = append(errs, d.memory.Close())
	}
	*d = Domain{host: d.host, number: d.number}
	return errors.Join(errs...)
}
