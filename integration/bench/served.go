package main

// A disk of ours for a measured guest: a raw file that can be brought back to
// what it was, a store on it, a disk.Set with what it knows, and a front end on
// the socket that QEMU connects to.
//
//	guest ─ vhost.Server ─ disk.Set ─ changing ─ store.File
//	                          │           └ what it overwrites ─> image, for undo
//	                          └ exclusion.Index

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"understudy/checkpoint"
	"understudy/clock"
	"understudy/disk"
	"understudy/disk/store"
	"understudy/disk/vhost"
	"understudy/epoch"
	"understudy/exclusion"
	"understudy/hypervisor/qemu"
	"understudy/protocol"
)

// copied is a disk's file. It remembers what is overwritten in it, so that many
// guests may begin with the same one and it is copied once.
type copied struct {
	path string

	mu     sync.Mutex
	layers []map[uint64][]byte // old blocks of PageSize by number, newest layer last
}

// mark makes what the disk is now what the next undo brings back.
func (i *copied) mark() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.layers = append(i.layers, map[uint64][]byte{})
}

// keep notes what blocks hold before they are changed.
func (i *copied) keep(f *store.File, sector, sectors uint64) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.layers) == 0 || sectors == 0 {
		return nil
	}
	old := i.layers[len(i.layers)-1]
	first, last := sector/epoch.PageSectors, (sector+sectors-1)/epoch.PageSectors
	known := func(b uint64) bool { return old[b] != nil }
	for first <= last && known(first) {
		first++
	}
	for last > first && known(last) {
		last--
	}
	if first > last {
		return nil
	}
	blocks := make([]byte, (last-first+1)*epoch.PageSize)
	if err := f.ReadAt(blocks, first*epoch.PageSectors); err != nil {
		return err
	}
	for b := first; b <= last; b++ {
		if at := (b - first) * epoch.PageSize; !known(b) {
			old[b] = blocks[at : at+epoch.PageSize : at+epoch.PageSize]
		}
	}
	return nil
}

// undo brings back what the disk was at the last mark, which it forgets. No
// guest may use the disk.
func (i *copied) undo() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.layers) == 0 {
		return nil
	}
	old := i.layers[len(i.layers)-1]
	f, err := os.OpenFile(i.path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	for _, b := range slices.Sorted(maps.Keys(old)) {
		if _, err := f.WriteAt(old[b], int64(b)*epoch.PageSize); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("bring back the disk: %w", err)
	}
	i.layers = i.layers[:len(i.layers)-1]
	return nil
}

// undoAll brings back what the disk was at the first mark.
func (i *copied) undoAll() error {
	for i.marks() > 0 {
		if err := i.undo(); err != nil {
			return err
		}
	}
	return nil
}

func (i *copied) marks() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return len(i.layers)
}

// changing is a store whose changes can be undone.
type changing struct {
	*store.File
	image *copied
}

func (c changing) WriteAt(p []byte, sector uint64) error {
	if err := c.image.keep(c.File, sector, uint64(len(p))/epoch.SectorSize); err != nil {
		return err
	}
	return c.File.WriteAt(p, sector)
}

// StartWrite is WriteAt up to the system call; without it the caller's own would
// go past us.
func (c changing) StartWrite(sector uint64, sectors uint32) (fd int, offset int64, ok bool) {
	if c.image.keep(c.File, sector, uint64(sectors)) != nil {
		return -1, 0, false // WriteAt tells of it
	}
	return c.File.StartWrite(sector, sectors)
}

func (c changing) Zero(sector uint64, sectors uint32, discard bool) error {
	if err := c.image.keep(c.File, sector, uint64(sectors)); err != nil {
		return err
	}
	return c.File.Zero(sector, sectors, discard)
}

// served is a guest's disk with what leads to it. It implements host.Disks.
type served struct {
	*disk.Set
	index *exclusion.Index // nil: nothing is left out
	front *vhost.Server
	store *store.File
	spec  []protocol.DiskSpec
	key   epoch.PrintKey
}

// serve serves the disk at the first socket of c, as a daemon does. exclude says
// whether pages may be left out for what is on it.
func serve(c qemu.Config, driver *qemu.Driver, img *copied, host string, exclude bool, log *slog.Logger) (_ *served, err error) {
	s := &served{key: 0x1badb002}
	if s.store, err = store.Open(store.Config{Path: img.path, Shared: true, Host: host, Log: log}); err != nil {
		return nil, err
	}
	cfg := disk.SetConfig{
		Pages: (c.Memory + sideBytes) / epoch.PageSize, JournalDir: filepath.Join(c.ImageDir, "writes"), Clock: clock.Boot{}, Log: log,
		Disks: []disk.DiskConfig{{Store: changing{s.store, img}, Serial: "bench"}},
	}
	if exclude {
		s.index = exclusion.NewIndex(exclusion.Config{Pages: cfg.Pages, Key: s.key})
		cfg.Index = s.index
		cfg.Boot = []disk.BootFile{{ID: disk.KernelID, Name: "kernel", Path: c.Kernel}, {ID: disk.InitrdID, Name: "initrd", Path: c.Initrd}}
	}
	if err = errors.Join(os.RemoveAll(cfg.JournalDir), os.MkdirAll(cfg.JournalDir, 0o700)); err == nil {
		s.Set, err = disk.NewSet(cfg)
	}
	if err != nil {
		return nil, errors.Join(err, s.store.Close())
	}
	s.spec = []protocol.DiskSpec{{Sectors: s.store.Sectors(), Store: "shared"}}
	path := c.DiskSocket(0)
	err = os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		s.front, err = vhost.Listen(vhost.Config{Path: path, Backend: s.Disk(0), Log: log})
	}
	if err == nil {
		err = driver.Grant(path)
	}
	if err == nil {
		err = s.Disk(0).Attach(s.front)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("serve the disk: %w", err), s.Close())
	}
	return s, nil
}

// marked is what a checkpoint file says of the disk and of the files that the
// guest was started with. The guest stands still.
func (s *served) marked() ([]checkpoint.Disk, error) {
	stamp, err := s.store.Stamp()
	disks := []checkpoint.Disk{{ID: 0, Name: "disk", Store: "shared", Sectors: s.store.Sectors(), Stamp: stamp.String()}}
	for _, b := range s.LookAtBoot() {
		if b.Problem == "" {
			disks = append(disks, checkpoint.Disk{ID: b.Disk, Name: b.Path, Store: checkpoint.StoreBoot, Sectors: b.Sectors, Stamp: b.Sum.String()})
		}
	}
	slices.SortFunc(disks, func(a, b checkpoint.Disk) int { return int(a.ID) - int(b.ID) })
	return disks, err
}

// sideBytes is room for a machine's RAM beside its main memory.
const sideBytes = 64 << 20

// Close ends the front end, then the disk.
func (s *served) Close() error {
	var err error
	if s.front != nil {
		err = s.front.Close()
	}
	return errors.Join(err, s.Set.Close())
}

// Excluded counts pages that were left out of checkpoints.
func (s *served) Excluded() exclusion.Stats {
	if s.index == nil {
		return exclusion.Stats{}
	}
	return s.index.Stats()
}
