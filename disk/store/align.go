package store

// This file brings a request to the alignment that direct I/O needs:
//
//	rawRead, rawWrite ── memory, offset and length aligned? ── straight to the file
//	                  └─ otherwise through a bounce buffer of the bounded pool;
//	                     a write of part of a logical block reads the rest of it
//	                     first, under a range lock (a 512-byte request on a disk
//	                     with 4096-byte sectors)

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"understudy/epoch"
)

// Buffers of one store: bounceBuffers of bounceSize bytes at most.
const (
	bounceSize    = 256 << 10
	bounceBuffers = 8
)

// alignment is what the file asks of a request, in bytes.
type alignment struct {
	direct bool
	memory int // address of the first byte
	io     int // offset and length
}

// candidates are the alignments that are tried where the system does not tell.
var candidates = [...]int{512, 1024, 2048, 4096}

const maxAlign = 64 << 10

// probeAlignment asks the system what direct I/O on file needs (statx(2),
// STATX_DIOALIGN, Linux 6.1; BLKSSZGET), or tries it by reading.
func probeAlignment(file *os.File) (alignment, error) {
	var st unix.Statx_t
	err := unix.Statx(int(file.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN|unix.STATX_TYPE, &st)
	if err == nil && st.Mask&unix.STATX_DIOALIGN != 0 {
		if st.Dio_offset_align == 0 {
			return alignment{}, errNoDirect(unix.EOPNOTSUPP)
		}
		return newAlignment(int(st.Dio_mem_align), int(st.Dio_offset_align))
	}
	if err == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK {
		size, err := unix.IoctlGetInt(int(file.Fd()), unix.BLKSSZGET)
		if err != nil {
			return alignment{}, fmt.Errorf("logical block size (BLKSSZGET): %w", err)
		}
		return newAlignment(size, size)
	}
	buffer := alignedBuffer(candidates[len(candidates)-1], maxAlign)
	for _, size := range candidates {
		// The second block: the offset counts too.
		n, err := unix.Pread(int(file.Fd()), buffer[:size], int64(size))
		if errors.Is(err, unix.EINVAL) {
			continue
		}
		if err != nil {
			return alignment{}, fmt.Errorf("try direct I/O of %d bytes: %w", size, err)
		}
		if n < size {
			// The file ends there, and the answer says nothing.
			continue
		}
		return newAlignment(size, size)
	}
	return newAlignment(4096, 4096)
}

// newAlignment checks what the system said. Offsets are multiples of
// epoch.SectorSize anyway.
func newAlignment(memory, io int) (alignment, error) {
	a := alignment{direct: true, memory: max(memory, 1), io: max(io, epoch.SectorSize)}
	if a.memory > maxAlign || a.io > maxAlign || a.memory&(a.memory-1) != 0 || a.io&(a.io-1) != 0 {
		return a, fmt.Errorf("direct I/O needs memory aligned to %d and blocks of %d bytes: "+
			"only powers of two up to %d are known", memory, io, maxAlign)
	}
	return a, nil
}

// check refuses a disk that ends within a block.
func (a alignment) check(sectors uint64) error {
	if rest := sectors * epoch.SectorSize % uint64(a.io); rest != 0 {
		return fmt.Errorf("its size, %d sectors, is not a multiple of the %d bytes that direct I/O needs: "+
			"enlarge it by %d bytes (truncate --size)", sectors, a.io, uint64(a.io)-rest)
	}
	return nil
}

// fits reports whether the request needs no bounce buffer.
func (a alignment) fits(p []byte, offset int64) bool {
	if !a.direct {
		return true
	}
	address := uintptr(unsafe.Pointer(unsafe.SliceData(p)))
	return address&uintptr(a.memory-1) == 0 && a.whole(offset, int64(len(p)))
}

// whole reports whether the range is one of whole blocks.
func (a alignment) whole(offset, length int64) bool { return (offset|length)&int64(a.io-1) == 0 }

func (a alignment) down(offset int64) int64 { return offset &^ int64(a.io-1) }
func (a alignment) up(offset int64) int64   { return a.down(offset + int64(a.io) - 1) }

// alignedBuffer returns size bytes whose address is a multiple of align (the
// garbage collector does not move them).
func alignedBuffer(size, align int) []byte {
	b := make([]byte, size+align)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (align - 1)
	return b[skip : skip+size : skip+size]
}

// pool hands out bounce buffers; who finds none waits.
type pool struct {
	align int
	slots chan []byte // nil: not made yet
}

func (p *pool) init(a alignment) {
	p.align = max(a.memory, a.io, 4096)
	p.slots = make(chan []byte, bounceBuffers)
	for range bounceBuffers {
		p.slots <- nil
	}
}

func (p *pool) get() []byte {
	if b := <-p.slots; b != nil {
		return b
	}
	return alignedBuffer(bounceSize, p.align)
}

func (p *pool) put(b []byte) { p.slots <- b }

// rawRead reads from the file, whatever the alignment.
func (f *File) rawRead(p []byte, offset int64) error {
	if f.align.fits(p, offset) {
		_, err := f.data.ReadAt(p, offset)
		return err
	}
	b := f.pool.get()
	defer f.pool.put(b)
	for len(p) > 0 {
		start := f.align.down(offset)
		head := int(offset - start)
		n := min(len(p), len(b)-head)
		window := b[:f.align.up(int64(head+n))]
		if _, err := f.data.ReadAt(window, start); err != nil {
			return err
		}
		copy(p[:n], window[head:])
		p, offset = p[n:], offset+int64(n)
	}
	return nil
}

// rawWrite writes to the file, whatever the alignment.
func (f *File) rawWrite(p []byte, offset int64) error {
	unlock := f.lockBlocks(offset, int64(len(p)))
	defer f.ranges.unlock(unlock)
	return f.writeLocked(p, offset)
}

func (f *File) writeLocked(p []byte, offset int64) error {
	if f.align.fits(p, offset) {
		_, err := f.data.WriteAt(p, offset)
		return err
	}
	b := f.pool.get()
	defer f.pool.put(b)
	for len(p) > 0 {
		start := f.align.down(offset)
		head := int(offset - start)
		n := min(len(p), len(b)-head)
		window := b[:f.align.up(int64(head+n))]
		if head > 0 {
			if _, err := f.data.ReadAt(window[:f.align.io], start); err != nil {
				return err
			}
		}
		if last := len(window) - f.align.io; head+n < len(window) && (last > 0 || head == 0) {
			if _, err := f.data.ReadAt(window[last:], start+int64(last)); err != nil {
				return err
			}
		}
		copy(window[head:], p[:n])
		if _, err := f.data.WriteAt(window, start); err != nil {
			return err
		}
		p, offset = p[n:], offset+int64(n)
	}
	return nil
}

// lockBlocks keeps other changes away from the blocks that the range touches. It
// is needed only where a request may be smaller than a block: then a block that
// is read, changed and written back would bring back old sectors beside its own.
func (f *File) lockBlocks(offset, length int64) span {
	if f.align.io <= epoch.SectorSize {
		return span{}
	}
	return f.ranges.lock(span{f.align.down(offset), f.align.up(offset + length)})
}

// span is a range of bytes, [from, to).
type span struct{ from, to int64 }

// ranges are the spans that are being changed.
type ranges struct {
	mu   sync.Mutex
	free *sync.Cond
	busy []span
}

func (r *ranges) lock(s span) span {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.free == nil {
		r.free = sync.NewCond(&r.mu)
	}
	for slices.ContainsFunc(r.busy, func(b span) bool { return b.from < s.to && s.from < b.to }) {
		r.free.Wait()
	}
	r.busy = append(r.busy, s)
	return s
}

func (r *ranges) unlock(s span) {
	if s == (span{}) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.Index(r.busy, s)
	r.busy[i] = r.busy[len(r.busy)-1]
	r.busy = r.busy[:len(r.busy)-1]
	r.free.Broadcast()
}

// StartRead, StartWrite and StartSync are ReadAt, WriteAt and Sync up to the
// system call, for a caller that makes it itself (io_uring(7)), if there is
// nothing else to do. A write is under way until EndWrite, which must follow.

// Aligned reports whether p may be such a caller's memory, or a piece of it.
func (f *File) Aligned(p []byte) bool { return f.align.fits(p, 0) }

// StartRead returns the descriptor and the offset in bytes to read sectors from.
func (f *File) StartRead(sector uint64, sectors uint32) (fd int, offset int64, ok bool) {
	offset, length := int64(sector*epoch.SectorSize), int64(sectors)*epoch.SectorSize
	if f.via != nil || sectors == 0 || f.checkSectors(sector, uint64(sectors)) != nil || !f.align.whole(offset, length) {
		return -1, 0, false
	}
	return f.fd, offset, true
}

// StartWrite returns the descriptor and the offset in bytes to write sectors to.
func (f *File) StartWrite(sector uint64, sectors uint32) (fd int, offset int64, ok bool) {
	if f.align.io > epoch.SectorSize {
		return -1, 0, false
	}
	if _, offset, ok = f.StartRead(sector, sectors); !ok {
		return -1, 0, false
	}
	if !f.gate.TryRLock() {
		return -1, 0, false
	}
	if f.closed || !f.writer || f.pristine.Load() || len(f.pins) > 0 {
		f.gate.RUnlock()
		return -1, 0, false
	}
	return f.fd, offset, true
}

// EndWrite says that a write is over.
func (f *File) EndWrite() { f.gate.RUnlock() }

// StartSync returns the descriptor to call fdatasync(2) on. EndSync must follow.
func (f *File) StartSync() (fd int, ok bool) { return f.fd, f.via == nil && !f.lost.Load() }

// EndSync is given what fdatasync(2) returned, and returns what Sync would.
func (f *File) EndSync(err error) error { return f.synced(err) }
