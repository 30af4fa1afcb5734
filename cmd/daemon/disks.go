package daemon

// This file makes the disks that the daemon serves to a guest: for each a store
// (package disk/store) and a front end on a socket (package disk/vhost), and
// between them one disk.Set, which lives as long as the daemon, whatever this
// host's part is.

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"understudy/clock"
	"understudy/config"
	"understudy/disk"
	"understudy/disk/store"
	"understudy/disk/vhost"
	"understudy/epoch"
	"understudy/exclusion"
	"understudy/host"
	"understudy/hypervisor/qemu"
	"understudy/protocol"
)

// served are a guest's disks with what leads to them.
type served struct {
	*disk.Set
	index   *exclusion.Index // nil: nothing is left out
	servers []*vhost.Server
	keepers []keeper
	specs   []protocol.DiskSpec
	key     epoch.PrintKey
	copies  bool // each host has its own
	linger  *vhost.Linger
}

// Settled is disk.Set's, and says no while a hypervisor has yet to find our
// sockets again, after this process was started anew under a guest: the requests
// in flight are in nobody's hands then.
func (s *served) Settled() bool {
	for _, one := range s.servers {
		if !one.Connected() {
			return false
		}
	}
	return s.Set.Settled()
}

// Seal is disk.Set's, and fails in a pause that shows the same: QEMU may find
// out only then that it has lost us before. The guest goes on, and the next
// pause shows the requests in flight.
func (s *served) Seal(n epoch.Number) error {
	if err := s.found(); err != nil {
		return err
	}
	return s.Set.Seal(n)
}

// Snapshot is disk.Set's, with the same exception.
func (s *served) Snapshot() ([]epoch.DiskWrite, []byte, error) {
	if err := s.found(); err != nil {
		return nil, nil, err
	}
	return s.Set.Snapshot()
}

func (s *served) found() error {
	for _, one := range s.servers {
		if !one.Connected() {
			return errors.New("the requests in flight on a disk are not known: its hypervisor has to set it up again, which it does when the guest goes on")
		}
	}
	return nil
}

// Close ends the front ends, then the disks.
func (s *served) Close() error {
	var errs []error
	for _, one := range s.servers {
		errs = append(errs, one.Close())
	}
	return errors.Join(append(errs, s.Set.Close())...)
}

// Excluded counts the pages that were left out of checkpoints.
func (s *served) Excluded() exclusion.Stats {
	if s.index == nil {
		return exclusion.Stats{}
	}
	return s.index.Stats()
}

// orNone keeps a guest without served disks from having some that are nil.
func (s *served) orNone() host.Disks {
	if s == nil {
		return nil
	}
	return s
}

// shape is what both hosts must agree on, and the key of our fingerprints.
func (s *served) shape() ([]protocol.DiskSpec, epoch.PrintKey) {
	if s == nil {
		return nil, 0
	}
	return s.specs, s.key
}

// copied reports whether each host has a copy of its own of one of the disks.
func (s *served) copied() bool { return s != nil && s.copies }

// bootFiles are the files that QEMU puts into the guest's memory.
func bootFiles(g config.Guest) (all []disk.BootFile) {
	if g.Kernel != "" {
		all = append(all, disk.BootFile{ID: disk.KernelID, Name: "kernel", Path: g.Kernel})
	}
	if g.Initrd != "" {
		all = append(all, disk.BootFile{ID: disk.InitrdID, Name: "initrd", Path: g.Initrd})
	}
	return all
}

// bootPages bounds what is known of the boot files of a guest without a disk: a
// quarter of it is 64 MiB.
const bootPages = 1 << 16

