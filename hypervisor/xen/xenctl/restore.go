//go:build xen

package xenctl

// This file is a restore that waits for the last piece of its stream, as package
// xen wants it.
//
//	goroutine: Toolstack.Restore <── pipe ── Feed (Make) … tail (Finish)
//	Make waits until the domain has all its frames, by mapping them
//
// The goroutine is owned by the restoring; it ends with the restore, at the latest
// when Discard closes the pipe.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"understudy/hypervisor/xen"
	"understudy/hypervisor/xen/xenstore"
)

// Maker makes domains of this host that wait for the last piece of their restore.
// It implements xen.Maker.
type Maker struct {
	Control *Control
	// Tools is used for one thing at a time: nobody else calls it while a domain is
	// being made or finished.
	Tools *Toolstack
	Store *xenstore.Client
	// Name and UUID are the domain's here, where another of the guest's may be.
	Name, UUID string
}

var _ xen.Maker = (*Maker)(nil)

// poll is how often Make looks whether the domain is there.
const poll = 10 * time.Millisecond

type restored struct {
	domain uint32
	err    error
}

// waiting is a restore without its tail. It implements xen.Waiting.
type waiting struct {
	maker  *Maker
	domain uint32
	memory *Mapping
	pipe   *os.File
	done   chan restored
	over   bool // done was received from
	given  bool // the domain is somebody else's
}

// Make begins a restore and feeds it all but its tail.
func (m *Maker) Make(ctx context.Context, spec *xen.Spec, frames *xen.Frames) (_ xen.Waiting, err error) {
	config, err := renamed(spec.Config, m.Name, m.UUID)
	if err != nil {
		return nil, err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	w := &waiting{maker: m, pipe: write, done: make(chan restored, 1)}
	go func() {
		domain, err := m.Tools.Restore(config, read.Fd())
		_ = read.Close() // a feeder is not left waiting
		w.done <- restored{domain, err}
	}()
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("make a domain that waits for guest %q: %w", m.Name, err), w.Discard())
		}
	}()
	stop := context.AfterFunc(ctx, func() { _ = write.Close() })
	defer stop()
	if err := xen.Feed(write, spec.Head, frames); err != nil {
		return nil, errors.Join(err, ctx.Err(), w.ended())
	}
	for w.memory == nil {
		if w.domain == 0 {
			w.domain, err = m.find(ctx)
		}
		if w.domain != 0 {
			w.memory, err = m.Control.Map(w.domain, frames, true)
		}
		if err == nil {
			break
		}
		if e := errors.Join(w.ended(), ctx.Err()); e != nil {
			return nil, errors.Join(e, err)
		}
		select {
		case <-time.After(poll):
		case <-ctx.Done():
		}
	}
	return w, nil
}

// ended returns an error if the restore is over.
func (w *waiting) ended() error {
	if w.over {
		return errors.New("its restore is over")
	}
	select {
	case r := <-w.done:
		w.over, w.domain = true, r.domain
		return errors.Join(errors.New("its restore has ended before its time"), r.err)
	default:
		return nil
	}
}

// find returns the number of the domain that is being made.
func (m *Maker) find(ctx context.Context) (uint32, error) {
	list, err := m.Store.List(ctx, 0, "/local/domain")
	if err != nil {
		return 0, err
	}
	for _, id := range list {
		name, err := m.Store.Read(ctx, 0, "/local/domain/"+id+"/name")
		if errors.Is(err, syscall.ENOENT) || err == nil && name != m.Name {
			continue
		}
		n, perr := strconv.ParseUint(id, 10, 32)
		return uint32(n), errors.Join(err, perr)
	}
	return 0, fmt.Errorf("there is no domain of the name %q", m.Name)
}

// Memory is the domain's memory.
func (w *waiting) Memory() []byte { return w.memory.Bytes() }

// Finish writes the tail, and takes the domain on that comes of it.
func (w *waiting) Finish(ctx context.Context, tail []byte) (xen.Domain, xen.Asker, error) {
	if err := w.ended(); err != nil {
		return nil, nil, err
	}
	_, err := w.pipe.Write(tail)
	err = errors.Join(err, w.pipe.Close())
	r := <-w.done // the stream has ended, and so will the restore
	w.over, w.domain = true, r.domain
	if err = errors.Join(r.err, err); err != nil {
		return nil, nil, err
	}
	d, err := w.maker.Control.attach(r.domain, w.memory, w.maker.Tools, nil)
	if err != nil {
		return nil, nil, err
	}
	w.given = true
	return d, xen.Control{Store: w.maker.Store, Domain: r.domain}, nil
}

// Discard ends the restore, its domain if nobody has taken it, and the mapping.
func (w *waiting) Discard() error {
	if w.given {
		return nil
	}
	_ = w.pipe.Close()
	if !w.over {
		r := <-w.done
		w.over = true
		if r.domain != 0 {
			w.domain = r.domain
		}
	}
	var err error
	if w.domain != 0 {
		if err = w.maker.Tools.Destroy(w.domain); errors.Is(err, syscall.ESRCH) {
			err = nil
		}
	}
	if w.memory != nil {
		err = errors.Join(err, w.memory.Close())
		w.memory = nil
	}
	return err
}

// renamed changes a configuration's name and UUID.
func renamed(config []byte, name, uuid string) ([]byte, error) {
	var tree map[string]json.RawMessage
	if err := json.Unmarshal(config, &tree); err != nil {
		return nil, fmt.Errorf("a domain's configuration: %w", err)
	}
	var create map[string]any
	if err := json.Unmarshal(tree["c_info"], &create); err != nil {
		return nil, fmt.Errorf("a domain's configuration (c_info): %w", err)
	}
	create["name"], create["uuid"] = name, uuid
	delete(create, "domid")
	text, err := json.Marshal(create)
	if err != nil {
		return nil, err
	}
	tree["c_info"] = text
	return json.Marshal(tree)
}
