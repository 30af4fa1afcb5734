//go:build xen

package xenctl

// This file is a domain that waits for its guest's state, as package xen wants it: a
// restore.
//
//	goroutine: Toolstack.Restore <── pipe ── Feed, the Spec's tail (Make)
//	           Finish: Control.SetState
//	or, without a tail in the Spec:
//	goroutine: Toolstack.Restore <── pipe ── Feed (Make) … tail (Finish)
//
// Make waits until the domain has all its frames, by mapping them.
//
// The toolstack has a lot to do when a stream has ended: of the two ways the first
// leaves that out of a takeover. The goroutine is owned by the restoring; it ends with
// the restore, at the latest when Discard closes the pipe.

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"understudy/hypervisor/xen"
	"understudy/hypervisor/xen/stream"
)

// poll is how often Make looks whether the domain is there.
const poll = 10 * time.Millisecond

type restored struct {
	domain uint32
	err    error
}

// waiting is a domain without its guest's state. It implements xen.Waiting.
type waiting struct {
	host   *Host
	id     [16]byte // its UUID
	stream stream.Domain
	domain uint32
	frames *xen.Frames
	memory *Mapping
	taken  *Domain // owns the memory; nil: the restore has yet to get its tail
	pipe   *os.File
	done   chan restored
	over   bool // done was received from
	given  bool // the domain is somebody else's
}

// Make begins a restore and feeds it all but its tail.
func (h *Host) Make(ctx context.Context, spec *xen.Spec, frames *xen.Frames) (_ xen.Waiting, err error) {
	parsed, err := parseConfig(spec.Config)
	if err != nil {
		return nil, err
	}
	d, err := xen.ParseHead(spec.Head)
	if err != nil {
		return nil, err
	}
	id := parsed.id
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	w := &waiting{host: h, id: id, stream: d, frames: frames, pipe: write, done: make(chan restored, 1)}
	h.began(w)
	go func() {
		var r restored
		r.err = h.with(func(t *Toolstack) (err error) {
			r.domain, err = t.Restore(spec.Config, read.Fd())
			return err
		})
		_ = read.Close() // a feeder is not left waiting
		w.done <- r
	}()
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("make a domain that waits for its guest: %w", err), w.Discard())
		}
	}()
	stop := context.AfterFunc(ctx, func() { _ = write.Close() })
	defer stop()
	if err := xen.Feed(write, spec.Head, frames); err != nil {
		return nil, errors.Join(err, ctx.Err(), w.ended())
	}
	for {
		if w.domain == 0 {
			w.domain, err = h.find(id)
		}
		if w.domain != 0 {
			w.memory, err = h.control.Map(w.domain, frames, true)
		}
		if err == nil && len(spec.Tail) > 0 {
			if err := w.end(ctx, spec.Tail); err != nil {
				return nil, err
			}
		}
		if err == nil {
			return w, nil
		}
		if e := errors.Join(w.ended(), ctx.Err()); e != nil {
			return nil, errors.Join(e, err)
		}
		select {
		case <-time.After(poll):
		case <-ctx.Done():
		}
	}
}

// ended returns an error if the restore is over.
func (w *waiting) ended() error {
	if w.over {
		return errors.New("its restore is over")
	}
	select {
	case r := <-w.done:
		w.over = true
		if r.domain != 0 {
			w.domain = r.domain
		}
		return errors.Join(errors.New("its restore has ended before its time"), r.err)
	default:
		return nil
	}
}

// find returns the number of the domain that is being made.
func (h *Host) find(id [16]byte) (uint32, error) {
	all, err := h.control.Domains()
	if err != nil {
		return 0, err
	}
	for _, one := range all {
		if one.UUID == id {
			return one.Domain, nil
		}
	}
	return 0, errors.New("the toolstack has not made it yet")
}

// Memory is the domain's memory.
func (w *waiting) Memory() []byte { return w.memory.Bytes() }

// Finish gives the domain the state of a tail.
func (w *waiting) Finish(ctx context.Context, tail []byte) (*xen.Finished, error) {
	if w.taken == nil {
		if err := w.ended(); err != nil {
			return nil, err
		}
		if err := w.end(ctx, tail); err != nil {
			return nil, err
		}
	} else {
		state, err := xen.ParseTail(tail, w.stream)
		if err == nil {
			err = w.host.control.SetState(w.domain, state)
		}
		if err != nil {
			return nil, err
		}
	}
	w.given = true
	w.host.forget(w)
	return &xen.Finished{Number: w.domain, Domain: w.taken, Ask: xen.Control{Store: w.host.store, Domain: w.domain}}, nil
}

// end writes the tail, and takes the domain on that comes of the restore.
func (w *waiting) end(ctx context.Context, tail []byte) error {
	_, err := w.pipe.Write(tail)
	err = errors.Join(err, w.pipe.Close())
	r := <-w.done // the stream has ended, and so will the restore
	w.over = true
	if r.domain != 0 {
		w.domain = r.domain
	}
	if err = errors.Join(r.err, err); err == nil {
		w.taken, err = w.host.take(ctx, r.domain, w.memory, w.frames)
	}
	return err
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
	if w.domain == 0 {
		w.domain, _ = w.host.find(w.id) // it may have been made, and not told of
	}
	var err error
	if w.domain != 0 {
		if err = w.host.Destroy(w.domain); errors.Is(err, syscall.ESRCH) {
			err = nil
		}
	}
	switch {
	case w.taken != nil:
		err = errors.Join(err, w.taken.Close())
	case w.memory != nil:
		err = errors.Join(err, w.memory.Close())
	}
	w.taken, w.memory = nil, nil
	w.host.forget(w)
	return err
}

// parsed is what is read of a domain's configuration.
type parsed struct {
	id   [16]byte // its UUID
	kind string   // its type
}

func parseConfig(config []byte) (p parsed, err error) {
	var c struct {
		Create struct {
			Type string `json:"type"`
			UUID string `json:"uuid"`
		} `json:"c_info"`
	}
	if err := json.Unmarshal(config, &c); err != nil {
		return p, fmt.Errorf("a domain's configuration: %w", err)
	}
	b, err := hex.DecodeString(strings.ReplaceAll(c.Create.UUID, "-", ""))
	if err != nil || len(b) != len(p.id) {
		return p, fmt.Errorf("a domain's configuration without a UUID (%.60q)", c.Create.UUID)
	}
	copy(p.id[:], b)
	p.kind = c.Create.Type
	return p, nil
}
