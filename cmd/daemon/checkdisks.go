package daemon

// This file is what check-host says of a guest's disks:
//
//	each disk as configured ─> is it there, may it be written, how large is it,
//	can its file system do what a store of its kind needs ─> a check each, and a
//	fact each, which the other host's must equal
//
// It only looks: a guest may be running from the disks meanwhile.

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"understudy/config"
	"understudy/epoch"
	"understudy/hypervisor/qemu"
)

// checkDisks adds the disks of a guest to a host's report.
func checkDisks(r *qemu.Report, host string, g config.Guest) {
	for i, d := range g.Disks {
		if !d.Served() {
			continue
		}
		name := fmt.Sprintf("disk %d", i)
		size, c := checkDisk(d, d.PathOn(host))
		c.Name = name
		r.Checks = append(r.Checks, c)
		fact := fmt.Sprintf("%s, %d bytes", d.Mode, size)
		if c.Status == qemu.StatusFail {
			fact = fmt.Sprintf("%s, of a size that is not known", d.Mode)
		}
		r.Facts.Disks = append(r.Facts.Disks, fact)
	}
}

// checkDisk looks at one disk and returns its size in bytes.
func checkDisk(d config.Disk, path string) (int64, qemu.Check) {
	failed := func(remedy, format string, args ...any) (int64, qemu.Check) {
		return 0, qemu.Check{Status: qemu.StatusFail, Detail: fmt.Sprintf(format, args...), Remedy: remedy}
	}
	if d.QCOW2(path) {
		if _, err := exec.LookPath("qemu-storage-daemon"); err != nil {
			return failed("install qemu-utils' or qemu-system's storage daemon, or convert the image to raw", "%s is shown through qemu-storage-daemon: %v", path, err)
		}
		if _, err := os.Stat("/dev/fuse"); err != nil {
			return failed("load the kernel's module fuse, or convert the image to raw", "%s is shown through FUSE: %v", path, err)
		}
	}
	flags := unix.O_RDWR
	if d.Mode == config.Shared {
		flags |= unix.O_DIRECT // its store goes around the page cache
	}
	file, err := os.OpenFile(path, flags, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist) && d.Mode == config.Replicated && d.Size > 0:
		return missingCopy(int64(d.Size), path)
	case errors.Is(err, fs.ErrNotExist) && d.Mode == config.Replicated:
		return failed("create it, or configure the disk's size: a missing copy is made then", "%v", err)
	case errors.Is(err, unix.EINVAL) && d.Mode == config.Shared:
		return failed("put it on a block device or a file system with direct I/O", "%s: its file system has no direct I/O (O_DIRECT), which a shared disk needs", path)
	case err != nil:
		return failed("make it reachable and writable for the daemon", "%v", err)
	}
	defer func() { _ = file.Close() }() // nothing was written
	info, err := file.Stat()
	if err != nil {
		return failed("", "%v", err)
	}
	kind := info.Mode().Type()
	if kind != 0 && kind != fs.ModeDevice {
		return failed("name a file or a block device", "%s is neither a regular file nor a block device", path)
	}
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return failed("", "%s: how large is it: %v", path, err)
	}
	if d.QCOW2(path) {
		return 0, qemu.Check{Status: qemu.StatusOK, Detail: path + ", a qcow2 image"}
	}
	if size == 0 || size%epoch.SectorSize != 0 {
		return failed("give it a size of whole sectors", "%s has %d bytes, a disk has sectors of %d", path, size, epoch.SectorSize)
	}
	c := qemu.Check{Status: qemu.StatusOK, Detail: fmt.Sprintf("%s, %s, %d MiB", path, d.Mode, size>>20)}
	if kind == 0 {
		var st unix.Stat_t
		if err := unix.Fstat(int(file.Fd()), &st); err == nil {
			c = withRoom(c, filepath.Dir(path), size-st.Blocks*512)
		}
	}
	return size, c
}

// missingCopy is a disk whose copy the daemon will make.
func missingCopy(size int64, path string) (int64, qemu.Check) {
	c := qemu.Check{Status: qemu.StatusOK, Detail: fmt.Sprintf("%s will be made, %d MiB", path, size>>20)}
	return size, withRoom(c, filepath.Dir(path), size)
}

// withRoom warns if a file system has no room for what a sparse file may yet take.
func withRoom(c qemu.Check, dir string, grow int64) qemu.Check {
	var fsys unix.Statfs_t
	if err := unix.Statfs(dir, &fsys); err != nil {
		return qemu.Check{Status: qemu.StatusFail, Detail: fmt.Sprintf("%s: %v", dir, err), Remedy: "create the directory"}
	}
	if free := int64(fsys.Bavail) * fsys.Bsize; grow > free {
		c.Status = qemu.StatusWarn
		c.Detail += fmt.Sprintf("; it may grow by %d MiB and %s has %d MiB left", grow>>20, dir, free>>20)
		c.Remedy = "make room: a write that finds none is held at both hosts, and the guest is paused when the limit is reached"
	}
	return c
}
