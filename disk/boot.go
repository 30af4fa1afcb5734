package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"

	"understudy/epoch"
)

// This file is the files that the guest is started with, its kernel image and its
// initrd. The hypervisor puts them into guest memory, where Linux leaves them:
// stale, and too dense to pack. They are on both hosts, so their pages are left
// out as for a disk, one that is read-only and has no front end:
//
//	look: path ─ stat ─ as before? ── no ─> sum ─> pages ─> Index.Keep
//	Welcome's list of the backup's files ─ BackupHas ─> Index.SetVerified
//	the other side: ReadSectors, as of any other disk
//
// The open file is read, so that one renamed over it harms nothing that refers to
// it. Another file is taken only when nothing can: no guest runs here, and no
// epoch has come. Otherwise its pages are not left out any more.

// Numbers of boot files among the disks: from the end, so that they are the same
// however many disks a guest has.
const (
	KernelID = epoch.MaxDisks - 1
	InitrdID = epoch.MaxDisks - 2
)

// BootFile names a file that the guest is started with.
type BootFile struct {
	ID   epoch.DiskID // KernelID or InitrdID
	Name string       // for people
	Path string
}

// BootStatus is a boot file as it is here.
type BootStatus struct {
	Name    string `json:"name"`
	Path    string `json:"path"`
	Problem string `json:"problem,omitempty"`         // why no page is left out for it
	Lacking bool   `json:"backup_lacks_it,omitempty"` // nor for this reason
	// As it was when it was opened; zero if it was not.
	epoch.BootFile
}

// bootFile is one of a Set.
type bootFile struct {
	BootFile
	now atomic.Pointer[openFile] // nil: none could be opened yet

	// Under the Set's lock:
	problem error // no page is left out for it
	lacking bool  // the backup has not the same
}

// openFile is a file with this content, as long as it is this file.
type openFile struct {
	*os.File
	file fileState
	is   epoch.BootFile
}

// fileState changes with the file's content.
type fileState struct {
	dev, ino     uint64
	size         int64
	mtime, ctime time.Duration // since 1970
}

func stateOf(st *unix.Stat_t) fileState {
	return fileState{dev: st.Dev, ino: st.Ino, size: st.Size, mtime: time.Duration(st.Mtim.Nano()), ctime: time.Duration(st.Ctim.Nano())}
}

const (
	// maxBoot bounds a boot file, in bytes.
	maxBoot = 1 << 30
	// bootChunk is how much of it is read at once.
	bootChunk = 256 * epoch.PageSize
)

var (
	errBootChanged = errors.New("it is another file than the one that the guest was started with")
	errBootMoves   = errors.New("it was changed while it was read: it is read again at the guest's next start")
)

// look sees whether the boot files are what is known of them. While nothing refers
// to them they may be others from now on; once a guest runs, they may not.
func (s *Set) look() {
	s.looking.Lock()
	defer s.looking.Unlock()
	for _, b := range s.boots {
		err := s.lookAt(b)
		s.mu.Lock()
		if err != nil && !s.core.closed && (b.problem == nil || b.problem.Error() != err.Error()) {
			s.log.Warn("no page of the guest is left out of checkpoints for this file", "file", b.Path, "what", b.Name, "why", err)
		}
		b.problem = err
		s.mu.Unlock()
	}
	s.mu.Lock()
	s.fresh = s.fresh && s.core.role != roleOwner
	s.mu.Unlock()
}

