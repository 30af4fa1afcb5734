package store

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"understudy/epoch"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(holderEnv); path != "" {
		holdLock(path)
		return
	}
	goleak.VerifyTestMain(m)
}

const testSectors = 4096 // 2 MiB

// place is somewhere a disk can be.
type place struct {
	name string
	make func(t *testing.T) Config
}

func makeFile(t *testing.T, dir string, sectors int64) string {
	t.Helper()
	path := filepath.Join(dir, "disk")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, sectors*epoch.SectorSize); err != nil {
		t.Fatal(err)
	}
	return path
}

func tmpfs(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "store-test-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func loop(t *testing.T, sectorSize int) string {
	t.Helper()
	backing := makeFile(t, t.TempDir(), testSectors)
	out, err := exec.Command("losetup", "--show", "-f", "--sector-size", strconv.Itoa(sectorSize), backing).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v: %s", err, out)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", device).CombinedOutput(); err != nil {
			t.Errorf("losetup -d %s: %v: %s", device, err, out)
		}
	})
	return device
}

func places() []place {
	loopDevice := func(sectorSize int) func(t *testing.T) Config {
		return func(t *testing.T) Config {
			return Config{Path: loop(t, sectorSize), Shared: true, StateDir: filepath.Join(t.TempDir(), "new", "disks")}
		}
	}
	return []place{
		{"direct file", func(t *testing.T) Config {
			return Config{Path: makeFile(t, t.TempDir(), testSectors), Shared: true}
		}},
		{"buffered file", func(t *testing.T) Config {
			return Config{Path: makeFile(t, t.TempDir(), testSectors)}
		}},
		{"tmpfs", func(t *testing.T) Config {
			return Config{Path: makeFile(t, tmpfs(t), testSectors)}
		}},
		{"loop device, 512-byte sectors", loopDevice(512)},
		{"loop device, 4096-byte sectors", loopDevice(4096)},
		{"qcow2 image", func(t *testing.T) Config {
			path := filepath.Join(t.TempDir(), "image.qcow2")
			qemuImg(t, "create", "-q", "-f", "qcow2", path, strconv.Itoa(testSectors*epoch.SectorSize))
			return Config{Path: path}
		}},
	}
}

