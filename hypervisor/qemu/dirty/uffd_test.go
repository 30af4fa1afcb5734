package dirty

import (
	"testing"
	"unsafe"
)

// The request numbers of _IOWR carry the size of the structure, so that a
// structure of another size would be another request.
func TestKernelStructures(t *testing.T) {
	const readWrite = 3
	for name, c := range map[string]struct {
		size         uintptr
		group, nr    uint32
		request, min uintptr
	}{
		"UFFDIO_API":      {unsafe.Sizeof(uffdioAPI{}), 0xAA, 0x3F, ioctlUffdAPI, 24},
		"UFFDIO_REGISTER": {unsafe.Sizeof(uffdioRegister{}), 0xAA, 0x00, ioctlUffdRegister, 32},
		"UFFDIO_COPY":     {unsafe.Sizeof(uffdioCopy{}), 0xAA, 0x03, ioctlUffdCopy, 40},
		"PAGEMAP_SCAN":    {unsafe.Sizeof(pmScanArg{}), 'f', 16, ioctlPagemapScan, 96},
	} {
		if c.size != c.min {
			t.Errorf("%s: the structure has %d bytes, the kernel's has %d", name, c.size, c.min)
		}
		if got := uintptr(readWrite)<<30 | c.size<<16 | uintptr(c.group)<<8 | uintptr(c.nr); got != c.request {
			t.Errorf("%s is %#x, want %#x", name, c.request, got)
		}
	}
	const read = 2
	for nr, request := range map[uintptr]uintptr{1: ioctlUffdUnregister, 2: ioctlUffdWake} {
		if got := uintptr(read)<<30 | unsafe.Sizeof(uffdioRange{})<<16 | 0xAA<<8 | nr; got != request {
			t.Errorf("request %d of userfaultfd is %#x, want %#x", nr, request, got)
		}
	}
	if size, at := unsafe.Sizeof(faultEvent{}), unsafe.Offsetof(faultEvent{}.address); size != 32 || at != 16 {
		t.Errorf("struct uffd_msg has %d bytes, the address at %d, want 32 and 16", size, at)
	}
	if size := unsafe.Sizeof(pageRegion{}); size != 24 {
		t.Errorf("struct page_region has %d bytes, want 24", size)
	}
	for name, c := range map[string]struct{ got, want uintptr }{
		"walk_end":    {unsafe.Offsetof(pmScanArg{}.walkEnd), 32},
		"vec":         {unsafe.Offsetof(pmScanArg{}.vec), 40},
		"max_pages":   {unsafe.Offsetof(pmScanArg{}.maxPages), 56},
		"return_mask": {unsafe.Offsetof(pmScanArg{}.returnMask), 88},
	} {
		if c.got != c.want {
			t.Errorf("pm_scan_arg.%s is at %d, want %d", name, c.got, c.want)
		}
	}
}
