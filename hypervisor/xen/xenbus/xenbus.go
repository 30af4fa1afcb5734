// Package xenbus plugs a back end of ours into a Xen domain: it writes the two
// sides' nodes in xenstore and carries the handshake with the guest's driver out.
//
//	Attach: nodes of both sides, in one transaction ── or what a former process left
//	run:    watch on the guest's state ─> Handshake.Step (handshake.go) ─> Backend.Plug, Unplug
//	Detach: the nodes stay, for the next process;  Remove: they do not
//
// Nothing of it is known to libxl or to a kernel's back end: the nodes of our side
// lie below a name of our own, where nobody looks, and so no script is run. The guest's driver follows its "backend" wherever that
// leads.
//
// A Device has one goroutine, which ends with Detach or with the connection to
// xenstored.
//
// Sources: Xen's public/io/xenbus.h, docs/misc/xenstore-paths.
package xenbus

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"path"
	"slices"
	"strconv"
	"sync"
	"time"

	"understudy/hypervisor/xen/xenstore"
)

// Backend serves a device to a guest's driver. Its methods are called by one
// goroutine at a time.
type Backend interface {
	// Offer is what the driver reads before it begins.
	Offer() map[string]string
	// Plug begins to serve with what the driver has written: read returns the value
	// of one of its keys, "" for one that is not there. It returns what the driver
	// reads next.
	Plug(read func(key string) string) (map[string]string, error)
	// Unplug ends that. When it has returned nothing of the guest is touched.
	Unplug()
}

// Kind is what a guest's driver is of.
type Kind string

const (
	Disk    Kind = "vbd"
	Network Kind = "vif"
)

// Config says what to plug.
type Config struct {
	Store  *xenstore.Client
	Domain uint32
	Kind   Kind
	// Number is the device's among those of its kind: 51712 is the first disk,
	// 51728 the second; networks count from 0.
	Number uint32
	// Front and Back are further keys of the guest's and our side.
	Front, Back map[string]string
	Backend     Backend
	// Behind are devices whose drivers are connected first, if they ask for it within
	// two seconds of this one's. A guest connects its drivers one after the other, and
	// each takes some thirty requests to xenstored.
	Behind []*Device
	// Log is told of a handshake that fails.
	Log *slog.Logger
}

// Device is a back end that is plugged into a domain.
type Device struct {
	c           Config
	front, back string
	shake       Handshake
	watch       *xenstore.Watch
	stop        context.CancelFunc
	running     sync.WaitGroup
	over        sync.Once

	ending    <-chan struct{} // closed by stop
	connected chan struct{}   // closed when the guest's driver is, for the first time
}

// Paths returns where the two sides' nodes are.
func Paths(domain uint32, kind Kind, number uint32) (front, back string) {
	return fmt.Sprintf("/local/domain/%d/device/%s/%d", domain, kind, number),
		fmt.Sprintf("%s/%d/%d", ours(kind), domain, number)
}

// ours is where our side's nodes of a kind are, by domain. They are not below
// "backend", where the first domain's kernel reads whatever is written, again and
// again, while a guest waits for its devices.
func ours(kind Kind) string { return "/local/domain/0/understudy/" + string(kind) }

// Attach writes the nodes of a device and begins to serve the handshake. If a
// former process has left the device connected, it is served on as it is when
// Attach returns. ctx is of the beginning alone.
func Attach(ctx context.Context, c Config) (_ *Device, err error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	d := &Device{c: c, connected: make(chan struct{})}
	d.front, d.back = Paths(c.Domain, c.Kind, c.Number)
	defer func() {
		if err != nil {
			err = fmt.Errorf("plug a back end into %s: %w", d.front, err)
		}
	}()
	connect := false
	if err := c.Store.Transact(ctx, func(tx xenstore.Tx) (err error) {
		connect, err = d.begin(ctx, tx)
		return err
	}); err != nil {
		return nil, err
	}
	if connect {
		if _, err := d.plug(ctx); err != nil {
			c.Log.Error("a Xen guest's device that was served by a former process cannot be served on", "device", d.front, "error", err)
			if err := d.carry(ctx, d.shake.Failed()); err != nil {
				return nil, err
			}
		} else {
			close(d.connected)
		}
	}
	if d.watch, err = c.Store.Watch(ctx, d.front+"/state"); err != nil {
		c.Backend.Unplug()
		return nil, err
	}
	running, stop := context.WithCancel(context.Background())
	d.stop, d.ending = stop, running.Done()
	d.running.Go(func() { d.run(running) })
	return d, nil
}

