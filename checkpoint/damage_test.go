package checkpoint

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/zeebo/xxh3"

	"understudy/epoch"
	"understudy/hypervisor"
)

// victim is a small file with pages of every sort.
func victim(t testing.TB) (dir string, content []byte, m *image, d *disk) {
	t.Helper()
	rng := rand.New(rand.NewPCG(11, 12))
	d = newDisk(20, rng)
	m = mixed(200, d, rng)
	dir = t.TempDir()
	path := filepath.Join(dir, "victim")
	save(t, path, m, d, Options{})
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return dir, content, m, d
}

// seal gives a file whose sections were changed the checksums that belong to
// them: what somebody would do who means it.
func seal(b []byte) []byte {
	tail := b[len(b)-int(tailSize):]
	for i := range sections {
		row := tail[i*sectionSize:]
		offset, n := binary.LittleEndian.Uint64(row[8:]), binary.LittleEndian.Uint64(row[16:])
		if s := section(i + 1); s != sectionRecords && s != sectionLeaves && offset+n <= uint64(len(b)) {
			sum := xxh3.Hash128(b[offset : offset+n]).Bytes()
			copy(row[32:], sum[:])
		}
	}
	id := tailID(b[:prefaceSize], tail[:tailSize-16])
	copy(tail[tailSize-16:], id[:])
	return b
}

func sectionOf(b []byte, s section) (offset, n uint64) {
	row := b[len(b)-int(tailSize)+int(s-1)*sectionSize:]
	return binary.LittleEndian.Uint64(row[8:]), binary.LittleEndian.Uint64(row[16:])
}

