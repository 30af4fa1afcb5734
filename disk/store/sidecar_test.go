package store

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/zeebo/xxh3"
)

func newHasher() *xxh3.Hasher { return xxh3.New() }

func sum(b []byte) []byte {
	s := xxh3.Hash128(b).Bytes()
	return s[:]
}

// TestRecordAfterACrash: whatever step of its replacement is the last, the record
// is the old one or the new one, and the next writer goes on from it.
func TestRecordAfterACrash(t *testing.T) {
	for step, renamed := range map[string]bool{
		"create": false, "write": false, "sync": false, "rename": false, "sync directory": true,
	} {
		t.Run(step, func(t *testing.T) {
			cfg := Config{Path: makeFile(t, t.TempDir(), 8), Host: "alpha"}
			f := open(t, cfg)
			before, err := f.Stamp()
			if err != nil {
				t.Fatal(err)
			}
			f.side.step = func(name string) error {
				if name == step {
					return errCrash
				}
				return nil
			}
			p := make([]byte, 512)
			p[0] = 1
			if err := f.WriteAt(p, 0); !errors.Is(err, errCrash) {
				t.Fatalf("a write whose stamp is not durable: %v", err)
			}
			if err := f.ReadAt(p, 0); err != nil || p[0] != 0 {
				t.Fatalf("it reached the disk: %v", err)
			}
			if err := f.Acquire(t.Context(), 2); err != nil {
				t.Fatalf("nothing is written for it yet: %v", err)
			}
			if err := f.WriteAt(p, 0); !errors.Is(err, errCrash) {
				t.Fatalf("a write in a generation that is not durable: %v", err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			f, err = Open(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = f.Close() }()
			r, err := f.Record()
			if err != nil {
				t.Fatal(err)
			}
			if renamed != (r.Generation == 2) || !renamed && r.Stamp != before {
				t.Fatalf("record %+v", r)
			}
			if err := errors.Join(f.Acquire(t.Context(), 2), f.WriteAt(p, 0)); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestStamp: it is the same until the first write after it was given out, also
// over a restart, and is replaced once.
func TestStamp(t *testing.T) {
	cfg := Config{Path: makeFile(t, t.TempDir(), testSectors), Host: "alpha"}
	f := open(t, cfg)
	stamp := func() Stamp {
		t.Helper()
		s, err := f.Stamp()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	write := func() {
		t.Helper()
		if err := f.WriteAt(make([]byte, 512), 0); err != nil {
			t.Fatal(err)
		}
	}
	restart := func() {
		t.Helper()
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		f = open(t, cfg)
	}
	first := stamp()
	if restart(); stamp() != first {
		t.Fatal("the stamp changed without a write")
	}
	write()
	if stamp() == first {
		t.Fatal("the stamp outlived a write")
	}
	second := stamp()
	restart()
	if err := f.Zero(0, 1, true); err != nil {
		t.Fatal(err)
	}
	if stamp() == second {
		t.Fatal("the stamp outlived a zero after a restart")
	}
	write()
	saves := 0
	f.side.step = func(string) error { saves++; return nil }
	write()
	write()
	if saves != 0 {
		t.Fatalf("%d steps of saving the record for writes after the first", saves)
	}
}

func TestRecordOfABlockDevice(t *testing.T) {
	if _, err := sidecarOf("/dev/sda", "", true); err == nil {
		t.Error("no state directory")
	}
	a, err := sidecarOf("/dev/x/y", "/state", true)
	b, err2 := sidecarOf("/dev/x%2Fy", "/state", true)
	if err != nil || err2 != nil || a.path == b.path || filepath.Dir(a.path) != "/state" {
		t.Errorf("%q, %q, %v, %v", a.path, b.path, err, err2)
	}
}

const goodRecord = `{"version":1,"generation":7,"owner":"alpha","stamp":"000102030405060708090a0b0c0d0e0f",
"since":"2026-01-02T03:04:05Z","complete":true,"pins":[{"id":"100102030405060708090a0b0c0d0e0f","path":"/p"}]}`

func TestRecordRefused(t *testing.T) {
	if r, err := ParseRecord([]byte(goodRecord)); err != nil || r.Generation != 7 || len(r.Pins) != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	for name, text := range map[string]string{
		"empty":            "",
		"cut":              goodRecord[:100],
		"of tomorrow":      strings.Replace(goodRecord, `"version":1`, `"version":2`, 1),
		"something after":  goodRecord + "{}",
		"no stamp":         `{"version":1}`,
		"a stamp cut":      strings.Replace(goodRecord, "000102", "", 1),
		"a pin's path":     strings.Replace(goodRecord, `"/p"`, `"p"`, 1),
		"huge":             goodRecord + strings.Repeat(" ", maxRecord),
		"generation below": strings.Replace(goodRecord, ":7", ":-7", 1),
	} {
		if _, err := ParseRecord([]byte(text)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	path := makeFile(t, t.TempDir(), 8)
	if err := os.WriteFile(path+RecordSuffix, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Path: path}); err == nil || !strings.Contains(err.Error(), "not valid") {
		t.Errorf("a disk with a damaged record: %v", err)
	}
}

// FuzzRecord: what is accepted can be written and read again, the same.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(goodRecord))
	f.Add([]byte(`{"version":1,"stamp":"ff0102030405060708090a0b0c0d0e0f"}`))
	f.Add([]byte("null"))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := ParseRecord(data)
		if err != nil {
			return
		}
		s := sidecar{path: filepath.Join(dir, "record")}
		if len(data) > maxRecord/8 || s.save(r) != nil { // escapes make text longer
			return
		}
		again, err := s.load()
		if err != nil || again.Generation != r.Generation || again.Stamp != r.Stamp || len(again.Pins) != len(r.Pins) || !again.Since.Truncate(time.Second).Equal(r.Since.Truncate(time.Second)) {
			t.Fatalf("%+v became %+v: %v", r, again, err)
		}
	})
}