// newDisks opens and serves the disks; it returns nil if the guest has none to
// be served, and no boot files.
func newDisks(o Options, self config.Host, g config.Guest, driver *qemu.Driver, c qemu.Config) (_ *served, err error) {
	s := &served{key: newPrintKey(), linger: o.Linger}
	if left, err := host.ReadLeft(leftFile(o, self, g), imagePages(g)); err == nil {
		s.key = left.PrintKey // the backup goes on with it
	}
	dirs := o.Config.DirsOf(self)
	cfg := disk.SetConfig{
		Pages:     imagePages(g),
		HeldBytes: int(g.Protection.HeldWrites), JournalDir: filepath.Join(c.RunDir, "writes"),
		Clock: clock.Boot{}, Log: o.Slog.With("guest", g.Name), Trouble: tellDisks(o.record, g.Name),
	}
	var stores []*store.File
	defer func() {
		if err != nil && s.Set == nil {
			for _, one := range stores {
				err = errors.Join(err, one.Close())
			}
		} else if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	for i, d := range g.Disks {
		if !d.Served() {
			continue
		}
		one, err := openStore(d, store.Config{
			Path: d.PathOn(self.Name), Shared: d.Mode == config.Shared, Create: uint64(d.Size) / epoch.SectorSize,
			StateDir: filepath.Join(dirs.State, "disks"), Host: self.Name, Log: cfg.Log,
		}, c.RunDir)
		if err != nil {
			return nil, fmt.Errorf("disk %d: %w", i, err)
		}
		stores = append(stores, one)
		s.keepers = append(s.keepers, keeperOf(one, d))
		cfg.Disks = append(cfg.Disks, disk.DiskConfig{Store: one, Serial: serial(g.Name, i)})
		cfg.Unfenced = cfg.Unfenced || d.Unfenced
		s.specs = append(s.specs, protocol.DiskSpec{Sectors: one.Sectors(), Store: string(d.Mode)})
		s.copies = s.copies || d.Mode == config.Replicated
	}
	if g.Protection.Exclusion == config.ExclusionOn {
		cfg.Boot = bootFiles(g)
	}
	if len(stores)+len(cfg.Boot) == 0 {
		return nil, nil
	}
	if g.Protection.Exclusion == config.ExclusionOn {
		known := exclusion.Config{Pages: cfg.Pages, Key: s.key}
		if len(stores) == 0 {
			known.MaxBlocks, known.MaxOutstanding = bootPages, bootPages
		}
		s.index = exclusion.NewIndex(known)
		cfg.Index = s.index
	}
	if len(stores) == 0 {
		cfg.JournalDir, cfg.HeldBytes = "", disk.MinHeldBytes // nothing is written
	} else if err := prepareDir(cfg.JournalDir, 0o700); err != nil {
		return nil, err
	}
	if s.Set, err = disk.NewSet(cfg); err != nil {
		return nil, err
	}
	for i := range c.Served {
		if err := s.serve(o, g, driver, c, i, cfg); err != nil {
			return nil, fmt.Errorf("disk %d: %w", i, err)
		}
	}
	return s, nil
}

// imageWait bounds the start of the program that shows a qcow2 image.
const imageWait = 10 * time.Second

// openStore opens a raw disk, or an image through QEMU's storage daemon, which
// knows its format better than we would.
func openStore(d config.Disk, c store.Config, dir string) (*store.File, error) {
	if !d.QCOW2(c.Path) {
		return store.Open(c)
	}
	if err := prepareDir(dir, 0o755); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), imageWait)
	defer cancel()
	return store.OpenVia(ctx, c, store.Via{Dir: dir})
}

// serve opens the socket of one disk.
func (s *served) serve(o Options, g config.Guest, driver *qemu.Driver, c qemu.Config, i int, cfg disk.SetConfig) error {
	path := c.DiskSocket(i)
	if err := prepareDir(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	device := s.Disk(epoch.DiskID(i))
	front, err := vhost.Listen(vhost.Config{Path: path, Backend: device, Queues: c.Served[i].Queues, QueueSize: c.Served[i].QueueSize, Linger: s.linger,
		Inherited: o.inherited.take(diskName(g.Name, i)), Log: cfg.Log})
	if err != nil {
		return err
	}
	s.servers = append(s.servers, front)
	o.keeping.add(diskName(g.Name, i), front.Keep)
	if err := driver.Grant(path); err != nil {
		return err
	}
	return device.Attach(front)
}

// serial is what the guest sees as the disk's serial number.
func serial(guest string, i int) string {
	return fmt.Sprintf("%.16s-%d", guest, i)
}

// newPrintKey draws the key of this host's fingerprints.
func newPrintKey() epoch.PrintKey {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	return epoch.PrintKey(binary.LittleEndian.Uint64(b[:]))
}
