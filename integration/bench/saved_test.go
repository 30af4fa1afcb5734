package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy/checkpoint"
	"understudy/disk/store"
	"understudy/epoch"
	"understudy/exclusion"
	"understudy/guest/workload"
	"understudy/primary"
)

func TestSavedOptions(t *testing.T) {
	for args, want := range map[string]func(savedOptions) bool{
		"": func(o savedOptions) bool {
			return o.repeat == 3 && o.mib == 1024 && slices.Contains(o.rows, protectRow)
		},
		"--quick":                 func(o savedOptions) bool { return o.repeat == 1 && o.quick },
		"--quick --repeat 4":      func(o savedOptions) bool { return o.repeat == 4 },
		"--rows read,protect":     func(o savedOptions) bool { return slices.Equal(o.rows, []string{"read", "protect"}) },
		"--rows reads":            nil,
		"--memory 10":             nil,
		"--accel auto":            nil,
		"--output xml":            nil,
		"--repeat -1":             nil,
		"all":                     nil,
		"--rows boot --accel kvm": func(o savedOptions) bool { return o.accel == "kvm" },
	} {
		o, err := parseSavedOptions(strings.Fields(args), io.Discard)
		if want == nil && err == nil || want != nil && (err != nil || !want(o)) {
			t.Errorf("%q: %+v, %v", args, o, err)
		}
	}
}

// Every load is one that the guest knows.
func TestLoadsAreKnown(t *testing.T) {
	for _, quick := range []bool{false, true} {
		for _, w := range append(works(), protectedWorks(quick)...) {
			for _, s := range append(w.stepsFor(quick), w.steps...) {
				if err := workload.Check(strings.Fields(s)); err != nil {
					t.Errorf("%s: %v", w.name, err)
				}
			}
		}
	}
}

func saves(ms int, bytes uint64) []savedSample {
	one := savedSample{bytes: bytes, took: time.Duration(ms) * time.Millisecond, synced: time.Duration(ms/2) * time.Millisecond}
	one.pages = checkpoint.Counts{Hole: 50, Mapped: 30, Packed: 20}
	late := one
	late.took *= 10
	return []savedSample{late, one, one}
}

func restores(ms int) []restored {
	d := time.Duration(ms) * time.Millisecond
	return []restored{{answer: d, run: d / 2, whole: 2 * d}}
}

// A report has its ratios, says which target is missed, and can be read and drawn.
func TestSavedReport(t *testing.T) {
	r := &SavedReport{}
	for _, w := range []work{{name: "read", title: "reading <files>", reads: true}, {name: "boot", title: "after boot"}} {
		row := SavedRow{Name: w.name, Title: w.title, Reads: w.reads}
		row.summariseSaves(saves(100, 10_000_000), saves(1000, 100_000_000), saves(2000, 120_000_000))
		row.summariseRestores(restores(100), restores(200), restores(400), restores(500))
		r.Rows = append(r.Rows, row)
	}
	r.Rows[1].Ours.Bytes *= 5
	r.Rows[1].SmallerThanMigrate = less(r.Rows[1].Ours.Bytes, r.Rows[1].Migrate.Bytes)
	for i := range 2 {
		c := []primary.Cost{{Pause: time.Millisecond, Dirty: 100}, {Pause: 3 * time.Millisecond, Dirty: 300}}
		b := primary.Totals{Checkpoints: 10, RawBytes: 100 * pageBytes, WireBytes: uint64(4-2*i) << 12}
		r.Protection = append(r.Protection, protectedRow("mail", i == 1, time.Second, 100*time.Millisecond, c, primary.Totals{}, b, exclusion.Stats{}, exclusion.Stats{Mapped: uint64(50 * i)}))
	}
	r.conclude()
	row := r.Rows[0]
	if row.Ours.Synced != 0.1 || row.Ours.Unsynced != 0.05 || row.SmallerThanMigrate != 0.9 || row.FasterSynced != 0.9 || row.LazyToMigrate != 0.25 || row.Savevm.Unsynced != 0 {
		t.Errorf("a row: %+v", row)
	}
	if s := r.Summary; s.Smaller < 0.69 || s.Smaller > 0.71 || s.SmallerReads != 0.9 || s.WorstEager != 0.5 {
		t.Errorf("the summary: %+v", s)
	}
	if c := r.Compared; len(c) != 1 || c[0].WireLess != 0.5 || c[0].LeftOut != 0.5 || c[0].PauseRatio != 1 {
		t.Errorf("with and without exclusion: %+v", c)
	}
	var text bytes.Buffer
	if err := r.print(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"90.0%", "50.0%", "30.0%", "mean of all rows  70.0%  at least 81.0%   misses", "mail"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the tables do not have %q:\n%s", want, text.String())
		}
	}
	d := xml.NewDecoder(bytes.NewReader(r.svg()))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("the plot: %v", err)
		}
	}
	path := filepath.Join(t.TempDir(), "below", "report.json")
	if err := r.write(&savedOptions{options: options{report: path, output: "none"}}); err != nil {
		t.Fatal(err)
	}
	var back SavedReport
	if b, err := os.ReadFile(path); err != nil || json.Unmarshal(b, &back) != nil || back.Summary != r.Summary {
		t.Errorf("read back: %+v, %v", back.Summary, err)
	}
	if err := (&SavedReport{}).print(io.Discard); err != nil {
		t.Errorf("a report of nothing: %v", err)
	}
}

