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
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"understudy/hypervisor/xen"
)

// poll is how often Make looks whether the domain is there.
const poll = 10 * time.Millisecond

type restored struct {
	domain uint32
	err    error
}

// waiting is a restore without its tail. It implements xen.Waiting.
type waiting struct {
	host   *Host
	id     [16]byte // its UUID
	domain uint32
	frames *xen.Frames
	memory *Mapping
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
	id := parsed.id
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	w := &waiting{host: h, id: id, frames: frames, pipe: write, done: make(chan restored, 1)}
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

// Finish writes the tail, and takes the domain on that comes of it.
func (w *waiting) Finish(ctx context.Context, tail []byte) (*xen.Finished, error) {
	if err := w.ended(); err != nil {
		return nil, err
	}
	_, err := w.pipe.Write(tail)
	err = errors.Join(err, w.pipe.Close())
	r := <-w.done // the stream has ended, and so will the restore
	w.over = true
	if r.domain != 0 {
		w.domain = r.domain
	}
	if err = errors.Join(r.err, err); err != nil {
		return nil, err
	}
	d, err := w.host.take(ctx, r.domain, w.memory, w.frames)
	if err != nil {
		return nil, err
	}
	w.given = true
	w.host.forget(w)
	return &xen.Finished{Number: r.domain, Domain: d, Ask: xen.Control{Store: w.host.store, Domain: r.domain}}, nil
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
	if w.memory != nil {
		err = errors.Join(err, w.memory.Close())
		w.memory = nil
	}
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
