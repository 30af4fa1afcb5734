package qemu

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"understudy/epoch"
)

// ramFile is a machine's main memory: a named, sparse file on tmpfs that QEMU
// and we both map.
//
// A page that was never written is a hole. To read a hole through a mapping
// takes a page of real memory for nothing, and to write one through a mapping
// when the tmpfs is full is a SIGBUS. So holes go through pread and pwrite,
// which do neither, and a page is touched in the mapping only once it is known
// to be there. Pages leave by punch, and, where the guest gives free memory back,
// by QEMU's doing: free.go says what that changes. They may be swapped out,
// which tracking survives and the length of a pause does not: CheckHost warns
// of swap.
type ramFile struct {
	file  *os.File
	mem   []byte
	there []atomic.Uint64 // one bit a page: known not to be a hole

	freeing
}

// createRAM makes the memory file of a new machine.
func createRAM(c *Config, path string, as account) (_ *ramFile, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("memory file: %w", err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("memory file %s: %w", path, err)
			_ = f.Close()
			_ = os.Remove(path)
		}
	}()
	if err := checkRoom(path, c.Memory); err != nil {
		return nil, err
	}
	if err := f.Truncate(int64(c.Memory)); err != nil {
		return nil, err
	}
	if c.Reserve {
		if err := fallocate(f, int64(c.Memory)); err != nil {
			return nil, fmt.Errorf("reserve %d MiB: %w", c.Memory/mib, err)
		}
	}
	if err := as.own(path); err != nil {
		return nil, err
	}
	return mapRAM(f, c.Memory)
}

// openRAM opens the memory file of a machine that runs already.
func openRAM(path string, size uint64) (*ramFile, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("memory file: %w", err)
	}
	info, err := f.Stat()
	if err == nil && uint64(info.Size()) != size {
		err = fmt.Errorf("memory file %s has %d bytes, want %d", path, info.Size(), size)
	}
	var r *ramFile
	if err == nil {
		r, err = mapRAM(f, size)
	}
	if err != nil {
		_ = f.Close()
	}
	return r, err
}