// open opens the disk and, if it is shared, makes it writable.
func open(t *testing.T, cfg Config) *File {
	t.Helper()
	cfg.Host = "alpha"
	var f *File
	var err error
	if strings.HasSuffix(cfg.Path, ".qcow2") {
		f, err = OpenVia(t.Context(), cfg, Via{Dir: t.TempDir()})
	} else {
		f, err = Open(cfg)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := f.Acquire(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	return f
}

// TestWhatIsWrittenIsRead compares each kind of place with a plain array, at
// every alignment of sectors, and of memory.
func TestWhatIsWrittenIsRead(t *testing.T) {
	for _, place := range places() {
		t.Run(place.name, func(t *testing.T) {
			cfg := place.make(t)
			f := open(t, cfg)
			direct, memory, io := f.IsDirect()
			t.Logf("direct %v, memory %d, blocks %d", direct, memory, io)
			if f.Sectors() != testSectors {
				t.Fatalf("%d sectors, want %d", f.Sectors(), testSectors)
			}
			random := rand.New(rand.NewPCG(1, 2))
			want := make([]byte, testSectors*epoch.SectorSize)
			arena := make([]byte, len(want)+4096)
			for step := range 400 {
				n := 1 + random.IntN(24)
				if step%20 == 0 {
					n = 1 + random.IntN(2000) // more than a bounce buffer
				}
				at := random.IntN(testSectors - n)
				from, to := at*epoch.SectorSize, (at+n)*epoch.SectorSize
				shift := random.IntN(3) * random.IntN(512)
				p := arena[shift : shift+to-from]
				var err error
				switch random.IntN(4) {
				case 0:
					err = f.Zero(uint64(at), uint32(n), step%2 == 0)
					clear(want[from:to])
				default:
					for i := range p {
						p[i] = byte(random.Uint32())
					}
					err = f.WriteAt(p, uint64(at))
					copy(want[from:to], p)
				}
				if err != nil {
					t.Fatal(err)
				}
				if at > 3 && at+n < testSectors-3 {
					at, n = at-3, n+6
				}
				p = arena[shift : shift+n*epoch.SectorSize]
				if err := f.ReadAt(p, uint64(at)); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(p, want[at*epoch.SectorSize:(at+n)*epoch.SectorSize]) {
					t.Fatalf("step %d: sectors %d to %d differ", step, at, at+n)
				}
			}
			if err := f.Sync(); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			again := open(t, cfg)
			got := make([]byte, len(want))
			if err := again.ReadAt(got, 0); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Fatal("the disk differs after it was opened again")
			}
			hashes := make([]epoch.Hash, Chunks(again.Sectors()))
			plain := make([]epoch.Hash, len(hashes))
			if err := errors.Join(again.HashChunks(0, hashes), HashChunks(again, 0, plain)); err != nil {
				t.Fatal(err)
			}
			for i := range hashes {
				if hashes[i] != plain[i] || hashes[i] != HashChunk(want[i*epoch.HashChunk:][:epoch.HashChunk]) {
					t.Fatalf("hash of chunk %d differs", i)
				}
			}
		})
	}
}

// TestSmallWritesSideBySide: requests smaller than a block, at the same time,
// each to its own sector: none may bring back what was beside it.
func TestSmallWritesSideBySide(t *testing.T) {
	f := open(t, Config{Path: loop(t, 4096), Shared: true, StateDir: t.TempDir()})
	const blocks, rounds = 4, 30
	var wg sync.WaitGroup
	for sector := range blocks * 8 {
		wg.Go(func() {
			p, got := make([]byte, epoch.SectorSize), make([]byte, epoch.SectorSize)
			for round := range rounds {
				for i := range p {
					p[i] = byte(sector + round)
				}
				var err error
				if round%5 == 4 {
					clear(p)
					err = f.Zero(uint64(sector), 1, true)
				} else {
					err = f.WriteAt(p, uint64(sector))
				}
				if err == nil {
					err = f.ReadAt(got, uint64(sector))
				}
				if err != nil || !bytes.Equal(p, got) {
					t.Errorf("sector %d, round %d: %v, other content", sector, round, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestOutsideTheDisk(t *testing.T) {
	f := open(t, Config{Path: makeFile(t, t.TempDir(), 8)})
	one := make([]byte, epoch.SectorSize)
	for name, err := range map[string]error{
		"read past the end":  f.ReadAt(one, 8),
		"write over the end": f.WriteAt(make([]byte, 2*epoch.SectorSize), 7),
		"half a sector":      f.WriteAt(one[:100], 0),
		"wrap around":        f.ReadAt(one, 1<<63),
		"zero wraps around":  f.Zero(1<<63, 1<<31, true),
		"hash no chunk":      f.HashChunks(1, make([]epoch.Hash, 1)),
	} {
		if !errors.Is(err, ErrRange) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestOpenRefuses: what is no disk gets an error that says why.
func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	odd := filepath.Join(dir, "odd")
	if err := os.WriteFile(odd, make([]byte, 700), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		cfg  Config
		want string
	}{
		{"nothing there", Config{Path: filepath.Join(dir, "none")}, "no such file"},
		{"half a sector", Config{Path: odd}, "whole sectors"},
		{"a directory", Config{Path: dir, ReadOnly: true}, "neither a file nor a block device"},
		{"a character device", Config{Path: "/dev/null"}, "neither a file nor a block device"},
		{"too large", Config{Path: filepath.Join(dir, "new"), Create: epoch.MaxSectors + 1}, "at most"},
	} {
		if _, err := Open(c.cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func TestCreateMakesASparseCopyOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "copy")
	cfg := Config{Path: path, Create: 1 << 21} // 1 GiB
	f := open(t, cfg)
	if r, err := f.Record(); err != nil || r.Complete {
		t.Fatalf("a new copy counts as complete: %+v, %v", r, err)
	}
	hashes := make([]epoch.Hash, Chunks(f.Sectors()))
	if err := f.HashChunks(0, hashes); err != nil { // 1 GiB of holes: at once
		t.Fatal(err)
	}
	if err := errors.Join(f.WriteAt(bytes.Repeat([]byte{7}, 512), 5), f.SetComplete(true), f.Close()); err != nil {
		t.Fatal(err)
	}
	cfg.Create = 8 // there already: its size stays
	f = open(t, cfg)
	one := make([]byte, 512)
	if err := f.ReadAt(one, 5); err != nil || one[0] != 7 || f.Sectors() != 1<<21 {
		t.Fatalf("the copy was made anew: %v", err)
	}
	if r, err := f.Record(); err != nil || !r.Complete {
		t.Fatalf("completeness was forgotten: %+v, %v", r, err)
	}
}

func TestHotPathsAllocateNothing(t *testing.T) {
	for _, shared := range []bool{false, true} {
		f := open(t, Config{Path: makeFile(t, t.TempDir(), testSectors), Shared: shared})
		p := make([]byte, 8*epoch.SectorSize+8)[8:]
		if n := testing.AllocsPerRun(20, func() {
			if f.WriteAt(p, 3) != nil || f.ReadAt(p, 3) != nil || f.Zero(0, 64, true) != nil {
				t.Error("failed")
			}
		}); n > 1 { // the descriptor's raw connection of a zero
			t.Errorf("shared %v: %v allocations", shared, n)
		}
	}
}
