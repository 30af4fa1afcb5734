//go:build xen

package xenctl

// This file is what libxenctrl and libxenguest say of a domain, and how it goes
// on after a suspend.

/*
#include <stdlib.h>
#include <xenctrl.h>
#include <xenguest.h>
#include <xendevicemodel.h>
#include <xenforeignmemory.h>
#include "glue.h"
#include "log.h"
*/
import "C"

import (
	"errors"
	"fmt"
	"slices"
	"syscall"
	"unsafe"

	"understudy/epoch"
	"understudy/hypervisor/xen"
	"understudy/hypervisor/xen/stream"
)

// Control is an open connection to the hypervisor.
type Control struct {
	words  words
	xch    *C.xc_interface
	memory *C.xenforeignmemory_handle
	models *C.xendevicemodel_handle
}

// Open opens the hypervisor's interfaces: xc_interface_open,
// xenforeignmemory_open, xendevicemodel_open. It needs to be root of the first domain.
func Open() (*Control, error) {
	w, err := newWords()
	if err != nil {
		return nil, err
	}
	c := &Control{words: w}
	if c.xch, err = C.xc_interface_open(w.logger(), w.logger(), 0); c.xch == nil {
		err = w.failed("open the hypervisor's interface (is this a Xen host's first domain?)", 0, err)
		w.free()
		return nil, err
	}
	if c.memory, err = C.xenforeignmemory_open(w.logger(), 0); c.memory == nil {
		err = errors.Join(w.failed("open the interface to domains' memory", 0, err), c.Close())
		return nil, err
	}
	if c.models, err = C.xendevicemodel_open(w.logger(), 0); c.models == nil {
		err = errors.Join(w.failed("open the interface for device models", 0, err), c.Close())
		return nil, err
	}
	return c, nil
}

// Close closes the connection. Mappings are closed before.
func (c *Control) Close() error {
	if c.models != nil {
		C.xendevicemodel_close(c.models)
	}
	if c.memory != nil {
		C.xenforeignmemory_close(c.memory)
	}
	C.xc_interface_close(c.xch)
	c.words.free()
	return nil
}

// Version returns the hypervisor's version: xc_version(XENVER_version).
func (c *Control) Version() (major, minor uint32, err error) {
	v, err := C.xc_version(c.xch, C.XENVER_version, nil)
	if v < 0 {
		return 0, 0, c.words.failed("ask for the hypervisor's version", 0, err)
	}
	return uint32(v) >> 16, uint32(v) & 0xffff, nil
}

// Abilities are what this host's Xen can do.
type Abilities struct {
	HAP  bool   // paging by hardware
	Free uint64 // memory that no domain has, in bytes
}

// Abilities asks for them: xc_physinfo.
func (c *Control) Abilities() (Abilities, error) {
	var p C.xc_physinfo_t
	if rc, err := C.xc_physinfo(c.xch, &p); rc < 0 {
		return Abilities{}, c.words.failed("ask what the host can do", 0, err)
	}
	return Abilities{HAP: p.capabilities&C.XEN_SYSCTL_PHYSCAP_hap != 0, Free: uint64(p.free_pages) * epoch.PageSize}, nil
}

// Info asks for a domain: xc_domain_getinfo. syscall.ESRCH says that there is
// none of that number.
func (c *Control) Info(domain uint32) (xen.Info, error) {
	var d C.xc_dominfo_t
	n, err := C.xc_domain_getinfo(c.xch, C.uint32_t(domain), 1, &d)
	if n < 0 {
		return xen.Info{}, c.words.failed("ask for the state", domain, err)
	}
	if n == 0 || uint32(d.domid) != domain {
		return xen.Info{}, fmt.Errorf("ask for the state of domain %d: %w", domain, syscall.ESRCH)
	}
	return infoOf(&d), nil
}

// Domains asks for all domains but the first: xc_domain_getinfo.
func (c *Control) Domains() ([]xen.Info, error) {
	var all []xen.Info
	var batch [32]C.xc_dominfo_t
	for first := C.uint32_t(1); ; {
		n, err := C.xc_domain_getinfo(c.xch, first, C.uint(len(batch)), &batch[0])
		if n < 0 && errors.Is(err, syscall.ESRCH) {
			return all, nil
		}
		if n < 0 {
			return nil, c.words.failed("list the domains", 0, err)
		}
		for i := range batch[:n] {
			all = append(all, infoOf(&batch[i]))
		}
		if int(n) < len(batch) {
			return all, nil
		}
		first = batch[n-1].domid + 1
	}
}

