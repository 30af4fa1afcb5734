package store

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"understudy/epoch"
)

// failing is a disk that fails after some changes: a crash in mid-rollback.
type failing struct {
	*File
	left int
}

var errCrash = errors.New("crash")

func (d *failing) WriteAt(p []byte, sector uint64) error {
	if d.left--; d.left < 0 {
		return errCrash
	}
	return d.File.WriteAt(p, sector)
}

func (d *failing) Zero(sector uint64, sectors uint32, discard bool) error {
	if d.left--; d.left < 0 {
		return errCrash
	}
	return d.File.Zero(sector, sectors, discard)
}

// TestPinKeepsWhatWas: random writes, zeroes and restarts with torn pins; at
// every moment the view is the pinned content, and a rollback, also one that
// crashed, brings it back.
func TestPinKeepsWhatWas(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("/dev/shm", "store-test-*")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = os.RemoveAll(dir) }()
		const sectors = 700 + 3 // the last block is short
		cfg := Config{Path: filepath.Join(dir, "disk"), Create: sectors, Host: "alpha"}
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		f, err := Open(cfg)
		must(err)
		defer func() { _ = f.Close() }()
		now := make([]byte, sectors*epoch.SectorSize)
		change := func(t *rapid.T) {
			n := rapid.IntRange(1, 40).Draw(t, "sectors")
			if rapid.IntRange(0, 9).Draw(t, "large") == 0 {
				n = rapid.IntRange(300, 690).Draw(t, "many sectors")
			}
			at := rapid.IntRange(0, sectors-n).Draw(t, "at")
			p := now[at*epoch.SectorSize : (at+n)*epoch.SectorSize]
			if rapid.Bool().Draw(t, "zero") {
				clear(p)
				must(f.Zero(uint64(at), uint32(n), rapid.Bool().Draw(t, "discard")))
				return
			}
			fill := rapid.Byte().Draw(t, "fill")
			for i := range p {
				p[i] = fill + byte(i/epoch.SectorSize) | 1
			}
			must(f.WriteAt(p, uint64(at)))
		}
		for range rapid.IntRange(0, 3).Draw(t, "before") {
			change(t)
		}
		stamp, err := f.Stamp()
		must(err)
		pin, err := f.Pin(filepath.Join(dir, "pin"), 0)
		must(err)
		id, was := pin.ID, bytes.Clone(now)
		reopen := func(tear []byte) {
			must(f.Close())
			if len(tear) > 0 {
				file, err := os.OpenFile(pin.Path, os.O_WRONLY|os.O_APPEND, 0)
				must(err)
				_, err = file.Write(tear)
				must(errors.Join(err, file.Close()))
			}
			f, err = Open(cfg)
			must(err)
			if pins := f.Pins(); len(pins) != 1 || pins[0].ID != id {
				t.Fatalf("pins after a restart: %v", pins)
			}
		}
		same := func(s Source, want []byte) {
			t.Helper()
			got := make([]byte, len(want))
			must(s.ReadAt(got, 0))
			if !bytes.Equal(got, want) {
				t.Fatal("content differs")
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"change": change,
			"restart": func(t *rapid.T) {
				reopen(rapid.SliceOfN(rapid.Byte(), 0, 100).Draw(t, "torn"))
			},
			"read one sector": func(t *rapid.T) {
				v, err := f.Pins()[0].View(f)
				must(err)
				at := rapid.IntRange(0, sectors-1).Draw(t, "at")
				one := make([]byte, epoch.SectorSize)
				must(v.ReadAt(one, uint64(at)))
				if !bytes.Equal(one, was[at*epoch.SectorSize:][:epoch.SectorSize]) {
					t.Fatalf("sector %d differs", at)
				}
			},
			"read the pin's file": func(*rapid.T) {
				read, err := OpenPin(pin.Path)
				must(err)
				defer read.Close()
				if len(read.kept) != len(f.Pins()[0].kept) || read.Kept() != f.Pins()[0].Kept() {
					t.Fatal("the file has other content than the armed pin")
				}
			},
			"read all": func(*rapid.T) {
				v, err := f.Pins()[0].View(f)
				must(err)
				same(v, was)
				same(f, now)
			},
		})
		v, err := f.Pins()[0].View(f)
		must(err)
		same(v, was)
		same(f, now)
		err = f.Pins()[0].Rollback(&failing{File: f, left: rapid.IntRange(0, 20).Draw(t, "crash after")})
		if err != nil && !errors.Is(err, errCrash) {
			t.Fatal(err)
		}
		reopen(nil)
		must(f.Pins()[0].Rollback(f))
		same(f, was)
		if s, err := f.Stamp(); err != nil || s != stamp {
			t.Fatalf("stamp %v after the rollback, was %v: %v", s, stamp, err)
		}
		must(f.Unpin(id))
		if _, err := os.Stat(pin.Path); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("the pin's file is left: %v", err)
		}
	})
}

