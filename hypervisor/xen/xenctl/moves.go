//go:build xen

package xenctl

// This file is how Xen tells that a domain's frames are not what they were: an I/O
// request server, as device models are (libxendevicemodel). It serves no address, and
// gets only what all of them get: IOREQ_TYPE_INVALIDATE, by which a device model drops
// its mappings.
//
//	guest: a hypercall takes a frame from its memory, or puts one elsewhere
//	    ─> Xen stops the processor that made it, and writes a request ─> our port
//	    ─> goroutine of that processor: which hypercall it was (xen.TakesOnly)
//	    ─> told, unless it can have done no harm; answer ─> the processor goes on
//
// So what a guest does to its frames is known here before its next instruction. What
// only adds frames is not told of, and cannot be: the domain has all it may have
// (Control.Limit), and frames that are mapped here are the domain's until they are not
// (a balloon gives nothing back to Xen).
//
// The goroutines are owned by the Moves and end with Close. The server outlives a
// process that dies: who takes the domain on next answers what was left unanswered.

/*
#include <sys/mman.h>
#include <xenctrl.h>
#include <xendevicemodel.h>
#include <xenforeignmemory.h>
#include <xen/hvm/ioreq.h>
#include <xen/hvm/save.h>
*/
import "C"

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"understudy/epoch"
	"understudy/hypervisor/xen"
)

// Moves tells whether a domain has taken a frame from its memory or has put one
// elsewhere.
type Moves struct {
	control  *Control
	domain   uint32
	page     func(frame uint64) []byte // of the domain's memory, nil: none
	id       C.ioservid_t
	resource *C.xenforeignmemory_resource_handle
	requests []C.ioreq_t // one for each processor
	ports    []*Port

	answers sync.WaitGroup
	mu      sync.Mutex // held over each answer
	told    atomic.Bool
	broken  atomic.Pointer[error] // why nothing is heard any more
}

// Of a request (xen/hvm/ioreq.h) the byte with its state, in the low bits, and its type
// are bit fields in C.
const (
	ioreqState    = 30
	ioreqStateSet = 0x0f
)

// Moves makes a server, or takes on the one of a process that has died. Whether
// anything has happened before cannot be known: Told says so, unless the domain stands
// still. page returns what is mapped of a frame until Close; nil: nothing.
// xendevicemodel_create_ioreq_server, xendevicemodel_set_ioreq_server_state,
// xenforeignmemory_map_resource.
func (c *Control) Moves(domain uint32, emulated bool, page func(frame uint64) []byte) (_ *Moves, err error) {
	info, err := c.Info(domain)
	if err != nil {
		return nil, err
	}
	m := &Moves{control: c, domain: domain, page: page}
	m.told.Store(!info.Paused && !info.Shutdown)
	// A device model is there before, and has the first number.
	want := C.ioservid_t(0)
	if emulated {
		want = 1
	}
	if rc, _ := C.xendevicemodel_get_ioreq_server_info(c.models, C.domid_t(domain), want, nil, nil, nil); rc == 0 {
		m.id = want
		m.told.Store(true)
	} else if rc, err := C.xendevicemodel_create_ioreq_server(c.models, C.domid_t(domain), C.HVM_IOREQSRV_BUFIOREQ_OFF, &m.id); rc < 0 {
		return nil, c.words.failed("have Xen tell of frames that move", domain, err)
	}
	c.words.forget()
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Close())
		}
	}()
	if m.id != want {
		return nil, fmt.Errorf("domain %d has I/O servers of others: its server would have number %d, want %d", domain, m.id, want)
	}
	var at unsafe.Pointer
	if m.resource, err = C.xenforeignmemory_map_resource(c.memory, C.domid_t(domain), C.XENMEM_resource_ioreq_server, C.uint(m.id), 1, 1, &at, C.PROT_READ|C.PROT_WRITE, 0); m.resource == nil {
		return nil, c.words.failed("map the requests of its processors", domain, err)
	}
	count := int(info.MaxVCPU) + 1
	if most := epoch.PageSize / int(unsafe.Sizeof(C.ioreq_t{})); count > most {
		return nil, fmt.Errorf("domain %d has %d processors, at most %d are supported", domain, count, most)
	}
	m.requests = unsafe.Slice((*C.ioreq_t)(at), count)
	if rc, err := C.xendevicemodel_set_ioreq_server_state(c.models, C.domid_t(domain), m.id, 1); rc < 0 {
		return nil, c.words.failed("have Xen tell of frames that move", domain, err)
	}
	for vcpu := range m.requests {
		p, err := c.Bind(domain, uint32(m.requests[vcpu].vp_eport))
		if err != nil {
			return nil, err
		}
		m.ports = append(m.ports, p)
		m.answers.Go(func() { m.listen(vcpu, p) })
	}
	return m, nil
}

// cpuRecord is HVM_SAVE_CODE(CPU), which is an expression of types.
const cpuRecord = 2

// listen answers the requests of a processor.
func (m *Moves) listen(vcpu int, p *Port) {
	for {
		err := m.answer(vcpu, p)
		if err == nil {
			err = p.Wait()
		}
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				m.broken.Store(&err)
			}
			return
		}
	}
}

// answer lets a processor go on, if it waits for us.
func (m *Moves) answer(vcpu int, p *Port) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	state := m.state(vcpu)
	if *state&ioreqStateSet != C.STATE_IOREQ_READY {
		return nil
	}
	if !m.harmless(vcpu) {
		m.told.Store(true)
	}
	*state = *state&^ioreqStateSet | C.STATE_IORESP_READY // Notify is a barrier
	return p.Notify()
}