// lookAt does it for one. An error leaves nothing of it in the index.
func (s *Set) lookAt(b *bootFile) (err error) {
	was := b.now.Load()
	s.mu.Lock()
	well := b.problem == nil
	s.mu.Unlock()
	defer func() {
		if err != nil && was != nil && well {
			s.index.Accepted(b.ID, 0, uint32(was.is.Sectors), false)
		}
	}()
	var st unix.Stat_t
	if err := unix.Stat(b.Path, &st); err != nil {
		return err
	}
	if was != nil && was.file == stateOf(&st) && well {
		return nil
	}
	next, err := s.openBoot(b)
	if err != nil {
		return err
	}
	same := was != nil && was.is == next.is
	s.mu.Lock()
	fresh := s.fresh
	s.mu.Unlock()
	if was != nil && !same && !fresh {
		return errors.Join(errBootChanged, next.Close())
	}
	b.now.Store(next)
	if was != nil {
		defer func() { _ = was.Close() }() // it was only read
		if same && well {
			return nil
		}
		if well {
			s.index.Accepted(b.ID, 0, uint32(was.is.Sectors), false)
		}
	}
	s.mu.Lock()
	s.compareLocked(b)
	s.mu.Unlock()
	if err := s.learn(next); err != nil {
		s.index.Accepted(b.ID, 0, uint32(next.is.Sectors), false)
		return err
	}
	return nil
}

// openBoot opens the file and sums it up.
func (s *Set) openBoot(b *bootFile) (_ *openFile, err error) {
	f, err := os.Open(b.Path)
	if err != nil {
		return nil, err
	}
	o := &openFile{File: f}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if o.file, err = o.state(); err != nil {
		return nil, err
	}
	if o.file.size < epoch.SectorSize || o.file.size > maxBoot {
		return nil, fmt.Errorf("it has %d bytes: want %d to %d", o.file.size, epoch.SectorSize, maxBoot)
	}
	h := xxh3.New()
	if err := s.read(o, 0, func(chunk []byte) { _, _ = h.Write(chunk) }); err != nil { // it never fails
		return nil, err
	}
	o.is = epoch.BootFile{Disk: b.ID, Sectors: uint64(o.file.size) / epoch.SectorSize, Sum: h.Sum128().Bytes()}
	return o, nil
}

func (o *openFile) state() (fileState, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(o.Fd()), &st); err != nil {
		return fileState{}, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fileState{}, errors.New("it is no regular file")
	}
	return stateOf(&st), nil
}

// read gives the file's bytes to f, from an offset on. It fails if the file was
// changed meanwhile, or the Set is closed.
func (s *Set) read(o *openFile, offset int64, f func(chunk []byte)) error {
	chunk := make([]byte, bootChunk)
	for offset < o.file.size {
		select {
		case <-s.done:
			return ErrClosed
		default:
		}
		n, err := o.ReadAt(chunk[:min(bootChunk, o.file.size-offset)], offset)
		if err != nil && (!errors.Is(err, io.EOF) || n == 0) {
			return err
		}
		f(chunk[:n])
		offset += int64(n)
	}
	if now, err := o.state(); err != nil || now != o.file {
		return errors.Join(errBootMoves, err)
	}
	return nil
}

// learn tells the index what the file holds. The rest behind its last whole page
// is nobody's: what follows it in guest memory is not in the file.
func (s *Set) learn(o *openFile) error {
	head := make([]byte, bootHead)
	n, err := o.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	at := pageStart(head[:n])
	sector, room := uint64(at)/epoch.SectorSize, true
	err = s.read(o, at, func(chunk []byte) {
		for ; len(chunk) >= epoch.PageSize && room; chunk = chunk[epoch.PageSize:] {
			room = s.index.Keep(o.is.Disk, sector, chunk[:epoch.PageSize])
			sector += epoch.PageSectors
		}
	})
	if err == nil && !room {
		s.log.Info("the guest's memory is too small to know all of a file that it is started with", "file", o.Name(), "known_bytes", sector*epoch.SectorSize)
	}
	return err
}

// The header of a bzImage (Documentation/arch/x86/boot.rst): a boot flag, a magic
// word, and the number of sectors of the part that runs in real mode, 0 for 4,
// without the boot sector.
const (
	bootSetupSects = 0x1f1
	bootFlag       = 0x1fe
	bootMagic      = 0x202
	bootHead       = 0x206
)

