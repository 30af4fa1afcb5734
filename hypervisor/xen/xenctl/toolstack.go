//go:build xen

package xenctl

// This file is libxenlight, for what only a toolstack does: domains are made,
// restored and destroyed, and their configuration is told. The library forks
// helpers of its own, and reaps them only when it is told of SIGCHLD: who has a
// Toolstack calls ChildEnded at every SIGCHLD (os/signal), and never reaps a
// child that it has not started.

/*
#include <stdlib.h>
#include <libxl.h>
#include <libxl_utils.h>
#include "log.h"
#include "toolstack.h"
*/
import "C"

import (
	"errors"
	"fmt"
	"syscall"
	"unsafe"
)

// Toolstack is a context of libxenlight. Calls that take long hold nobody else
// up, but each Toolstack does one thing at a time.
type Toolstack struct {
	words words
	ctx   *C.libxl_ctx
}

// NewToolstack makes a context: libxl_ctx_alloc, libxl_childproc_setmode.
func NewToolstack() (*Toolstack, error) {
	w, err := newWords()
	if err != nil {
		return nil, err
	}
	t := &Toolstack{words: w}
	rc := C.us_toolstack_new(&t.ctx, w.logger())
	if rc != 0 {
		err = t.failed("open libxenlight", 0, rc)
		w.free()
		return nil, err
	}
	return t, nil
}

// Close frees the context: libxl_ctx_free.
func (t *Toolstack) Close() error {
	C.libxl_ctx_free(t.ctx)
	t.words.free()
	return nil
}

// ChildEnded tells the library that a child of this process has ended:
// libxl_childproc_sigchld_occurred. It may be called beside any other method.
func (t *Toolstack) ChildEnded() { C.libxl_childproc_sigchld_occurred(t.ctx) }

// failed makes an error of libxl's number. A domain that is not there is
// syscall.ESRCH.
func (t *Toolstack) failed(what string, domain uint32, rc C.int) error {
	if rc == C.ERROR_DOMAIN_NOTFOUND {
		return t.words.failed(what, domain, syscall.ESRCH)
	}
	return t.words.failed(what, domain, errors.New(C.GoString(C.us_error_name(rc))))
}

// Config returns the configuration that makes a domain again, as libxl's JSON:
// libxl_retrieve_domain_configuration, libxl_domain_config_to_json.
func (t *Toolstack) Config(domain uint32) ([]byte, error) {
	var json *C.char
	rc := C.us_config(t.ctx, C.uint32_t(domain), &json)
	if rc != 0 {
		return nil, t.failed("ask for the configuration", domain, rc)
	}
	defer C.free(unsafe.Pointer(json))
	return []byte(C.GoString(json)), nil
}

// Create makes a domain of a configuration in libxl's JSON, paused:
// libxl_domain_config_from_json, libxl_domain_create_new.
func (t *Toolstack) Create(config []byte) (uint32, error) {
	json := C.CString(string(config))
	defer C.free(unsafe.Pointer(json))
	var domain C.uint32_t
	rc := C.us_create(t.ctx, json, &domain)
	if rc != 0 {
		return 0, t.failed("create", uint32(domain), rc)
	}
	return uint32(domain), nil
}

// Restore makes a domain of a configuration in libxl's JSON and a libxl stream
// (without SaveFile), paused: libxl_domain_create_restore of a plain stream. It
// returns when the stream has ended and the domain's devices are there; whoever
// writes the stream goes on meanwhile. After an error the domain is gone, or is
// the one returned and to be destroyed (0: none).
func (t *Toolstack) Restore(config []byte, fd uintptr) (uint32, error) {
	json := C.CString(string(config))
	defer C.free(unsafe.Pointer(json))
	var domain C.uint32_t
	rc := C.us_restore(t.ctx, json, C.int(fd), &domain)
	if rc != 0 {
		return uint32(domain), t.failed("restore", uint32(domain), rc)
	}
	return uint32(domain), nil
}

// Save asks a domain to suspend and writes a libxl stream of it (without SaveFile):
// libxl_domain_suspend, not live. The domain is there afterwards, suspended; after an
// error it may run.
func (t *Toolstack) Save(domain uint32, fd uintptr) error {
	if rc := C.us_save(t.ctx, C.uint32_t(domain), C.int(fd)); rc != 0 {
		return t.failed("save", domain, rc)
	}
	return nil
}

// Unpause lets a paused domain run, and its device model: libxl_domain_unpause.
func (t *Toolstack) Unpause(domain uint32) error {
	if rc := C.libxl_domain_unpause(t.ctx, C.uint32_t(domain), nil); rc != 0 {
		return t.failed("unpause", domain, rc)
	}
	return nil
}

// Resume lets a suspended domain go on, cooperatively, with its device model:
// libxl_domain_resume.
func (t *Toolstack) Resume(domain uint32) error {
	if rc := C.libxl_domain_resume(t.ctx, C.uint32_t(domain), 1, nil); rc != 0 {
		return t.failed("resume", domain, rc)
	}
	return nil
}

// Destroy ends a domain at once and removes its devices: libxl_domain_destroy.
func (t *Toolstack) Destroy(domain uint32) error {
	if rc := C.libxl_domain_destroy(t.ctx, C.uint32_t(domain), nil); rc != 0 {
		return t.failed("destroy", domain, rc)
	}
	return nil
}

// Rename gives a domain another name: libxl_domain_rename. No other domain has it.
func (t *Toolstack) Rename(domain uint32, name string) error {
	text := C.CString(name)
	defer C.free(unsafe.Pointer(text))
	if rc := C.libxl_domain_rename(t.ctx, C.uint32_t(domain), nil, text); rc != 0 {
		return t.failed(fmt.Sprintf("call it %q", name), domain, rc)
	}
	return nil
}

// Monitor gives a line to the monitor of a domain's device model and returns what
// it says: libxl_qemu_monitor_command.
func (t *Toolstack) Monitor(domain uint32, line string) (string, error) {
	text := C.CString(line)
	defer C.free(unsafe.Pointer(text))
	var out *C.char
	rc := C.libxl_qemu_monitor_command(t.ctx, C.uint32_t(domain), text, &out, nil)
	if rc != 0 {
		return "", t.failed(fmt.Sprintf("monitor command %q", line), domain, rc)
	}
	defer C.free(unsafe.Pointer(out))
	return C.GoString(out), nil
}