// begin finds what a former process has left, or writes both sides' nodes.
func (d *Device) begin(ctx context.Context, tx xenstore.Tx) (connect bool, err error) {
	ours, err := d.state(ctx, tx, d.back)
	if err != nil {
		return false, err
	}
	guest, err := d.state(ctx, tx, d.front)
	if err != nil {
		return false, err
	}
	if ours != StateUnknown && guest != StateUnknown {
		d.shake, connect = Resume(ours, guest)
		return connect, nil
	}
	d.shake = Handshake{State: StateInitWait}
	id := strconv.FormatUint(uint64(d.c.Domain), 10)
	back := map[string]string{"frontend": d.front, "frontend-id": id, "online": "1", "state": StateInitWait.String()}
	maps.Copy(back, d.c.Back)
	maps.Copy(back, d.c.Backend.Offer())
	front := map[string]string{"backend": d.back, "backend-id": "0", "state": StateInitialising.String()}
	maps.Copy(front, d.c.Front)
	if err := d.write(ctx, tx, d.back, back, "n0", "r"+id); err != nil {
		return false, err
	}
	return false, d.write(ctx, tx, d.front, front, "n"+id, "r0")
}

// write makes a directory of nodes anew.
func (d *Device) write(ctx context.Context, tx xenstore.Tx, path string, nodes map[string]string, permissions ...string) error {
	err := d.c.Store.Remove(ctx, tx, path)
	if err == nil {
		err = d.c.Store.Write(ctx, tx, path, "")
	}
	if err == nil {
		err = d.c.Store.Permit(ctx, tx, path, permissions...)
	}
	return errors.Join(err, d.put(ctx, tx, path, nodes))
}

