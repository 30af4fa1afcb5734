package daemon

// This file is the disks' part in checkpoint files (host.History), on the stores
// that the disks stand on: their stamps, their pins, and the way back.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"understudy/checkpoint"
	"understudy/config"
	"understudy/disk"
	"understudy/disk/store"
	"understudy/epoch"
	"understudy/host"
)

// history are a guest's disks with a past.
type history struct {
	*served
	// offered are the boot files that the last Finder found pages of: others look at
	// them, too, and may have seen one change before Mark does.
	offered *atomic.Pointer[[]epoch.BootFile]
}

// keeper is one disk's store, and its path as configured.
type keeper struct {
	*store.File
	path string
}

func keeperOf(f *store.File, d config.Disk) keeper { return keeper{f, d.Path} }

// history returns nil for a guest without disks of ours.
func (s *served) history() host.History {
	if s == nil {
		return nil
	}
	return history{s, new(atomic.Pointer[[]epoch.BootFile])}
}

// Finder is the index of what is on the disks.
func (h history) Finder() (checkpoint.Finder, epoch.PrintKey) {
	if h.index == nil {
		return nil, h.key
	}
	h.LookAtBoot() // a file that is another one now is not referred to
	files := h.BootFiles()
	h.offered.Store(&files)
	return h.index, h.key
}

// Mark takes down the stores' stamps, or arms a pin at each.
func (h history) Mark(pins string) (marked []checkpoint.Disk, err error) {
	for i, d := range h.Status().Disks {
		if !d.Writer {
			return nil, fmt.Errorf("disk %d: this host is not its writer yet: try again when `understudy status` says that it is", i)
		}
	}
	defer func() {
		if err != nil && pins != "" {
			err = errors.Join(err, h.Unpin(context.Background(), 0, pins))
		}
	}()
	for i, k := range h.keepers {
		d := checkpoint.Disk{ID: epoch.DiskID(i), Name: k.path, Store: h.specs[i].Store, Sectors: k.Sectors()}
		if pins == "" {
			stamp, err := k.Stamp()
			if err != nil {
				return nil, fmt.Errorf("disk %d: %w", i, err)
			}
			d.Stamp = stamp.String()
		} else {
			pin, err := k.Pin(host.PinPath(pins, d.ID), 0)
			if err != nil {
				return nil, fmt.Errorf("disk %d: %w", i, err)
			}
			d.Stamp, d.Pin = pin.Stamp.String(), pin.ID.String()
		}
		marked = append(marked, d)
	}
	boot, err := h.markBoot()
	return append(marked, boot...), err
}

// markBoot takes down the files that the guest was started with.
func (h history) markBoot() (marked []checkpoint.Disk, err error) {
	before := h.BootFiles()
	if offered := h.offered.Load(); offered != nil {
		before = *offered
	}
	for _, b := range h.boot() {
		if b.Problem == "" {
			marked = append(marked, checkpoint.Disk{ID: b.Disk, Name: b.Path, Store: checkpoint.StoreBoot, Sectors: b.Sectors, Stamp: b.Sum.String()})
		} else if slices.ContainsFunc(before, func(f epoch.BootFile) bool { return f.Disk == b.Disk }) {
			return nil, fmt.Errorf("the guest's %s %s was changed while the guest was saved (%s): save it again", b.Name, b.Path, b.Problem)
		}
	}
	return marked, nil
}

// boot are the boot files as they are now, in the order of their numbers.
func (h history) boot() []disk.BootStatus {
	all := h.LookAtBoot()
	slices.SortFunc(all, func(a, b disk.BootStatus) int { return int(a.Disk) - int(b.Disk) })
	return all
}

// Sync makes durable what the stores have.
func (h history) Sync() error {
	var errs []error
	for _, k := range h.keepers {
		errs = append(errs, k.Sync())
	}
	return errors.Join(errs...)
}

// Conditions says what the disks are now.
func (h history) Conditions() (now []checkpoint.DiskCondition, err error) {
	for i, k := range h.keepers {
		r, err := k.Record()
		if err != nil {
			return nil, fmt.Errorf("disk %d: %w", i, err)
		}
		c := checkpoint.DiskCondition{ID: epoch.DiskID(i), Name: k.path, Sectors: k.Sectors(), Stamp: r.Stamp.String()}
		for _, p := range r.Pins {
			if p.Broken == "" {
				c.Pins = append(c.Pins, p.ID.String())
			}
		}
		now = append(now, c)
	}
	for _, b := range h.boot() {
		if b.Problem == "" {
			now = append(now, checkpoint.DiskCondition{ID: b.Disk, Name: b.Path, Sectors: b.Sectors, Stamp: b.Sum.String(), Boot: true})
		}
	}
	return now, nil
}

// Whole says which disk must not be used, since its rollback has not ended.
func (h history) Whole() error {
	for i, k := range h.keepers {
		r, err := k.Record()
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("disk %d: %w", i, err)
		}
		for _, p := range r.Pins {
			if p.ID == r.Rolling {
				return fmt.Errorf("disk %d (%s): %w: the one of pin %s", i, k.path, store.ErrTorn, p.Path)
			}
		}
	}
	return nil
}

// changed returns the pin of a disk that was written to since it was marked, and
// "" for one that was not, or has none any more.
func (k keeper) changed(d checkpoint.Disk) (pin store.PinRecord, since bool, err error) {
	r, err := k.Record()
	if err != nil || r.Stamp.String() == d.Stamp {
		return pin, false, err
	}
	for _, p := range r.Pins {
		if p.ID.String() == d.Pin {
			pin = p
		}
	}
	return pin, true, nil
}

