package store

// This file makes sectors zero: the whole 4096-byte blocks of a range by
// fallocate(2), which on a block device is BLKZEROOUT with and without leave to
// unmap (Linux, block/fops.c) and reads as zero afterwards in every case; the
// edges, and everything where the file system cannot, by writing zeroes.

import (
	"errors"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"understudy/epoch"
)

// zeroPiece is how many bytes of zeroes are written at once.
const zeroPiece = 256 << 10

// rawZero makes a range of the file zero.
func (f *File) rawZero(offset, length int64, discard bool) error {
	locked := f.lockBlocks(offset, length)
	defer f.ranges.unlock(locked)
	block := int64(max(f.align.io, epoch.PageSize))
	first := (offset + block - 1) / block * block
	end := (offset + length) / block * block
	if first >= end || !f.fallocateZero(first, end-first, discard) {
		return f.writeZeroes(offset, length)
	}
	if err := f.writeZeroes(offset, first-offset); err != nil {
		return err
	}
	return f.writeZeroes(end, offset+length-end)
}

// fallocateZero reports whether the range is zero now. Whatever went wrong,
// writing zeroes either mends it or gives the error that counts.
func (f *File) fallocateZero(offset, length int64, discard bool) bool {
	if f.via != nil {
		// QEMU 7.2 answers a hole by a discard, which leaves what is less than
		// a cluster of the image as it was (seen; block/export/fuse.c). It
		// gives space back all the same once the range is zero; that may fail.
		zero := f.fallocate(&f.noZero, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, offset, length)
		if zero && discard {
			f.fallocate(&f.noHole, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, length)
		}
		return zero
	}
	if discard && f.fallocate(&f.noHole, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, length) {
		return true
	}
	return f.fallocate(&f.noZero, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, offset, length)
}

func (f *File) fallocate(never *atomic.Bool, mode uint32, offset, length int64) bool {
	if never.Load() {
		return false
	}
	raw, err := f.data.SyscallConn()
	if err != nil {
		return false
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		for {
			if failed = unix.Fallocate(int(fd), mode, offset, length); failed != unix.EINTR {
				return
			}
		}
	})
	if err == nil && (errors.Is(failed, unix.EOPNOTSUPP) || errors.Is(failed, unix.ENOSYS) || errors.Is(failed, unix.ENODEV)) {
		never.Store(true)
	}
	return err == nil && failed == nil
}

// writeZeroes writes zeroes. The range is locked.
func (f *File) writeZeroes(offset, length int64) error {
	for length > 0 {
		n := min(length, zeroPiece)
		if err := f.writeLocked(f.zeroes()[:n], offset); err != nil {
			return err
		}
		offset, length = offset+n, length-n
	}
	return nil
}