func mapRAM(f *os.File, size uint64) (*ramFile, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var mem []byte
	var mapErr error
	err = raw.Control(func(fd uintptr) {
		mem, mapErr = unix.Mmap(int(fd), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	})
	if err = errors.Join(err, mapErr); err != nil {
		return nil, fmt.Errorf("map %s: %w", f.Name(), err)
	}
	return &ramFile{file: f, mem: mem, there: make([]atomic.Uint64, (size/epoch.PageSize+63)/64)}, nil
}

func (r *ramFile) pages() uint64 { return uint64(len(r.mem)) / epoch.PageSize }

func (r *ramFile) close() error {
	return errors.Join(r.unwatch(), unix.Munmap(r.mem), r.file.Close())
}

// run returns how many of count pages from first on are equally known to be
// there or not, and which of the two.
func (r *ramFile) run(first, count uint64) (n uint64, there bool) {
	there = r.isThere(first)
	n = 1
	for n < count && r.isThere(first+n) == there {
		n++
	}
	return n, there
}

func (r *ramFile) isThere(page uint64) bool {
	return r.there[page/64].Load()&(1<<(page%64)) != 0
}

func (r *ramFile) setThere(page uint64) { r.there[page/64].Or(1 << (page % 64)) }

// read copies pages out. The caller has checked the range.
func (r *ramFile) read(first uint64, dst []byte) error {
	for r.frees() && len(dst) > 0 {
		part := dst[:min(len(dst), freePiece)]
		if err := r.readFreeing(first, part); err != nil {
			return err
		}
		first, dst = first+uint64(len(part))/epoch.PageSize, dst[len(part):]
	}
	return r.readSteady(first, dst)
}

// readSteady reads while nobody else makes holes.
func (r *ramFile) readSteady(first uint64, dst []byte) error {
	for len(dst) > 0 {
		n, there := r.run(first, uint64(len(dst))/epoch.PageSize)
		part := dst[:n*epoch.PageSize]
		if there {
			copy(part, r.mem[first*epoch.PageSize:])
		} else if err := r.readUnknown(first, part); err != nil {
			return err
		}
		first, dst = first+n, dst[len(part):]
	}
	return nil
}

// hole returns how many of count pages from first on are a hole now.
func (r *ramFile) hole(first, count uint64) uint64 {
	if r.isThere(first) {
		return 0
	}
	raw, err := r.file.SyscallConn()
	if err != nil {
		return 0
	}
	from, data := int64(first*epoch.PageSize), int64(0)
	var seekErr error
	err = raw.Control(func(fd uintptr) { data, seekErr = unix.Seek(int(fd), from, unix.SEEK_DATA) })
	switch {
	case err != nil:
		return 0
	case errors.Is(seekErr, unix.ENXIO): // to the end
		return count
	case seekErr != nil:
		return 0
	}
	return min(count, uint64(data-from)/epoch.PageSize)
}

// readUnknown reads pages that may be holes, and learns of those that hold
// something that they are there. Their page tables are filled here, outside of
// what is hot.
func (r *ramFile) readUnknown(first uint64, dst []byte) error {
	if _, err := r.file.ReadAt(dst, int64(first*epoch.PageSize)); err != nil {
		return fmt.Errorf("read guest memory: %w", err)
	}
	var start, length uint64
	populate := func() {
		if length > 0 {
			at := start * epoch.PageSize
			// Only speed is lost if this fails.
			_ = unix.Madvise(r.mem[at:at+length*epoch.PageSize], unix.MADV_POPULATE_READ)
		}
		length = 0
	}
	for i := uint64(0); len(dst) > 0; i++ {
		if isZero(dst[:epoch.PageSize]) {
			populate()
		} else {
			r.setThere(first + i)
			if length == 0 {
				start = first + i
			}
			length++
		}
		dst = dst[epoch.PageSize:]
	}
	populate()
	return nil
}

// write copies pages in. A page of zeros over a hole stays a hole.
func (r *ramFile) write(first uint64, data []byte) error {
	for len(data) > 0 {
		n, there := r.run(first, uint64(len(data))/epoch.PageSize)
		part := data[:n*epoch.PageSize]
		if there {
			if err := r.writeOver(first, part); err != nil {
				return err
			}
		} else if err := r.writeUnknown(first, part); err != nil {
			return err
		}
		first, data = first+n, data[len(part):]
	}
	return nil
}

// minEmptied is how many pages of zeros in a row are made a hole instead of being
// written. To punch takes a page 1 µs, five times what clearing it takes; nobody
// waits for it, and the host has its memory back.
const minEmptied = 32

// writeOver writes pages that are there. Many pages of zeros give their memory
// back: so does a guest's free memory at the standby.
func (r *ramFile) writeOver(first uint64, data []byte) error {
	for len(data) > 0 {
		n := 0
		for n < len(data) && isZero(data[n:n+epoch.PageSize]) {
			n += epoch.PageSize
		}
		if n >= minEmptied*epoch.PageSize {
			if err := r.punch(first, uint64(n/epoch.PageSize)); err != nil {
				return err
			}
		} else {
			for n < len(data) && (n < epoch.PageSize || !isZero(data[n:n+epoch.PageSize])) {
				n += epoch.PageSize
			}
			copy(r.mem[first*epoch.PageSize:], data[:n])
		}
		first, data = first+uint64(n/epoch.PageSize), data[n:]
	}
	return nil
}

// writeUnknown writes pages of a file that this process has created: what it
// does not know to be there is a hole, or reserved and zero.
func (r *ramFile) writeUnknown(first uint64, data []byte) error {
	for len(data) > 0 {
		// A run of pages that are all to be written, or all to stay holes.
		n, zero := 0, isZero(data[:epoch.PageSize])
		for n < len(data) && isZero(data[n:n+epoch.PageSize]) == zero {
			n += epoch.PageSize
		}
		if !zero {
			if _, err := r.file.WriteAt(data[:n], int64(first*epoch.PageSize)); err != nil {
				return fmt.Errorf("write guest memory: %w", err)
			}
			for i := range uint64(n / epoch.PageSize) {
				r.setThere(first + i)
			}
		}
		first, data = first+uint64(n/epoch.PageSize), data[n:]
	}
	return nil
}

// punch makes pages holes again.
func (r *ramFile) punch(first, count uint64) error {
	raw, err := r.file.SyscallConn()
	if err != nil {
		return err
	}
	var callErr error
	err = raw.Control(func(fd uintptr) {
		callErr = unix.Fallocate(int(fd), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(first*epoch.PageSize), int64(count*epoch.PageSize))
	})
	if err = errors.Join(err, callErr); err != nil {
		return fmt.Errorf("empty pages %d+%d of guest memory: %w", first, count, err)
	}
	for page := first; page < first+count; page++ {
		r.there[page/64].And(^uint64(1 << (page % 64)))
	}
	return nil
}

// checkRoom refuses a memory file that its tmpfs cannot hold.
func checkRoom(path string, size uint64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return err
	}
	if st.Type != unix.TMPFS_MAGIC {
		return errors.New("it does not lie on a tmpfs: set the image directory to one, such as /dev/shm")
	}
	free := st.Bavail * uint64(st.Bsize)
	if st.Blocks != 0 && free < size { // a tmpfs without limit has no blocks
		return fmt.Errorf("%d MiB are free there, the guest needs %d MiB: make the tmpfs larger (mount -o remount,size=…) or the guest smaller", free/mib, size/mib)
	}
	return nil
}

func fallocate(f *os.File, size int64) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var callErr error
	err = raw.Control(func(fd uintptr) { callErr = unix.Fallocate(int(fd), 0, 0, size) })
	return errors.Join(err, os.NewSyscallError("fallocate", callErr))
}

var zeroPage [epoch.PageSize]byte

func isZero(page []byte) bool { return bytes.Equal(page, zeroPage[:]) }