// rewriteLeaf changes the entries of the only leaf of a victim, in a way that
// all checksums hold.
func rewriteLeaf(t *testing.T, b []byte, change func(entries []entry)) []byte {
	t.Helper()
	s, err := parsePreface(b[:prefaceSize])
	if err != nil {
		t.Fatal(err)
	}
	table, _, err := parseTail(b[:prefaceSize], b[len(b)-int(tailSize):], uint64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	at := func(s section) []byte { e := table.of(s); return b[e.offset : e.offset+e.stored] }
	var l leaf
	if err := parseLeaf(&l, at(sectionLeaves), at(sectionDirectory), make([]byte, leafPages*entrySize), 0, 200, s); err != nil {
		t.Fatal(err)
	}
	change(l.entries[:200])
	var scratch []byte
	leaf, row := appendLeaf(nil, nil, 0, l.entries[:200], l.prints[:200], s, &scratch)
	out := bytes.Clone(b[:table.of(sectionLeaves).offset])
	for i := sectionLeaves; i <= sectionHead; i++ {
		body := at(i)
		switch i {
		case sectionLeaves:
			body = leaf
		case sectionDirectory:
			body = row
		}
		e := table.of(i)
		size := e.size
		if !i.packs() {
			size = uint64(len(body))
		}
		*e = tableEntry{offset: uint64(len(out)), stored: uint64(len(body)), size: size}
		out = append(out, body...)
	}
	out, _ = appendTail(out, b[:prefaceSize], &table, uint64(len(out)))
	return seal(out)
}

// Whatever is done to a file, it is refused or gives back what was saved.
func TestDamagedFilesAreRefused(t *testing.T) {
	dir, whole, m, d := victim(t)
	first := func(entries []entry, k kind) *entry {
		for i := range entries {
			if entries[i].kind() == k {
				return &entries[i]
			}
		}
		t.Fatalf("no entry of kind %d", k)
		return nil
	}
	put := func(s section, at int, v uint64) func([]byte) []byte {
		return func(b []byte) []byte {
			binary.LittleEndian.PutUint64(b[len(b)-int(tailSize)+int(s-1)*sectionSize+at:], v)
			return seal(b)
		}
	}
	leafOf := func(change func([]entry)) func([]byte) []byte {
		return func(b []byte) []byte { return rewriteLeaf(t, b, change) }
	}
	swap := func(s section, old, new string) func([]byte) []byte {
		return func(b []byte) []byte {
			offset, n := sectionOf(b, s)
			copy(b[offset:offset+n], bytes.Replace(b[offset:offset+n], []byte(old), []byte(new), 1))
			return seal(b)
		}
	}
	cases := map[string]struct {
		damage func(b []byte) []byte
		says   string
	}{
		"empty":               {func([]byte) []byte { return nil }, "no checkpoint file has 0 bytes"},
		"only the preface":    {func(b []byte) []byte { return b[:prefaceSize] }, "no checkpoint file has 32 bytes"},
		"one byte short":      {func(b []byte) []byte { return b[:len(b)-1] }, "cut off"},
		"one byte long":       {func(b []byte) []byte { return append(b, 0) }, "cut off"},
		"another magic":       {func(b []byte) []byte { b[0]++; return b }, "does not begin"},
		"another version":     {func(b []byte) []byte { b[8]++; return b }, "version 2, want 1"},
		"reserved":            {func(b []byte) []byte { b[12]++; return b }, "reserved"},
		"another salt":        {func(b []byte) []byte { b[20]++; return b }, "trailer does not hold"},
		"sealed salt":         {func(b []byte) []byte { b[20]++; return seal(b) }, "leaf 0 of its index does not hold"},
		"a gap":               {put(sectionLeaves, 8, 48), "section leaves lies at"},
		"overlap":             {put(sectionMachine, 8, prefaceSize), "section machine lies at"},
		"absurd length":       {put(sectionRecords, 16, 1<<62), "section records lies at"},
		"absurd size":         {put(sectionDevice, 24, 1<<62), "section device state has 4611686018427387904 bytes, want at most"},
		"absurd spec":         {put(sectionMachine, 24, 65<<20), "section machine has 68157440 bytes, want at most"},
		"size for nothing":    {put(sectionDevice, 24, 0), "bytes in the file for 0 outside"},
		"lying size":          {put(sectionDevice, 24, 17), "it unpacks to 16 bytes, want 17"},
		"pages in the head":   {swap(sectionHead, `"pages":200`, `"pages":900`), "leaf 0 of its index"},
		"absurd pages":        {swap(sectionHead, `"pages":200,"print_key":24301`, `"pages":9999999,"print_key":1`), "its directory has 16 bytes"},
		"no pages":            {swap(sectionHead, `"pages":200`, `"pages":0  `), "an image of 0 pages"},
		"unknown field":       {swap(sectionHead, `"guest"`, `"gUesX"`), "unknown field"},
		"another key":         {swap(sectionHead, `24301`, `24302`), "other content than its index says"},
		"disk too small":      {swap(sectionHead, `"sectors":160`, `"sectors":008`), "its head"},
		"disk shrunk":         {swap(sectionHead, `"sectors":160`, `"sectors":8  `), "which has 8 sectors"},
		"another disk":        {swap(sectionHead, `"id":2`, `"id":3`), "there is no such disk"},
		"absurd disk":         {swap(sectionHead, `"id":2,"name":"root"`, `"id":99,"name":"roo"`), "disk 99, want numbers below"},
		"record outside":      {leafOf(func(e []entry) { *first(e, kindRecord) |= 1 << 60 }), "outside the records"},
		"record before":       {leafOf(func(e []entry) { *first(e, kindRecord) = recordEntry(0, 1024, 0) }), "outside the records"},
		"record of no size":   {leafOf(func(e []entry) { *first(e, kindRecord) &^= 0xffff << 8 }), "outside the records"},
		"overlapping records": {leafOf(func(e []entry) { *first(e, kindRecord) += 1 << 24 }), "the record at byte"},
		"another place":       {leafOf(func(e []entry) { *first(e, kindRecord) ^= 1 << 4 }), "other content"},
		"unknown kind":        {leafOf(func(e []entry) { e[0] = 9 }), "make no sense"},
		"zero with an offset": {leafOf(func(e []entry) { *first(e, kindZero) = 1 << 30 }), "make no sense"},
		"block of no disk":    {leafOf(func(e []entry) { *first(e, kindBlock) |= 1 << 10 }), "no such disk"},
		"block with reserved": {leafOf(func(e []entry) { *first(e, kindBlock) |= 1 << 20 }), "make no sense"},
		"another block":       {leafOf(func(e []entry) { *first(e, kindBlock) ^= 8 << 24 }), "not as it was"},
		"parent of none":      {leafOf(func(e []entry) { e[7] = entry(kindParent) }), "make no sense"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, "damaged")
			if err := os.WriteFile(path, c.damage(bytes.Clone(whole)), 0o600); err != nil {
				t.Fatal(err)
			}
			err := tryAll(t, path, m, d)
			if err == nil {
				t.Fatal("nobody noticed")
			}
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v\nwant it to say %q", err, c.says)
			}
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrVersion) && !errors.Is(err, ErrStale) {
				t.Errorf("%v: is of no known sort", err)
			}
		})
	}
	// Cut off anywhere, and with any byte changed.
	for at := 0; at < len(whole); at += 1 + len(whole)/60 {
		path := filepath.Join(dir, "damaged")
		cut := whole[:at]
		flipped := bytes.Clone(whole)
		flipped[at] ^= 0x10
		for _, b := range [][]byte{cut, flipped} {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := tryAll(t, path, m, d); err == nil {
				t.Fatalf("damage of %d bytes at %d of %d was not noticed", len(b), at, len(whole))
			}
		}
	}
}