// harmless looks at what a processor has asked for that stands still:
// xc_domain_hvm_getcontext_partial. It does not know of what dom0 does to the domain's
// frames: of that the processor tells behind its own next hypercall.
func (m *Moves) harmless(vcpu int) bool {
	var cpu C.struct_hvm_hw_cpu
	rc, _ := C.xc_domain_hvm_getcontext_partial(m.control.xch, C.uint32_t(m.domain), cpuRecord, C.uint16_t(vcpu), unsafe.Pointer(&cpu), C.uint32_t(unsafe.Sizeof(cpu)))
	m.control.words.forget()
	return rc == 0 && xen.TakesOnly(unsafe.Slice((*byte)(unsafe.Pointer(&cpu)), unsafe.Sizeof(cpu)), m.page)
}

func (m *Moves) state(vcpu int) *byte {
	return (*byte)(unsafe.Add(unsafe.Pointer(&m.requests[vcpu]), ioreqState))
}

// Told reports whether frames may have moved, and forgets it. The domain stands still.
// After an error nothing is known of them any more.
func (m *Moves) Told() (bool, error) {
	if err := m.broken.Load(); err != nil {
		return true, fmt.Errorf("domain %d: hear of frames that move: %w", m.domain, *err)
	}
	for vcpu := range m.requests { // of a processor that stands still in the middle of it
		if *m.state(vcpu)&ioreqStateSet != C.STATE_IOREQ_NONE {
			m.told.Store(true)
		}
	}
	return m.told.Swap(false), nil
}

// Close ends the server, and lets processors go on that wait for it:
// xendevicemodel_destroy_ioreq_server. The domain may be gone.
func (m *Moves) Close() error {
	var errs []error
	if rc, err := C.xendevicemodel_set_ioreq_server_state(m.control.models, C.domid_t(m.domain), m.id, 0); rc < 0 && !isGone(err) {
		errs = append(errs, m.control.words.failed("have Xen tell no more of frames that move", m.domain, err))
	}
	for vcpu, p := range m.ports {
		errs = append(errs, m.answer(vcpu, p), p.Close())
	}
	m.answers.Wait()
	if m.resource != nil {
		m.requests = nil
		if rc, err := C.xenforeignmemory_unmap_resource(m.control.memory, m.resource); rc < 0 {
			errs = append(errs, m.control.words.failed("unmap the requests of its processors", m.domain, err))
		}
	}
	if rc, err := C.xendevicemodel_destroy_ioreq_server(m.control.models, C.domid_t(m.domain), m.id); rc < 0 && !isGone(err) {
		errs = append(errs, m.control.words.failed("end the telling of frames that move", m.domain, err))
	}
	m.control.words.forget()
	return errors.Join(errs...)
}

// isGone says that the domain, or what was asked for of it, is no more.
func isGone(err error) bool { return errors.Is(err, syscall.ESRCH) || errors.Is(err, syscall.ENOENT) }

// displacedBatch is how many frames are mapped again at a time.
const displacedBatch = 1 << 14

// Displaced counts, of count pages of the image from first on, those that the domain,
// which stands still, has elsewhere than in m: other machine frames are at their
// places. Places where it has nothing any more count not, nor do those where it has put
// Xen's own: its grant table, and the frame shared. It maps every frame again:
// xenforeignmemory_map.
func (m *Mapping) Displaced(domain uint32, frames *xen.Frames, first, count uint64, table *GrantTable, shared uint64) (displaced uint64, err error) {
	numbers := make([]C.xen_pfn_t, 0, min(count, displacedBatch))
	for end := first + count; first < end; first += uint64(len(numbers)) {
		numbers = numbers[:0]
		for page := first; page < min(end, first+displacedBatch); page++ {
			numbers = append(numbers, C.xen_pfn_t(frames.Frame(epoch.GFN(page))))
		}
		n, err := m.displaced(domain, numbers, m.bytes[first*epoch.PageSize:], table, shared)
		if err != nil {
			return 0, err
		}
		displaced += n
	}
	return displaced, nil
}

func (m *Mapping) displaced(domain uint32, numbers []C.xen_pfn_t, was []byte, table *GrantTable, shared uint64) (displaced uint64, err error) {
	failed := make([]C.int, len(numbers))
	at, err := C.xenforeignmemory_map(m.control.memory, C.uint32_t(domain), C.PROT_READ|C.PROT_WRITE, C.size_t(len(numbers)), &numbers[0], &failed[0])
	if at == nil {
		return 0, m.control.words.failed(fmt.Sprintf("map %d pages again", len(numbers)), domain, err)
	}
	m.control.words.forget()
	is := unsafe.Slice((*byte)(at), len(numbers)*epoch.PageSize)
	for i, number := range numbers {
		if failed[i] != 0 || uint64(number) == shared {
			continue
		}
		last := (i+1)*epoch.PageSize - 1
		if !same(&is[last], was[last:last+1]) && !same(&is[last], table.grants) {
			displaced++
		}
	}
	if rc, err := C.xenforeignmemory_unmap(m.control.memory, at, C.size_t(len(numbers))); rc < 0 {
		return 0, m.control.words.failed("unmap its pages", domain, err)
	}
	return displaced, nil
}

// same reports whether a page's last byte is the last byte of one of pages: it changes
// it, looks, and changes it back. Nobody writes there: the domain stands still, its back
// ends do, and the rings that others serve end before.
func same(last *byte, pages []byte) bool {
	tail := func(i int) byte { return pages[min((i+1)*epoch.PageSize, len(pages))-1] }
	count := (len(pages) + epoch.PageSize - 1) / epoch.PageSize
	for i := range count {
		before := tail(i)
		if before != *last {
			continue
		}
		*last = ^before
		is := tail(i) == ^before
		*last = before
		if is {
			return true
		}
	}
	return false
}
