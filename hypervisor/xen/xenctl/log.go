//go:build xen

package xenctl

// This file catches what Xen's libraries say, so that an error can be told in
// their words: a logger of libxentoollog that keeps the last lines.

/*
#cgo CFLAGS: -Wall -Werror -D__XEN_TOOLS__
#cgo LDFLAGS: -lxenlight -lxenguest -lxenctrl -lxenforeignmemory -lxendevicemodel -lxenevtchn -lxentoollog
#include <stdlib.h>
#include "log.h"
*/
import "C"

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"unsafe"
)

// words is a logger, of which one library handle is told.
type words struct{ c *C.us_logger }

func newWords() (words, error) {
	c := C.us_logger_new()
	if c == nil {
		return words{}, syscall.ENOMEM
	}
	return words{c}, nil
}

func (w words) logger() *C.xentoollog_logger { return C.us_logger_base(w.c) }

func (w words) free() { C.us_logger_free(w.c) }

// failed makes an error of what was tried, the errno that the call left, and what
// the library has said since the last error.
func (w words) failed(what string, domain uint32, errno error) error {
	text := C.us_logger_take(w.c)
	defer C.free(unsafe.Pointer(text))
	said := strings.TrimSpace(C.GoString(text))
	if errno == nil {
		errno = errors.New("the library gives no reason")
	}
	if said == "" {
		return fmt.Errorf("%s of domain %d: %w", what, domain, errno)
	}
	return fmt.Errorf("%s of domain %d: %w (Xen says: %s)", what, domain, errno, strings.ReplaceAll(said, "\n", "; "))
}

// forget throws away what was said by calls that did not fail.
func (w words) forget() { C.free(unsafe.Pointer(C.us_logger_take(w.c))) }
