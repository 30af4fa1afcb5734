package disk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"understudy/clock"
	"understudy/disk/disktest"
	"understudy/epoch"
	"understudy/exclusion"
	"understudy/rebuild"
)

// bzImage is a file of random bytes with the header of a kernel image.
func bzImage(seed uint64, setupSects byte, size int) []byte {
	b := make([]byte, size)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := 0; i+8 <= size; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64())
	}
	b[bootSetupSects] = setupSects
	binary.LittleEndian.PutUint16(b[bootFlag:], 0xaa55)
	copy(b[bootMagic:], "HdrS")
	return b
}

func TestWhereAFilesPagesBegin(t *testing.T) {
	with := func(change func(b []byte)) []byte {
		b := bzImage(1, 39, 4096)
		change(b)
		return b
	}
	for name, c := range map[string]struct {
		head []byte
		want int64
	}{
		"a kernel":             {bzImage(1, 39, 4096), 40 * 512},
		"another":              {bzImage(1, 27, 4096), 28 * 512},
		"as large as it gets":  {bzImage(1, 255, 4096), 256 * 512},
		"from before 1.3.73":   {bzImage(1, 0, 4096), 5 * 512},
		"no magic word":        {with(func(b []byte) { b[bootMagic] = 'h' }), 0},
		"no boot flag":         {with(func(b []byte) { b[bootFlag] = 0 }), 0},
		"an initrd":            {[]byte(strings.Repeat("070701", 100)), 0},
		"shorter than a head":  {bzImage(1, 39, 4096)[:bootHead-1], 0},
		"exactly a head":       {bzImage(1, 39, 4096)[:bootHead], 40 * 512},
		"hardly anything":      {[]byte{1}, 0},
		"nothing":              {nil, 0},
		"a kernel for PVH":     {append([]byte("\x7fELF"), make([]byte, 4000)...), 0},
		"zeros where sects is": {with(func(b []byte) { b[bootSetupSects] = 0 }), 5 * 512},
	} {
		if got := pageStart(c.head); got != c.want {
			t.Errorf("%s: its pages begin at %d, want %d", name, got, c.want)
		}
	}
}

// booted is a host of a guest that is started with files.
type booted struct {
	*Set
	ix     *exclusion.Index
	kernel string
}

const bootKey = epoch.PrintKey(7)

// newBooted makes a host with a kernel of these bytes.
func newBooted(t testing.TB, kernel []byte) *booted {
	t.Helper()
	dir := t.TempDir()
	b := &booted{ix: exclusion.NewIndex(exclusion.Config{Pages: testPages, Key: bootKey}), kernel: filepath.Join(dir, "vmlinuz")}
	b.put(t, kernel)
	b.Set = newSet(t, SetConfig{Index: b.ix, Boot: []BootFile{
		{ID: KernelID, Name: "kernel", Path: b.kernel}, {ID: InitrdID, Name: "initrd", Path: filepath.Join(dir, "initrd")},
	}}, disktest.NewMedia(64, true).Open())
	b.LookAtBoot() // waits for the first look
	return b
}

// put renames another kernel over the one that is there.
func (b *booted) put(t testing.TB, kernel []byte) {
	t.Helper()
	must(t, os.WriteFile(b.kernel+".new", kernel, 0o644))
	must(t, os.Rename(b.kernel+".new", b.kernel))
}

// leavesOut says what an epoch has for a page in its place.
func (b *booted) leavesOut(page epoch.GFN, content []byte) (epoch.Reference, bool) {
	e, ok := b.ix.Encoding(1).Exclude(page, content, false)
	return e.Ref, ok && e.Kind == epoch.ExcludeBlock
}

func (b *booted) kernelProblem() string {
	for _, s := range b.LookAtBoot() {
		if s.Disk == KernelID {
			return s.Problem
		}
	}
	return "it is not there"
}

// TestOnlyWhatAFileHoldsIsLeftOut: a reference is made only if the page equals the
// file's bytes at it, and for every whole page of what is loaded.
func TestOnlyWhatAFileHoldsIsLeftOut(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		sects := rapid.ByteRange(0, 20).Draw(rt, "setup sectors")
		file := bzImage(rapid.Uint64().Draw(rt, "seed"), sects, rapid.IntRange(16384, 60000).Draw(rt, "size"))
		start := int(pageStart(file))
		b := newBooted(t, file)
		defer func() { must(t, b.Close()) }()
		for at := start; at+epoch.PageSize <= len(file); at += epoch.PageSize {
			r, ok := b.leavesOut(3, file[at:at+epoch.PageSize])
			if !ok || r.Disk != KernelID || int(r.Sector)*epoch.SectorSize != at {
				rt.Fatalf("for the page at %d of %d: %v, %t", at, len(file), r, ok)
			}
		}
		for range 30 {
			at := rapid.IntRange(0, len(file)).Draw(rt, "at")
			page := make([]byte, epoch.PageSize)
			copy(page, file[at:])
			if rapid.Bool().Draw(rt, "changed") {
				page[rapid.IntRange(0, epoch.PageSize-1).Draw(rt, "byte")]++
			}
			r, ok := b.leavesOut(4, page)
			if !ok {
				continue
			}
			got := make([]byte, epoch.PageSize)
			if err := b.ReadSectors(r.Disk, r.Sector, got); err != nil || !bytes.Equal(got, page) {
				rt.Fatalf("%v was made for other bytes (%v)", r, err)
			}
		}
	})
}

