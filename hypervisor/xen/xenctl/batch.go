//go:build xen

package xenctl

// This file is what is asked of the hypervisor while a domain stands still:
// libxencall, on which libxenctrl stands. libxenctrl makes, maps and unmaps memory
// for each call that has more to say than a page holds, which costs more than the
// call; here it is made once for each domain. And what is asked for the state is one
// multicall.

/*
#cgo LDFLAGS: -lxencall
#include "batch.h"
#include "log.h"
*/
import "C"

import (
	"unsafe"

	"understudy/hypervisor/xen"
	"understudy/hypervisor/xen/stream"
)

// Batch is the hypercalls of one domain's pauses. Its methods are called by one
// goroutine at a time.
type Batch struct {
	control *Control
	domain  uint32
	calls   *C.us_batch
}

// Batch makes them for a PVH or HVM domain: xencall_open, and memory.
func (c *Control) Batch(domain uint32) (*Batch, error) {
	calls, err := C.us_batch_new(c.words.logger(), C.uint32_t(domain), &params[0], C.size_t(len(params)))
	if calls == nil {
		return nil, c.words.failed("prepare what is asked of it in its pauses", domain, err)
	}
	return &Batch{control: c, domain: domain, calls: calls}, nil
}

// State fills s in, using its memory again, but for the device model's: gettscinfo,
// HVMOP_get_param for each that is saved, gethvmcontext. The domain stands still.
func (b *Batch) State(s *xen.State) error {
	var got C.us_state
	var what *C.char
	if rc, err := C.us_batch_state(b.calls, &got, &what); rc < 0 {
		return b.control.words.failed(C.GoString(what), b.domain, err)
	}
	s.TSC = stream.TSCInfo{Mode: uint32(got.tsc_mode), KHz: uint32(got.tsc_khz), Nanoseconds: uint64(got.tsc_nsec), Incarnation: uint32(got.tsc_incarnation)}
	s.Params = s.Params[:0]
	for i, value := range unsafe.Slice((*uint64)(got.params), len(params)) {
		if value != 0 {
			s.Params = append(s.Params, stream.HVMParam{Index: uint64(params[i]), Value: value})
		}
	}
	s.Context = append(s.Context[:0], unsafe.Slice((*byte)(got.context), int(got.context_size))...)
	return nil
}

// Resume lets the domain go on, which has suspended and has drivers for Xen. It does
// what xc_domain_resume does cooperatively, without asking again what is known.
func (b *Batch) Resume() error {
	var what *C.char
	if rc, err := C.us_batch_resume(b.calls, &what); rc < 0 {
		return b.control.words.failed(C.GoString(what), b.domain, err)
	}
	return nil
}

// Close frees the memory: xencall_close.
func (b *Batch) Close() { C.us_batch_free(b.calls) }
