package image

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Unclean says that a file system is damaged.
type Unclean struct {
	Path string
	// Said is what e2fsck said, or what the superblock says.
	Said string
}

func (u *Unclean) Error() string {
	return fmt.Sprintf("the file system of %s is not clean: %s", u.Path, u.Said)
}

// Fsck judges the ext4 file system of an image that no guest has open, on a copy
// that it removes again. The image may be that of a guest that was killed, so the
// journal is replayed first and inodes that were open while they were removed are
// freed, as a mount does; then `e2fsck -fn` has to find nothing, and the guest's
// kernel must not have noted an error. Damage is an *Unclean. e2fsck is not in
// the guest: its smallest static build would make the initramfs larger by a
// third for something that only a disk at rest can be asked.
func Fsck(ctx context.Context, path string) error {
	work, err := os.MkdirTemp(filepath.Dir(path), "fsck-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	copied := filepath.Join(work, "copy")
	if err := Copy(copied, path); err != nil {
		return err
	}
	unclean := func(said string) error { return &Unclean{path, strings.TrimSpace(said)} }
	if err := superblock(copied, unclean); err != nil {
		return err
	}
	// Both end with 1 for what they mended, which is what they are here for. Of a
	// file system without noted errors, -p looks at nothing else.
	for _, mend := range [][]string{{"-y", "-E", "journal_only"}, {"-p"}} {
		if said, err := command(ctx, nil, nil, "e2fsck", append(mend, copied)...); err != nil && status(err) != 1 {
			if status(err) < 0 {
				return err
			}
			return unclean(said)
		}
		if err := superblock(copied, unclean); err != nil {
			return err
		}
	}
	said, err := command(ctx, nil, nil, "e2fsck", "-fn", copied)
	if err != nil && status(err) >= 0 {
		return unclean(said)
	}
	return err
}

// status is what a program ended with, -1 if it did not run to its end.
func status(err error) int {
	var ended interface{ ExitCode() int }
	if errors.As(err, &ended) {
		return ended.ExitCode()
	}
	return -1
}

// superblock reads what the kernel noted there: layout of ext4's superblock as
// the kernel's Documentation/filesystems/ext4/super.rst has it.
func superblock(path string, unclean func(string) error) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	var s [1024]byte
	if _, err := f.ReadAt(s[:], 1024); err != nil {
		return fmt.Errorf("read the superblock of %s: %w", path, err)
	}
	const hasErrors = 2
	if got := binary.LittleEndian.Uint16(s[0x38:]); got != 0xef53 {
		return unclean(fmt.Sprintf("no ext4: the magic is %04x", got))
	}
	state, count := binary.LittleEndian.Uint16(s[0x3a:]), binary.LittleEndian.Uint32(s[0x194:])
	if state&hasErrors != 0 || count != 0 {
		return unclean(fmt.Sprintf("the kernel noted %d errors, the first in %s", count, strings.TrimRight(string(s[0x1a8:0x1c8]), "\x00")))
	}
	return nil
}
