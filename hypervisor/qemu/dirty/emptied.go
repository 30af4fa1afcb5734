package dirty

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"understudy/epoch"
)

// Emptied tells of pages that were taken out of a file: free-page reporting and
// a balloon make QEMU punch holes into the RAM file, and the scan does not
// report a page that is not there (RULES 21).
//
// It is asked in two steps. Changed costs a system call: the kernel tells of
// every hole punched by inotify, and of no write through a mapping. Unmapped
// then asks our own page tables. A hole takes the page out of every mapping at
// once and nothing puts it back into ours but our own next touch, so that a
// page that we had mapped and have no more was emptied since: also one that has
// been used again meanwhile, which looks like any other in the file's map of
// holes. That takes 2 ms for 512 MiB, a quarter of a walk over that map.
//
// It is not safe for concurrent use.
type Emptied struct {
	mem     []byte
	notify  int
	pagemap *os.File
	arg     pmScanArg
	vector  []pageRegion
	events  [4096]byte
}

// NewEmptied begins to watch a file on tmpfs, all of which the caller has mapped
// at mem. The mapping stays the caller's, and must outlive it.
func NewEmptied(file *os.File, mem []byte) (_ *Emptied, err error) {
	e := &Emptied{mem: mem, notify: -1, vector: make([]pageRegion, vectorLength)}
	defer func() {
		if err != nil {
			_ = e.Close()
			err = fmt.Errorf("watch %s for pages taken out of it: %w", file.Name(), err)
		}
	}()
	if e.notify, err = unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK); err != nil {
		return nil, fmt.Errorf("inotify (if there are too many of them, raise fs.inotify.max_user_instances): %w", err)
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, err
	}
	var watchErr error
	err = raw.Control(func(fd uintptr) {
		_, watchErr = unix.InotifyAddWatch(e.notify, fmt.Sprintf("/proc/self/fd/%d", fd), unix.IN_MODIFY)
	})
	if err = errors.Join(err, watchErr); err != nil {
		return nil, fmt.Errorf("inotify watch: %w", err)
	}
	if e.pagemap, err = os.Open("/proc/self/pagemap"); err != nil {
		return nil, err
	}
	return e, e.try(raw)
}

// try makes a hole behind the file's end, which there is already, and sees that
// the kernel tells of it: not every kernel does for every file (memfd_create(2)).
func (e *Emptied) try(file syscall.RawConn) error {
	var punchErr error
	err := file.Control(func(fd uintptr) {
		punchErr = unix.Fallocate(int(fd), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(len(e.mem)), epoch.PageSize)
	})
	if err = errors.Join(err, os.NewSyscallError("fallocate", punchErr)); err != nil {
		return err
	}
	told, err := e.Changed()
	if err == nil && !told {
		err = errors.New("the kernel does not tell of a hole made in it: it has to be a named file on a tmpfs")
	}
	return err
}

// Changed reports whether something may have been taken out of the file since
// the last call. A page that is taken out during the call is told of by this
// call or the next. After an error count it as changed.
func (e *Emptied) Changed() (bool, error) {
	changed := false
	for {
		n, err := unix.Read(e.notify, e.events[:])
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return changed, nil
		case err != nil:
			return true, fmt.Errorf("read inotify: %w", err)
		case n < len(e.events)/2:
			return true, nil // it was not full
		default:
			changed = true
		}
	}
}

// Unmapped calls found for every run of pages, counted from the beginning of the
// file, that our mapping lacks: pages that it never had, too, and pages that were
// swapped out. It allocates nothing.
func (e *Emptied) Unmapped(found func(first, count uint64)) error {
	const there = pageIsPresent | pageIsSwapped
	base := uint64(uintptr(unsafe.Pointer(unsafe.SliceData(e.mem))))
	end := base + uint64(len(e.mem))
	e.arg = pmScanArg{
		size:             uint64(unsafe.Sizeof(e.arg)),
		end:              end,
		vec:              uint64(uintptr(unsafe.Pointer(unsafe.SliceData(e.vector)))),
		vecLen:           uint64(len(e.vector)),
		categoryInverted: there,
		categoryMask:     there,
		returnMask:       pageIsPresent,
	}
	for at := base; at < end; {
		e.arg.start = at
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, e.pagemap.Fd(), ioctlPagemapScan, uintptr(unsafe.Pointer(&e.arg)))
		if errno != 0 {
			return fmt.Errorf("ask for what is mapped of guest memory: %w", errno)
		}
		for _, run := range e.vector[:n] {
			if run.start < at || run.end > end || run.end <= run.start {
				return fmt.Errorf("ask for what is mapped of guest memory: the kernel answered %#x-%#x", run.start, run.end)
			}
			found((run.start-base)/epoch.PageSize, (run.end-run.start)/epoch.PageSize)
		}
		if e.arg.walkEnd <= at {
			return errors.New("ask for what is mapped of guest memory: the kernel did not advance")
		}
		at = e.arg.walkEnd
	}
	return nil
}

// Close ends the watch.
func (e *Emptied) Close() error {
	var errs []error
	if e.notify >= 0 {
		errs = append(errs, os.NewSyscallError("close inotify", unix.Close(e.notify)))
		e.notify = -1
	}
	if e.pagemap != nil {
		errs = append(errs, e.pagemap.Close())
	}
	return errors.Join(errs...)
}
