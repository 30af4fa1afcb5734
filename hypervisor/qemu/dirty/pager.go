package dirty

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"understudy/epoch"
)

// A Pager supplies memory that a process finds missing. Data flows like this:
// Page registers the regions with the tracking descriptor for missing pages as
// well; a thread of the target that touches a page which its file has not
// stands still, and Faults tells which page; Copy puts the content there and
// lets it go on. Release ends it.
//
// A page that Copy brings counts as not written: a Tracker on the same regions
// goes on as if the page had always been there.

// Pager supplies missing pages. Faults is for one goroutine; the other methods
// may be called from several, Release and Close by one.
type Pager struct {
	pid     int
	uffd    int // our copy
	halt    int // eventfd: ends Faults
	regions []Region
	events  [64]faultEvent
}

// ErrPresent says that a page was there already, and was left as it was.
var ErrPresent = errors.New("the page is there already")

// Page begins to supply missing pages of the regions. They must be mappings of
// a file on tmpfs, and every page to be supplied a hole of it. From here on
// touching any hole of them waits for Copy. cfg.Resume does not matter.
func Page(ctx context.Context, cfg Config) (_ *Pager, err error) {
	t, err := Attach(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	p := &Pager{pid: cfg.PID, uffd: -1, regions: cfg.Regions}
	if p.halt, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	if p.uffd, err = unix.FcntlInt(uintptr(t.uffd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		_ = unix.Close(p.halt)
		return nil, os.NewSyscallError("duplicate userfaultfd", err)
	}
	for _, r := range p.regions {
		if err := uffdRegister(p.uffd, r, uffdRegisterModeMissing|uffdRegisterModeWP); err != nil {
			// What is registered by now must not wait for us.
			return nil, errors.Join(err, p.Release(), p.Close())
		}
	}
	return p, nil
}

// Faults waits until threads of the target have touched missing pages, and
// appends those pages to dst. It returns false after Halt. A page may be
// reported more than once, and after it was supplied.
func (p *Pager) Faults(dst []epoch.GFN) ([]epoch.GFN, bool, error) {
	fds := []unix.PollFd{{Fd: int32(p.uffd), Events: unix.POLLIN}, {Fd: int32(p.halt), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return dst, false, fmt.Errorf("wait for missing pages of process %d: %w", p.pid, err)
		}
		if fds[1].Revents != 0 {
			return dst, false, nil
		}
		buf := unsafe.Slice((*byte)(unsafe.Pointer(&p.events)), unsafe.Sizeof(p.events))
		n, err := unix.Read(p.uffd, buf)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return dst, false, fmt.Errorf("read missing pages of process %d: %w", p.pid, err)
		}
		for _, e := range p.events[:n/int(unsafe.Sizeof(faultEvent{}))] {
			if e.event != uffdEventPagefault {
				continue
			}
			for _, r := range p.regions {
				if e.address >= r.Addr && e.address < r.end() {
					dst = append(dst, r.FirstPage+epoch.GFN((e.address-r.Addr)/epoch.PageSize))
				}
			}
		}
		return dst, true, nil
	}
}

// Halt makes Faults return, now and in future.
func (p *Pager) Halt() {
	_, _ = unix.Write(p.halt, binary.NativeEndian.AppendUint64(nil, 1))
}

// Copy puts content, whole pages, where page is and lets the threads that wait
// for it go on. ErrPresent says that the first page of them was there.
func (p *Pager) Copy(page epoch.GFN, content []byte) error {
	for len(content) > 0 {
		at, err := p.address(page)
		if err != nil {
			return err
		}
		arg := uffdioCopy{
			dst: at, src: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(content)))), length: uint64(len(content)),
			mode: uffdCopyModeWP,
		}
		err = ioctl(p.uffd, ioctlUffdCopy, unsafe.Pointer(&arg))
		if arg.copied > 0 {
			page, content = page+epoch.GFN(arg.copied/epoch.PageSize), content[arg.copied:]
		}
		switch {
		case err == nil, errors.Is(err, unix.EAGAIN):
		case errors.Is(err, unix.EEXIST):
			// Who waits for it came too late to see it.
			wake := uffdioRange{at, epoch.PageSize}
			if err := ioctl(p.uffd, ioctlUffdWake, unsafe.Pointer(&wake)); err != nil {
				return fmt.Errorf("wake who waits for page %d of process %d: %w", page, p.pid, err)
			}
			return fmt.Errorf("supply page %d of process %d: %w", page, p.pid, ErrPresent)
		case errors.Is(err, unix.ESRCH):
			return ErrTargetGone
		default:
			return fmt.Errorf("supply page %d of process %d: %w", page, p.pid, err)
		}
	}
	return nil
}

func (p *Pager) address(page epoch.GFN) (uint64, error) {
	for _, r := range p.regions {
		if page >= r.FirstPage && uint64(page-r.FirstPage) < r.pages() {
			return r.Addr + uint64(page-r.FirstPage)*epoch.PageSize, nil
		}
	}
	return 0, fmt.Errorf("supply page %d of process %d: it is in none of its regions", page, p.pid)
}

// Release ends it: a hole reads as zeros from here on, and who waits goes on.
// It takes the write protection off too, so that everything counts as written
// to a Tracker on the regions: one that has collected already must use
// Tracker.Release in its place.
func (p *Pager) Release() error {
	for _, r := range p.regions {
		if err := uffdRenew(p.uffd, r); err != nil {
			return err
		}
	}
	return nil
}

// Close lets go of the target. Without Release before, its threads wait for
// missing pages until another Pager supplies them, or ReleaseTarget.
func (p *Pager) Close() error {
	return errors.Join(
		os.NewSyscallError("close userfaultfd", unix.Close(p.uffd)),
		os.NewSyscallError("close eventfd", unix.Close(p.halt)))
}

// Release ends a pager of some of the tracker's regions and collects. The
// target must stand still: what it writes meanwhile would be lost. The next
// Collect reports what was written after Release, as always.
func (t *Tracker) Release(p *Pager, set *epoch.PageSet) error {
	if err := t.Collect(set); err != nil {
		return err
	}
	t.everything = true
	if err := p.Release(); err != nil {
		return err
	}
	// All that is there counts as written now. It is not.
	aside := epoch.NewPageSet(t.image)
	for i := range t.regions {
		if err := t.collect(&t.regions[i], aside); err != nil {
			return fmt.Errorf("begin to track process %d anew: %w", t.pid, err)
		}
	}
	t.everything = false
	return nil
}

// ReleaseTarget does for a Pager what its process did not live to do. A target
// without a descriptor of ours is left alone.
func ReleaseTarget(pid int, regions []Region) error {
	anchors, err := findAnchors(pid)
	if err != nil {
		return err
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	defer func() { _ = unix.Close(pidfd) }()
	for _, a := range anchors {
		if !a.ours() || a.features == 0 {
			continue
		}
		fd, err := takeDescriptor(pidfd, a.fd)
		if err != nil {
			return err
		}
		for _, r := range regions {
			err = errors.Join(err, uffdRenew(fd, r))
		}
		if err := errors.Join(err, unix.Close(fd)); err != nil {
			return err
		}
	}
	return nil
}
