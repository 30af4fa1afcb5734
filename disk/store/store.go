// Package store is where a disk's bytes are: a raw file or a block device,
// shared by two hosts or one host's own copy of a replicated disk.
//
// A write goes this way:
//
//	WriteAt ── may we write? (lock.go) ── stamp still as given out? replace it
//	(stamp.go) ── armed pins: keep the old content (pin.go) ── align (align.go)
//	── the file
//
// What has to outlive this process stands in a record beside the disk
// (sidecar.go). This file opens and closes a store and holds its entry points.
package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"understudy/epoch"
)

var (
	// ErrNotWriter is returned for a write while this host is not the writer.
	ErrNotWriter = errors.New("this host is not the writer of the disk: Acquire it first")
	// ErrRange is returned for sectors that the disk does not have.
	ErrRange = errors.New("sectors outside the disk")
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("the disk's store is closed")
	// ErrNotDurable is returned by Sync when the system has lost writes that
	// were buffered. It goes on being returned until Rewritten is called.
	ErrNotDurable = errors.New("writes since the last successful sync may be lost: write them again")
)

// Direct says whether the page cache is gone around (O_DIRECT).
type Direct uint8

const (
	// DirectAuto: a shared disk must be read and written directly, since this
	// host's page cache knows nothing of the other's writes; a disk of our own
	// is buffered.
	DirectAuto Direct = iota
	// DirectAlways fails to open where O_DIRECT is not possible.
	DirectAlways
	// DirectNever buffers, a shared disk too. That is right only if both sides
	// are on one kernel (tests).
	DirectNever
)

// Config says what to open.
type Config struct {
	Path string // raw file or block device
	// Shared: another host reaches the same bytes; the lock decides who writes.
	// Otherwise the disk is this host's own, and locked from Open to Close.
	Shared   bool
	Direct   Direct
	ReadOnly bool
	// Create makes a sparse file of that many sectors if there is none (a
	// replicated disk's copy). 0: the file must exist.
	Create uint64
	// StateDir is where the record of a block device goes; a file has it beside
	// it (RecordSuffix).
	StateDir string
	Host     string // our name in the record
	Log      *slog.Logger
}

// File is the store over one file or block device. All its methods may be called
// at the same time.
type File struct {
	cfg     Config
	log     *slog.Logger
	sectors uint64
	block   bool // a block device
	data    *os.File
	fd      int // of data, for StartRead and StartWrite
	locker  locker
	side    sidecar

	align  alignment
	pool   pool
	ranges ranges
	zeroes func() []byte // aligned; what falls back to writing zeroes writes
	noHole atomic.Bool
	noZero atomic.Bool
	lost   atomic.Bool // see ErrNotDurable

	// gate is held for reading by every change of the disk, and for writing by
	// whatever must find none in flight.
	gate   sync.RWMutex
	closed bool
	writer bool   // this host may write
	pins   []*Pin // armed

	acquiring chan struct{} // holds a token while an Acquire is under way

	// mu protects the record; it is taken inside gate.
	mu       sync.Mutex
	record   Record
	known    bool        // record is what the sidecar says, and we are who changes it
	pristine atomic.Bool // the stamp may be known outside: the next write replaces it

	zeroHash func() epoch.Hash
	via      *daemon // what gives us a raw view of an image, or nil (via.go)
}

// Open opens the disk. A disk of our own is locked against every other process
// that asks (flock(2); QEMU's own image locks too); a shared one is not until
// Acquire.
func Open(cfg Config) (*File, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	path, err := filepath.Abs(cfg.Path)
	if err != nil {
		return nil, fmt.Errorf("disk %s: %w", cfg.Path, err)
	}
	cfg.Path = path
	f := newFile(cfg)
	if err := f.open(); err != nil {
		f.abandon()
		return nil, fmt.Errorf("open disk %s: %w", path, err)
	}
	return f, nil
}

func newFile(cfg Config) *File {
	f := &File{cfg: cfg, log: cfg.Log.With("disk", cfg.Path), acquiring: make(chan struct{}, 1)}
	f.zeroHash = sync.OnceValue(hashOfZeroes)
	return f
}

func (f *File) open() error {
	created, err := f.create()
	if err != nil {
		return err
	}
	if err := f.openData(f.cfg.Path); err != nil {
		return err
	}
	if err := f.locker.open(f.cfg.Path, f.data, f.cfg.ReadOnly); err != nil {
		return err
	}
	return f.ready(created)
}

// ready does the rest of opening once the bytes and the lock's file are there.
func (f *File) ready(created bool) (err error) {
	if err := f.measure(); err != nil {
		return err
	}
	if err := f.align.check(f.sectors); err != nil {
		return err
	}
	f.pool.init(f.align)
	f.zeroes = sync.OnceValue(func() []byte { return alignedBuffer(zeroPiece, f.align.memory) })
	if f.side, err = sidecarOf(f.cfg.Path, f.cfg.StateDir, f.block); err != nil {
		return err
	}
	if f.cfg.Shared {
		return nil
	}
	return f.own(created)
}

