//go:build xen

package xenctl

// This file is a running domain as package xen wants it: a mapping of all of its
// memory, its log, its grant table and a channel on which Xen tells of its end.

import (
	"context"
	"errors"
	"fmt"

	"understudy/hypervisor/xen"
)

// Domain is a running PVH or HVM domain. It implements xen.Domain.
type Domain struct {
	control  *Control
	tools    *Toolstack
	number   uint32
	emulator func(ctx context.Context, dst []byte) ([]byte, error)

	memory  *Mapping
	log     *DirtyLog
	table   *GrantTable
	channel *Channel
}

var _ xen.Domain = (*Domain)(nil)

// Attach takes a domain on: its frames are mapped, and its writes are logged from
// here on. emulator saves the state of its device model; nil for PVH. The Control
// and the Toolstack stay the caller's, and are not closed before.
func (c *Control) Attach(domain uint32, frames *xen.Frames, tools *Toolstack, emulator func(ctx context.Context, dst []byte) ([]byte, error)) (*Domain, error) {
	memory, err := c.Map(domain, frames, true)
	if err != nil {
		return nil, err
	}
	d, err := c.attach(domain, memory, tools, emulator)
	if err != nil {
		return nil, errors.Join(err, memory.Close())
	}
	return d, nil
}

// attach is Attach with a mapping that is there, which stays the caller's if it
// fails.
func (c *Control) attach(domain uint32, memory *Mapping, tools *Toolstack, emulator func(ctx context.Context, dst []byte) ([]byte, error)) (_ *Domain, err error) {
	d := &Domain{control: c, tools: tools, number: domain, emulator: emulator}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	if d.table, err = c.Grants(domain); err != nil {
		return nil, err
	}
	if d.log, err = c.LogDirty(domain); err != nil {
		return nil, err
	}
	port, err := c.AllocPort(domain)
	if err != nil {
		return nil, err
	}
	if d.channel, err = c.Suspend(domain, port); err != nil {
		return nil, err
	}
	d.memory = memory
	return d, nil
}

// Info is Control.Info.
func (d *Domain) Info() (xen.Info, error) { return d.control.Info(d.number) }

// Memory is the mapping. Our own disk back end writes to it, too.
func (d *Domain) Memory() []byte { return d.memory.Bytes() }

// Clean is DirtyLog.Clean.
func (d *Domain) Clean() ([]uint64, error) { return d.log.Clean() }

// Written reads the grant table, which is mapped anew when it has grown.
func (d *Domain) Written(yield func(frame uint64) bool) error {
	size, err := d.control.grantTableSize(d.number)
	if err != nil {
		return err
	}
	if size != len(d.table.grants) {
		table, err := d.control.Grants(d.number)
		if err != nil {
			return err
		}
		if err := d.table.Close(); err != nil {
			return err
		}
		d.table = table
	}
	d.table.Grants().Written(yield)
	return nil
}

// State is TSC, Params, AppendContext, and the device model's.
func (d *Domain) State(ctx context.Context, s *xen.State) (err error) {
	if s.TSC, err = d.control.TSC(d.number); err != nil {
		return err
	}
	if s.Params, err = d.control.Params(d.number, s.Params[:0]); err != nil {
		return err
	}
	if s.Context, err = d.control.AppendContext(d.number, s.Context[:0]); err != nil {
		return err
	}
	if d.emulator == nil {
		return nil
	}
	if s.Emulator, err = d.emulator(ctx, s.Emulator[:0]); err != nil {
		return fmt.Errorf("save the state of domain %d's device model: %w", d.number, err)
	}
	return nil
}

// Resume is Control.Resume. A domain that was made and never ran is unpaused
// instead; one with a device model is resumed by the toolstack, which resumes that
// too.
func (d *Domain) Resume(context.Context) error {
	info, err := d.Info()
	switch {
	case err != nil:
		return err
	case !info.Shutdown && info.Paused:
		return d.tools.Unpause(d.number)
	case d.emulator != nil:
		return d.tools.Resume(d.number)
	}
	return d.control.Resume(d.number)
}

// Await is Channel.Wait.
func (d *Domain) Await(ctx context.Context) error { return d.channel.Wait(ctx) }

// Destroy is Toolstack.Destroy.
func (d *Domain) Destroy() error { return d.tools.Destroy(d.number) }

// Close lets go of the domain. Its log ends.
func (d *Domain) Close() error {
	var errs []error
	if d.channel != nil {
		errs = append(errs, d.channel.Close())
	}
	if d.log != nil {
		errs = append(errs, d.log.Close())
	}
	if d.table != nil {
		errs = append(errs, d.table.Close())
	}
	if d.memory != nil {
		errs = append(errs, d.memory.Close())
	}
	*d = Domain{control: d.control, tools: d.tools, number: d.number}
	return errors.Join(errs...)
}
