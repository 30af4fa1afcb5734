package xen

// This file is the hypervisor.Driver: it makes a guest's domains on one host, and
// finds those that a former process has left.
//
//	Start:   Host.Create "web.new-…" ─> establish (attach, plug) ─> named "web"
//	Adopt:   the domain of our UUID that is named "web" ─> establish ─> it suspends
//	Standby: Host.Make "web.standby-…", which waits for its last piece ─> Run: named "web"
//	Clean:   every domain of our UUID is destroyed
//
// Nothing of it is kept in files: a domain's UUID says whose it is, its name what it
// is for, and both end with the domain.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"syscall"

	"understudy/hypervisor"
)

// Named is a domain and its name.
type Named struct {
	Info
	Name string
}

// Attached is a domain that was taken on.
type Attached struct {
	Domain Domain
	Ask    Asker
	Frames *Frames
	Head   []byte   // of its stream
	Rings  []uint64 // frames that others write to for good
}

// Host is what a Driver needs of the Xen host that it is on. Its methods may be
// called from several goroutines.
type Host interface {
	// Make is Maker.Make. The configuration of libxl's is spec.Config.
	Make(ctx context.Context, spec *Spec, frames *Frames) (Waiting, error)
	// Create makes a domain of a configuration of libxl's, paused. After an error
	// there may be a domain of its UUID, also when ctx has ended meanwhile.
	Create(ctx context.Context, config []byte) (uint32, error)
	// Attach takes a domain on.
	Attach(ctx context.Context, domain uint32) (*Attached, error)
	// Rename changes a domain's name.
	Rename(domain uint32, name string) error
	// Destroy ends a domain. syscall.ESRCH says that there is none of that number.
	Destroy(domain uint32) error
	// Domains lists the host's domains, those that are dying, too.
	Domains(ctx context.Context) ([]Named, error)
	// Sweep removes what processes that have died left of devices of domains that are
	// gone.
	Sweep(ctx context.Context) error
}

// Driver runs one configured guest on this host. It implements hypervisor.Driver.
type Driver struct {
	cfg  Config
	host Host
	log  *slog.Logger
}

var (
	_ hypervisor.Driver   = (*Driver)(nil)
	_ hypervisor.Leftover = (*Driver)(nil)
	_ hypervisor.Whole    = (*Driver)(nil)
)

// NewDriver returns a driver for the configured guest. It makes nothing.
func NewDriver(cfg Config, host Host, log *slog.Logger) (*Driver, error) {
	if cfg.Domain == "" {
		cfg.Domain = cfg.Name
	}
	if cfg.Devices == nil {
		cfg.Devices = Join()
	}
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	return &Driver{cfg: cfg, host: host, log: log.With("guest", cfg.Name)}, nil
}

// Whole says that a domain has all of its memory before it runs.
func (*Driver) Whole() {}

// Start boots the guest from nothing. A domain of its name that is not ours is in
// the way.
func (d *Driver) Start(ctx context.Context) (_ hypervisor.Guest, err error) {
	defer d.explain(&err, "start guest %q")
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := d.free(ctx); err != nil {
		return nil, err
	}
	shape, err := d.cfg.shape()
	if err != nil {
		return nil, err
	}
	made, err := d.make(ctx)
	if err != nil {
		return nil, err
	}
	g, err := d.guest(ctx, made, shape)
	if err != nil {
		return nil, errors.Join(err, made.Domain.Destroy(), made.plugged.Unplug(), made.Domain.Close())
	}
	return g, nil
}

// free makes sure that no other domain has the guest's name.
func (d *Driver) free(ctx context.Context) error {
	all, err := d.host.Domains(ctx)
	if err != nil {
		return err
	}
	for _, one := range all {
		if one.Name != d.cfg.Domain || one.Dying {
			continue
		}
		r := &hypervisor.Refusal{What: fmt.Sprintf("this host has a domain %q (number %d) that this program has not made", one.Name, one.Domain), Remedy: "end or rename it"}
		if ours(d.cfg.Domain, one.UUID) {
			r = &hypervisor.Refusal{What: fmt.Sprintf("a domain %q (number %d) of this guest is there already", one.Name, one.Domain), Remedy: "adopt it, or clean it away"}
		}
		return r
	}
	return nil
}

// established is a domain with its devices.
type established struct {
	*Attached
	plugged Plugged
}

