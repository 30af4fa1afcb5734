package events

// The record on the disk: what is read of it equals what was said, over
// rotations, restarts and torn ends; and a disk that takes nothing harms nobody.

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"understudy/clock"
)

func ticking(*testing.T) clock.Clock { return clock.Go{Start: time.Now().Add(-time.Hour)} }

// step is one thing that happens to a record.
type step struct {
	what string
	n    int
}

// oracle is the record as it should be: every event that was not lost with the
// end of a file.
type oracle struct {
	t    *testing.T
	cfg  Config
	l    *Log
	all  []Event
	said int
}

func (o *oracle) must(err error) {
	o.t.Helper()
	if err != nil {
		o.t.Fatal(err)
	}
}

func (o *oracle) open() {
	o.t.Helper()
	var err error
	o.l, err = Open(o.cfg)
	o.must(err)
}

// last is the newest file, "" if there is none.
func (o *oracle) last() string {
	names, err := files{dir: o.cfg.Dir}.names()
	o.must(err)
	if len(names) == 0 {
		return ""
	}
	return files{dir: o.cfg.Dir}.path(names[len(names)-1])
}

func (o *oracle) do(s step) {
	o.t.Helper()
	switch s.what {
	case "add":
		for range s.n {
			o.said++
			o.l.Add(Event{Kind: kindOf(o.said), Guest: []string{"", "web", "db"}[o.said%3], Text: fmt.Sprint(o.said)})
			synctest.Wait() // it is written: the ring is smaller than the disk
			o.all = append(o.all, o.l.Newest(1, Filter{})...)
		}
	case "sleep":
		time.Sleep(time.Duration(s.n) * time.Second)
	case "restart":
		o.must(o.l.Close())
		o.open()
	case "torn": // the host was lost: the end of the file was not written
		o.must(o.l.Close())
		if path := o.last(); path != "" {
			text, err := os.ReadFile(path)
			o.must(err)
			keep := max(0, len(text)-s.n*7)
			lost := strings.Count(string(text[keep:]), "\n")
			o.all = o.all[:len(o.all)-lost]
			o.must(os.Truncate(path, int64(keep)))
		}
		o.open()
	case "noise": // or something else was
		o.must(o.l.Close())
		if path := o.last(); path != "" {
			f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
			o.must(err)
			_, err = f.WriteString(strings.Repeat("\x00", s.n*500) + "\n{}\n{\"seq\":3")
			o.must(err)
			o.must(f.Close())
		}
		o.open()
	}
	o.check(s)
}

func (o *oracle) check(s step) {
	o.t.Helper()
	synctest.Wait()
	got := o.l.Since(0, Filter{}, 0)
	if len(got) > len(o.all) || texts(got) != texts(o.all[len(o.all)-len(got):]) {
		o.t.Fatalf("after %+v:\n got %s\nwant the end of %s", s, texts(got), texts(o.all))
	}
	// Of files that were full, all but one are kept; a line here has 230 bytes at most.
	if least := min(len(o.all), (o.cfg.Files-1)*int(o.cfg.FileBytes/230)); len(got) < least && s.what != "torn" {
		o.t.Fatalf("after %+v only %d events are kept, want %d", s, len(got), least)
	}
	var bytes int64
	entries, err := os.ReadDir(o.cfg.Dir)
	o.must(err)
	for _, e := range entries {
		info, err := e.Info()
		o.must(err)
		bytes += info.Size()
	}
	if most := int64(o.cfg.Files) * (o.cfg.FileBytes + 2000); len(entries) > o.cfg.Files || bytes > most {
		o.t.Fatalf("after %+v: %d files, %d bytes", s, len(entries), bytes)
	}
	// What is asked for by number, guest and kind is what a plain search finds.
	seq := uint64(s.n) + got0(got)
	f := Filter{Guest: []string{"", "web"}[s.n%2]}
	if s.n%3 == 0 {
		f.Kinds = []Kind{"drill-1", "drill-2", kindOf(s.n)}
	}
	var want []Event
	for _, e := range got {
		if f.Match(&e) {
			want = append(want, e)
		}
	}
	since := slices.DeleteFunc(slices.Clone(want), func(e Event) bool { return len(o.all) > 0 && seq <= o.all[len(o.all)-1].Seq && e.Seq <= seq })
	if found := o.l.Since(seq, f, 0); texts(found) != texts(since) {
		o.t.Fatalf("since %d, %+v: %s, want %s", seq, f, texts(found), texts(since))
	}
	n := s.n%7 + 1
	if found := o.l.Newest(n, f); texts(found) != texts(want[max(0, len(want)-n):]) {
		o.t.Fatalf("newest %d, %+v: %s, want the end of %s", n, f, texts(found), texts(want))
	}
	// A follower gets the same, and then waits.
	ctx, cancel := context.WithCancel(o.t.Context())
	var heard []Event
	var running sync.WaitGroup
	running.Go(func() {
		for e := range o.l.Follow(ctx, 0, f) {
			heard = append(heard, e)
		}
	})
	synctest.Wait()
	cancel()
	running.Wait()
	if texts(heard) != texts(want) {
		o.t.Fatalf("a follower heard %s, want %s", texts(heard), texts(want))
	}
}

func got0(all []Event) uint64 {
	if len(all) == 0 {
		return 0
	}
	return all[0].Seq
}

