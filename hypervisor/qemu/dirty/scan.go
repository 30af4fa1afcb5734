// Package dirty finds out, from outside a process, which pages of its memory
// were written: by its own threads, by system calls it makes, by KVM.
//
// Data flows like this: FileRegions (maps.go) and the caller say where the
// memory lies in the process; Attach has one userfaultfd made inside it
// (inject.go, ptrace_amd64.go) or finds the one a former Tracker left there,
// copies it, and registers the regions for asynchronous write protection
// (uffd.go); each Collect then asks the kernel with PAGEMAP_SCAN for the pages
// written since the last one, which protects them anew in the same walk
// (walk.go).
//
// What the scan cannot see: writes through other mappings of the same file
// (our own disk back end reports those itself), and pages that were emptied
// (see Emptied, and do not let the target drop private memory).
package dirty

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"

	"golang.org/x/sys/unix"

	"understudy/epoch"
)

// ErrTrackingLost says that the kernel has not tracked writes all the time:
// every page must count as dirty. Attach anew.
var ErrTrackingLost = errors.New("write tracking lost, every page counts as dirty")

// ErrTargetGone says that the process has ended or runs another program.
var ErrTargetGone = errors.New("target process is gone")

// Region is a piece of the target's memory that holds guest pages.
type Region struct {
	Addr      uint64    // where it begins in the target's address space, in bytes
	Length    uint64    // in bytes, whole pages
	FirstPage epoch.GFN // guest frame of its first page
}

func (r Region) end() uint64   { return r.Addr + r.Length }
func (r Region) pages() uint64 { return r.Length / epoch.PageSize }

// joins reports whether next goes on where r ends, in memory and in frames.
func (r Region) joins(next Region) bool {
	return r.end() == next.Addr && r.FirstPage+epoch.GFN(r.pages()) == next.FirstPage
}

func (r Region) String() string { return fmt.Sprintf("memory %#x-%#x", r.Addr, r.end()) }

// Config says what to track.
type Config struct {
	// PID is the target process. The caller vouches that it is the one meant.
	PID int
	// Helper is the command line, program first, of a process that will call
	// HelperMain with the arguments that Attach appends.
	Helper []string
	// Regions must not overlap in the target's address space. They may be
	// shared file memory or private anonymous memory.
	Regions []Region
	// Resume asks to go on where a former Tracker left off: if tracking never
	// stopped, the first Collect reports what was written since that one's
	// last Collect. Otherwise the first Collect reports every page.
	Resume bool
}

// vectorLength is how many runs of pages one scan may return, 24 bytes each.
// A fuller result costs one more system call.
const vectorLength = 8192

// Tracker tracks writes to a process. It is not safe for concurrent use.
type Tracker struct {
	pid        int
	regions    []tracked
	image      uint64   // frames that a set must have room for
	uffd       int      // our copy; the target's is the anchor
	pagemap    *os.File // of the target's address space as of Attach
	everything bool     // the next Collect reports every page
	settled    bool     // the first Collect is over
	resumed    bool
	whole      bool // the descriptor was made by us, and not for user code only
	arg        pmScanArg
	vector     []pageRegion
	entry      [8]byte // scratch for alive
}

// Attach begins to track. The target stands still for less than a millisecond
// if it must be injected, and not at all otherwise. ctx is checked before the
// injection, which is never cut short. It needs CAP_SYS_PTRACE and Linux 6.7.
func Attach(ctx context.Context, cfg Config) (_ *Tracker, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("track writes of process %d: %w", cfg.PID, err)
		}
	}()
	t := &Tracker{pid: cfg.PID, uffd: -1, everything: true, vector: make([]pageRegion, vectorLength)}
	if err := t.setRegions(cfg.Regions); err != nil {
		return nil, err
	}
	pidfd, err := unix.PidfdOpen(cfg.PID, 0)
	if err != nil {
		return nil, fmt.Errorf("open process: %w", err)
	}
	defer func() { _ = unix.Close(pidfd) }()
	defer func() {
		if err != nil {
			_ = t.Close()
		}
	}()
	if t.pagemap, err = os.Open(fmt.Sprintf("/proc/%d/pagemap", cfg.PID)); err != nil {
		return nil, err
	}
	maps, err := ReadMaps(cfg.PID)
	if err != nil {
		return nil, err
	}
	for _, r := range t.regions {
		if err := covered(maps, r.Region); err != nil {
			return nil, err
		}
	}
	if err := t.adopt(cfg, pidfd); err != nil {
		return nil, err
	}
	if t.uffd < 0 {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		made, err := inject(cfg.PID, cfg.Helper)
		if err != nil {
			return nil, fmt.Errorf("make a userfaultfd inside it: %w", err)
		}
		t.whole = !made.userOnly
		if err := t.take(pidfd, anchor{fd: made.fd}); err != nil {
			return nil, err
		}
	}
	// A descriptor can belong to another process's memory (inherited over a
	// fork), and a mapping can have been replaced meanwhile. The kernel knows.
	if err := t.check(); err != nil {
		return nil, err
	}
	return t, nil
}