func infoOf(d *C.xc_dominfo_t) xen.Info {
	i := xen.Info{
		Domain: uint32(d.domid), Pages: uint64(d.nr_pages), MaxKiB: uint64(d.max_memkb), Online: uint32(d.nr_online_vcpus), MaxVCPU: uint32(d.max_vcpu_id),
		Reason: uint(d.shutdown_reason), Shared: uint64(d.shared_info_frame),
	}
	for n := range i.UUID {
		i.UUID[n] = byte(d.handle[n])
	}
	var flags C.us_flags
	C.us_dominfo_flags(d, &flags)
	i.HVM, i.Nested, i.Dying, i.Crashed = flags.hvm != 0, flags.hap != 0, flags.dying != 0, flags.crashed != 0
	i.Shutdown, i.Paused = flags.shutdown != 0, flags.paused != 0
	return i
}

// Frames asks which of a domain's frames have content: xc_domain_nr_gpfns and
// xc_get_pfn_type_batch over all. It takes about a second for a million.
func (c *Control) Frames(domain uint32) (*xen.Frames, error) {
	var count C.xen_pfn_t
	if rc, err := C.xc_domain_nr_gpfns(c.xch, C.uint32_t(domain), &count); rc < 0 {
		return nil, c.words.failed("ask for the highest frame", domain, err)
	}
	if count > xen.MaxFrame {
		return nil, fmt.Errorf("domain %d has frames up to %d, at most %d are supported", domain, count, uint64(xen.MaxFrame))
	}
	var b xen.Builder
	batch := make([]C.xen_pfn_t, stream.MaxBatch)
	for at := uint64(0); at < uint64(count); at += uint64(len(batch)) {
		batch = batch[:min(uint64(len(batch)), uint64(count)-at)]
		for i := range batch {
			batch[i] = C.xen_pfn_t(at + uint64(i))
		}
		if rc, err := C.xc_get_pfn_type_batch(c.xch, C.uint32_t(domain), C.uint(len(batch)), &batch[0]); rc < 0 {
			return nil, c.words.failed(fmt.Sprintf("ask for the types of the frames from %d on", at), domain, err)
		}
		for i, t := range batch {
			switch t & C.XEN_DOMCTL_PFINFO_LTAB_MASK {
			case C.XEN_DOMCTL_PFINFO_XTAB, C.XEN_DOMCTL_PFINFO_XALLOC:
			case C.XEN_DOMCTL_PFINFO_BROKEN:
				return nil, fmt.Errorf("frame %d of domain %d is broken memory: move the domain to another host", at+uint64(i), domain)
			default:
				b.Add(at + uint64(i))
			}
		}
	}
	return b.Frames()
}

// Policies returns what the domain sees of its processor:
// xc_cpu_policy_get_domain and xc_cpu_policy_serialise.
func (c *Control) Policies(domain uint32) (xen.Policies, error) {
	var leaves, msrs C.uint32_t
	if rc, err := C.xc_cpu_policy_get_size(c.xch, &leaves, &msrs); rc < 0 {
		return xen.Policies{}, c.words.failed("ask for the size of the CPU policy", domain, err)
	}
	policy, err := C.xc_cpu_policy_init()
	if policy == nil {
		return xen.Policies{}, c.words.failed("make room for the CPU policy", domain, err)
	}
	defer C.xc_cpu_policy_destroy(policy)
	if rc, err := C.xc_cpu_policy_get_domain(c.xch, C.uint32_t(domain), policy); rc < 0 {
		return xen.Policies{}, c.words.failed("ask for the CPU policy", domain, err)
	}
	l := make([]C.xen_cpuid_leaf_t, leaves+1)
	m := make([]C.xen_msr_entry_t, msrs+1)
	if rc, err := C.xc_cpu_policy_serialise(c.xch, policy, &l[0], &leaves, &m[0], &msrs); rc < 0 {
		return xen.Policies{}, c.words.failed("read the CPU policy", domain, err)
	}
	return xen.Policies{
		CPUID: C.GoBytes(unsafe.Pointer(&l[0]), C.int(uintptr(leaves)*unsafe.Sizeof(l[0]))),
		MSR:   C.GoBytes(unsafe.Pointer(&m[0]), C.int(uintptr(msrs)*unsafe.Sizeof(m[0]))),
	}, nil
}

// params are the parameters that libxc saves (xg_sr_save_x86_hvm.c).
var params = [...]C.uint32_t{
	C.HVM_PARAM_STORE_PFN, C.HVM_PARAM_IOREQ_PFN, C.HVM_PARAM_BUFIOREQ_PFN, C.HVM_PARAM_PAGING_RING_PFN, C.HVM_PARAM_MONITOR_RING_PFN,
	C.HVM_PARAM_SHARING_RING_PFN, C.HVM_PARAM_VM86_TSS_SIZED, C.HVM_PARAM_CONSOLE_PFN, C.HVM_PARAM_ACPI_IOPORTS_LOCATION,
	C.HVM_PARAM_VIRIDIAN, C.HVM_PARAM_IDENT_PT, C.HVM_PARAM_VM_GENERATION_ID_ADDR, C.HVM_PARAM_IOREQ_SERVER_PFN,
	C.HVM_PARAM_NR_IOREQ_SERVER_PAGES, C.HVM_PARAM_X87_FIP_WIDTH, C.HVM_PARAM_MCA_CAP,
}