// tryAll opens, verifies and restores a file, and returns the first error. It
// fails the test if no error came and the guest is another, or if verify and
// restore are not of one mind.
func tryAll(t testing.TB, path string, m *image, d *disk) error {
	t.Helper()
	f, err := Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	_ = f.Inspect()
	report, err := f.Verify(t.Context(), d, nil)
	if err != nil {
		return err
	}
	for _, lazy := range []bool{false, true} {
		s, _, err := Restore(t.Context(), f, &driver{}, d, RestoreOptions{Lazy: lazy, leaveFew: true})
		if err == nil && lazy {
			err = s.(*image).touch(rand.New(rand.NewPCG(1, 2)))
		}
		if err == nil { // whoever restores gives this to the disks
			_, err = f.DiskState()
		}
		if (err != nil) != (report.Err() != nil) {
			t.Fatalf("lazy %t: verify says %v, restore %v", lazy, report.Err(), err)
		}
		if err == nil && m != nil && !bytes.Equal(s.(*image).bytes, m.bytes) {
			t.Fatalf("lazy %t: the guest came back as another", lazy)
		}
	}
	return report.Err()
}

// A disk state is not restored here, but it is verified.
func TestVerifyLooksAtStates(t *testing.T) {
	dir, b, _, d := victim(t)
	offset, _ := sectionOf(b, sectionDisk)
	b[offset+3]++
	path := filepath.Join(dir, "victim")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	report, err := mustOpen(t, path).Verify(t.Context(), d, nil)
	if err != nil || !errors.Is(report.Err(), ErrDamaged) || !strings.Contains(report.Err().Error(), "disk state") {
		t.Errorf("%v, %v", report.Err(), err)
	}
}

func TestOnlyTheRightParentIsTaken(t *testing.T) {
	rng := rand.New(rand.NewPCG(13, 14))
	d := newDisk(20, rng)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	m := mixed(100, d, rng)
	save(t, at("parent"), m, d, Options{})
	parent := mustOpen(t, at("parent"))
	save(t, at("child"), m, d, Options{Parent: parent})

	for name, c := range map[string]struct {
		change func(h *Head)
		path   string
		says   string
	}{
		"guest":     {func(h *Head) { h.Guest = "mail" }, at("x"), "is of guest web"},
		"size":      {func(h *Head) { h.Pages++ }, at("x"), "an image of 100 pages"},
		"key":       {func(h *Head) { h.Key++ }, at("x"), "another key"},
		"directory": {func(*Head) {}, filepath.Join(t.TempDir(), "x"), "same directory"},
		"itself":    {func(*Head) {}, at("parent"), "on which it builds"},
	} {
		h := testHead(100)
		c.change(&h)
		if _, err := Create(c.path, h, Options{Parent: parent, Replace: true}); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}

	rename := func(from, to string) {
		t.Helper()
		if err := os.Rename(at(from), at(to)); err != nil {
			t.Fatal(err)
		}
	}
	rename("parent", "elsewhere")
	if _, err := Open(at("child")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without its parent: %v", err)
	}
	save(t, at("parent"), m, d, Options{})
	if _, err := Open(at("child")); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "another file has taken its name") {
		t.Errorf("with another parent: %v", err)
	}
	if err := os.Remove(at("parent")); err != nil {
		t.Fatal(err)
	}
	rename("child", "parent") // its own parent, by name
	if _, err := Open(at("parent")); !errors.Is(err, ErrDamaged) {
		t.Errorf("as its own parent: %v", err)
	}
	if err := os.Remove(at("parent")); err != nil {
		t.Fatal(err)
	}
	rename("elsewhere", "parent")
	if err := os.Mkdir(at("dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(at("dir")); err == nil {
		t.Error("a directory was opened")
	}
}

