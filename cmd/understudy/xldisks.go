package main

// The disks and files of checkpoint export and import: disks as they are or as a pin
// kept them, read here and written by nobody; and a file that is written whole or
// not at all, with holes where it is zero.

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"understudy/checkpoint"
	"understudy/disk/store"
	"understudy/epoch"
	"understudy/host"
)

// storeGiven is the kind of store of a disk that no daemon serves. Its stamp is when
// it was written last, where the system says that.
const storeGiven = "given"

// xlDisks are a guest's disks. It implements checkpoint.Blocks.
type xlDisks struct {
	files []io.Closer
	by    map[epoch.DiskID]store.Source
	open  []*store.File // in their order
	marks []checkpoint.Disk
	paths []string
	note  string
}

// ReadSectors reads whole sectors of one.
func (x *xlDisks) ReadSectors(disk epoch.DiskID, sector uint64, dst []byte) error {
	d := x.by[disk]
	if d == nil {
		return fmt.Errorf("disk %d is not there", disk)
	}
	return d.ReadAt(dst, sector)
}

func (x *xlDisks) close() {
	for _, f := range x.files {
		_ = f.Close() // it was only read
	}
	x.files = nil
}

func (x *xlDisks) put(id epoch.DiskID, d store.Source, f io.Closer) {
	if x.by == nil {
		x.by = map[epoch.DiskID]store.Source{}
	}
	x.by[id], x.files = d, append(x.files, f)
}

// openDisk opens a disk to read it, past the page cache where that can be done.
func openDisk(path, stateDir string) (*store.File, error) {
	c := store.Config{Path: path, Shared: true, ReadOnly: true, StateDir: stateDir}
	f, err := store.Open(c)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		c.Direct = store.DirectNever
		f, err = store.Open(c)
	}
	return f, err
}

// add takes a disk of a guest that is to be imported, the next in their order.
func (x *xlDisks) add(path, kind, stateDir string) error {
	id := epoch.DiskID(len(x.open))
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	f, err := openDisk(path, stateDir)
	if err != nil {
		return err
	}
	x.put(id, f, f)
	x.open = append(x.open, f)
	x.marks = append(x.marks, checkpoint.Disk{ID: id, Name: path, Store: kind, Sectors: f.Sectors()})
	return x.mark()
}

// mark takes down what the disks are now: a domain's, once it stands still.
func (x *xlDisks) mark() (err error) {
	for i := range x.marks {
		m := &x.marks[i]
		if m.Stamp, err = stampOf(x.open[i], m.Name, m.Store); err != nil {
			return err
		}
	}
	return nil
}

// stampOf says what changes when a disk is written to: its record, or its time.
func stampOf(f *store.File, path, kind string) (string, error) {
	if kind != storeGiven {
		r, err := f.Record()
		if errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("disk %s has no record yet: let the guest's daemon open it once, with the guest stopped", path)
		}
		return r.Stamp.String(), err
	}
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() {
		return "", err
	}
	return info.ModTime().UTC().Format(time.RFC3339Nano), nil
}

// scan has all disks searched for pages.
func (x *xlDisks) scan(ctx context.Context, scan *checkpoint.Scan, progress checkpoint.Progress) error {
	for i, f := range x.open {
		if err := scan.Disk(ctx, epoch.DiskID(i), f, progress); err != nil {
			return fmt.Errorf("%s: %w", x.marks[i].Name, err)
		}
	}
	scan.Sort()
	return nil
}

// openKept opens the disks of a checkpoint file, as they were.
func openKept(file *checkpoint.File, elsewhere []string) (*xlDisks, error) {
	x := &xlDisks{}
	if err := x.openAll(file, elsewhere); err != nil {
		x.close()
		return nil, err
	}
	return x, nil
}