// create makes the file if Config.Create asks for it and reports whether it did.
func (f *File) create() (bool, error) {
	if f.cfg.Create == 0 || f.cfg.ReadOnly {
		return false, nil
	}
	if f.cfg.Create > epoch.MaxSectors {
		return false, fmt.Errorf("create with %d sectors: at most %d", f.cfg.Create, uint64(epoch.MaxSectors))
	}
	// The file gets its size under another name, so that a crash in between
	// leaves none of size 0 behind.
	if _, err := os.Lstat(f.cfg.Path); !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	tmp, err := os.CreateTemp(filepath.Dir(f.cfg.Path), filepath.Base(f.cfg.Path)+".new-*")
	if err != nil {
		return false, err
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	err = tmp.Truncate(int64(f.cfg.Create * epoch.SectorSize))
	if err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return false, fmt.Errorf("create with %d sectors: %w", f.cfg.Create, err)
	}
	// Link, not rename: it does not replace a file that came into being now.
	if err := os.Link(tmp.Name(), f.cfg.Path); err != nil && !errors.Is(err, fs.ErrExist) {
		return false, err
	} else if err != nil {
		return false, nil
	}
	return true, syncDir(filepath.Dir(f.cfg.Path))
}

func (f *File) openData(path string) error {
	flags := os.O_RDWR
	if f.cfg.ReadOnly {
		flags = os.O_RDONLY
	}
	want := f.cfg.Direct == DirectAlways || f.cfg.Direct == DirectAuto && f.cfg.Shared
	var err error
	if !want {
		f.data, err = os.OpenFile(path, flags, 0)
		f.align = alignment{memory: 1, io: epoch.SectorSize}
		if err == nil {
			f.fd = int(f.data.Fd())
		}
		return err
	}
	f.data, err = os.OpenFile(path, flags|unix.O_DIRECT, 0)
	if errors.Is(err, unix.EINVAL) {
		return errNoDirect(err)
	}
	if err != nil {
		return err
	}
	f.fd = int(f.data.Fd())
	f.align, err = probeAlignment(f.data)
	return err
}

func errNoDirect(err error) error {
	return fmt.Errorf("its file system cannot do direct I/O (O_DIRECT), which a shared disk needs "+
		"so that no host reads from a stale cache: move the disk, or allow buffered I/O if only this host uses it: %w", err)
}

// measure finds the size, and whether this is a block device.
func (f *File) measure() error {
	info, err := f.data.Stat()
	if err != nil {
		return err
	}
	var size uint64
	switch mode := info.Mode(); {
	case mode.IsRegular():
		size = uint64(info.Size())
	case mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0:
		f.block = true
		if size, err = ioctlUint64(f.data, unix.BLKGETSIZE64); err != nil {
			return fmt.Errorf("size of the block device (BLKGETSIZE64): %w", err)
		}
	default:
		return fmt.Errorf("neither a file nor a block device (%v)", mode.Type())
	}
	if size == 0 || size%epoch.SectorSize != 0 || size/epoch.SectorSize > epoch.MaxSectors {
		return fmt.Errorf("its size is %d bytes: a disk has 1 to %d whole sectors of %d bytes",
			size, uint64(epoch.MaxSectors), epoch.SectorSize)
	}
	f.sectors = size / epoch.SectorSize
	return nil
}

// abandon closes what a failed Open had opened.
func (f *File) abandon() {
	for _, p := range f.pins {
		p.close()
	}
	if f.data != nil {
		_ = f.data.Close() // nothing was written
	}
	if f.via != nil {
		_ = f.via.stop() // the error that counts is that of Open
	}
	f.locker.close()
}

// Sectors returns the size in units of epoch.SectorSize. It does not change.
func (f *File) Sectors() uint64 { return f.sectors }

// Shared reports whether another host reaches the same bytes.
func (f *File) Shared() bool { return f.cfg.Shared }

// IsDirect reports whether I/O goes around the page cache, and the alignment in
// bytes that is needed without a bounce buffer: of memory, and of offset and
// length.
func (f *File) IsDirect() (direct bool, memory, io int) {
	return f.align.direct, f.align.memory, f.align.io
}

// check refuses sectors that are not there.
func (f *File) check(bytes int, sector uint64) error {
	if bytes%epoch.SectorSize != 0 {
		return fmt.Errorf("%d bytes: %w: not whole sectors of %d", bytes, ErrRange, epoch.SectorSize)
	}
	return f.checkSectors(sector, uint64(bytes/epoch.SectorSize))
}

func (f *File) checkSectors(sector, n uint64) error {
	if sector > f.sectors || n > f.sectors-sector {
		return fmt.Errorf("%d sectors from %d of %d: %w", n, sector, f.sectors, ErrRange)
	}
	return nil
}