// make makes a domain that has yet to run, with its devices.
func (d *Driver) make(ctx context.Context) (_ *established, err error) {
	id := newUUID(d.cfg.Domain)
	config, err := d.cfg.toolstack(suffixNew, id)
	if err != nil {
		return nil, err
	}
	number, err := d.host.Create(ctx, config)
	if err != nil {
		return nil, errors.Join(err, d.destroyAll(context.WithoutCancel(ctx), func(n Named) bool { return n.UUID == id }))
	}
	e, err := d.establish(ctx, number)
	if err == nil {
		if err = d.host.Rename(number, d.cfg.Domain); err == nil {
			d.log.Info("a domain was made", "domain", number)
			return e, nil
		}
		err = errors.Join(err, e.plugged.Unplug(), e.Domain.Close())
	}
	return nil, errors.Join(err, gone(d.host.Destroy(number)))
}

// establish takes a domain on that stands still, or is adopted.
func (d *Driver) establish(ctx context.Context, number uint32) (*established, error) {
	a, err := d.host.Attach(ctx, number)
	if err != nil {
		return nil, err
	}
	plugged, err := d.plug(ctx, a.Domain, a.Frames, false)
	if err != nil {
		return nil, errors.Join(err, a.Domain.Close())
	}
	return &established{a, plugged}, nil
}

func (d *Driver) plug(ctx context.Context, domain Domain, frames *Frames, restored bool) (Plugged, error) {
	plot := domain.Plot()
	plot.Frames = frames
	plugged, err := d.cfg.Devices.Plug(ctx, plot, restored)
	if err != nil {
		return nil, fmt.Errorf("make the devices of domain %d: %w", plot.Domain, err)
	}
	return plugged, nil
}

// guest makes a Guest of a domain. When that reboots, it makes the next one.
func (d *Driver) guest(ctx context.Context, e *established, shape json.RawMessage) (*Guest, error) {
	spec := Spec{Head: e.Head, Memory: e.Frames.Runs(), Config: shape}
	if d.cfg.Type != HVM {
		var err error
		if spec.Tail, err = tailNow(ctx, e.Domain, e.Head); err != nil {
			return nil, fmt.Errorf("guest %q: %w", d.cfg.Name, err)
		}
	}
	return d.guestOf(e, spec)
}

func (d *Driver) guestOf(e *established, spec Spec) (*Guest, error) {
	return NewGuest(GuestConfig{Name: d.cfg.Name, Domain: e.Domain, Ask: e.Ask, Rings: e.Rings, Plugged: e.plugged, Again: d.again, Spec: spec})
}

// tailNow is the tail of a domain at this moment.
func tailNow(ctx context.Context, domain Domain, head []byte) ([]byte, error) {
	parsed, err := ParseHead(head)
	if err != nil {
		return nil, err
	}
	var s State
	if err := domain.State(ctx, &s); err != nil {
		return nil, err
	}
	return s.AppendTail(nil, parsed)
}

// again makes the domain that follows one which has rebooted, and is gone.
func (d *Driver) again(ctx context.Context) (*Successor, error) {
	e, err := d.make(ctx)
	if err != nil {
		return nil, err
	}
	return &Successor{Domain: e.Domain, Ask: e.Ask, Plugged: e.plugged, Frames: e.Frames, Rings: e.Rings}, nil
}

// Left reports whether a former process may have left a domain of the guest.
func (d *Driver) Left() bool {
	all, err := d.mine(context.Background())
	return err != nil || len(all) > 0
}

// mine lists the domains that were made for the guest and are not dying.
func (d *Driver) mine(ctx context.Context) ([]Named, error) {
	all, err := d.host.Domains(ctx)
	if err != nil {
		return nil, err
	}
	var found []Named
	for _, one := range all {
		if ours(d.cfg.Domain, one.UUID) && !one.Dying {
			found = append(found, one)
		}
	}
	return found, nil
}

// Adopt takes on the domain that a former process of this host has left, whether it
// runs, has suspended, or has ended by itself: a guest is never left suspended.
// Standbys that were left are removed.
func (d *Driver) Adopt(ctx context.Context) (hypervisor.Guest, error) {
	g, err := d.adopt(ctx)
	if err != nil {
		d.explain(&err, "adopt guest %q")
		return nil, err // and no guest that is nil and does not look like it
	}
	return g, nil
}