func TestTheRecordEqualsItsOracle(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		// rapid draws the whole story first: its T does not belong to a bubble.
		ring, files := rapid.IntRange(1, 12).Draw(rt, "ring"), rapid.IntRange(1, 4).Draw(rt, "files")
		room := rapid.IntRange(300, 1500).Draw(rt, "file bytes")
		story := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) step {
			return step{rapid.SampledFrom([]string{"add", "add", "add", "sleep", "restart", "torn", "noise"}).Draw(rt, "what"), rapid.IntRange(1, 25).Draw(rt, "n")}
		}), 1, 12).Draw(rt, "story")
		dir := filepath.Join(t.TempDir(), "events")
		defer func() { _ = os.RemoveAll(dir) }()
		synctest.Test(t, func(t *testing.T) {
			o := &oracle{t: t, cfg: Config{Host: "alpha", Dir: dir, Ring: ring, FileBytes: int64(room), Files: files, Clock: ticking(t)}}
			o.open()
			defer func() { o.must(o.l.Close()) }()
			for _, s := range story {
				o.do(s)
			}
		})
	})
}

// fullDisk takes so many bytes more, then the rest of them and an error.
type fullDisk struct {
	mu     sync.Mutex
	left   int
	opened int
	closed int
}

type fullFile struct {
	file
	d *fullDisk
}

func (d *fullDisk) open(path string) (file, error) {
	f, err := openFile(path)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.opened++
	return fullFile{f, d}, err
}

func (f fullFile) Write(b []byte) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	n := min(len(b), f.d.left)
	f.d.left -= n
	n, err := f.file.Write(b[:n])
	if err == nil && n < len(b) {
		err = syscall.ENOSPC
	}
	return n, err
}

func (f fullFile) Close() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	f.d.closed++
	return f.file.Close()
}

func (d *fullDisk) room(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.left = n
}

// TestAFullDiskHarmsNobody: it is told of once, events go on in memory, and what
// the ring still has is written when there is room again. What it has not is told
// of as missing.
func TestAFullDiskHarmsNobody(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		d := &fullDisk{left: 500}
		var said strings.Builder
		cfg := Config{Host: "alpha", Dir: dir, Ring: 10, Clock: ticking(t), Slog: slog.New(slog.NewTextHandler(&said, nil)), open: d.open}
		l, err := Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		add := func(n int) {
			for i := range n {
				l.Add(Event{Kind: kindOf(i), Text: "x"})
				synctest.Wait()
			}
		}
		add(30)
		for range 5 { // tried, and taken back, again and again
			time.Sleep(2 * retryAfter)
			synctest.Wait()
		}
		if n := strings.Count(said.String(), "\n"); n != 1 || !strings.Contains(said.String(), "no space left") {
			t.Errorf("said: %s", said.String())
		}
		if got := l.Newest(10, Filter{}); len(got) != 10 || got[9].Seq != 30 {
			t.Errorf("newest: %s", texts(got))
		}
		whole := len(l.Since(0, Filter{}, 0)) - 10
		if whole < 1 || whole > 4 {
			t.Errorf("%d events in 500 bytes", whole)
		}
		d.room(1 << 20)
		add(2)
		time.Sleep(2 * retryAfter)
		synctest.Wait()
		if !strings.Contains(said.String(), fmt.Sprintf("events are written again\" lost=%d", 22-whole)) {
			t.Errorf("said: %s", said.String())
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if d.opened != d.closed {
			t.Errorf("%d files opened, %d closed", d.opened, d.closed)
		}
		if l, err = Open(cfg); err != nil {
			t.Fatal(err)
		}
		got := l.Since(0, Filter{}, 0)
		if len(got) != whole+10 || got[len(got)-1].Seq != 32 {
			t.Errorf("on the disk: %s", texts(got))
		}
		add(1)
		heard := 0
		for e := range l.Follow(t.Context(), 0, Filter{Kinds: []Kind{"none-such"}}) {
			if heard++; e.Kind != KindMissed || e.Missed != uint64(22-whole) || e.Seq != 22 {
				t.Errorf("heard %+v", e)
			}
			break
		}
		if heard != 1 {
			t.Error("nothing was told of the gap")
		}
		d.room(3)
		l.Add(Event{Kind: KindHostDown})
		if err := l.Close(); err == nil || !strings.Contains(err.Error(), "not on the disk") {
			t.Errorf("closed on a full disk: %v", err)
		}
	})
}

// TestADirectoryThatCannotBeHad is an error that names it.
func TestADirectoryThatCannotBeHad(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Host: "alpha", Dir: filepath.Join(dir, "events")}); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("got %v", err)
	}
}

// TestOtherFilesAreLeftAlone: a directory may hold what somebody put there.
func TestOtherFilesAreLeftAlone(t *testing.T) {
	dir := t.TempDir()
	others := []string{"notes.txt", "12.jsonl", "0000000000000000.jsonl", "99999999999999999999.jsonl", "-000000000000001.jsonl"}
	for _, name := range others {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("mine\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := Open(Config{Host: "alpha", Dir: dir, FileBytes: 1, Files: 1})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 9 {
		l.Add(Event{Kind: kindOf(i)})
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != len(others)+1 {
		t.Errorf("%v, %v", entries, err)
	}
}
