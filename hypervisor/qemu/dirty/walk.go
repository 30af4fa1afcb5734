package dirty

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"understudy/epoch"
)

// How the kernel walks decides what a scan costs. Measured per GiB:
//
//	page tables never made (memory never touched)         almost nothing
//	page tables there, asking "written and present"       0.85 ms
//	page tables there, asking "written" and nothing else  0.27 ms
//
// The last is a path of its own in the kernel, with one catch: it takes an
// entry that was never filled for written. So memory is divided into the
// granules that one page table covers. A granule where pages turn up is
// touched; then its unfilled entries are marked once as not written, which
// makes it settled, and from there on the short question gives the exact
// answer. Whether a granule is settled only decides what the scan costs:
// either question finds every written page.

// granuleSize is what one page table covers on x86-64, in bytes.
const granuleSize = 2 << 20

// settleLimit bounds how many granules one Collect settles, 1 to 3 µs each,
// because it is called while the guest stands still. The others wait.
const settleLimit = 32

// tracked is a region with what is known of its page tables.
type tracked struct {
	Region
	base    uint64 // where granule 0 begins, at or below Addr
	touched []bool // by granule: has a page table
	settled []bool // by granule: no unfilled entry counts as written
	waiting int    // granules touched and not settled
}

func newTracked(r Region) tracked {
	base := r.Addr / granuleSize * granuleSize
	n := (r.end() - base + granuleSize - 1) / granuleSize
	return tracked{Region: r, base: base, touched: make([]bool, n), settled: make([]bool, n)}
}

// granules returns the part of the region in granules [i, j).
func (r *tracked) granules(i, j int) (from, end uint64) {
	return max(r.Addr, r.base+uint64(i)*granuleSize), min(r.end(), r.base+uint64(j)*granuleSize)
}

// touch notes that pages [from, end) have a page table.
func (r *tracked) touch(from, end uint64) {
	for i := (from - r.base) / granuleSize; i <= (end-1-r.base)/granuleSize; i++ {
		if !r.touched[i] {
			r.touched[i] = true
			r.waiting++
		}
	}
}

// question is what a walk asks of each page, in the terms of PAGEMAP_SCAN,
// and what becomes of the answer.
type question struct {
	flags, inverted, all, anyOf, answer uint64

	report bool // the pages found go into the set
	touch  bool // and show that there is a page table
}

var (
	// present changes nothing.
	present = question{flags: pmScanCheckWPAsync,
		anyOf: pageIsPresent | pageIsSwapped, answer: pageIsPresent, touch: true}
	// writtenAndPresent and written protect what they find, in the same step.
	writtenAndPresent = question{flags: pmScanWPMatching | pmScanCheckWPAsync,
		all: pageIsWritten, anyOf: pageIsPresent | pageIsSwapped, answer: pageIsWritten, report: true, touch: true}
	written = question{flags: pmScanWPMatching | pmScanCheckWPAsync,
		all: pageIsWritten, answer: pageIsWritten, report: true}
	// unfilled protects entries that hold no page, and no others.
	unfilled = question{flags: pmScanWPMatching | pmScanCheckWPAsync,
		all: pageIsPresent | pageIsSwapped, inverted: pageIsPresent | pageIsSwapped, answer: pageIsPresent}
)

// collect adds the pages of a region written since the last time to set.
func (t *Tracker) collect(r *tracked, set *epoch.PageSet) error {
	for i := 0; i < len(r.settled); {
		j := i + 1
		for j < len(r.settled) && r.settled[j] == r.settled[i] {
			j++
		}
		q := &writtenAndPresent
		if r.settled[i] {
			q = &written
		}
		from, end := r.granules(i, j)
		if err := t.walk(r, from, end, q, set); err != nil {
			return err
		}
		i = j
	}
	return nil
}

// settle settles up to limit touched granules and returns how many it did.
func (t *Tracker) settle(r *tracked, limit int) (int, error) {
	done := 0
	for i := 0; i < len(r.touched) && r.waiting > 0 && done < limit; {
		j := i
		for j < len(r.touched) && r.touched[j] && !r.settled[j] && done < limit {
			j++
			done++
		}
		if i == j {
			i++
			continue
		}
		from, end := r.granules(i, j)
		if err := t.walk(r, from, end, &unfilled, nil); err != nil {
			return done, err
		}
		for ; i < j; i++ {
			r.settled[i] = true
			r.waiting--
		}
	}
	return done, nil
}

// walk asks one question of the pages [from, end) of a region.
func (t *Tracker) walk(r *tracked, from, end uint64, q *question, set *epoch.PageSet) error {
	t.arg = pmScanArg{
		size:              uint64(unsafe.Sizeof(t.arg)),
		flags:             q.flags,
		end:               end,
		vec:               uint64(uintptr(unsafe.Pointer(unsafe.SliceData(t.vector)))),
		vecLen:            uint64(len(t.vector)),
		categoryInverted:  q.inverted,
		categoryMask:      q.all,
		categoryAnyofMask: q.anyOf,
		returnMask:        q.answer,
	}
	for at := from; at < end; {
		t.arg.start = at
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, t.pagemap.Fd(), ioctlPagemapScan, uintptr(unsafe.Pointer(&t.arg)))
		switch errno {
		case 0:
		case unix.EPERM:
			return fmt.Errorf("%v: %w", r.Region, ErrTrackingLost)
		case unix.ESRCH:
			return ErrTargetGone
		default:
			return fmt.Errorf("scan %v from %#x: %w", r.Region, at, errno)
		}
		for _, run := range t.vector[:n] {
			if run.start < at || run.end > end || run.end <= run.start {
				return fmt.Errorf("scan %v from %#x: the kernel answered %#x-%#x", r.Region, at, run.start, run.end)
			}
			if q.report {
				set.AddRange(r.FirstPage+epoch.GFN((run.start-r.Addr)/epoch.PageSize), (run.end-run.start)/epoch.PageSize)
			}
			if q.touch {
				r.touch(run.start, run.end)
			}
		}
		if t.arg.walkEnd <= at {
			return fmt.Errorf("scan %v from %#x: the kernel did not advance", r.Region, at)
		}
		at = t.arg.walkEnd
	}
	return nil
}

// alive tells a quiet process from one that has ended: newer kernels refuse to
// scan the address space of a dead process (ESRCH), older ones find no page in
// it dirty. Reading a page's entry returns nothing once the address space is
// gone, everywhere. It must come after the scan.
func (t *Tracker) alive() error {
	n, err := unix.Pread(int(t.pagemap.Fd()), t.entry[:], int64(t.regions[0].Addr/epoch.PageSize*8))
	if err != nil {
		return fmt.Errorf("read page table: %w", err)
	}
	if n != len(t.entry) {
		return ErrTargetGone
	}
	return nil
}