// pageStart returns the offset in a file, in bytes, of what a boot loader puts at
// the beginning of a page: the part of a bzImage that runs in protected mode
// (loaded at 1 MiB), and all of any other file.
func pageStart(head []byte) int64 {
	if len(head) < bootHead || binary.LittleEndian.Uint16(head[bootFlag:]) != 0xaa55 || string(head[bootMagic:bootHead]) != "HdrS" {
		return 0
	}
	sects := int64(head[bootSetupSects])
	if sects == 0 {
		sects = 4
	}
	return (sects + 1) * epoch.SectorSize
}

// BackupHas says which boot files the backup has: pages are left out for those
// alone that are the same here.
func (s *Set) BackupHas(boot []epoch.BootFile) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.there, s.told = append(s.there[:0], boot...), true
	for _, b := range s.boots {
		s.compareLocked(b)
	}
}

// compareLocked tells the index whether the backup has the same file. Without a
// backup it has: a checkpoint file can be restored here.
func (s *Set) compareLocked(b *bootFile) {
	o := b.now.Load()
	if o == nil {
		return
	}
	lacking := s.told
	for _, there := range s.there {
		lacking = lacking && there != o.is
	}
	if lacking && !b.lacking {
		s.log.Info("the backup has not the same: no page is left out of checkpoints for it", "file", b.Path, "what", b.Name)
	}
	if lacking != b.lacking {
		s.index.SetVerified(b.ID, 0, epoch.MaxSectors, !lacking)
	}
	b.lacking = lacking
}

// BootFiles are the files that the guest is started with, as they are known here.
func (s *Set) BootFiles() []epoch.BootFile {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []epoch.BootFile
	for _, b := range s.boots {
		if o := b.now.Load(); o != nil && b.problem == nil {
			all = append(all, o.is)
		}
	}
	return all
}

// LookAtBoot sees whether the boot files have changed. What has no Problem can be
// read, and will be the same for whoever has the same sum.
func (s *Set) LookAtBoot() []BootStatus {
	s.look()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bootLocked()
}

func (s *Set) bootLocked() []BootStatus {
	var all []BootStatus
	for _, b := range s.boots {
		one := BootStatus{Name: b.Name, Path: b.Path, Lacking: b.lacking, BootFile: epoch.BootFile{Disk: b.ID}}
		if o := b.now.Load(); o != nil {
			one.BootFile = o.is
		}
		switch {
		case b.problem != nil:
			one.Problem = b.problem.Error()
		case b.now.Load() == nil:
			one.Problem = "it is being read"
		}
		all = append(all, one)
	}
	return all
}

// readBoot is ReadSectors for a boot file; ok: it is one.
func (s *Set) readBoot(disk epoch.DiskID, sector uint64, dst []byte) (ok bool, err error) {
	for _, b := range s.boots {
		if b.ID != disk {
			continue
		}
		o := b.now.Load()
		for again := true; o != nil && again; o = b.now.Load() {
			if n := uint64(len(dst)) / epoch.SectorSize; sector > o.is.Sectors || n > o.is.Sectors-sector {
				return true, fmt.Errorf("reading the %s %s: %d sectors from %d on, it has %d: %w", b.Name, b.Path, n, sector, o.is.Sectors, ErrRange)
			}
			if _, err = o.ReadAt(dst, int64(sector)*epoch.SectorSize); err == nil {
				return true, nil
			}
			again = errors.Is(err, os.ErrClosed) && o != b.now.Load()
		}
		if o == nil {
			err = errors.New("it could not be opened, see status")
		}
		return true, fmt.Errorf("reading the %s %s: %w", b.Name, b.Path, err)
	}
	return false, nil
}

func (s *Set) closeBoot() (err error) {
	for _, b := range s.boots {
		if o := b.now.Load(); o != nil {
			err = errors.Join(err, o.Close())
		}
	}
	return err
}
