package main

// The rows of the table are the working day of two guests of the same kind, one on
// each system:
//
//	boot ─> work ─> saves in turn ─> the next row's work ─> … ─> both are ended
//	─> restores in turn of the last row ─> the disks as they were a row before ─> …

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"understudy/guest/client"
	"understudy/primary"

	"golang.org/x/sys/unix"
)

// work is what a guest has done before it is saved.
type work struct {
	name  string
	title string
	steps []string // workloads, one after the other
	quick []string
	reads bool // a row of which more is asked
}

func works() []work {
	return []work{
		{"boot", "after boot", nil, nil, false},
		{"read", "reading a source tree", []string{"read-tree"}, []string{"read-tree files=6000"}, true},
		{"compile", "compile job", []string{"compile files=40"}, []string{"compile files=12"}, false},
		{"mail", "mail spool (PostMark-like)", []string{"postmark files=2000 transactions=4000"}, []string{"postmark"}, false},
		{"database", "database load", []string{"database ops=4000"}, []string{"database ops=500"}, false},
		{"idle", "idle after work", []string{"idle seconds=10"}, []string{"idle seconds=3"}, true},
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

// day is the rows that are measured of one guest of each kind, one after the other.
type day struct {
	b     *savedBench
	works []work
	rows  []SavedRow
	last  []primary.Moment // of ours, as each row's last file has it
}

// measureDay measures the rows: the guests boot once, their caches stay from row to
// row.
func (b *savedBench) measureDay(ctx context.Context, works []work) (_ []SavedRow, err error) {
	d := &day{b: b, works: works}
	defer func() { err = errors.Join(err, b.stock.leave(), b.own.end()) }()
	for i := range works {
		if err := d.measureSaves(ctx, i); err != nil {
			return d.rows, fmt.Errorf("%s: %w", works[i].title, err)
		}
	}
	if err := errors.Join(b.own.leave(), b.stock.end()); err != nil {
		return d.rows, err
	}
	for i := len(works) - 1; i >= 0; i-- {
		// What the guest wrote after this row's last save.
		if err := b.image.undo(); err != nil {
			return d.rows, err
		}
		if err := d.measureRestores(ctx, i); err != nil {
			return d.rows, fmt.Errorf("%s: %w", works[i].title, err)
		}
	}
	return d.rows, nil
}

// both has both guests do something at the same time.
func both(ours, stocks func() error) error {
	beside := make(chan error, 1)
	go func() { beside <- stocks() }() // ends before this function does: it is waited for
	err := ours()
	return errors.Join(err, <-beside)
}

// measureSaves has the guests do row i's work and saves them.
func (d *day) measureSaves(ctx context.Context, i int) error {
	b, w, begin := d.b, d.works[i], time.Now()
	r := SavedRow{Name: w.name, Title: w.title, Reads: w.reads, MiB: b.o.mib}
	if i == 0 {
		b.say("booting")
		if err := both(func() error { return b.own.bootAlone(ctx) }, func() error { return b.stock.boot(ctx) }); err != nil {
			return err
		}
	}
	b.say("%s: working", w.title)
	steps := w.stepsFor(b.o.quick)
	err := both(func() (err error) {
		r.Work, err = do(ctx, b.own.control, steps)
		return err
	}, func() (err error) {
		r.StockWork, err = do(ctx, b.stock.control, steps)
		return err
	})
	if err != nil {
		return err
	}
	var ours, migrates, savevms []savedSample
	for n := range b.o.repeat {
		b.say("%s: save %d of %d", w.title, n+1, b.o.repeat)
		last, moment := n == b.o.repeat-1, ""
		if last {
			moment = diskSnapshot(w.name)
		}
		s, err := b.own.save(ctx, d.file(i), last)
		if err != nil {
			return err
		}
		v, err := b.stock.savevm(ctx, vmSnapshot(w.name))
		if err != nil {
			return err
		}
		m, err := b.stock.save(ctx, d.stream(i), moment)
		if err != nil {
			return err
		}
		ours, savevms, migrates = append(ours, s), append(savevms, v), append(migrates, m)
	}
	r.summariseSaves(ours, migrates, savevms)
	r.Seconds = time.Since(begin).Seconds()
	d.rows, d.last = append(d.rows, r), append(d.last, ours[len(ours)-1].moment)
	return nil
}

func (d *day) file(i int) string   { return filepath.Join(d.b.place.Dir, "checkpoint-"+d.works[i].name) }
func (d *day) stream(i int) string { return filepath.Join(d.b.place.Dir, "stream-"+d.works[i].name) }

// measureRestores restores row i's files, on the disks of their moment. Those of
// another row are not needed after it.
func (d *day) measureRestores(ctx context.Context, i int) error {
	b, w, begin := d.b, d.works[i], time.Now()
	var lazy, eager, incoming, loadvm []restored
	for n := range b.o.repeat {
		b.say("%s: restore %d of %d", w.title, n+1, b.o.repeat)
		for _, one := range []struct {
			into    *[]restored
			restore func() (restored, error)
		}{
			{&lazy, func() (restored, error) { return b.own.restore(ctx, d.file(i), d.last[i], true) }},
			{&incoming, func() (restored, error) { return b.stock.incoming(ctx, d.stream(i), diskSnapshot(w.name)) }},
			{&eager, func() (restored, error) { return b.own.restore(ctx, d.file(i), d.last[i], false) }},
			{&loadvm, func() (restored, error) { return b.stock.loadvm(ctx, vmSnapshot(w.name)) }},
		} {
			t, err := one.restore()
			if err != nil {
				return err
			}
			*one.into = append(*one.into, t)
		}
	}
	r := &d.rows[i]
	r.summariseRestores(lazy, eager, incoming, loadvm)
	r.Seconds += time.Since(begin).Seconds()
	return errors.Join(os.Remove(d.stream(i)), os.Remove(d.file(i)))
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