// A chain has an end.
func TestChainsAreBounded(t *testing.T) {
	m := newImage(1)
	dir := t.TempDir()
	var parent *File
	for i := range MaxChain + 1 {
		m.bytes[0] = byte(i)
		path := filepath.Join(dir, string(rune('A'+i)))
		w, err := Create(path, testHead(1), Options{Parent: parent})
		if i == MaxChain {
			if err == nil || !strings.Contains(err.Error(), "without a parent") {
				t.Errorf("file %d: %v", i+1, err)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		finish(t, w, m, nil, all(1))
		parent = mustOpen(t, path)
	}
}

// What the writer is not given right it does not make up.
func TestWriterRefuses(t *testing.T) {
	good := Final{DeviceState: []byte("state")}
	for name, c := range map[string]struct {
		do   func(w *Writer) error
		says string
	}{
		"no final":      {func(*Writer) error { return nil }, "no final round"},
		"missing pages": {func(w *Writer) error { return w.Final(good) }, "10 of them have not been given, the first is page 0"},
		"outside":       {func(w *Writer) error { return w.Zero(9, 2) }, "outside the image"},
		"half a page":   {func(w *Writer) error { return w.Pages(0, make([]byte, 5000)) }, "no whole pages"},
		"no state":      {func(w *Writer) error { return w.Final(Final{}) }, "a device state of 0 bytes"},
		"large state":   {func(w *Writer) error { return w.Final(Final{DeviceState: make([]byte, epoch.MaxDeviceState+1)}) }, "want 1 to"},
		"disks": {func(w *Writer) error {
			return w.Final(Final{DeviceState: []byte{1}, Disks: []Disk{{ID: 200, Sectors: 8}}})
		}, "want numbers below"},
		"another image":  {func(w *Writer) error { return w.Image(t.Context(), newImage(3), all(3), nil) }, "an image of 3 pages"},
		"after the last": {func(w *Writer) error { return errors.Join(w.Zero(0, 10), w.Final(good), w.Zero(0, 1)) }, "after the final round"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "x")
			w, err := Create(path, testHead(10), Options{})
			if err != nil {
				t.Fatal(err)
			}
			err = c.do(w)
			if err == nil {
				_, err = w.Commit(nil)
			}
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %q", err, c.says)
			}
			if err := errors.Join(w.Abort(), w.Abort()); err != nil {
				t.Error(err)
			}
			mustHold(t, filepath.Dir(path), 0)
		})
	}
	// Stale must have been asked for.
	w, err := Create(filepath.Join(t.TempDir(), "x"), testHead(10), Options{Finder: newDisk(1, rand.New(rand.NewPCG(1, 1)))})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Zero(0, 10), w.Final(good)); err == nil || !strings.Contains(err.Error(), "stale") {
		t.Error(err)
	}
	if err := w.Abort(); err != nil {
		t.Error(err)
	}
}

// broken is an image that cannot be read from some page on.
type broken struct{ *image }

func (b broken) ReadPages(first epoch.GFN, dst []byte) error {
	if first >= 128 {
		return errors.New("the guest is gone")
	}
	return b.image.ReadPages(first, dst)
}

func TestInterruptedSavesLeaveNothing(t *testing.T) {
	m := newImage(1000)
	ctx, cancel := context.WithCancel(t.Context())
	for _, c := range []struct {
		image    hypervisor.Image
		progress Progress
		says     string
	}{
		{broken{m}, nil, "the guest is gone"},
		{m, func(done, _ uint64) {
			if done > 300 {
				cancel()
			}
		}, "canceled"},
	} {
		path := filepath.Join(t.TempDir(), "x")
		w, err := Create(path, testHead(1000), Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Image(ctx, c.image, all(1000), c.progress); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v, want %q", err, c.says)
		}
		if _, err := w.Commit(nil); err == nil {
			t.Error("it can be committed")
		}
		if err := w.Abort(); err != nil {
			t.Error(err)
		}
		mustHold(t, filepath.Dir(path), 0)
	}
	cancel()
}