// TestPinBreaksLoudly: at its limit a pin is broken, the write goes on, and
// nobody reads from it any more.
func TestPinBreaksLoudly(t *testing.T) {
	for _, c := range []struct {
		name  string
		limit uint64
		spoil func(p *Pin)
		want  string
	}{
		{"limit", 4 * pinBlock, func(*Pin) {}, "limit"},
		{"its file fails", 0, func(p *Pin) { p.close() }, "closed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := Config{Path: makeFile(t, t.TempDir(), testSectors)}
			f := open(t, cfg)
			full := bytes.Repeat([]byte{1}, 16*pinBlock)
			if err := f.WriteAt(full, 0); err != nil {
				t.Fatal(err)
			}
			pin, err := f.Pin(filepath.Join(t.TempDir(), "pin"), c.limit)
			if err != nil {
				t.Fatal(err)
			}
			if err := f.WriteAt(full[:4*pinBlock], 0); err != nil || pin.Broken() != "" {
				t.Fatalf("broken below its limit: %v, %s", err, pin.Broken())
			}
			c.spoil(pin)
			if err := f.WriteAt(full, 0); err != nil {
				t.Fatalf("the write does not go on: %v", err)
			}
			if !strings.Contains(pin.Broken(), c.want) {
				t.Fatalf("broken: %q, want %q", pin.Broken(), c.want)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			f = open(t, cfg)
			read, err := OpenPin(pin.Path)
			if err != nil {
				t.Fatal(err)
			}
			defer read.Close()
			if _, err := read.View(f); !errors.Is(err, ErrPinBroken) {
				t.Errorf("view: %v", err)
			}
			if err := read.Rollback(f); !errors.Is(err, ErrPinBroken) {
				t.Errorf("rollback: %v", err)
			}
			if err := f.Unpin(pin.ID); err != nil {
				t.Errorf("unpin: %v", err)
			}
		})
	}
}

// TestPinThatIsGone: the record names a pin whose file is not here.
func TestPinThatIsGone(t *testing.T) {
	cfg := Config{Path: makeFile(t, t.TempDir(), testSectors), Shared: true}
	f := open(t, cfg)
	pin, err := f.Pin(filepath.Join(t.TempDir(), "pin"), 0)
	if err != nil {
		t.Fatal(err)
	}
	away := pin.Path + ".away"
	if err := errors.Join(f.Release(), os.Rename(pin.Path, away), f.Acquire(t.Context(), 2)); err != nil {
		t.Fatalf("a pin that is gone keeps us from the disk: %v", err)
	}
	if err := errors.Join(f.WriteAt(make([]byte, 512), 0), f.Release(), f.Acquire(t.Context(), 3)); err != nil {
		t.Fatal(err)
	}
	read, err := OpenPin(away)
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	if _, err := read.View(f); !errors.Is(err, ErrPinBroken) {
		t.Fatalf("it is believed when it comes back: %v", err)
	}
}