func (d *Driver) adopt(ctx context.Context) (*Guest, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	found, err := d.mine(ctx)
	if err != nil {
		return nil, err
	}
	for _, one := range found {
		if one.Name != d.cfg.Domain {
			continue
		}
		g, err := d.takeOn(ctx, one)
		if err != nil {
			return nil, err
		}
		if err := d.destroyAll(ctx, func(n Named) bool { return n.Domain != one.Domain }); err != nil {
			d.log.Warn("the guest is adopted, but what else was left cannot be removed", "error", err)
		}
		return g, nil
	}
	return nil, hypervisor.ErrNoGuest
}

func (d *Driver) takeOn(ctx context.Context, found Named) (*Guest, error) {
	shape, err := d.cfg.shape()
	if err != nil {
		return nil, err
	}
	e, err := d.establish(ctx, found.Domain)
	if err != nil {
		return nil, err
	}
	g, err := d.guest(ctx, e, shape)
	if err != nil {
		return nil, errors.Join(err, e.plugged.Leave(), e.Domain.Close())
	}
	if err := g.Pause(ctx); err != nil {
		return nil, errors.Join(err, g.Detach())
	}
	return g, nil
}

// Standby makes a domain that waits for the state of the guest that spec describes.
func (d *Driver) Standby(ctx context.Context, spec hypervisor.Spec) (_ hypervisor.Standby, err error) {
	defer d.explain(&err, "prepare a standby for guest %q")
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	parsed, _, err := ParseSpec(spec)
	if err != nil {
		return nil, err
	}
	shape, err := d.cfg.shape()
	if err != nil {
		return nil, err
	}
	if string(parsed.Config) != string(shape) {
		return nil, &hypervisor.Refusal{
			What:   fmt.Sprintf("the other host runs the guest as %.300s, here it is %.300s", parsed.Config, shape),
			Remedy: "use the same configuration, kernel and initrd on both hosts",
		}
	}
	s, err := NewStandby(ctx, d.cfg.Name, standbyMaker{d}, spec)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// standbyMaker makes the domains of a Standby.
type standbyMaker struct{ *Driver }

func (m standbyMaker) Make(ctx context.Context, spec *Spec, frames *Frames) (Waiting, error) {
	config, err := m.cfg.toolstack(suffixStandby, newUUID(m.cfg.Domain))
	if err != nil {
		return nil, err
	}
	here := *spec
	here.Config = config
	return m.host.Make(ctx, &here, frames)
}

// Guest makes a Guest of a domain that was restored.
func (m standbyMaker) Guest(ctx context.Context, f *Finished, spec *Spec, frames *Frames, rings []uint64) (*Guest, error) {
	plugged, err := m.plug(ctx, f.Domain, frames, true)
	if err != nil {
		return nil, err
	}
	g, err := m.guestOf(&established{&Attached{Domain: f.Domain, Ask: f.Ask, Frames: frames, Head: spec.Head, Rings: rings}, plugged},
		Spec{Head: spec.Head, Memory: frames.Runs(), Config: spec.Config, Tail: spec.Tail})
	if err != nil {
		return nil, errors.Join(err, plugged.Unplug())
	}
	return g, nil
}

// Named says that a domain is the guest, from now on.
func (m standbyMaker) Named(f *Finished) error {
	return m.host.Rename(f.Number, m.cfg.Domain)
}

// Clean destroys every domain of this guest on this host, and what was left of their
// devices.
func (d *Driver) Clean(ctx context.Context) (err error) {
	defer d.explain(&err, "clean up after guest %q")
	if err := ctx.Err(); err != nil {
		return err
	}
	return errors.Join(d.destroyAll(ctx, func(Named) bool { return true }), d.host.Sweep(ctx))
}

func (d *Driver) destroyAll(ctx context.Context, which func(Named) bool) error {
	found, err := d.mine(ctx)
	if err != nil {
		return err
	}
	for _, one := range found {
		if !which(one) {
			continue
		}
		d.log.Info("a domain is destroyed that nobody needs any more", "domain", one.Domain, "name", one.Name)
		err = errors.Join(err, gone(d.host.Destroy(one.Domain)))
	}
	return err
}

// gone makes no error of a domain that is there no more.
func gone(err error) error {
	if errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return err
}

func (d *Driver) explain(err *error, format string) {
	if *err != nil && !errors.Is(*err, hypervisor.ErrNoGuest) {
		*err = fmt.Errorf(format+": %w", d.cfg.Name, *err)
	}
}
