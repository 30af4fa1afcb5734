package bubble

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"understudy/epoch"
)

// This file is the fork of an image as of one commit.
//
//	backup's loop, between two commits: Begin (who reads, what is missing, disks)
//	backup's loop, each later commit:   Before (pages about to be overwritten)
//	engine:                             Copy  (all others, behind it)
//
// A page is copied once, by whoever is first; one lock says who. The copier takes
// it for a few pages at a time, so that a commit never waits for more than those.
// A page that the image lacks (it was left out for a block of a disk, package
// rebuild) is not in the image: whoever reads or fills it there may do so, its
// content as of the fork is on the disks as of the fork.

// Reader reads an image.
type Reader interface {
	ReadPages(first epoch.GFN, dst []byte) error
}

// Image is where the copy goes.
type Image interface {
	Reader
	Pages() uint64
	WritePages(first epoch.GFN, data []byte) error
}

// Disks are the guest's disks as of the fork, until Close.
type Disks interface {
	// ReadSectors reads what a disk held then.
	ReadSectors(disk epoch.DiskID, sector uint64, dst []byte) error
	// Before keeps what sectors held then: they are about to be overwritten. If
	// that is not possible ReadSectors fails from now on.
	Before(disk epoch.DiskID, sector uint64, sectors uint32)
	// Shared reports whether another host writes to one of the disks itself:
	// then Before has to be called for each of its writes before the epoch that
	// has it is acknowledged. Otherwise the disks see to that themselves.
	Shared() bool
	// Err is why reads fail from now on; nil: they do not.
	Err() error
	// SetAside is what Before has kept, in bytes.
	SetAside() uint64
	Close()
}

// Commit is what a fork is of.
type Commit struct {
	At epoch.Position
	// Age is how old the commit was as the fork was made.
	Age time.Duration
	// State is the device state.
	State []byte
	// Missing are the pages that the image lacked, by where they are. Key is that
	// of the fingerprints.
	Missing []epoch.Reference
	Key     epoch.PrintKey
}

// Fork is an image as of one commit, on its way into another one.
type Fork struct {
	Commit
	Disks Disks // nil: the guest has none
	into  Image
	pages uint64
	begun time.Time
	took  time.Duration // of the fork itself

	ctx  context.Context
	end  context.CancelCauseFunc
	over atomic.Bool
	// behind is how many pages are still to be copied: no lock is needed to see
	// that there are none.
	behind atomic.Int64
	urgent atomic.Int32 // a commit waits for the lock

	mu      sync.Mutex
	from    Reader // nil: not begun, or over
	left    *epoch.PageSet
	next    epoch.GFN // where the copier goes on
	buffer  []byte
	ahead   uint64
	commits uint64
	heldUp  time.Duration
	most    time.Duration
	moved   chan struct{} // closed by the next commit
}

const (
	// atOnce is how many pages are copied without letting go of the lock: some
	// 100 µs.
	atOnce = 64
	// busyFor is how long the copier works before it rests for restFor: it takes a
	// quarter of a processor at most from those who protect guests. A lower priority
	// instead would not do: commits wait for the lock that it holds meanwhile.
	busyFor = time.Millisecond
	restFor = 3 * time.Millisecond
)

// NewFork returns a fork that goes into an image, which is empty. It ends with
// ctx, by End, or when something goes wrong with it: Context says why.
func NewFork(ctx context.Context, into Image) *Fork {
	f := &Fork{into: into, pages: into.Pages(), left: epoch.NewPageSet(into.Pages()), buffer: make([]byte, atOnce*epoch.PageSize), moved: make(chan struct{})}
	f.ctx, f.end = context.WithCancelCause(ctx)
	return f
}

// Context ends with the fork.
func (f *Fork) Context() context.Context { return f.ctx }

// Pages is the size of the image it goes into.
func (f *Fork) Pages() uint64 { return f.pages }

// Begin begins the fork, between two commits: from now on Before is called for
// each page before it is overwritten. Disks belong to the fork. began is when the
// backup began to see to it.
func (f *Fork) Begin(c Commit, from Reader, disks Disks, began time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over.Load() { // given up meanwhile
		if disks != nil {
			disks.Close()
		}
		return
	}
	f.Commit, f.Disks, f.begun = c, disks, time.Now()
	f.left.Fill()
	for _, r := range c.Missing {
		f.left.RemoveRange(r.Page, 1)
	}
	f.behind.Store(int64(f.left.Count()))
	f.from = from
	f.took = f.begun.Sub(began)
}

// Over reports whether the fork has ended, and nothing need be kept for it.
func (f *Fork) Over() bool { return f.over.Load() }

// End ends the fork: the image that it is of is not read any more once End has
// returned. It waits for the few pages that are being copied.
func (f *Fork) End(why error) {
	f.over.Store(true)
	f.end(why)
	f.urgent.Add(1)
	f.mu.Lock()
	f.from = nil
	disks := f.Disks
	f.mu.Unlock()
	f.urgent.Add(-1)
	if disks != nil {
		disks.Close()
	}
}

