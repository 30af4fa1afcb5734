package vhost

// This file is guest memory as we see it: the guest's one main memory file,
// mapped shared, and the table that says where in it guest physical addresses
// lie. Offsets in the file are the image that the rest of the engine knows.
// Also the hypervisor's log of dirty pages.

import (
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"understudy/epoch"
)

// mapping is the main memory file from its start on. Requests that are under
// way keep it mapped.
type mapping struct {
	data     []byte
	dev, ino uint64
	refs     atomic.Int32
}

func (m *mapping) hold() { m.refs.Add(1) }

func (m *mapping) release() {
	if m.refs.Add(-1) == 0 {
		_ = unix.Munmap(m.data) // fails only for a slice that was not mapped
		m.data = nil
	}
}

// piece is guest memory in one stretch.
type piece struct {
	data []byte
	off  uint64 // in the image
	gpa  uint64 // guest physical address, for the dirty log
}

// page is the image page of the piece's first byte.
func (p piece) page() epoch.GFN { return epoch.GFN(p.off / epoch.PageSize) }

// at is the first byte's offset in its page.
func (p piece) at() int { return int(p.off % epoch.PageSize) }

// memory is one memory table.
type memory struct {
	file    *mapping
	regions []region
}

// newMemory maps the file that every fd must be and checks the table. old, if
// not nil, is used again where it covers the same file. The caller closes fds
// and releases the file.
func newMemory(regions []region, fds []int, old *mapping, allowed func(dev, ino uint64) error) (*memory, error) {
	if len(fds) != len(regions) {
		return nil, fmt.Errorf("a memory table of %d regions comes with %d descriptors", len(regions), len(fds))
	}
	var st unix.Stat_t
	var end uint64
	for i, r := range regions {
		var this unix.Stat_t
		if err := unix.Fstat(fds[i], &this); err != nil {
			return nil, fmt.Errorf("stat memory region %d: %w", i, err)
		}
		if i > 0 && (this.Dev != st.Dev || this.Ino != st.Ino) {
			// Its pages would be in no checkpoint.
			return nil, fmt.Errorf("memory region %d at %#x lies in another file than region 0: only the guest's main memory is served", i, r.gpa)
		}
		st = this
		switch {
		case r.gpa%epoch.PageSize != 0 || r.off%epoch.PageSize != 0 || r.size == 0:
			return nil, fmt.Errorf("memory region %d is not made of pages: %d bytes at %#x, offset %#x", i, r.size, r.gpa, r.off)
		case r.gpa+r.size < r.gpa || r.user+r.size < r.user || r.off+r.size < r.off:
			return nil, fmt.Errorf("memory region %d of %#x bytes at %#x, %#x, offset %#x goes around", i, r.size, r.gpa, r.user, r.off)
		case st.Size < 0 || r.off+r.size > uint64(st.Size):
			return nil, fmt.Errorf("memory region %d ends at %#x of a file of %#x bytes", i, r.off+r.size, st.Size)
		}
		for j, o := range regions[:i] {
			if r.gpa < o.gpa+o.size && o.gpa < r.gpa+r.size || r.user < o.user+o.size && o.user < r.user+r.size {
				return nil, fmt.Errorf("memory regions %d and %d overlap", j, i)
			}
		}
		end = max(end, r.off+r.size)
	}
	if end > epoch.MaxPages*epoch.PageSize {
		return nil, fmt.Errorf("guest memory of %d bytes is more than %d pages", end, uint64(epoch.MaxPages))
	}
	if allowed != nil {
		if err := allowed(st.Dev, st.Ino); err != nil {
			return nil, fmt.Errorf("the guest memory that was handed over: %w", err)
		}
	}
	m := &memory{regions: append([]region(nil), regions...)}
	if old != nil && old.dev == st.Dev && old.ino == st.Ino && uint64(len(old.data)) >= end {
		old.hold()
		m.file = old
		return m, nil
	}
	data, err := unix.Mmap(fds[0], 0, int(end), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes of guest memory: %w", end, err)
	}
	m.file = &mapping{data: data, dev: st.Dev, ino: st.Ino}
	m.file.hold()
	return m, nil
}