// TestPinDamage: damage that no crash can do is refused.
func TestPinDamage(t *testing.T) {
	f := open(t, Config{Path: makeFile(t, tmpfs(t), 32<<20/512)})
	full := bytes.Repeat([]byte{3}, 8<<20)
	if err := f.WriteAt(full, 0); err != nil {
		t.Fatal(err)
	}
	pin, err := f.Pin(filepath.Join(tmpfs(t), "pin"), 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.WriteAt(full, 0); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(pin.Path)
	if err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func(b []byte) []byte{
		"in the header":       func(b []byte) []byte { b[100]++; return b },
		"in early content":    func(b []byte) []byte { b[pinHeader+1000]++; return b },
		"cut in the header":   func(b []byte) []byte { return b[:200] },
		"a record repeated":   func(b []byte) []byte { return append(b, b[pinHeader:pinHeader+pinRecord+pinPiece]...) },
		"version of tomorrow": func(b []byte) []byte { b[8]++; return b },
	} {
		path := filepath.Join(t.TempDir(), "pin")
		if err := os.WriteFile(path, damage(bytes.Clone(whole)), 0o600); err != nil {
			t.Fatal(err)
		}
		if p, err := OpenPin(path); !errors.Is(err, ErrPin) {
			t.Errorf("%s: %v", name, err)
			if err == nil {
				p.Close()
			}
		}
	}
}

// FuzzPin: any file is refused or read, without a panic and without memory that
// its size does not justify.
func FuzzPin(f *testing.F) {
	head := PinHead{ID: PinID{1}, Stamp: Stamp{2}, Sectors: 100}
	hasher := newHasher()
	good := head.encode()
	c := oldContent{kind: recordData, sector: 8, sectors: 8, data: make([]byte, pinBlock)}
	good = append(appendRecordHead(good, head.ID, c, hasher), c.data...)
	good = appendRecordHead(good, head.ID, oldContent{kind: recordZero, sector: 96, sectors: 4}, hasher)
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add(good[:pinHeader])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		data = bytes.Clone(data)
		if len(data) >= pinHeader { // let what is changed get past the checksum
			copy(data[pinHeader-16:], sum(data[:pinHeader-16]))
		}
		table := keptTable{}
		_, end, err := scanPin(bytes.NewReader(data), int64(len(data)), table.add)
		if err == nil && (end < pinHeader || end > int64(len(data))) {
			t.Fatalf("records end at %d of %d", end, len(data))
		}
	})
}

// TestADiskHalfRolledBackIsNobodys: after a crash in a rollback only another
// rollback gets the disk, on whatever host, until one has ended.
func TestADiskHalfRolledBackIsNobodys(t *testing.T) {
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	cfg := Config{Path: makeFile(t, dir, 64), Shared: true, Direct: DirectNever, Host: "alpha"}
	f := open(t, cfg)
	must(f.Acquire(t.Context(), 1))
	old := bytes.Repeat([]byte{1}, 4096)
	must(f.WriteAt(old, 0))
	pin, err := f.Pin(filepath.Join(dir, "pin"), 0)
	must(err)
	must(f.WriteAt(make([]byte, 4096), 0))
	must(f.beginRolling(pin.ID)) // and dies
	must(f.Release())
	must(f.Close())

	f, err = Open(cfg)
	must(err)
	t.Cleanup(func() { _ = f.Close() })
	for range 2 {
		if err := f.Acquire(t.Context(), 2); !errors.Is(err, ErrTorn) {
			t.Fatalf("got %v, want ErrTorn", err)
		}
		if err := f.WriteAt(old, 8); !errors.Is(err, ErrNotWriter) {
			t.Fatalf("a write to it: %v", err)
		}
	}
	must(f.AcquireTorn(t.Context(), 1))
	if err := f.Unpin(pin.ID); !errors.Is(err, ErrTorn) {
		t.Errorf("its pin was ended: %v", err)
	}
	must(f.Pins()[0].Rollback(f))
	must(f.Release())
	must(f.Acquire(t.Context(), 2))
	got := make([]byte, 4096)
	must(f.ReadAt(got, 0))
	if !bytes.Equal(got, old) {
		t.Error("the disk is not what it was")
	}
	must(f.Unpin(pin.ID))
}
