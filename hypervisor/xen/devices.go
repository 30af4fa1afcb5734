package xen

// This file is what a Guest and the back ends of its devices, which are ours and
// not the toolstack's, want of each other.
//
//	a domain is made, restored or found ─> Devices.Plug ─> Plugged, stopped
//	Guest.Resume ─> Start ─> the domain runs … it has suspended ─> Stop
//	the domain is gone ─> Unplug; or its process goes and leaves it ─> Leave

import (
	"context"
	"errors"

	"understudy/epoch"
	"understudy/hypervisor/xen/xenstore"
)

// Plot is a domain of this host whose devices are to be served. What is in it may
// be used until Unplug, or Leave, has returned.
type Plot struct {
	Domain uint32  // its number
	Frames *Frames // which of its frames are pages of the image
	// Memory is all of its memory, the pages of the image in their order.
	Memory []byte
	// Grants is its grant table, as large as it may become.
	Grants Grants
	Store  *xenstore.Client
	// Bind binds to a port that the guest has made for us.
	Bind func(port uint32) (Channel, error)
}

// Channel is an event channel between a guest's driver and a back end.
type Channel interface {
	// Wait returns after the guest has told us something since Wait returned last,
	// or with an error once Close was called.
	Wait() error
	// Notify tells the guest.
	Notify() error
	// Close ends the channel, and a Wait.
	Close() error
}

// Devices are the back ends of one guest's disks and network devices. The domain is
// made without any: they write into xenstore what its drivers look for.
type Devices interface {
	// Plug makes the devices of a domain that stands still. restored: its drivers were
	// connected where it ran before, and connect anew. Nothing is served before Start.
	Plug(ctx context.Context, p Plot, restored bool) (Plugged, error)
}

// Plugged are the devices of one domain.
type Plugged interface {
	// Start serves: the domain is about to run.
	Start()
	// Stop returns when nothing of the domain's memory is written any more, until
	// Start. It waits for no disk and no network. The domain has just suspended.
	Stop()
	// CollectDirty adds the pages that were written since it was called last, unless
	// somebody else is told of them.
	CollectDirty(set *epoch.PageSet) error
	// Unplug ends serving, and removes what Plug wrote. The domain may be gone. A
	// second call does nothing.
	Unplug() error
	// Leave ends serving, and leaves everything as it is for a next process.
	Leave() error
}

// Join makes one of several.
func Join(all ...Devices) Devices { return joined(all) }

type joined []Devices

func (j joined) Plug(ctx context.Context, p Plot, restored bool) (Plugged, error) {
	var all plugs
	for _, one := range j {
		plug, err := one.Plug(ctx, p, restored)
		if err != nil {
			return nil, errors.Join(err, all.Unplug())
		}
		all = append(all, plug)
	}
	return all, nil
}

type plugs []Plugged

func (all plugs) Start() {
	for _, one := range all {
		one.Start()
	}
}

func (all plugs) Stop() {
	for _, one := range all {
		one.Stop()
	}
}

func (all plugs) CollectDirty(set *epoch.PageSet) error {
	var errs []error
	for _, one := range all {
		errs = append(errs, one.CollectDirty(set))
	}
	return errors.Join(errs...)
}

func (all plugs) Unplug() error {
	var errs []error
	for _, one := range all {
		errs = append(errs, one.Unplug())
	}
	return errors.Join(errs...)
}

func (all plugs) Leave() error {
	var errs []error
	for _, one := range all {
		errs = append(errs, one.Leave())
	}
	return errors.Join(errs...)
}