// guest returns the start of the n bytes at a guest physical address, as far as
// they lie in one region; false: there is no memory.
func (m *memory) guest(gpa, n uint64) (piece, bool) {
	for i := range m.regions {
		r := &m.regions[i]
		if at := gpa - r.gpa; gpa >= r.gpa && at < r.size {
			n = min(n, r.size-at)
			return piece{data: m.file.data[r.off+at:][:n:n], off: r.off + at, gpa: gpa}, true
		}
	}
	return piece{}, false
}

// user returns n bytes at an address of the hypervisor's, in one region.
func (m *memory) user(addr, n uint64) (piece, error) {
	for i := range m.regions {
		r := &m.regions[i]
		if at := addr - r.user; addr >= r.user && at < r.size && n <= r.size-at {
			return piece{data: m.file.data[r.off+at:][:n:n], off: r.off + at, gpa: r.gpa + at}, nil
		}
	}
	return piece{}, fmt.Errorf("%d bytes at %#x of the hypervisor are in no memory region", n, addr)
}

// load16 reads 16 bits that the guest writes meanwhile, in order with what is
// read after it. p is aligned to 2.
func load16(p []byte) uint16 {
	_ = p[1]
	at := uintptr(unsafe.Pointer(&p[0]))
	// The word that holds them lies in the same page.
	word := atomic.LoadUint32((*uint32)(unsafe.Add(unsafe.Pointer(&p[0]), -int(at&3))))
	return uint16(word >> (8 * (at & 3)))
}

// store32 writes 32 bits in order with what was written before it. p is
// aligned to 4.
func store32(p []byte, v uint32) {
	_ = p[3]
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&p[0])), v)
}

// store16 writes 16 bits at once; the caller sees to their order. p is aligned
// to 2.
func store16(p []byte, v uint16) {
	_ = p[1]
	*(*uint16)(unsafe.Pointer(&p[0])) = v
}

// dirtyLog is the hypervisor's bitmap of dirty pages, by guest physical
// address, in use while it migrates (vhost-user: "Migration").
type dirtyLog struct {
	mapped []byte
	bits   []byte
	on     atomic.Bool // VHOST_F_LOG_ALL is acknowledged
}

// newDirtyLog maps the log.
func newDirtyLog(at span, fd int) (*dirtyLog, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("stat the dirty log: %w", err)
	}
	switch {
	case at.size == 0 || at.off+at.size < at.off || st.Size < 0 || at.off+at.size > uint64(st.Size):
		return nil, fmt.Errorf("a dirty log of %d bytes at %d of a file of %d", at.size, at.off, st.Size)
	case at.off%4 != 0 || at.size%4 != 0:
		return nil, errors.New("the dirty log is not made of words")
	case at.size > epoch.MaxPages/8:
		return nil, fmt.Errorf("a dirty log of %d bytes is for more than %d pages", at.size, uint64(epoch.MaxPages))
	}
	mapped, err := unix.Mmap(fd, 0, int(at.off+at.size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the dirty log: %w", err)
	}
	return &dirtyLog{mapped: mapped, bits: mapped[at.off:]}, nil
}

// mark notes n bytes at gpa as written. A log that ends before them misses
// them, as the hypervisor made it for its own memory.
func (l *dirtyLog) mark(gpa, n uint64) {
	if l == nil || !l.on.Load() {
		return
	}
	for page := gpa / epoch.PageSize; page <= (gpa+n-1)/epoch.PageSize; page++ {
		word := page / 32 * 4
		if word >= uint64(len(l.bits)) {
			return
		}
		atomic.OrUint32((*uint32)(unsafe.Pointer(&l.bits[word])), 1<<(page%32))
	}
}

// setLog puts next in the place of the dirty log and unmaps that. It belongs to
// the session.
func (s *Server) setLog(next *dirtyLog) {
	old := s.dirty
	s.dirty = next
	for _, r := range s.rings {
		r.mu.Lock()
		r.dirty = next
		r.mu.Unlock()
	}
	if old != nil {
		_ = unix.Munmap(old.mapped)
	}
}