// Params appends the domain's parameters that are not zero: xc_hvm_param_get for
// each.
func (c *Control) Params(domain uint32, dst []stream.HVMParam) ([]stream.HVMParam, error) {
	for _, index := range params {
		var value C.uint64_t
		if rc, err := C.xc_hvm_param_get(c.xch, C.uint32_t(domain), index, &value); rc < 0 {
			return dst, c.words.failed(fmt.Sprintf("ask for HVM parameter %d", index), domain, err)
		}
		if value != 0 {
			dst = append(dst, stream.HVMParam{Index: uint64(index), Value: uint64(value)})
		}
	}
	return dst, nil
}

// Limit bounds the pages that a domain may have: xc_domain_setmaxmem.
func (c *Control) Limit(domain uint32, pages uint64) error {
	if rc, err := C.xc_domain_setmaxmem(c.xch, C.uint32_t(domain), C.uint64_t(pages*epoch.PageSize>>10)); rc < 0 {
		return c.words.failed(fmt.Sprintf("allow no more than %d pages", pages), domain, err)
	}
	return nil
}

// LaidOut reports whether the firmware of an HVM domain has made all the memory that
// it makes: HVM_PARAM_VM86_TSS_SIZED is the last that hvmloader sets of it.
func (c *Control) LaidOut(domain uint32) (bool, error) {
	var value C.uint64_t
	if rc, err := C.xc_hvm_param_get(c.xch, C.uint32_t(domain), C.HVM_PARAM_VM86_TSS_SIZED, &value); rc < 0 {
		return false, c.words.failed("ask how far the firmware is", domain, err)
	}
	return value != 0, nil
}

// CallbackSet reports whether the guest has drivers that answer a request to
// suspend: HVM_PARAM_CALLBACK_IRQ is set.
func (c *Control) CallbackSet(domain uint32) (bool, error) {
	var value C.uint64_t
	if rc, err := C.xc_hvm_param_get(c.xch, C.uint32_t(domain), C.HVM_PARAM_CALLBACK_IRQ, &value); rc < 0 {
		return false, c.words.failed("ask for the guest's callback", domain, err)
	}
	return value != 0, nil
}

// SetState gives a domain that stands still another state than its own, as libxc does
// at the end of a stream (xg_sr_restore_x86_hvm.c): xc_domain_set_tsc_info,
// xc_hvm_param_set for what is another, and xc_domain_hvm_setcontext. After an error
// it has some of it. The rings' frames stay what they are (State.Transient).
func (c *Control) SetState(domain uint32, s *xen.State) error {
	if rc, err := C.xc_domain_set_tsc_info(c.xch, C.uint32_t(domain), C.uint32_t(s.TSC.Mode), C.uint64_t(s.TSC.Nanoseconds), C.uint32_t(s.TSC.KHz), C.uint32_t(s.TSC.Incarnation)); rc < 0 {
		return c.words.failed("set the time stamp counter", domain, err)
	}
	now, err := c.Params(domain, nil)
	if err != nil {
		return err
	}
	for _, p := range s.Params {
		if slices.Contains(now, p) {
			continue // some can be set only once
		}
		if rc, err := C.xc_hvm_param_set(c.xch, C.uint32_t(domain), C.uint32_t(p.Index), C.uint64_t(p.Value)); rc < 0 {
			return c.words.failed(fmt.Sprintf("set HVM parameter %d to %#x", p.Index, p.Value), domain, err)
		}
	}
	if rc, err := C.xc_domain_hvm_setcontext(c.xch, C.uint32_t(domain), (*C.uint8_t)(unsafe.Pointer(unsafe.SliceData(s.Context))), C.uint32_t(len(s.Context))); rc < 0 {
		return c.words.failed("set the HVM context", domain, err)
	}
	return nil
}

// Pause stops a domain's processors where they are: xc_domain_pause. Each call
// needs an Unpause.
func (c *Control) Pause(domain uint32) error {
	if rc, err := C.xc_domain_pause(c.xch, C.uint32_t(domain)); rc < 0 {
		return c.words.failed("pause", domain, err)
	}
	return nil
}

// Unpause is xc_domain_unpause.
func (c *Control) Unpause(domain uint32) error {
	if rc, err := C.xc_domain_unpause(c.xch, C.uint32_t(domain)); rc < 0 {
		return c.words.failed("unpause", domain, err)
	}
	return nil
}

// SavePV writes a libxc stream of a PV domain that has suspended:
// xc_domain_save, not live. It calls nothing back but that the domain has
// suspended already.
func (c *Control) SavePV(domain uint32, fd uintptr) error {
	if rc, err := C.us_save_suspended(c.xch, C.int(fd), C.uint32_t(domain)); rc != 0 {
		return c.words.failed("save", domain, err)
	}
	return nil
}