// Blocks reads through the pins, or what the disks have now where there is none.
// release ends that.
func (h history) Blocks(marked []checkpoint.Disk) (_ checkpoint.Blocks, release func(), err error) {
	b := blocks{sources: make([]store.Source, len(h.keepers)), boot: h.Set}
	var views []*view
	for i, k := range h.keepers {
		b.sources[i] = k.File
		at := slices.IndexFunc(marked, func(d checkpoint.Disk) bool { return int(d.ID) == i })
		if at < 0 {
			continue
		}
		r, _, err := k.changed(marked[at])
		if err != nil {
			return nil, nil, fmt.Errorf("disk %d: %w", i, err)
		}
		if r.Path != "" && r.Broken == "" {
			v := &view{keeper: k, pin: r}
			views, b.sources[i] = append(views, v), v
		}
	}
	return b, func() {
		for _, v := range views {
			v.close()
		}
	}, nil
}

// view is a disk as it was when it was pinned. Who keeps the pin may change while
// it is read: this host as the disk's writer, or nobody, who has it in a file.
type view struct {
	keeper
	pin store.PinRecord

	mu     sync.Mutex
	live   *store.Pin // armed here when at was made; nil: opened is used
	opened *store.Pin
	at     *store.PinView
}

// ReadAt reads whole sectors.
func (v *view) ReadAt(p []byte, sector uint64) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.look(); err != nil {
		return err
	}
	err := v.at.ReadAt(p, sector)
	if !errors.Is(err, os.ErrClosed) {
		return err
	}
	if err := v.look(); err != nil { // it was let go in between
		return err
	}
	return v.at.ReadAt(p, sector)
}

// look makes the view anew if somebody else keeps the pin now.
func (v *view) look() (err error) {
	armed := v.armed(v.pin.ID)
	if v.at != nil && armed == v.live {
		return nil
	}
	v.forget()
	from := armed
	if from == nil {
		if v.opened, err = store.OpenPin(v.pin.Path); err != nil {
			return err
		}
		from = v.opened
	}
	v.live = armed
	v.at, err = from.View(v.File)
	return err
}

func (v *view) forget() {
	if v.opened != nil {
		v.opened.Close()
	}
	v.live, v.opened, v.at = nil, nil, nil
}

func (v *view) close() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.forget()
}

func (k keeper) armed(id store.PinID) *store.Pin {
	for _, p := range k.Pins() {
		if p.ID == id {
			return p
		}
	}
	return nil
}

// blocks are disks by number.
type blocks struct {
	sources []store.Source
	boot    *disk.Set // has the rest
}

// ReadSectors reads whole sectors of one.
func (b blocks) ReadSectors(disk epoch.DiskID, sector uint64, dst []byte) error {
	if int(disk) >= len(b.sources) {
		return b.boot.ReadSectors(disk, sector, dst)
	}
	return b.sources[disk].ReadAt(dst, sector)
}

// lockTime bounds the wait for the lock of a disk that nobody should have.
const lockTime = 5 * time.Second

// asWriter has f work on a disk that is nobody's now.
func (k keeper) asWriter(ctx context.Context, g epoch.Generation, f func() error) (err error) {
	ctx, cancel := context.WithTimeout(ctx, lockTime)
	defer cancel()
	if err := k.AcquireTorn(ctx, g); err != nil {
		return err
	}
	if k.Shared() { // a copy of our own stays locked
		defer func() { err = errors.Join(err, k.Release()) }()
	}
	return f()
}

// Rollback makes the disks what they were when they were pinned.
func (h history) Rollback(ctx context.Context, g epoch.Generation, marked []checkpoint.Disk, still func(context.Context) error) error {
	for _, d := range marked {
		if d.Store == checkpoint.StoreBoot {
			continue // it is what it was, or CheckDisks has said so
		}
		if int(d.ID) >= len(h.keepers) {
			return fmt.Errorf("disk %d: the guest has %d", d.ID, len(h.keepers))
		}
		k := h.keepers[d.ID]
		r, since, err := k.changed(d)
		if err == nil && since {
			err = k.asWriter(ctx, g, func() error {
				pin := k.armed(r.ID)
				if pin == nil {
					return fmt.Errorf("its pin %s (%s) cannot be used: see the log", d.Pin, r.Path)
				}
				if err := still(ctx); err != nil {
					return err
				}
				return pin.Rollback(k.File)
			})
		}
		if err != nil {
			return fmt.Errorf("disk %d (%s): %w", d.ID, d.Name, err)
		}
	}
	return nil
}

// Unpin ends the pins that are kept beside a checkpoint file.
func (h history) Unpin(ctx context.Context, g epoch.Generation, pins string) error {
	var errs []error
	for i, k := range h.keepers {
		r, err := k.Record()
		if err != nil {
			errs = append(errs, fmt.Errorf("disk %d: %w", i, err))
			continue
		}
		for _, p := range r.Pins {
			if p.Path != host.PinPath(pins, epoch.DiskID(i)) {
				continue
			}
			err := k.Unpin(p.ID)
			if errors.Is(err, store.ErrNotWriter) && g != 0 {
				err = k.asWriter(ctx, g, func() error { return k.Unpin(p.ID) })
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("disk %d: %w", i, err))
			}
		}
	}
	return errors.Join(errs...)
}
