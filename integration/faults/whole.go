package main

// This file is whether all is as it must be: the guest, its memory on both
// hosts, its disk, what the daemons say, and the histories of the gates.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"understudy/clock"
	"understudy/crashpoint/history"
	"understudy/demo/world"
	"understudy/guest/image"
)

// whole checks all that can be checked of a guest that goes on: its lines, its
// boot id, its memory, on both hosts too, its disk and what it acknowledged.
// What does not need the other's end runs beside it.
func (s *stage) whole(ctx context.Context, c cell) error {
	var all sync.WaitGroup
	var errs [4]error
	beside := func(i int, name string, check func() error) {
		all.Go(func() {
			began := time.Now()
			errs[i] = check()
			s.watch.beside("whole: "+name, began)
		})
	}
	beside(0, "lines", func() error { return s.client.More(ctx, 20, soon) })
	beside(1, "memory", func() error { return s.memory(ctx) })
	beside(2, "disk", func() error { return s.diskWhole(ctx, c.fault.unreadable) })
	beside(3, "compare", func() error { return s.compare(ctx) })
	all.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	if err := s.client.Err(); err != nil {
		return fmt.Errorf("the client: %w", err)
	}
	s.watch.lap("whole")
	err := s.useDisk(ctx)
	s.watch.lap("load the disk again")
	return err
}

// memory asks the guest.
func (s *stage) memory(ctx context.Context) error {
	boot, err := s.Boot(ctx, web)
	if err != nil {
		return err
	}
	if boot != s.boot {
		return fmt.Errorf("the guest was rebooted: boot id %s, was %s", boot, s.boot)
	}
	if err := s.Check(ctx, web); err != nil {
		return fmt.Errorf("the guest's memory: %w", err)
	}
	return nil
}

// compare has the hosts compare theirs.
func (s *stage) compare(ctx context.Context) error {
	var v struct {
		Identical bool   `json:"identical"`
		Pages     uint64 `json:"pages"`
	}
	if err := s.Operate(ctx, s.owner, web, "verify", &v); err != nil {
		return fmt.Errorf("compare the memory of both hosts: %w", err)
	}
	if !v.Identical {
		return fmt.Errorf("the memory of the two hosts differs within %d pages", v.Pages)
	}
	return nil
}

// diskWhole has the guest read all that it wrote and was told is safe, and then
// looks at its file system from outside. unreadable: reads may have failed
// before.
func (s *stage) diskWhole(ctx context.Context, unreadable bool) error {
	if !unreadable {
		if err := s.disk.Wait(ctx, s.disk.Last()+20, soon); err != nil {
			return err
		}
	}
	verify := s.disk.Verify
	if unreadable {
		verify = s.disk.VerifyAfterErrors
	}
	began := time.Now()
	if err := verify(ctx); err != nil {
		return fmt.Errorf("the guest's disk: %w", err)
	}
	s.watch.beside("whole: disk: read again", began)
	began = time.Now()
	if err := s.fsck(ctx); err != nil {
		return fmt.Errorf("the guest's file system: %w", err)
	}
	s.watch.beside("whole: disk: fsck", began)
	return nil
}

// fsck checks the file system of a quiet guest once all is written, behind the
// file system that fails: the bytes are the same.
func (s *stage) fsck(ctx context.Context) error {
	if err := s.Written(ctx, web, s.owner); err != nil {
		return err
	}
	return image.Fsck(ctx, filepath.Join(s.patients.under, filepath.Base(s.DiskPath(web, s.owner))))
}

// alarms are words that no daemon may say, whatever strikes it.
var alarms = []string{"the backup's memory differs", "panic: ", "fatal error: ", "DATA RACE"}

// alarm finds one in what the daemons have said since.
func (s *stage) alarm(since time.Time) error {
	for _, h := range world.Hosts() {
		for _, e := range s.Log(h, since) {
			for _, word := range alarms {
				if strings.Contains(e.Text, word) {
					return fmt.Errorf("the daemon of host %s said: %s", h, e.Text)
				}
			}
		}
	}
	return nil
}

// seen is what a trial's histories held.
type seen struct {
	Lines   int `json:"lines"`
	Acked   int `json:"acknowledged_epochs"`
	Batches int `json:"batches"`
	Frames  int `json:"frames"`
}

// judge checks the histories up to now, and returns what is new of breaches.
func (s *stage) judge() (seen, []history.Breach, error) {
	before := s.checker.Result()
	now, stamp := clock.Boot{}.Now(), time.Now()
	// What is being written down may come late.
	until := now.Add(-200 * time.Millisecond)
	for _, h := range []string{world.HostA, world.HostB} {
		if err := s.readHistory(h); err != nil {
			return seen{}, nil, err
		}
	}
	var ready, rest []history.Line
	for _, l := range s.later {
		if l.At <= until {
			ready = append(ready, l)
		} else {
			rest = append(rest, l)
		}
	}
	s.later = rest
	s.checker.Lines(ready)
	heard, err := s.wire.Since(s.MAC(web), s.heard)
	if err != nil {
		return seen{}, nil, err
	}
	var frames []history.Frame
	last := s.heard
	for _, f := range heard {
		if at := now.Add(f.At.Sub(stamp)); at <= until {
			frames = append(frames, history.Frame{Host: f.Host, At: at})
			if f.At.After(last) {
				last = f.At
			}
		}
	}
	s.heard = last
	s.checker.Frames(frames)
	s.checker.Forget(until.Add(-10 * time.Second))
	s.wire.ForgetBefore(last)
	r := s.checker.Result()
	return seen{r.Lines - before.Lines, r.Acked - before.Acked, r.Batches - before.Batches, r.Frames - before.Frames}, r.Breaches[len(before.Breaches):], nil
}

// readHistory reads what a host has written since the last time, as far as its
// lines are whole.
func (s *stage) readHistory(host string) error {
	path := filepath.Join(s.dir, web+"."+host+".history")
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read a history: %w", err)
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.NewSectionReader(f, s.read[host], 1<<40))
	if err != nil {
		return fmt.Errorf("read the history %s: %w", path, err)
	}
	text = text[:bytes.LastIndexByte(text, '\n')+1]
	lines, err := history.Parse(text)
	if err != nil {
		return fmt.Errorf("history %s, from byte %d on: %w", path, s.read[host], err)
	}
	s.read[host] += int64(len(text))
	s.later = append(s.later, lines...)
	return nil
}
