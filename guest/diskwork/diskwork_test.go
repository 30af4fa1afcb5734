package diskwork

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// little is a work that is quickly done with its files.
var little = Options{Files: 6, Size: 8192, Workers: 2}

func begin(t *testing.T, dir string, o Options) *Work {
	t.Helper()
	w, err := Start(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Stop)
	return w
}

// follow collects n acknowledgements.
func follow(t *testing.T, w *Work, next uint64, n int) []Ack {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var got []Ack
	enough := errors.New("enough")
	err := w.Follow(ctx, next, func(acks []Ack) error {
		if got = append(got, acks...); len(got) >= n {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) {
		t.Fatalf("%d acknowledgements, then %v", len(got), err)
	}
	return got[:n]
}

func TestWorkAcknowledgesWhatTheDiskHas(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "work")
	w := begin(t, dir, little)
	acks := follow(t, w, 1, 60)
	for i, a := range acks {
		if a.N != uint64(i+1) {
			t.Fatalf("acknowledgement %d has number %d", i+1, a.N)
		}
	}
	if c, err := w.Verify(t.Context(), acks); err != nil || c.Files != little.Files || c.Bytes != 3*8192*6 {
		t.Errorf("while it works: %+v, %v", c, err)
	}
	w.Stop()
	if s := w.Status(); s.Errors != 0 || s.Acked < 60 || s.Acked != s.Rounds {
		t.Errorf("at the end: %+v", s)
	}
	if c, err := w.Check(t.Context()); err != nil || c.Files != little.Files {
		t.Errorf("at the end: %+v, %v", c, err)
	}
	// To one who knows only the acknowledgements, and to the next run.
	if c, err := Verify(t.Context(), dir, acks); err != nil || c.Files != little.Files {
		t.Errorf("afterwards: %+v, %v", c, err)
	}
	next := begin(t, dir, little)
	again := follow(t, next, 1, 12)
	if a := again[0]; a.Version <= newest(acks)[a.File].version {
		t.Errorf("the next run writes version %d of file %d again", a.Version, a.File)
	}
	next.Stop()
	if _, err := Verify(t.Context(), dir, slices.Concat(acks, again)); err != nil {
		t.Error(err)
	}
}

// Each kind of damage to the files of a work at rest is seen by the run that
// wrote them, and by one that knows only the acknowledgements.
func TestDamageIsSeen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "work")
	w := begin(t, dir, little)
	follow(t, w, 1, 40)
	w.Stop()
	acks := everything(t, w)
	for _, c := range []struct {
		name string
		harm func(data []byte, file int, version uint64) []byte
		run  string // what the run says
		late string // what the other says, "" if it cannot know
	}{
		{"a bit", func(d []byte, _ int, _ uint64) []byte { d[700] ^= 1; return d }, "sector 1 of 16 has a wrong checksum", "sector 1 of 16 has a wrong checksum"},
		{"a lost sector", func(d []byte, _ int, _ uint64) []byte { clear(d[512:1024]); return d }, "sector 1 of 16 is all zeros", "all zeros"},
		{"a sector elsewhere", func(d []byte, _ int, _ uint64) []byte { copy(d, d[512:1024]); return d }, "sector 0 of 16 is sector 1 of 16", "is sector 1"},
		{"another file", func(d []byte, f int, v uint64) []byte { fill(d, f+1, v); return d }, "is sector 0 of 16 of file", "is sector 0"},
		{"the version before", func(d []byte, f int, v uint64) []byte { fill(d, f, v-1); return d }, "was acknowledged", "was acknowledged"},
		{"a piece of the version before", func(d []byte, f int, v uint64) []byte { return torn(d, f, v-1) }, "was acknowledged", "was acknowledged"},
		{"a later version", func(d []byte, f int, v uint64) []byte { fill(d, f, v+1); return d }, "was the last one written", ""},
		{"versions far apart", func(d []byte, f int, v uint64) []byte { return torn(d, f, v+2) }, "versions", "versions"},
		{"cut short", func(d []byte, _ int, _ uint64) []byte { return d[:4096] }, "is sector 0 of 16", "is sector 0 of 16"},
		{"empty", func(d []byte, _ int, _ uint64) []byte { return nil }, "0 bytes long", "0 bytes long"},
		{"no whole sectors", func(d []byte, _ int, _ uint64) []byte { return d[:1000] }, "1000 bytes long", "1000 bytes long"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for file := range little.Files {
				path := filepath.Join(dir, nameOf(file))
				whole, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, c.harm(slices.Clone(whole), file, w.files[file].version), 0o644); err != nil {
					t.Fatal(err)
				}
				_, err = w.Check(t.Context())
				expectDamage(t, err, c.run)
				_, err = Verify(t.Context(), dir, acks)
				expectDamage(t, err, c.late)
				if err := os.WriteFile(path, whole, 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
	if err := os.Remove(filepath.Join(dir, nameOf(3))); err != nil {
		t.Fatal(err)
	}
	_, err := w.Check(t.Context())
	expectDamage(t, err, "file 3 is gone")
	_, err = Verify(t.Context(), dir, acks)
	expectDamage(t, err, "file 3 is gone")
}

// everything is all that w has acknowledged.
func everything(t *testing.T, w *Work) (all []Ack) {
	t.Helper()
	if err := w.Follow(t.Context(), 1, func(acks []Ack) error {
		all = append(all, acks...)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// torn gives the second half of data another version.
func torn(data []byte, file int, version uint64) []byte {
	other := make([]byte, len(data))
	fill(other, file, version)
	copy(data[len(data)/2:], other[len(data)/2:])
	return data
}

func expectDamage(t *testing.T, err error, says string) {
	t.Helper()
	if says == "" {
		if err != nil {
			t.Errorf("unexpected: %v", err)
		}
		return
	}
	var d *Damage
	if !errors.As(err, &d) || !strings.Contains(err.Error(), says) {
		t.Errorf("says %v, want damage of %q", err, says)
	}
}

// After a crash in the middle of a write, a file that is overwritten in place may
// hold both versions; it may not hold less than was acknowledged.
func TestWhatACrashMayLeave(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		file := rapid.IntRange(0, 8).Draw(t, "file")
		acked := rapid.Uint64Range(1, 1<<40).Draw(t, "acked")
		data, next := make([]byte, 8192), make([]byte, 8192)
		sum := fill(data, file, acked)
		fill(next, file, acked+1)
		for i := range 16 {
			if rapid.Bool().Draw(t, "sector of the next") {
				copy(data[i*512:], next[i*512:][:512])
			}
		}
		found, err := inspect(file, data)
		if err != nil {
			t.Fatal(err)
		}
		mixed := found.low != found.high
		if err := judge(found, known{version: acked, sum: sum}, true); err != nil {
			t.Errorf("in place: %v", err)
		}
		if got := judge(found, known{version: acked, sum: sum}, false); (got != nil) != mixed {
			t.Errorf("replaced: mixed %v, %v", mixed, got)
		}
		if got := judge(found, known{version: acked + 1}, true); (got != nil) != (found.low == acked) {
			t.Errorf("a lost write: low %d, %v", found.low, got)
		}
	})
}

func TestAnUnfinishedWriteIsMadeWholeByTheNextRun(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "work")
	w := begin(t, dir, little)
	follow(t, w, 1, 12)
	w.Stop()
	const file = overwritten
	path := filepath.Join(dir, nameOf(file))
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	old := w.files[file].version
	if err := errors.Join(os.WriteFile(path, torn(data, file, old+1), 0o644),
		os.WriteFile(filepath.Join(dir, nameOf(0)+temporarySuffix), []byte("half a fi"), 0o644)); err != nil {
		t.Fatal(err)
	}
	w = begin(t, dir, little)
	for _, a := range follow(t, w, 1, 12) {
		if a.File == file {
			if a.Version != old+1 {
				t.Errorf("goes on with version %d after a piece of %d", a.Version, old+1)
			}
			break
		}
	}
	if _, err := w.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if s := w.Status(); s.First != nil {
		t.Error(s.First)
	}
}

func TestErrorsAreCountedAndTheWorkGoesOn(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "work")
	o := little
	o.Workers = 1
	w := begin(t, dir, o)
	follow(t, w, 1, 12)
	w.pause.Lock() // at rest: a file is damaged
	err := os.WriteFile(filepath.Join(dir, nameOf(2)), make([]byte, 8192), 0o644)
	before := w.acks.count()
	w.pause.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	follow(t, w, before+1, 30)
	w.Stop()
	// It may have been overwritten before it was read.
	if s := w.Status(); s.Errors > 0 && !strings.Contains(s.First.Error(), "file 2") {
		t.Errorf("%+v", s)
	}
	if _, err := w.Check(t.Context()); err != nil {
		t.Errorf("a good version came after the damage, yet: %v", err)
	}
}

func TestOptionsHaveBounds(t *testing.T) {
	for _, o := range []Options{
		{Files: MaxFiles + 1}, {Files: -1}, {Size: 100}, {Size: 5000}, {Size: maxSize + 4096},
		{Workers: MaxWorkers + 1}, {Files: 2, Workers: 3}, {Every: -1}, {Files: MaxFiles, Size: maxSize, Workers: 1, Every: time.Hour},
	} {
		w, err := Start(t.TempDir(), o)
		if err == nil {
			w.Stop()
			if o.Size != maxSize { // this disk may have the 64 GiB of the last one
				t.Errorf("%+v is accepted", o)
			}
		}
	}
	strange := t.TempDir()
	if err := os.WriteFile(filepath.Join(strange, "notes.txt"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := Start(strange, little)
	expectDamage(t, err, "notes.txt")
	if c, err := Verify(t.Context(), filepath.Join(strange, "none"), nil); err != nil || c.Files != 0 {
		t.Errorf("a work that never was: %+v, %v", c, err)
	}
}

func TestFollowersWaitAndAreGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newAckLog()
		got := make(chan Ack, 1)
		go func() {
			batch := make([]Ack, 4)
			if n, err := l.after(t.Context(), 1, batch); err != nil || n != 1 {
				t.Errorf("%d, %v", n, err)
			}
			got <- batch[0]
		}()
		synctest.Wait()
		l.add(Ack{File: 3, Version: 9})
		if a := <-got; a != (Ack{1, 3, 9, 0}) {
			t.Errorf("got %+v", a)
		}
		for range keptAcks {
			l.add(Ack{})
		}
		if _, err := l.after(t.Context(), 1, make([]Ack, 1)); err == nil || !strings.Contains(err.Error(), "no longer kept") {
			t.Errorf("a follower far behind gets %v", err)
		}
		batch := make([]Ack, 4)
		if n, err := l.after(t.Context(), 2, batch); err != nil || n != 4 || batch[3].N != 5 {
			t.Errorf("the oldest that is kept: %d, %v, %+v", n, err, batch)
		}
		l.close()
		if _, err := l.after(t.Context(), l.count()+1, batch); !errors.Is(err, errEnded) {
			t.Errorf("after the end: %v", err)
		}
	})
}

func FuzzAck(f *testing.F) {
	f.Add(Ack{1, 2, 3, 4}.String())
	f.Add("ack 1 4096 1 0000000000000000")
	f.Add("ack 1 1 0 00")
	f.Fuzz(func(t *testing.T, line string) {
		a, err := ParseAck(line)
		if err != nil {
			return
		}
		if again, err := ParseAck(a.String()); err != nil || again != a {
			t.Errorf("%q is %+v, which is written %q and read %+v, %v", line, a, a, again, err)
		}
	})
}

// Whatever a disk gives back is either a file's content or told to be none.
func FuzzInspect(f *testing.F) {
	whole := make([]byte, 1024)
	fill(whole, 3, 7)
	f.Add(whole)
	f.Add(whole[:600])
	f.Add(make([]byte, 512))
	f.Fuzz(func(t *testing.T, data []byte) {
		found, err := inspect(3, data)
		if err == nil && (found.low > found.high || len(data)%sectorSize != 0) {
			t.Errorf("%d bytes hold %+v", len(data), found)
		}
	})
}
