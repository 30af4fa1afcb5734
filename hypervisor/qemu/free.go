package qemu

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"understudy/epoch"
	"understudy/hypervisor/qemu/dirty"
)

// A guest that tells of free memory (Config.FreePageReporting) has QEMU punch
// holes into the memory file while it runs, and the scan of writes does not see
// it (RULES 21). What was a page and is a hole counts as written: its content is
// zeros now.
//
// Whether a page was emptied is seen in our own page tables (dirty.Emptied), so
// that there is one rule: a page that is known to be there is one that we have
// mapped, and nobody maps it again before it was seen that it had gone.
//
//	Pause → collectFreed: what is there and not mapped was freed → settled:
//	until unsettle (Resume) pages are read through the mapping, as ever
//
// While the guest runs pages that are there are read with pread, which maps
// nothing; one that is not known to be there is mapped before its content is
// read, under the lock, so that no content is given out of a page whose end
// would not be seen.

// freeing is the part of a ramFile that knows of this.
type freeing struct {
	emptied *dirty.Emptied // nil: nobody else makes holes
	freed   atomic.Uint64  // pages that collectFreed has found
	freely  atomic.Bool    // emptied is not nil

	lock    sync.RWMutex // over what follows, and over what is mapped while it is not settled
	settled bool         // no page can go, and none has gone unseen
}

// freePiece is how much is read under the lock, in bytes.
const freePiece = 1 << 20

// frees reports whether the guest gives memory back.
func (r *ramFile) frees() bool { return r.freely.Load() }

// watch begins to look for pages that leave, or begins anew: nothing is known
// to be there until it was read again. Every page has to be reported as written
// after it.
func (r *ramFile) watch() error {
	r.lock.Lock()
	defer r.lock.Unlock()
	if r.emptied == nil {
		e, err := dirty.NewEmptied(r.file, r.mem)
		if err != nil {
			return err
		}
		r.emptied = e
	}
	r.settled = false
	r.freely.Store(true)
	for i := range r.there {
		r.there[i].Store(0)
	}
	return nil
}

func (r *ramFile) unwatch() error {
	if r.emptied == nil {
		return nil
	}
	return r.emptied.Close()
}

// unsettle is called before the guest goes on.
func (r *ramFile) unsettle() {
	if !r.frees() {
		return
	}
	r.lock.Lock()
	defer r.lock.Unlock()
	r.settled = false
}

// collectFreed adds the pages that have gone since the last call. paused says
// whether the guest stands still, and cannot become false while unsettle waits.
// After an error nothing is known: watch anew.
func (r *ramFile) collectFreed(set *epoch.PageSet, paused *atomic.Bool) error {
	if !r.frees() {
		return nil
	}
	r.lock.Lock()
	defer r.lock.Unlock()
	still := paused.Load()
	changed, err := r.emptied.Changed()
	if err != nil {
		return err
	}
	if changed {
		if err := r.emptied.Unmapped(func(first, count uint64) { r.gone(first, count, set) }); err != nil {
			return err
		}
	}
	r.settled = still
	return nil
}

// gone notes pages that we have not mapped. Those that are said to be there have
// left since.
func (r *ramFile) gone(first, count uint64, set *epoch.PageSet) {
	for page, end := first, first+count; page < end; {
		word := r.there[page/64].Load()
		if word == 0 {
			page = (page/64 + 1) * 64
			continue
		}
		if bit := uint64(1) << (page % 64); word&bit != 0 {
			r.there[page/64].And(^bit)
			set.Add(epoch.GFN(page))
			r.freed.Add(1)
		}
		page++
	}
}

// readFreeing reads pages of a guest that gives memory back.
func (r *ramFile) readFreeing(first uint64, dst []byte) error {
	if done, err := r.readSettled(first, dst); done {
		return err
	}
	if _, err := r.file.ReadAt(dst, int64(first*epoch.PageSize)); err != nil {
		return fmt.Errorf("read guest memory: %w", err)
	}
	// Runs of pages that hold something and are not known to be there.
	unknown := func(i int) bool {
		return !r.isThere(first+uint64(i)) && !isZero(dst[i*epoch.PageSize:][:epoch.PageSize])
	}
	for i, n := 0, len(dst)/epoch.PageSize; i < n; i++ {
		from := i
		for i < n && unknown(i) {
			i++
		}
		if i > from {
			if err := r.learn(first+uint64(from), dst[from*epoch.PageSize:i*epoch.PageSize]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *ramFile) readSettled(first uint64, dst []byte) (done bool, err error) {
	r.lock.RLock()
	defer r.lock.RUnlock()
	if !r.settled {
		return false, nil
	}
	return true, r.readSteady(first, dst)
}

// learn maps adjacent pages that were just seen to hold something, and reads them
// again: what was in them before they were mapped could have gone without a trace.
func (r *ramFile) learn(first uint64, dst []byte) error {
	r.lock.Lock()
	defer r.lock.Unlock()
	for len(dst) > 0 {
		n, there := r.run(first, uint64(len(dst))/epoch.PageSize)
		part := dst[:n*epoch.PageSize]
		if !there { // else another reader has; to map it now could hide that it went
			if err := r.learnRun(first, part); err != nil {
				return err
			}
		}
		first, dst = first+n, dst[len(part):]
	}
	return nil
}

func (r *ramFile) learnRun(first uint64, dst []byte) error {
	at := r.mem[first*epoch.PageSize:][:len(dst)]
	// To map for writing maps these pages and none around them. Should one have
	// gone meanwhile, this gives it a page of zeros: rare, and harmless. Not done by
	// touching them, for on a full tmpfs that would be our end.
	err := unix.Madvise(at, unix.MADV_POPULATE_WRITE)
	if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
		err = unix.Madvise(at, unix.MADV_POPULATE_WRITE)
	}
	pages := uint64(len(dst)) / epoch.PageSize
	if err != nil {
		return fmt.Errorf("map pages %d+%d of guest memory: %w", first, pages, err)
	}
	copy(dst, at)
	for i := range pages {
		r.setThere(first + i)
	}
	return nil
}
