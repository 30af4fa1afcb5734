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
		"PAGEMAP_SCAN":    {unsafe.Sizeof(pmScanArg{}), 'f', 16, ioctlPagemapScan, 96},
	} {
		if c.size != c.min {
			t.Errorf("%s: the structure has %d bytes, the kernel's has %d", name, c.size, c.min)
		}
		if got := uintptr(readWrite)<<30 | c.size<<16 | uintptr(c.group)<<8 | uintptr(c.nr); got != c.request {
			t.Errorf("%s is %#x, want %#x", name, c.request, got)
		}
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
