//go:build xen

package xenctl

// This file is a domain's memory in ours, and what it wrote: libxenforeignmemory
// and the log-dirty bitmap.

/*
#include <stdlib.h>
#include <sys/mman.h>
#include <xenctrl.h>
#include <xenforeignmemory.h>
#include "glue.h"
*/
import "C"

import (
	"errors"
	"fmt"
	"unsafe"

	"understudy/epoch"
	"understudy/hypervisor/xen"
)

// Mapping is a domain's memory in ours: the pages of its image, in their order.
// What is mapped outlives its domain.
type Mapping struct {
	control *Control
	bytes   []byte
	pages   C.size_t
}

// Map maps all of a domain's frames, for reading and, if write says so, for
// writing: xenforeignmemory_map. It fails if a single one cannot be mapped.
func (c *Control) Map(domain uint32, frames *xen.Frames, write bool) (*Mapping, error) {
	numbers := frameNumbers(frames)
	prot := C.int(C.PROT_READ)
	if write {
		prot |= C.PROT_WRITE
	}
	at, err := C.xenforeignmemory_map(c.memory, C.uint32_t(domain), prot, C.size_t(len(numbers)), &numbers[0], nil)
	if at == nil {
		return nil, c.words.failed(fmt.Sprintf("map the %d pages", len(numbers)), domain, err)
	}
	return &Mapping{control: c, bytes: unsafe.Slice((*byte)(at), len(numbers)*epoch.PageSize), pages: C.size_t(len(numbers))}, nil
}

// frameNumbers are a domain's frames as C wants them.
func frameNumbers(frames *xen.Frames) []C.xen_pfn_t {
	numbers := make([]C.xen_pfn_t, 0, frames.Pages())
	for _, r := range frames.Runs() {
		for f := r.First; f < r.First+r.Count; f++ {
			numbers = append(numbers, C.xen_pfn_t(f))
		}
	}
	return numbers
}

// Bytes is the memory. It must not be touched after Close.
func (m *Mapping) Bytes() []byte { return m.bytes }

// Close unmaps the memory: xenforeignmemory_unmap.
func (m *Mapping) Close() error {
	at := unsafe.Pointer(&m.bytes[0])
	m.bytes = nil
	if rc, err := C.xenforeignmemory_unmap(m.control.memory, at, m.pages); rc < 0 {
		return fmt.Errorf("unmap a domain's memory: %w", err)
	}
	return nil
}

// GrantTable is a domain's grant table, mapped for reading.
type GrantTable struct {
	control  *Control
	resource *C.xenforeignmemory_resource_handle
	grants   xen.Grants
}

// Grants maps a domain's grant table, as large as it may become:
// xenforeignmemory_resource_size, xenforeignmemory_map_resource. A table of
// version 2 is refused: its entries are others. Only such a one has frames for
// statuses, of whatever size the hypervisor says they are.
func (c *Control) Grants(domain uint32) (*GrantTable, error) {
	if status, _ := c.grantFrames(domain, C.XENMEM_resource_grant_table_id_status, epoch.PageSize); status != nil {
		return nil, errors.Join(fmt.Errorf("domain %d has a grant table of version 2, only version 1 is supported: start the host with gnttab=max-ver:1", domain), status.Close())
	}
	c.words.forget()
	size, err := c.grantTableSize(domain)
	if err != nil {
		return nil, err
	}
	return c.grantFrames(domain, C.XENMEM_resource_grant_table_id_shared, size)
}

// grantFrames maps the first frames of one of the two tables.
func (c *Control) grantFrames(domain uint32, id C.uint, size int) (*GrantTable, error) {
	var at unsafe.Pointer
	h, err := C.xenforeignmemory_map_resource(c.memory, C.domid_t(domain), C.XENMEM_resource_grant_table, id, 0, C.ulong(size/epoch.PageSize), &at, C.PROT_READ, 0)
	if h == nil {
		return nil, c.words.failed("map the grant table", domain, err)
	}
	return &GrantTable{control: c, resource: h, grants: unsafe.Slice((*byte)(at), size)}, nil
}

