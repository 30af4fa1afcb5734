package main

// The guest's disk: mounted before the services start, at rest before the machine
// ends.

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"understudy/guest"
)

// parseDisk reads DEVICE:DIRECTORY.
func parseDisk(text string) (guest.Disk, error) {
	device, dir, found := strings.Cut(text, ":")
	switch {
	case !found || !strings.HasPrefix(device, "/dev/") || filepath.Clean(device) != device:
		return guest.Disk{}, errors.New("want DEVICE:DIRECTORY, such as " + guest.FirstDisk + ":" + guest.DataDir)
	case dir != guest.DataDir && dir != guest.RootDir:
		return guest.Disk{}, fmt.Errorf("the directory is neither %s nor %s", guest.DataDir, guest.RootDir)
	}
	return guest.Disk{Device: device, Dir: dir}, nil
}

// mountDisk mounts the disk, which replays its journal if need be. For programs
// that run in a whole system it adds what they expect there.
func mountDisk(d guest.Disk) error {
	if d.Device == "" {
		return nil
	}
	if err := waitFor(d.Device, patience); err != nil {
		return fmt.Errorf("mount the disk: no %s (has the machine a disk of virtio-blk or Xen?): %w", d.Device, err)
	}
	if err := os.MkdirAll(d.Dir, 0o755); err != nil {
		return fmt.Errorf("mount the disk: %w", err)
	}
	// An error that the kernel finds in the file system stops all writing, so that
	// it shows.
	if err := unix.Mount(d.Device, d.Dir, "ext4", unix.MS_NOATIME, "errors=remount-ro"); err != nil {
		return fmt.Errorf("mount %s on %s: %w", d.Device, d.Dir, err)
	}
	if d.Dir != guest.RootDir {
		return nil
	}
	var all error
	for _, m := range []struct{ from, kind, dir string }{
		{"proc", "proc", "proc"}, {"devtmpfs", "devtmpfs", "dev"}, {"tmpfs", "tmpfs", "run"},
	} {
		if err := unix.Mount(m.from, filepath.Join(d.Dir, m.dir), m.kind, 0, ""); err != nil {
			all = errors.Join(all, fmt.Errorf("mount %s on %s/%s: %w", m.kind, d.Dir, m.dir, err))
		}
	}
	return all
}

// unmountDisk leaves a clean file system behind, when nothing of ours uses it any
// more. What somebody else still uses is made read-only instead.
func unmountDisk(d guest.Disk) error {
	if d.Device == "" {
		return nil
	}
	if d.Dir == guest.RootDir {
		for _, dir := range []string{"proc", "dev", "run"} {
			_ = unix.Unmount(filepath.Join(d.Dir, dir), unix.MNT_DETACH) // it may not be mounted
		}
	}
	err := unix.Unmount(d.Dir, 0)
	if errors.Is(err, unix.EBUSY) {
		err = unix.Mount("", d.Dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
	}
	if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: it was never mounted
		return fmt.Errorf("unmount %s: %w", d.Dir, err)
	}
	return nil
}

// dropCaches empties the kernel's caches of files.
func dropCaches() error {
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		return fmt.Errorf("drop the kernel's caches: %w", err)
	}
	return nil
}
