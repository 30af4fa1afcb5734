package dirty

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The part of linux/userfaultfd.h and linux/fs.h (Linux 6.7 or later) that is
// used here and that x/sys lacks. Documented in the kernel's
// admin-guide/mm/userfaultfd.rst and admin-guide/mm/pagemap.rst.
const (
	uffdAPI          = 0xAA
	uffdUserModeOnly = 1 // flag of userfaultfd(2)

	// Features. WP_ASYNC lets the kernel resolve a write to a protected page
	// by itself, marking it written; without it the target would hang.
	uffdFeatureWPHugetlbfsShmem = 1 << 12
	uffdFeatureWPUnpopulated    = 1 << 13
	uffdFeatureWPAsync          = 1 << 15
	uffdFeatures                = uffdFeatureWPHugetlbfsShmem | uffdFeatureWPUnpopulated | uffdFeatureWPAsync

	uffdRegisterModeMissing = 1 << 0
	uffdRegisterModeWP      = 1 << 1
	uffdCopyModeWP          = 1 << 1
	uffdEventPagefault      = 0x12

	ioctlUffdAPI        = 0xc018aa3f // _IOWR(0xAA, 0x3F, struct uffdio_api)
	ioctlUffdRegister   = 0xc020aa00 // _IOWR(0xAA, 0x00, struct uffdio_register)
	ioctlUffdUnregister = 0x8010aa01 // _IOR(0xAA, 0x01, struct uffdio_range)
	ioctlUffdWake       = 0x8010aa02 // _IOR(0xAA, 0x02, struct uffdio_range)
	ioctlUffdCopy       = 0xc028aa03 // _IOWR(0xAA, 0x03, struct uffdio_copy)
	ioctlUffdNew        = 0xaa00     // _IO(0xAA, 0x00), of /dev/userfaultfd
	ioctlPagemapScan    = 0xc0606610 // _IOWR('f', 16, struct pm_scan_arg)

	pageIsWritten = 1 << 1
	pageIsPresent = 1 << 3
	pageIsSwapped = 1 << 4

	pmScanWPMatching   = 1 << 0
	pmScanCheckWPAsync = 1 << 1
)

// uffdioAPI is struct uffdio_api.
type uffdioAPI struct {
	api      uint64
	features uint64
	ioctls   uint64
}

// uffdioRegister is struct uffdio_register.
type uffdioRegister struct {
	start, length uint64
	mode          uint64
	ioctls        uint64
}

// uffdioRange is struct uffdio_range.
type uffdioRange struct{ start, length uint64 }

// uffdioCopy is struct uffdio_copy.
type uffdioCopy struct {
	dst, src, length uint64
	mode             uint64
	copied           int64
}

// faultEvent is struct uffd_msg, for a page fault.
type faultEvent struct {
	event   uint8
	_       [7]uint8
	_       uint64 // flags
	address uint64
	_       uint64 // thread
}

// pageRegion is struct page_region: pages [start, end), in bytes.
type pageRegion struct {
	start, end uint64
	categories uint64
}

// pmScanArg is struct pm_scan_arg.
type pmScanArg struct {
	size              uint64
	flags             uint64
	start             uint64
	end               uint64
	walkEnd           uint64
	vec               uint64
	vecLen            uint64
	maxPages          uint64
	categoryInverted  uint64
	categoryMask      uint64
	categoryAnyofMask uint64
	returnMask        uint64
}

// uffdEnable is the handshake of a fresh userfaultfd. A kernel that lacks one
// of the features refuses all of them with EINVAL.
func uffdEnable(fd int) error {
	arg := uffdioAPI{api: uffdAPI, features: uffdFeatures}
	if err := ioctl(fd, ioctlUffdAPI, unsafe.Pointer(&arg)); err != nil {
		return fmt.Errorf("enable asynchronous write protection (needs Linux 6.7 or later): %w", err)
	}
	return nil
}

// uffdRegister puts a range of the target's memory under write tracking, or
// more. It protects nothing yet: the first scan does. Registering again with
// the same descriptor can add to the mode, and never takes away.
func uffdRegister(fd int, r Region, mode uint64) error {
	arg := uffdioRegister{start: r.Addr, length: r.Length, mode: mode}
	err := ioctl(fd, ioctlUffdRegister, unsafe.Pointer(&arg))
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("track writes to %v: another userfaultfd already does: %w", r, err)
	}
	if err != nil {
		return fmt.Errorf("track writes to %v: %w", r, err)
	}
	return nil
}

// uffdRenew leaves a range registered for write tracking only, with nothing
// protected. Who waits for a page of it goes on.
func uffdRenew(fd int, r Region) error {
	arg := uffdioRange{r.Addr, r.Length}
	if err := ioctl(fd, ioctlUffdUnregister, unsafe.Pointer(&arg)); err != nil {
		return fmt.Errorf("stop watching %v: %w", r, err)
	}
	return uffdRegister(fd, r, uffdRegisterModeWP)
}

// ioctl passes the address of a structure. Nothing is allocated.
func ioctl(fd int, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}