// grantTableSize returns the size of a domain's grant table, in bytes.
func (c *Control) grantTableSize(domain uint32) (int, error) {
	var size C.size_t
	if rc, err := C.xenforeignmemory_resource_size(c.memory, C.domid_t(domain), C.XENMEM_resource_grant_table, C.XENMEM_resource_grant_table_id_shared, &size); rc < 0 {
		return 0, c.words.failed("ask for the size of the grant table", domain, err)
	}
	return int(size), nil
}

// Grants is the table. It must not be touched after Close.
func (g *GrantTable) Grants() xen.Grants { return g.grants }

// Close unmaps the table: xenforeignmemory_unmap_resource.
func (g *GrantTable) Close() error {
	g.grants = nil
	if rc, err := C.xenforeignmemory_unmap_resource(g.control.memory, g.resource); rc < 0 {
		return fmt.Errorf("unmap a grant table: %w", err)
	}
	return nil
}

// DirtyLog tells which of a domain's frames were written.
type DirtyLog struct {
	control *Control
	domain  uint32
	bitmap  *C.us_bitmap
	words   []uint64
}

// LogDirty begins to log writes: xc_shadow_control(ENABLE_LOGDIRTY). Somebody
// else's log (a live migration, a device model's) is ended first.
func (c *Control) LogDirty(domain uint32) (*DirtyLog, error) {
	var count C.xen_pfn_t
	if rc, err := C.xc_domain_nr_gpfns(c.xch, C.uint32_t(domain), &count); rc < 0 {
		return nil, c.words.failed("ask for the highest frame", domain, err)
	}
	enable := func() (C.int, error) {
		rc, err := C.xc_shadow_control(c.xch, C.uint32_t(domain), C.XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY, nil, 0)
		return rc, err
	}
	if rc, _ := enable(); rc < 0 {
		C.xc_shadow_control(c.xch, C.uint32_t(domain), C.XEN_DOMCTL_SHADOW_OP_OFF, nil, 0)
		c.words.forget()
		if rc, err := enable(); rc < 0 {
			return nil, c.words.failed("log the writes (a PV domain cannot be logged by a Xen without shadow paging)", domain, err)
		}
	}
	l := &DirtyLog{control: c, domain: domain}
	var err error
	if l.bitmap, err = C.us_bitmap_new(c.xch, count); l.bitmap == nil {
		C.xc_shadow_control(c.xch, C.uint32_t(domain), C.XEN_DOMCTL_SHADOW_OP_OFF, nil, 0)
		return nil, c.words.failed(fmt.Sprintf("make room for the log of %d frames", count), domain, err)
	}
	l.words = unsafe.Slice((*uint64)(unsafe.Pointer(C.us_bitmap_words(l.bitmap))), (uint64(count)+63)/64)
	return l, nil
}

// Clean returns a bit for each frame written since the last Clean, and forgets
// them: XEN_DOMCTL_SHADOW_OP_CLEAN with LOGDIRTY_FINAL, which adds what the
// hypervisor has mapped for writing. The words are valid until the next call.
// After an error every page counts as dirty.
func (l *DirtyLog) Clean() ([]uint64, error) {
	n, err := C.us_bitmap_clean(l.control.xch, C.uint32_t(l.domain), l.bitmap)
	if n < 0 || uint64(n) < uint64(len(l.words)-1)*64 {
		return nil, l.control.words.failed(fmt.Sprintf("fetch the log (%d frames)", n), l.domain, err)
	}
	return l.words, nil
}

// Close ends the log: xc_shadow_control(OFF). The domain may be gone.
func (l *DirtyLog) Close() error {
	rc, err := C.xc_shadow_control(l.control.xch, C.uint32_t(l.domain), C.XEN_DOMCTL_SHADOW_OP_OFF, nil, 0)
	C.us_bitmap_free(l.control.xch, l.bitmap)
	l.bitmap, l.words = nil, nil
	if rc < 0 {
		return l.control.words.failed("end the log", l.domain, err)
	}
	return nil
}
