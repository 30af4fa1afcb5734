package dirty

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"understudy/epoch"
)

// Holes finds guest pages that were emptied: a balloon or free-page reporting
// makes QEMU punch holes into the RAM file, and a page that is not there is
// one the scan does not report (RULES 21). It compares the file's map of holes
// with the one before. It is only needed for a guest with such a device, and
// costs a walk over the file's page cache, some 45 ns per page present (6 ms for
// 512 MiB): where the pause matters, refuse such devices instead.
//
// Collect while the guest stands still and before anybody reads the file
// through a mapping: such a read fills a hole with zeros, after which the file
// looks as if nothing had happened. (pread does not fill holes.) It is not
// safe for concurrent use.
type Holes struct {
	file  *os.File
	name  string
	first epoch.GFN
	pages uint64
	held  *epoch.PageSet // pages that were not holes at the last Collect
	now   *epoch.PageSet // scratch, empty between calls
	lost  bool           // held is not to be trusted
}

// NewHoles begins to watch a file on tmpfs whose first page is guest frame
// first. It opens the file anew: the caller's offset is not touched.
func NewHoles(file *os.File, first epoch.GFN) (*Holes, error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("watch holes of %s: %w", file.Name(), err)
	}
	h := &Holes{name: file.Name(), first: first}
	var openErr error
	if err := raw.Control(func(fd uintptr) {
		h.file, openErr = os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	}); err != nil || openErr != nil {
		return nil, fmt.Errorf("watch holes of %s: %w", h.name, errors.Join(err, openErr))
	}
	info, err := h.file.Stat()
	if err != nil {
		_ = h.file.Close()
		return nil, fmt.Errorf("watch holes of %s: %w", h.name, err)
	}
	h.pages = uint64(info.Size()) / epoch.PageSize
	h.held, h.now = epoch.NewPageSet(h.pages), epoch.NewPageSet(h.pages)
	if err := h.update(); err != nil {
		_ = h.file.Close()
		return nil, err
	}
	h.now.Clear()
	return h, nil
}

// Collect adds to set every page that held something at the last Collect and
// is a hole now; its content is zeros. After a failure nothing is known, and
// the next success reports every page of the file. It allocates nothing.
func (h *Holes) Collect(set *epoch.PageSet) error {
	if end := uint64(h.first) + h.pages; set.Pages() < end {
		return fmt.Errorf("collect holes of %s: the set has room for %d pages, the file ends at frame %d", h.name, set.Pages(), end)
	}
	lost := h.lost
	h.lost = true // until this call has succeeded
	if err := h.update(); err != nil {
		return err
	}
	for first, count := range h.now.Runs {
		set.AddRange(h.first+first, count)
	}
	if lost {
		set.AddRange(h.first, h.pages)
	}
	h.now.Clear()
	h.lost = false
	return nil
}

// update brings held up to date and leaves in now what has gone from it.
func (h *Holes) update() error {
	h.now, h.held = h.held, h.now
	h.held.Clear()
	fd, size := int(h.file.Fd()), int64(h.pages*epoch.PageSize)
	for at := int64(0); at < size; {
		data, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // nothing but hole from here on
		}
		if err != nil {
			return fmt.Errorf("find data in %s from %d: %w", h.name, at, err)
		}
		hole, err := unix.Seek(fd, data, unix.SEEK_HOLE)
		if err != nil {
			return fmt.Errorf("find the next hole in %s from %d: %w", h.name, data, err)
		}
		first, end := uint64(data)/epoch.PageSize, uint64(min(hole, size)+epoch.PageSize-1)/epoch.PageSize
		if data < at || hole <= data || end > h.pages {
			return fmt.Errorf("find holes in %s: the kernel answered data at %d, hole at %d", h.name, data, hole)
		}
		h.held.AddRange(epoch.GFN(first), end-first)
		h.now.RemoveRange(epoch.GFN(first), end-first)
		at = hole
	}
	return nil
}

// Close ends the watch.
func (h *Holes) Close() error { return h.file.Close() }