// TestAPagesWayThroughABootFile: left out here, filled there from the other host's
// copy; and a copy that is another file is seen.
func TestAPagesWayThroughABootFile(t *testing.T) {
	file := bzImage(5, 3, 40000)
	page := file[4*512+4096:][:epoch.PageSize]
	for _, c := range []struct {
		name  string
		there []byte
		want  bool
	}{
		{"the same file", file, true},
		{"another", bzImage(6, 3, 40000), false},
		{"a shorter one", file[:4096], false},
		{"none", nil, false},
	} {
		here, there := newBooted(t, file), newBooted(t, c.there)
		r, ok := here.leavesOut(9, page)
		if !ok {
			t.Fatal("the page was not left out")
		}
		// The welcome says so before any epoch, and what was left out goes again.
		here.BackupHas(there.BootFiles())
		if _, ok := here.leavesOut(9, page); ok != c.want {
			t.Errorf("%s there: left out: %t", c.name, ok)
		}
		again := epoch.NewPageSet(testPages)
		here.CollectDirty(again)
		if again.Contains(9) == c.want {
			t.Errorf("%s there: the page goes again: %t", c.name, !c.want)
		}
		// And were it sent all the same, it would be noticed.
		image := make([]byte, testPages*epoch.PageSize)
		table := rebuild.New(rebuild.Config{Pages: testPages, Key: bootKey, Blocks: there, Log: quietLog,
			Write: func(first epoch.GFN, data []byte) error {
				copy(image[first*epoch.PageSize:], data)
				return nil
			}})
		table.Add([]epoch.Reference{r}, 1)
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		err := table.FillAll(ctx, nil)
		cancel()
		if filled := err == nil && bytes.Equal(image[9*epoch.PageSize:][:epoch.PageSize], page); filled != c.want {
			t.Errorf("%s there: filled: %t, %v", c.name, filled, err)
		}
		var bad *rebuild.BadError
		if c.name == "another" && !errors.As(err, &bad) {
			t.Errorf("%s there: %v, want a page that cannot be rebuilt", c.name, err)
		}
	}
}

// TestAnotherFileInItsPlace tells what became of the kernel's file, and whether
// its pages are left out then.
func TestAnotherFileInItsPlace(t *testing.T) {
	old, other := bzImage(1, 3, 30000), bzImage(2, 7, 50000)
	pageOf := func(file []byte) []byte { return file[pageStart(file)+4096:][:epoch.PageSize] }
	runs := func(b *booted) { own(b.Set, 1); b.Pass(); b.LookAtBoot() }
	for _, c := range []struct {
		name        string
		play        func(t *testing.T, b *booted)
		old, other  bool   // pages of which are left out in the end
		problem     string // of the kernel
		stillItself bool   // the old content can be read
	}{
		{"nothing", func(*testing.T, *booted) {}, true, false, "", true},
		{"the guest runs", func(_ *testing.T, b *booted) { runs(b) }, true, false, "", true},
		{"copied anew while the guest runs", func(t *testing.T, b *booted) { runs(b); b.put(t, old) }, true, false, "", true},
		{"replaced before the guest's start", func(t *testing.T, b *booted) { b.put(t, other) }, false, true, "", false},
		{"replaced while the guest runs", func(t *testing.T, b *booted) { runs(b); b.put(t, other) }, false, false, "another file", true},
		{"and put back", func(t *testing.T, b *booted) {
			runs(b)
			b.put(t, other)
			b.LookAtBoot()
			b.put(t, old)
		}, true, false, "", true},
		{"removed while the guest runs", func(t *testing.T, b *booted) { runs(b); must(t, os.Remove(b.kernel)) }, false, false, "no such file", true},
		{"written to while the guest runs", func(t *testing.T, b *booted) {
			runs(b)
			must(t, os.WriteFile(b.kernel, other, 0o644))
		}, false, false, "another file", false},
		{"replaced, and the guest is stopped", func(t *testing.T, b *booted) {
			runs(b)
			b.put(t, other)
			must(t, b.StandBy(soon(t)))
		}, false, true, "", false},
		{"replaced, and the guest is started anew", func(t *testing.T, b *booted) {
			must(t, b.StandBy(soon(t)))
			must(t, b.Commit(1, nil, nil))
			b.put(t, other)
			b.Own(2)
			b.Pass()
		}, false, true, "", false},
		{"replaced under a backup with an image", func(t *testing.T, b *booted) {
			must(t, b.StandBy(soon(t)))
			must(t, b.Commit(1, nil, nil))
			b.put(t, other)
		}, false, false, "another file", true},
		{"replaced, and a backup takes over", func(t *testing.T, b *booted) {
			must(t, b.StandBy(soon(t)))
			must(t, b.Commit(1, nil, nil))
			b.put(t, other)
			b.Own(2)
			must(t, b.Activate(soon(t), nil))
		}, false, false, "another file", true},
		{"too small a file", func(t *testing.T, b *booted) { b.put(t, make([]byte, 511)) }, false, false, "it has 511 bytes", true},
		{"a directory", func(t *testing.T, b *booted) {
			must(t, os.Remove(b.kernel))
			must(t, os.Mkdir(b.kernel, 0o755))
		}, false, false, "no regular file", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBooted(t, old)
			c.play(t, b)
			problem := b.kernelProblem()
			if problem != c.problem && (c.problem == "" || !strings.Contains(problem, c.problem)) {
				t.Errorf("the kernel's problem is %q, want %q", problem, c.problem)
			}
			if listed := len(b.BootFiles()) == 1; listed != (c.problem == "") {
				t.Errorf("it counts among the boot files: %t", listed)
			}
			_, o := b.leavesOut(2, pageOf(old))
			_, n := b.leavesOut(3, pageOf(other))
			if o != c.old || n != c.other {
				t.Errorf("pages of the old file are left out: %t, of the other: %t", o, n)
			}
			got := make([]byte, epoch.PageSize)
			err := b.ReadSectors(KernelID, uint64(pageStart(old)+4096)/epoch.SectorSize, got)
			if same := err == nil && bytes.Equal(got, pageOf(old)); same != c.stillItself {
				t.Errorf("what was referred to can still be read: %t (%v)", same, err)
			}
		})
	}
}

