package checkpoint

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"

	"understudy/hypervisor"
)

// Open reads what is needed to find the rest, and checks all of it:
//
//	preface, trailer → table of sections → head, summary → directory of leaves
//	→ the same for the parent, and for its parent
//
// Everything else is read when it is asked for (load.go).

// File is a checkpoint file, open for reading, with all it builds on. Its
// methods may be called from several goroutines.
type File struct {
	path   string
	f      *os.File
	size   uint64
	salt   salt
	id     ID
	table  table
	head   Head
	sum    Summary
	dir    []byte
	starts []uint64 // of each leaf in its section, and of the end
	parent *File

	leaves []atomic.Pointer[leaf]
	mu     sync.Mutex
	kept   []int // leaves in memory, oldest first

	records *recordCache // of the whole chain
}

// Open opens a file and every file it builds on, and checks everything that
// finds the rest of them: a file that was cut off, or never finished, is
// refused here. Errors wrap ErrDamaged or ErrVersion where they apply.
func Open(path string) (*File, error) {
	f, err := open(path, newRecordCache(), nil)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// open opens a file and those it builds on; below are those that build on it.
func open(path string, records *recordCache, below []*File) (_ *File, err error) {
	// O_NONBLOCK: what is found there may be a FIFO.
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open checkpoint file: %w", err)
	}
	f := &File{path: path, f: file, records: records}
	if err := f.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("open checkpoint file %s: %w", path, err), file.Close())
	}
	if p := f.head.Parent; p != nil {
		if err := f.join(p, append(below, f)); err != nil {
			return nil, errors.Join(fmt.Errorf("open checkpoint file %s: %w", path, err), file.Close())
		}
	}
	return f, nil
}

// load reads one file by itself.
func (f *File) load() error {
	info, err := f.f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%w: it is no regular file", ErrDamaged)
	}
	f.size = uint64(info.Size())
	if f.size < prefaceSize+tailSize || f.size > maxFileSize {
		return fmt.Errorf("%w: no checkpoint file has %d bytes", ErrDamaged, f.size)
	}
	var preface [prefaceSize]byte
	if err := f.readAt(preface[:], 0); err != nil {
		return err
	}
	if f.salt, err = parsePreface(preface[:]); err != nil {
		return err
	}
	tail := make([]byte, tailSize)
	if err := f.readAt(tail, f.size-tailSize); err != nil {
		return err
	}
	if f.table, f.id, err = parseTail(preface[:], tail, f.size); err != nil {
		return err
	}
	if err := f.json(sectionHead, &f.head); err != nil {
		return err
	}
	f.head.Created = f.head.Created.UTC()
	if err := f.head.check(); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err := f.json(sectionSummary, &f.sum); err != nil {
		return err
	}
	n := (f.head.Pages + leafPages - 1) / leafPages
	if got := f.table.of(sectionDirectory).size; got != n*dirSize {
		return fmt.Errorf("%w: its directory has %d bytes, want %d for %d pages", ErrDamaged, got, n*dirSize, f.head.Pages)
	}
	if f.table.of(sectionDevice).size == 0 {
		return fmt.Errorf("%w: it has no device state", ErrDamaged)
	}
	if f.dir, err = f.section(sectionDirectory); err != nil {
		return err
	}
	f.starts, err = checkRows(f.dir, f.table.of(sectionLeaves).size)
	f.leaves = make([]atomic.Pointer[leaf], n)
	return err
}

// join opens the parent.
func (f *File) join(p *Parent, below []*File) error {
	if len(below) >= MaxChain {
		return fmt.Errorf("%w: it builds on more than %d files", ErrDamaged, MaxChain)
	}
	for _, b := range below {
		if b.id == p.ID {
			return fmt.Errorf("%w: it builds on itself", ErrDamaged)
		}
	}
	parent, err := open(filepath.Join(filepath.Dir(f.path), p.File), f.records, below)
	if err != nil {
		return fmt.Errorf("its parent is needed: %w", err)
	}
	if parent.id != p.ID {
		err = fmt.Errorf("%w: its parent %s is checkpoint %s, want %s: another file has taken its name", ErrDamaged, parent.path, parent.id, p.ID)
	} else if err = matches(&f.head, &parent.head); err != nil {
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err != nil {
		return errors.Join(err, parent.Close())
	}
	f.parent = parent
	return nil
}

// Close closes the file and those it builds on.
func (f *File) Close() error {
	var err error
	for ; f != nil; f = f.parent {
		err = errors.Join(err, f.f.Close())
	}
	return err
}

// Path is the name under which the file was opened.
func (f *File) Path() string { return f.path }

// ID names the file by its content.
func (f *File) ID() ID { return f.id }

// Head says what the file is a checkpoint of; without Machine, for which see
// Spec.
func (f *File) Head() Head {
	h := f.head
	h.Disks = slices.Clone(h.Disks)
	return h
}

// Depth is how many files are needed, this one included.
func (f *File) Depth() int {
	n := 0
	for ; f != nil; f = f.parent {
		n++
	}
	return n
}

// Spec describes the machine.
func (f *File) Spec() (hypervisor.Spec, error) {
	machine, err := f.state(sectionMachine)
	return hypervisor.Spec{Pages: f.head.Pages, Machine: machine}, err
}

// DeviceState returns the state of vCPUs and devices.
func (f *File) DeviceState() ([]byte, error) { return f.state(sectionDevice) }

// DiskState returns what the disks need beyond their content.
func (f *File) DiskState() ([]byte, error) { return f.state(sectionDisk) }

func (f *File) state(s section) ([]byte, error) {
	b, err := f.section(s)
	if err != nil {
		return nil, fmt.Errorf("checkpoint file %s: %w", f.path, err)
	}
	return b, nil
}

// section reads a section whose size is bounded, and unpacks it.
func (f *File) section(s section) ([]byte, error) {
	e := f.table.of(s)
	if e.size == 0 {
		return nil, nil
	}
	b := make([]byte, e.stored)
	if err := f.readAt(b, e.offset); err != nil {
		return nil, err
	}
	if xxh3.Hash128(b).Bytes() != e.sum {
		return nil, fmt.Errorf("%w: the checksum of its %v does not hold", ErrDamaged, s)
	}
	if !s.packs() {
		return b, nil
	}
	out := make([]byte, e.size)
	if err := unpack(out, b); err != nil {
		return nil, fmt.Errorf("%w: its %v: %w", ErrDamaged, s, err)
	}
	return out, nil
}

func (f *File) json(s section, v any) error {
	b, err := f.section(s)
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("%w: its %v: %w", ErrDamaged, s, err)
	}
	return nil
}

// readAt fills b. A file that has become shorter is damaged.
func (f *File) readAt(b []byte, offset uint64) error {
	if n, err := f.f.ReadAt(b, int64(offset)); n < len(b) {
		return fmt.Errorf("%w: reading %d bytes at %d: %w", ErrDamaged, len(b), offset, err)
	}
	return nil
}