// Before copies those of count pages from first on that are not copied yet: they
// are about to be overwritten. A failure ends the fork, and nothing else.
func (f *Fork) Before(first epoch.GFN, count uint64) {
	if f.behind.Load() == 0 || f.over.Load() || uint64(first) >= f.pages {
		return
	}
	f.urgent.Add(1)
	f.mu.Lock()
	f.urgent.Add(-1)
	defer f.mu.Unlock()
	end := first + epoch.GFN(min(count, f.pages-uint64(first)))
	for first < end && f.from != nil {
		n, wanted := f.run(first, uint64(end-first))
		if wanted {
			if err := f.copy(first, n); err != nil {
				f.fail(err)
				return
			}
			f.ahead += n
		}
		first += epoch.GFN(n)
	}
}

// run returns how many of count pages from first on are equally to be copied or
// not, at most atOnce, and which of the two.
func (f *Fork) run(first epoch.GFN, count uint64) (n uint64, wanted bool) {
	wanted = f.left.Contains(first)
	for n = 1; n < min(count, atOnce) && f.left.Contains(first+epoch.GFN(n)) == wanted; {
		n++
	}
	return n, wanted
}

// copy copies a run of pages. The lock is held.
func (f *Fork) copy(first epoch.GFN, n uint64) error {
	b := f.buffer[:n*epoch.PageSize]
	if err := f.from.ReadPages(first, b); err != nil {
		return fmt.Errorf("read pages %d+%d of the backup's image: %w", first, n, err)
	}
	if err := f.into.WritePages(first, b); err != nil {
		return fmt.Errorf("copy pages %d+%d into the bubble: %w", first, n, err)
	}
	f.left.RemoveRange(first, n)
	f.behind.Add(-int64(n))
	return nil
}

// fail ends the fork by itself. The lock is held; Close of the disks is End's,
// which the engine calls.
func (f *Fork) fail(err error) {
	f.over.Store(true)
	f.from = nil
	f.end(err)
}

// Copy copies what is left, but for missing pages, and rests most of the time.
// It ends with the fork.
func (f *Fork) Copy(progress func(done, total uint64)) error {
	rest := time.NewTimer(0)
	defer rest.Stop()
	for {
		began := time.Now()
		for time.Since(began) < busyFor && f.urgent.Load() == 0 {
			done, err := f.Step()
			if done || err != nil {
				f.tell(progress)
				return err
			}
		}
		f.tell(progress)
		rest.Reset(restFor)
		select {
		case <-rest.C:
		case <-f.ctx.Done():
			return context.Cause(f.ctx)
		}
	}
}

func (f *Fork) tell(progress func(done, total uint64)) {
	if progress != nil {
		progress(f.pages-uint64(max(0, f.behind.Load())), f.pages)
	}
}

// Step copies at most a few pages that are left, and reports whether there were none.
func (f *Fork) Step() (done bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.from == nil {
		return false, f.whyOver()
	}
	for uint64(f.next) < f.pages {
		n, wanted := f.run(f.next, f.pages-uint64(f.next))
		first := f.next
		f.next += epoch.GFN(n)
		if !wanted {
			continue
		}
		if err := f.copy(first, n); err != nil {
			f.fail(err)
			return false, err
		}
		return false, nil
	}
	return true, nil
}

func (f *Fork) whyOver() error {
	if err := context.Cause(f.ctx); err != nil {
		return err
	}
	return errors.New("the fork has not begun")
}

// Committed notes that the backup has committed one more epoch, and for how long
// the fork has kept it from that.
func (f *Fork) Committed(heldUp time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.commits++
	f.heldUp += heldUp
	f.most = max(f.most, heldUp)
	close(f.moved)
	f.moved = make(chan struct{})
}

// AwaitCommit returns when an epoch that begins after the call has been committed
// on top of the fork's in one session: until then the primary was protected, and
// wrote nothing to a disk that the backup had not heard of before.
func (f *Fork) AwaitCommit(ctx context.Context) error {
	// The first may be one that was on its way already.
	for range 2 {
		f.mu.Lock()
		moved := f.moved
		f.mu.Unlock()
		select {
		case <-moved:
		case <-f.ctx.Done():
			return context.Cause(f.ctx)
		case <-ctx.Done():
			return fmt.Errorf("wait for one more commit: %w", ctx.Err())
		}
	}
	return nil
}

// account fills in what the fork knows of itself.
func (f *Fork) account(r *Result) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r.Epoch, r.Image, r.CommitAge = f.At.Number, f.At.Image.String(), f.Age
	r.Pages, r.Ahead, r.Filled = f.pages, f.ahead, uint64(len(f.Missing))
	r.Commits, r.HeldUp, r.HeldUpMost = f.commits, f.heldUp, f.most
	if f.Disks != nil {
		r.SetAside = f.Disks.SetAside()
	}
}