// What guests write to a disk is taken back, layer by layer.
func TestADiskIsBroughtBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	before := bytes.Repeat([]byte("before.."), 8*epoch.PageSize/8)
	if err := os.WriteFile(path, before, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := store.Open(store.Config{Path: path, Host: hostA, Direct: store.DirectNever})
	if err != nil {
		t.Fatal(err)
	}
	c := changing{f, &copied{path: path}}
	write := func(sector uint64, b byte, sectors int) {
		t.Helper()
		if err := c.WriteAt(bytes.Repeat([]byte{b}, sectors*epoch.SectorSize), sector); err != nil {
			t.Fatal(err)
		}
	}
	now := func() []byte {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	c.image.mark()
	write(3, 'x', 1)
	write(0, 'y', 24)
	z := bytes.Repeat([]byte("z"), epoch.PageSize)
	if fd, at, ok := c.StartWrite(48, epoch.PageSectors); ok {
		_, err := unix.Pwrite(fd, z, at)
		c.EndWrite()
		if err != nil {
			t.Fatal(err)
		}
	}
	middle := now()
	c.image.mark()
	write(7, 'z', 2)
	if err := c.Zero(32, 16, false); err != nil {
		t.Fatal(err)
	}
	for i, want := range [][]byte{middle, before, before} {
		if err := c.image.undo(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(now(), want) {
			t.Errorf("undo %d brings back something else", i+1)
		}
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

// A guest that does not take connections at first, and leaves the first of them
// without an answer, is asked until it answers.
func TestFirstAnswer(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		for i := 0; ; i++ {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			if i == 0 { // it says nothing, and closes
				_ = conn.Close()
				continue
			}
			_, _ = io.WriteString(conn, "boot 1234\n")
			defer func() { _ = conn.Close() }()
		}
	}()
	tries := 0
	dial := func(ctx context.Context) (net.Conn, error) {
		if tries++; tries < 3 {
			return nil, errors.New("refused")
		}
		return new(net.Dialer).DialContext(ctx, "tcp", ln.Addr().String())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	answers, asking := make(chan time.Time), make(chan struct{})
	serial := make(chan struct{}, 1)
	go func() {
		defer close(asking)
		askOften(ctx, func(ctx context.Context) (net.Conn, error) {
			serial <- struct{}{}
			defer func() { <-serial }()
			return dial(ctx)
		}, answers)
	}()
	select {
	case <-answers:
	case <-ctx.Done():
		t.Error("no answer")
	}
	cancel()
	<-asking
	_ = ln.Close()
	<-served
}