// put writes nodes below a path, of which they have their permissions. They are asked
// for all at once: a guest that was taken over waits for them.
func (d *Device) put(ctx context.Context, tx xenstore.Tx, path string, nodes map[string]string) error {
	var all sync.WaitGroup
	errs := make([]error, len(nodes))
	for i, key := range slices.Sorted(maps.Keys(nodes)) {
		all.Go(func() { errs[i] = d.c.Store.Write(ctx, tx, path+"/"+key, nodes[key]) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// read is the value at a path, "" if there is none.
func (d *Device) read(ctx context.Context, tx xenstore.Tx, path string) (string, error) {
	v, err := d.c.Store.Read(ctx, tx, path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return v, err
}

func (d *Device) state(ctx context.Context, tx xenstore.Tx, side string) (State, error) {
	v, err := d.read(ctx, tx, side+"/state")
	if err != nil {
		return StateUnknown, err
	}
	return ParseState(v)
}

// patience bounds one step of a handshake. Nothing else ends one: half a step would
// look like a driver's failure.
const patience = 10 * time.Second

// run carries the handshake out until ctx ends.
func (d *Device) run(ctx context.Context) {
	for {
		select {
		case _, there := <-d.watch.Changed:
			if !there {
				if ctx.Err() == nil {
					d.c.Log.Error("a Xen guest's device is served on, but not plugged anew if its driver asks for that: the connection to xenstored has ended", "device", d.front)
				}
				return
			}
		case <-ctx.Done():
			return
		}
		if ctx.Err() != nil {
			return
		}
		step, cancel := context.WithTimeout(context.Background(), patience)
		err := d.step(step)
		cancel()
		if err != nil {
			d.c.Log.Error("the handshake with a Xen guest's driver has failed", "device", d.front, "error", err)
		}
	}
}

// step does what there is to do at this moment.
func (d *Device) step(ctx context.Context) error {
	for {
		text, err := d.read(ctx, 0, d.front+"/state")
		if err != nil {
			return err
		}
		guest, err := ParseState(text)
		if err != nil {
			return errors.Join(err, d.carry(ctx, d.shake.Failed()))
		}
		actions := d.shake.Step(guest)
		if len(actions) == 0 {
			return nil
		}
		if err := d.carry(ctx, actions); err != nil {
			return err
		}
	}
}

// carry carries actions out. After a connection that failed our state says so.
func (d *Device) carry(ctx context.Context, actions []Action) error {
	var nodes map[string]string
	for _, a := range actions {
		switch a {
		case Connect:
			d.behind()
			var err error
			if nodes, err = d.plug(ctx); err != nil {
				return errors.Join(err, d.carry(ctx, d.shake.Failed()))
			}
		case Disconnect:
			d.c.Backend.Unplug()
		case Write:
			if d.shake.State == StateInitWait {
				nodes = d.c.Backend.Offer()
			}
			if err := d.c.Store.Transact(ctx, func(tx xenstore.Tx) error {
				err := d.put(ctx, tx, d.back, nodes)
				if err == nil {
					err = d.c.Store.Write(ctx, tx, d.back+"/state", d.shake.State.String())
				}
				return err
			}); err != nil {
				return err
			}
			if d.shake.State == StateConnected {
				select {
				case <-d.connected: // before
				default:
					close(d.connected)
				}
				d.c.Log.Info("a Xen guest's driver is connected", "device", d.front)
			}
		}
	}
	return nil
}

// behindPatience bounds a driver's wait for those that are connected first.
const behindPatience = 2 * time.Second

// behind waits for the devices that are connected first.
func (d *Device) behind() {
	limit := time.NewTimer(behindPatience)
	defer limit.Stop()
	for _, one := range d.c.Behind {
		select {
		case <-one.connected:
		case <-limit.C:
			return
		case <-d.ending:
			return
		}
	}
}

// plug is Backend.Plug with the guest's nodes.
func (d *Device) plug(ctx context.Context) (map[string]string, error) {
	var failed error
	nodes, err := d.c.Backend.Plug(func(key string) string {
		v, err := d.read(ctx, 0, d.front+"/"+key)
		if err != nil {
			failed = err
		}
		return v
	})
	if failed != nil && err == nil {
		d.c.Backend.Unplug()
	}
	return nodes, errors.Join(failed, err)
}

// Detach lets go of the device: nothing of the guest is touched any more. Its nodes
// stay, and with them the guest's driver's belief that it is connected.
func (d *Device) Detach(ctx context.Context) error {
	var err error
	d.over.Do(func() {
		d.stop()
		d.running.Wait()
		err = d.watch.End(ctx)
		d.c.Backend.Unplug()
	})
	if err != nil {
		return fmt.Errorf("let go of %s: %w", d.front, err)
	}
	return nil
}

// Remove detaches the device and removes its nodes; the guest's go with its domain,
// if they are not gone yet.
func (d *Device) Remove(ctx context.Context) error {
	err := d.Detach(ctx)
	if err := errors.Join(err, d.c.Store.Transact(ctx, func(tx xenstore.Tx) error { return d.remove(ctx, tx) })); err != nil {
		return fmt.Errorf("remove the nodes of %s: %w", d.front, err)
	}
	return nil
}

// remove removes our side, and what is above it if that was the domain's last.
func (d *Device) remove(ctx context.Context, tx xenstore.Tx) error {
	if err := d.c.Store.Remove(ctx, tx, d.back); err != nil {
		return err
	}
	all := path.Dir(d.back)
	left, err := d.c.Store.List(ctx, tx, all)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(left) > 0 {
		return nil
	}
	return errors.Join(err, d.c.Store.Remove(ctx, tx, all))
}
