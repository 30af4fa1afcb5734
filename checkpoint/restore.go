package checkpoint

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"understudy/epoch"
	"understudy/hypervisor"
)

// A restore makes a standby and fills it, at once or as the guest goes:
//
//	the machine is being made, and the kernel reads the file ahead; meanwhile:
//	eager: walk → WritePages … → Load
//	lazy:  walk, but for references → WritePages … → Load(Pending) →
//	       the machine touches pages → Pending
//
// A lazy restore leaves for later what has to be gathered from all over a disk,
// unless it is little.
// The pages in the file are mostly those that the guest needs first, and come
// quicker all at once than one by one; only of a file with many of them, they
// are left for later, too: it then reads the index alone before Load.

// RestoreOptions says how.
type RestoreOptions struct {
	// Lazy restores pages when the guest touches them, and behind it.
	Lazy bool
	// Progress is told of an eager restore's pages; may be nil.
	Progress Progress

	leaveFew bool // for later, too: a test's image has no more
}

// Restore makes a standby of the driver what the file says, ready to Run. The
// caller has asked CheckDisks; blocks reads the disks as they were at the
// checkpoint, and may be nil if there are none. With Lazy the caller keeps file
// and blocks open until the Pending is done, and tells it of writes to the disks
// before they happen; without, Pending is nil. After an error there is no
// standby.
func Restore(ctx context.Context, file *File, driver hypervisor.Driver, blocks Blocks, opts RestoreOptions) (hypervisor.Standby, *Pending, error) {
	standby, pending, err := restore(ctx, file, driver, blocks, opts)
	if err != nil {
		return nil, nil, fmt.Errorf("restore from checkpoint file %s: %w", file.path, err)
	}
	return standby, pending, nil
}

func restore(ctx context.Context, file *File, driver hypervisor.Driver, blocks Blocks, opts RestoreOptions) (_ hypervisor.Standby, _ *Pending, err error) {
	spec, err := file.Spec()
	if err != nil {
		return nil, nil, err
	}
	device, err := file.DeviceState()
	if err != nil {
		return nil, nil, err
	}
	if blocks == nil {
		blocks = noBlocks{}
	}
	atOnce := !opts.Lazy || file.stored() <= maxAtOnce
	if atOnce {
		file.fetch()
	}
	standby, made, err := begin(ctx, driver, spec)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, standby.Destroy())
		}
	}()
	if got := standby.Pages(); got != file.head.Pages {
		return nil, nil, fmt.Errorf("the machine has an image of %d pages, the file of %d", got, file.head.Pages)
	}
	w := &walk{
		file: file, blocks: blocks, visit: standby.WritePages, progress: opts.Progress,
		fault: func(d Damage) error { return d.Err },
	}
	if opts.Lazy {
		w.few = fewReferences
	}
	if opts.Lazy && opts.leaveFew {
		w.few = 1
	}
	var pending *Pending
	err = beside(ctx, made, func(ctx context.Context) error {
		var walked *walk
		if atOnce {
			if err := w.run(ctx); err != nil {
				return err
			}
			walked = w
		}
		if !opts.Lazy {
			return nil
		}
		var err error
		pending, err = newPending(file, blocks, walked)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	if pending == nil {
		return standby, nil, standby.Load(ctx, device, nil)
	}
	return standby, pending, standby.Load(ctx, device, pending)
}

// begin makes a standby whose image can be written; made returns when its
// machine is there, too.
func begin(ctx context.Context, driver hypervisor.Driver, spec hypervisor.Spec) (_ hypervisor.Standby, made func() error, err error) {
	if d, ok := driver.(hypervisor.Beginner); ok {
		return d.BeginStandby(ctx, spec)
	}
	standby, err := driver.Standby(ctx, spec)
	return standby, func() error { return nil }, err
}

// beside fills an image while its machine is made. Without a machine there is
// no more to fill.
func beside(ctx context.Context, made func() error, fill func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	machine := make(chan error, 1)
	go func() { // ends with made, for which it is waited
		err := made()
		if err != nil {
			cancel(err)
		}
		machine <- err
	}()
	filled := fill(ctx)
	if err := <-machine; err != nil {
		return err
	}
	return filled
}

// maxAtOnce is how many bytes of records a lazy restore reads before the guest
// runs: some 0.2 s.
const maxAtOnce = 128 << 20

// fewReferences is how many references a lazy restore reads at once: 8 MiB, some
// 20 ms. A machine that waits for nothing touches its free memory more quickly.
const fewReferences = 2048

// stored is the size of the records of the file and of all it builds on.
func (f *File) stored() (bytes uint64) {
	for ; f != nil; f = f.parent {
		bytes += f.table.of(sectionRecords).stored
	}
	return bytes
}

// fetch has the kernel read the records of the file, and of all it builds on, while
// the machine is made. It is advice: whether it is heeded shows in the time alone.
func (f *File) fetch() {
	for ; f != nil; f = f.parent {
		records := f.table.of(sectionRecords)
		if raw, err := f.f.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) {
				_ = unix.Fadvise(int(fd), int64(records.offset), int64(records.size), unix.FADV_WILLNEED)
			})
		}
	}
}

// noBlocks are the disks of a guest that has none.
type noBlocks struct{}

func (noBlocks) ReadSectors(disk epoch.DiskID, _ uint64, _ []byte) error {
	return fmt.Errorf("disk %d is not there", disk)
}