// TestABootFileIsNoDiskToWriteTo: nothing a peer or a checkpoint file says reaches
// outside of it, or changes it.
func TestABootFileIsNoDiskToWriteTo(t *testing.T) {
	b := newBooted(t, bzImage(1, 3, 30000)) // 58 whole sectors
	dst := make([]byte, epoch.PageSize)
	for name, err := range map[string]error{
		"behind its end":     b.ReadSectors(KernelID, 51, dst),
		"far behind its end": b.ReadSectors(KernelID, ^uint64(0), dst),
		"no such disk":       b.ReadSectors(5, 0, dst),
	} {
		if !errors.Is(err, ErrRange) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := b.ReadSectors(KernelID, 50, dst); err != nil {
		t.Errorf("its last whole page: %v", err)
	}
	if err := b.ReadSectors(InitrdID, 0, dst); err == nil || !strings.Contains(err.Error(), "initrd") {
		t.Errorf("an initrd that is not there: %v", err)
	}
	must(t, b.StandBy(soon(t)))
	write := []epoch.DiskWrite{{Seq: 1, Disk: KernelID, Kind: epoch.WriteData, Sector: 8, Sectors: 1, Data: make([]byte, 512)}}
	if err := b.Commit(1, write, nil); err == nil {
		t.Errorf("a write to the kernel: %v", err)
	}
}

// TestAGuestWithoutADisk has a Set for its boot files alone.
func TestAGuestWithoutADisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vmlinuz")
	must(t, os.WriteFile(path, bzImage(1, 3, 30000), 0o644))
	s := newSet(t, SetConfig{Boot: []BootFile{{ID: KernelID, Name: "kernel", Path: path}}})
	own(s, 1)
	s.Hold()
	if !s.Settled() {
		t.Fatal("nothing is not settled")
	}
	must(t, s.Seal(1))
	writes, state := s.Sealed(1)
	there := newSet(t, SetConfig{Boot: []BootFile{{ID: KernelID, Name: "kernel", Path: path}}})
	must(t, there.StandBy(soon(t)))
	must(t, there.Commit(1, writes, state))
	there.Own(2)
	must(t, there.Activate(soon(t), nil))
	must(t, there.ReadSectors(KernelID, 4, make([]byte, epoch.PageSize)))
	must(t, s.Drain(soon(t)))
	for _, c := range []SetConfig{
		{},
		{Boot: []BootFile{{ID: epoch.MaxDisks, Name: "kernel", Path: path}}},
		{Boot: []BootFile{{ID: 0, Name: "kernel", Path: path}}, Disks: []DiskConfig{{Store: disktest.NewMedia(8, true).Open()}}},
	} {
		c.Clock = clock.Boot{}
		if s, err := NewSet(c); err == nil {
			must(t, s.Close())
			t.Errorf("%d disks and %+v are taken for a guest's", len(c.Disks), c.Boot)
		}
	}
}