// setRegions checks and keeps the regions.
func (t *Tracker) setRegions(regions []Region) error {
	if len(regions) == 0 {
		return errors.New("no regions to track")
	}
	for i, r := range regions {
		if r.Length == 0 || (r.Addr|r.Length)%epoch.PageSize != 0 || r.end() < r.Addr || uint64(r.FirstPage) > 1<<52 || r.Length > 1<<47 {
			return fmt.Errorf("%v, frame %d: not a range of whole pages", r, r.FirstPage)
		}
		for _, other := range regions[:i] {
			if r.Addr < other.end() && other.Addr < r.end() {
				return fmt.Errorf("%v overlaps %v", r, other)
			}
		}
		t.image = max(t.image, uint64(r.FirstPage)+r.pages())
		t.regions = append(t.regions, newTracked(r))
	}
	return nil
}

// adopt looks for an anchor that a former Tracker left and takes the first
// that accepts the regions. Finding none is no error.
func (t *Tracker) adopt(cfg Config, pidfd int) error {
	anchors, err := findAnchors(cfg.PID)
	if err != nil {
		return err
	}
	if len(anchors) > 0 && cfg.Resume && t.check() == nil {
		t.resumed, t.everything = true, false
	}
	for _, a := range anchors {
		if a.ours() && t.take(pidfd, a) == nil {
			return nil
		}
		// It belongs to other memory: try the next, and a new one after the
		// last. Should the memory be another's, that one will say so.
	}
	return nil
}

// take copies a descriptor of the target and registers the regions with it.
func (t *Tracker) take(pidfd int, a anchor) error {
	fd, err := takeDescriptor(pidfd, a.fd)
	if err != nil {
		return err
	}
	if a.features == 0 {
		err = uffdEnable(fd)
	}
	for _, r := range t.regions {
		if err != nil {
			break
		}
		err = uffdRegister(fd, r.Region, uffdRegisterModeWP)
	}
	if err != nil {
		_ = unix.Close(fd)
		return err
	}
	t.uffd = fd
	return nil
}

// Resumed reports whether tracking went on without a break since a former
// Tracker's last Collect, as Config.Resume asked. What that Tracker had
// collected is not in here: its process must have kept that elsewhere.
func (t *Tracker) Resumed() bool { return t.resumed }

// CanPage reports whether a Pager on this target can supply pages that the
// kernel touches for it, in system calls and for KVM. Only the Tracker that
// had the descriptor made knows it; a later one reports false.
func (t *Tracker) CanPage() bool { return t.whole }

// Collect adds to set every page written since the last Collect and begins to
// watch those pages anew. The first one reports every page of every region,
// and so does the next after a failure: when Collect fails every page counts
// as dirty, for part of the answer may be lost. ErrTrackingLost and
// ErrTargetGone say that no later call will succeed either.
//
// The target may run meanwhile; a write during the call is reported by this
// call or the next. It allocates nothing.
func (t *Tracker) Collect(set *epoch.PageSet) error {
	if set.Pages() < t.image {
		return fmt.Errorf("collect dirty pages of process %d: the set has room for %d pages, the image has %d", t.pid, set.Pages(), t.image)
	}
	everything := t.everything
	t.everything = true // until this call has succeeded
	for i := range t.regions {
		if err := t.collect(&t.regions[i], set); err != nil {
			return fmt.Errorf("collect dirty pages of process %d: %w", t.pid, err)
		}
	}
	limit := settleLimit
	if !t.settled {
		limit = math.MaxInt // the first call is not one of a tight pause
	}
	for i := range t.regions {
		done, err := t.settle(&t.regions[i], limit)
		if err != nil {
			return fmt.Errorf("collect dirty pages of process %d: %w", t.pid, err)
		}
		limit -= done
	}
	t.settled = true
	if err := t.alive(); err != nil {
		return fmt.Errorf("collect dirty pages of process %d: %w", t.pid, err)
	}
	if everything {
		for _, r := range t.regions {
			set.AddRange(r.FirstPage, r.pages())
		}
	}
	t.everything = false
	return nil
}

// check asks whether every region is tracked, and which page tables there are.
// It changes nothing in the target.
func (t *Tracker) check() error {
	for i := range t.regions {
		r := &t.regions[i]
		if err := t.walk(r, r.Addr, r.end(), &present, nil); err != nil {
			return err
		}
	}
	return t.alive()
}

// Close lets go of the target. Tracking goes on in there, by the anchor, for
// a later Attach with Resume.
func (t *Tracker) Close() error {
	var errs []error
	if t.uffd >= 0 {
		errs = append(errs, os.NewSyscallError("close userfaultfd", unix.Close(t.uffd)))
		t.uffd = -1
	}
	if t.pagemap != nil {
		errs = append(errs, t.pagemap.Close())
		t.pagemap = nil
	}
	return errors.Join(errs...)
}