func TestExistingFilesAreSafe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	m := newImage(4)
	save(t, path, m, nil, Options{})
	if _, err := Create(path, testHead(4), Options{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("create over a file: %v", err)
	}
	m.bytes[5] = 1
	save(t, path, m, nil, Options{Replace: true})
	mustEqual(t, mustOpen(t, path), m, nil)

	// Somebody else takes the name while we write.
	other := filepath.Join(t.TempDir(), "y")
	w, err := Create(other, testHead(4), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(other, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Zero(0, 4), w.Final(Final{DeviceState: []byte("s")})); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Commit(nil); !errors.Is(err, fs.ErrExist) {
		t.Errorf("commit over a file: %v", err)
	}
	if b, err := os.ReadFile(other); err != nil || string(b) != "mine" {
		t.Errorf("the other's file is %q, %v", b, err)
	}
	mustHold(t, filepath.Dir(other), 1)
}

// A writer that died leaves its unfinished file; the next one removes it, but
// not that of one at work.
func TestUnfinishedFilesAreSwept(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x")
	for _, name := range []string{".x.123.tmp", ".y.123.tmp"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("left"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var writers []*Writer
	for range 2 {
		w, err := Create(path, testHead(4), Options{Replace: true})
		if err != nil {
			t.Fatal(err)
		}
		writers = append(writers, w)
	}
	mustHold(t, dir, 3) // that of y, and two at work
	for _, w := range writers {
		if err := errors.Join(w.Zero(0, 4), w.Final(Final{DeviceState: []byte("s")})); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Commit(nil); err != nil {
			t.Fatal(err)
		}
	}
	mustHold(t, dir, 2)
}

func TestDisksMustBeAsTheyWere(t *testing.T) {
	head := Head{Disks: []Disk{{ID: 0, Name: "root", Sectors: 80, Stamp: "a"}, {ID: 1, Name: "data", Sectors: 90, Stamp: "b", Pin: "p1"}}}
	root, data := DiskCondition{ID: 0, Name: "root", Sectors: 80, Stamp: "a"}, DiskCondition{ID: 1, Name: "data", Sectors: 90, Stamp: "b"}
	with := func(d DiskCondition, change func(*DiskCondition)) DiskCondition { change(&d); return d }
	written := func(d *DiskCondition) { d.Stamp = "z" }
	for name, c := range map[string]struct {
		now   []DiskCondition
		says  string // "": well
		stale bool
	}{
		"unchanged":         {now: []DiskCondition{root, data}},
		"written, pinned":   {now: []DiskCondition{root, with(data, func(d *DiskCondition) { d.Stamp, d.Pins = "z", []string{"p0", "p1"} })}},
		"written":           {[]DiskCondition{with(root, written), data}, "disk 0 (root)", true},
		"written, pin gone": {[]DiskCondition{root, with(data, written)}, "its pin p1 is gone", true},
		"another size":      {[]DiskCondition{with(root, func(d *DiskCondition) { d.Sectors = 81 }), data}, "has 81 sectors, it had 80", false},
		"missing":           {[]DiskCondition{root}, "disk 1 (data) was there", false},
		"one more":          {[]DiskCondition{root, data, {ID: 2, Name: "new"}}, "disk 2 (new) was not there", false},
		"a boot file more":  {now: []DiskCondition{root, data, {ID: 15, Name: "/boot/k", Boot: true}}},
	} {
		err := CheckDisks(head, c.now)
		if c.says == "" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.says) || errors.Is(err, ErrStale) != c.stale {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
}

func TestBootFilesMustBeWhatTheyWere(t *testing.T) {
	head := Head{Disks: []Disk{{ID: 15, Name: "/boot/k", Store: StoreBoot, Sectors: 80, Stamp: "sum"}}}
	kernel := DiskCondition{ID: 15, Name: "/srv/k", Sectors: 80, Stamp: "sum", Boot: true}
	with := func(change func(*DiskCondition)) []DiskCondition { d := kernel; change(&d); return []DiskCondition{d} }
	for name, c := range map[string]struct {
		now   []DiskCondition
		says  string
		stale bool
	}{
		"the same, elsewhere": {now: []DiskCondition{kernel}},
		"another":             {with(func(d *DiskCondition) { d.Stamp = "mus" }), "bring back that file", true},
		"a longer one":        {with(func(d *DiskCondition) { d.Sectors = 81 }), "/boot/k", true},
		"gone":                {nil, "not there now, or not configured", false},
		"a disk in its place": {with(func(d *DiskCondition) { d.Boot = false }), "not there now", false},
	} {
		err := CheckDisks(head, c.now)
		if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) || errors.Is(err, ErrStale) != c.stale {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
}