// ReadAt reads whole sectors. It needs no lock.
func (f *File) ReadAt(p []byte, sector uint64) error {
	if err := f.check(len(p), sector); err != nil {
		return fmt.Errorf("read disk %s: %w", f.cfg.Path, err)
	}
	if len(p) == 0 {
		return nil
	}
	if err := f.rawRead(p, int64(sector*epoch.SectorSize)); err != nil {
		return fmt.Errorf("read disk %s, %d bytes from sector %d: %w", f.cfg.Path, len(p), sector, f.plain(err))
	}
	return nil
}

// WriteAt writes whole sectors. They are durable after Sync.
func (f *File) WriteAt(p []byte, sector uint64) error {
	if err := f.check(len(p), sector); err != nil {
		return fmt.Errorf("write disk %s: %w", f.cfg.Path, err)
	}
	if len(p) == 0 {
		return nil
	}
	f.gate.RLock()
	defer f.gate.RUnlock()
	err := f.before(sector, uint64(len(p)/epoch.SectorSize))
	if err == nil {
		err = f.rawWrite(p, int64(sector*epoch.SectorSize))
	}
	if err != nil {
		return fmt.Errorf("write disk %s, %d bytes from sector %d: %w", f.cfg.Path, len(p), sector, f.plain(err))
	}
	return nil
}

// Zero makes sectors zero. discard lets their space be given back.
func (f *File) Zero(sector uint64, sectors uint32, discard bool) error {
	if err := f.checkSectors(sector, uint64(sectors)); err != nil {
		return fmt.Errorf("zero disk %s: %w", f.cfg.Path, err)
	}
	if sectors == 0 {
		return nil
	}
	f.gate.RLock()
	defer f.gate.RUnlock()
	err := f.before(sector, uint64(sectors))
	if err == nil {
		err = f.rawZero(int64(sector*epoch.SectorSize), int64(sectors)*epoch.SectorSize, discard)
	}
	if err != nil {
		return fmt.Errorf("zero disk %s, %d sectors from %d: %w", f.cfg.Path, sectors, sector, f.plain(err))
	}
	return nil
}

// before is what a change of the disk has to wait for. The gate is held.
func (f *File) before(sector, sectors uint64) error {
	if f.closed {
		return ErrClosed
	}
	if !f.writer {
		return ErrNotWriter
	}
	if f.pristine.Load() {
		if err := f.replaceStamp(); err != nil {
			return err
		}
	}
	for _, p := range f.pins {
		if err := f.keep(p, sector, sectors); err != nil {
			return err
		}
	}
	return nil
}

// Sync makes every write that returned before durable (fdatasync(2)).
//
// If the system loses buffered writes it says so once and then forgets
// (fsync(2), "EIO"): here Sync goes on failing with ErrNotDurable until the
// caller has written again everything since the last successful Sync and says
// so with Rewritten. With direct I/O nothing was buffered, and trying again is
// enough.
func (f *File) Sync() error {
	if f.lost.Load() {
		return fmt.Errorf("sync disk %s: %w", f.cfg.Path, ErrNotDurable)
	}
	return f.synced(fdatasync(f.data))
}

// synced takes note of what fdatasync(2) returned.
func (f *File) synced(err error) error {
	if err != nil {
		if !f.align.direct && !errors.Is(err, os.ErrClosed) {
			f.lost.Store(true)
			err = errors.Join(ErrNotDurable, err)
		}
		return fmt.Errorf("sync disk %s: %w", f.cfg.Path, f.plain(err))
	}
	return nil
}

// Rewritten says that everything written since the last successful Sync has been
// written again.
func (f *File) Rewritten() { f.lost.Store(false) }

// Close lets the disk go. Writes that were not made durable may not be.
func (f *File) Close() error {
	err := f.Release()
	f.gate.Lock()
	if f.closed {
		f.gate.Unlock()
		return nil
	}
	f.closed, f.writer = true, false
	for _, p := range f.pins {
		p.close() // still armed: the record says so
	}
	f.pins = nil
	f.gate.Unlock()
	err = errors.Join(err, f.data.Close())
	if f.via != nil {
		err = errors.Join(err, f.via.stop()) // while the image is locked
	}
	f.locker.close()
	if err != nil {
		return fmt.Errorf("close disk %s: %w", f.cfg.Path, err)
	}
	return nil
}

// plain takes from an error what the package os says about the operation; the
// caller says it better.
func (f *File) plain(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok && p.Path == f.data.Name() {
		err = p.Err
	}
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("the file has become shorter: %w", io.ErrUnexpectedEOF)
	}
	if f.via != nil {
		err = f.via.explain(err)
	}
	return err
}

func fdatasync(file *os.File) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var done error
	err = raw.Control(func(fd uintptr) {
		for {
			if done = unix.Fdatasync(int(fd)); done != unix.EINTR {
				return
			}
		}
	})
	return errors.Join(err, done)
}

func ioctlUint64(file *os.File, request uint) (uint64, error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return 0, err
	}
	var value uint64
	var errno unix.Errno
	err = raw.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, uintptr(request), uintptr(unsafe.Pointer(&value)))
	})
	if err != nil {
		return 0, err
	}
	if errno != 0 {
		return 0, errno
	}
	return value, nil
}