func (x *xlDisks) openAll(file *checkpoint.File, elsewhere []string) error {
	for _, d := range file.Head().Disks {
		if d.Store == checkpoint.StoreBoot {
			f, err := os.Open(d.Name)
			if err != nil {
				return fmt.Errorf("pages of the guest are only in a file that it was started with: %w", err)
			}
			x.put(d.ID, bootFile{f, d.Sectors}, f)
			continue
		}
		path := d.Name
		if len(elsewhere) > 0 {
			path, elsewhere = elsewhere[0], elsewhere[1:]
		}
		x.paths = append(x.paths, path)
		if err := x.openOne(file.Path(), d, path); err != nil {
			return fmt.Errorf("disk %d (%s): %w", d.ID, path, err)
		}
	}
	if len(elsewhere) > 0 {
		return exitError{exitUsage, fmt.Errorf("--disk %s: the guest has %d disks", elsewhere[0], len(x.paths))}
	}
	return nil
}

// openOne opens a disk, and the pin that has kept what was written over.
func (x *xlDisks) openOne(file string, d checkpoint.Disk, path string) error {
	f, err := openDisk(path, "")
	if err != nil {
		return err
	}
	x.put(d.ID, f, f)
	if f.Sectors() != d.Sectors {
		return fmt.Errorf("it has %d sectors, it had %d when the checkpoint was taken", f.Sectors(), d.Sectors)
	}
	if now, err := stampOf(f, path, d.Store); err == nil && now == d.Stamp && now != "" {
		return nil
	}
	x.note = "a disk was written to since the checkpoint, or cannot tell, or is a copy: the guest must go on with its disks as they were then, or its file systems break"
	if d.Pin == "" {
		return nil // every page is compared with its fingerprint
	}
	pin, err := store.OpenPin(host.PinPath(file, d.ID))
	if err != nil {
		return err
	}
	x.files = append(x.files, pinCloser{pin})
	// As a disk that knows nothing of pins: which are armed is another process' matter.
	view, err := pin.View(plainDisk{f})
	if err != nil {
		return err
	}
	x.by[d.ID] = pinnedDisk{view, f}
	return nil
}

type plainDisk struct{ f *store.File }

func (p plainDisk) Sectors() uint64                        { return p.f.Sectors() }
func (p plainDisk) ReadAt(dst []byte, sector uint64) error { return p.f.ReadAt(dst, sector) }

type pinnedDisk struct {
	*store.PinView
	f *store.File
}

func (p pinnedDisk) Sectors() uint64 { return p.f.Sectors() }

type pinCloser struct{ pin *store.Pin }

func (p pinCloser) Close() error { p.pin.Close(); return nil }

// bootFile is a file that the guest was started with.
type bootFile struct {
	f       *os.File
	sectors uint64
}

func (b bootFile) Sectors() uint64 { return b.sectors }

func (b bootFile) ReadAt(dst []byte, sector uint64) error {
	_, err := b.f.ReadAt(dst, int64(sector)*epoch.SectorSize)
	return err
}

// newReader reads a stream in larger pieces.
func newReader(f *os.File) io.Reader { return bufio.NewReaderSize(f, 1<<20) }

// writeWhole makes a file that was not there, whole or not at all, and returns its
// size.
func writeWhole(path string, write func(io.Writer) error) (size uint64, err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, err
	}
	s := &sparse{f: f}
	err = write(s)
	if err == nil {
		err = f.Truncate(s.at)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return 0, errors.Join(err, os.Remove(path))
	}
	return uint64(s.at), nil
}

// sparse writes a file that nobody has written to before, and leaves out what is zero.
type sparse struct {
	f  *os.File
	at int64
}

var zeros [64 << 10]byte

func (s *sparse) Write(b []byte) (n int, err error) {
	for len(b) > 0 {
		piece := b[:min(len(b), len(zeros))]
		if !bytes.Equal(piece, zeros[:len(piece)]) {
			if _, err := s.f.WriteAt(piece, s.at); err != nil {
				return n, err
			}
		}
		s.at, n, b = s.at+int64(len(piece)), n+len(piece), b[len(piece):]
	}
	return n, nil
}
