package main

// One row of the table: two guests of the same kind do the same work, one on each
// system, and are saved and restored in turn.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"understudy/guest/client"

	"golang.org/x/sys/unix"
)

// work is what a guest has done before it is saved.
type work struct {
	name  string
	title string
	steps []string // workloads, one after the other
	quick []string
	reads bool // a row of which the issue asks more
}

func works() []work {
	return []work{
		{"boot", "after boot", nil, nil, false},
		{"read", "reading a source tree", []string{"read-tree"}, []string{"read-tree files=6000"}, true},
		{"compile", "compile job", []string{"compile files=60"}, []string{"compile files=12"}, false},
		{"mail", "mail spool (PostMark-like)", []string{"postmark files=2000 transactions=4000"}, []string{"postmark"}, false},
		{"database", "database load", []string{"database ops=6000"}, []string{"database ops=500"}, false},
		{"idle", "idle after work", []string{"read-tree files=8000", "compile files=40", "database ops=1000", "idle seconds=10"},
			[]string{"read-tree files=2000", "compile files=4", "idle seconds=3"}, true},
	}
}

func (w *work) stepsFor(quick bool) []string {
	if quick {
		return w.quick
	}
	return w.steps
}

// answerTime bounds the wait for a restored guest.
const answerTime = time.Minute

// answer is when a guest answered.
type answer struct {
	after time.Duration
	err   error
}

// do has a guest do its work.
func do(ctx context.Context, c *client.Control, steps []string) (said []string, err error) {
	for _, s := range steps {
		d, err := c.Run(ctx, strings.Fields(s), nil)
		if err != nil {
			return said, fmt.Errorf("%s: %w", s, err)
		}
		said = append(said, fmt.Sprintf("%s: %d operations in %.1f s", s, d.Ops, d.Took.Seconds()))
	}
	return said, nil
}

// measureRow measures one row.
func (b *savedBench) measureRow(ctx context.Context, w work) (r SavedRow, err error) {
	r = SavedRow{Name: w.name, Title: w.title, Reads: w.reads, MiB: b.o.mib}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", w.title, err)
		}
		err = errors.Join(err, b.stock.leave(), b.own.end())
	}()
	b.say("%s: booting and working", w.title)
	type worked struct {
		said []string
		err  error
	}
	beside := make(chan worked, 1)
	go func() { // ends before this function does: it is waited for
		var d worked
		if d.err = b.stock.boot(ctx); d.err == nil {
			d.said, d.err = do(ctx, b.stock.control, w.stepsFor(b.o.quick))
		}
		beside <- d
	}()
	err = b.own.bootAlone(ctx)
	if err == nil {
		r.Work, err = do(ctx, b.own.control, w.stepsFor(b.o.quick))
	}
	d := <-beside
	r.StockWork = d.said
	if err = errors.Join(err, d.err); err != nil {
		return r, err
	}
	var ours, migrates, savevms []savedSample
	file, stream := filepath.Join(b.place.Dir, "checkpoint"), filepath.Join(b.place.Dir, "stream")
	for i := range b.o.repeat {
		last := i == b.o.repeat-1
		b.say("%s: save %d of %d", w.title, i+1, b.o.repeat)
		s, err := b.own.save(ctx, file, last)
		if err != nil {
			return r, err
		}
		v, err := b.stock.savevm(ctx)
		if err != nil {
			return r, err
		}
		m, err := b.stock.save(ctx, stream, last)
		if err != nil {
			return r, err
		}
		ours, savevms, migrates = append(ours, s), append(savevms, v), append(migrates, m)
	}
	r.summariseSaves(ours, migrates, savevms)
	moment := ours[len(ours)-1].moment
	if err := errors.Join(b.own.leave(), b.stock.rest(ctx)); err != nil {
		return r, err
	}
	var lazy, eager, incoming, loadvm []restored
	for i := range b.o.repeat {
		b.say("%s: restore %d of %d", w.title, i+1, b.o.repeat)
		for _, one := range []struct {
			into    *[]restored
			restore func() (restored, error)
		}{
			{&lazy, func() (restored, error) { return b.own.restore(ctx, file, moment, true) }},
			{&incoming, func() (restored, error) { return b.stock.incoming(ctx, stream) }},
			{&eager, func() (restored, error) { return b.own.restore(ctx, file, moment, false) }},
			{&loadvm, func() (restored, error) { return b.stock.loadvm(ctx) }},
		} {
			t, err := one.restore()
			if err != nil {
				return r, err
			}
			*one.into = append(*one.into, t)
		}
	}
	r.summariseRestores(lazy, eager, incoming, loadvm)
	return r, nil
}

// evict takes a file out of the page cache.
func evict(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	err = unix.Fdatasync(int(f.Fd()))
	if err == nil {
		err = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	}
	return errors.Join(err, f.Close())
}
