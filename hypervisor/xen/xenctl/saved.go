//go:build xen

package xenctl

// This file is a domain that goes to a stream and comes of one, by the toolstack
// alone, as `xl save` and `xl restore` do it: a PV domain has no other way.
//
//	Suspend: libxl_domain_suspend ─ pipe ─> Leaving ─> End: the domain ends, or goes on
//	Arrive:  the caller ─ pipe ─> libxl_domain_create_restore ─> the domain runs
//
// Each has a goroutine of its own in the library, which ends with its pipe at the
// latest.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"understudy/hypervisor/xen"
)

// Leaving is a domain that is being saved. Reading it reads a libxl stream.
type Leaving struct {
	*os.File
	// Config is the domain's configuration in libxl's JSON.
	Config []byte
	// Pages bounds the numbers of the domain's pages.
	Pages uint64

	host   *Host
	domain uint32
	done   chan error
}

// spareNumbers is for numbers of pages that a guest has and does not use: 1 GiB.
const spareNumbers = 1 << 18

// pipeSize is what any user may have.
const pipeSize = 1 << 20

// Named returns the domain of that name.
func (h *Host) Named(ctx context.Context, name string) (xen.Named, error) {
	all, err := h.Domains(ctx)
	if err != nil {
		return xen.Named{}, err
	}
	for _, one := range all {
		if one.Name == name && !one.Dying {
			return one, nil
		}
	}
	return xen.Named{}, fmt.Errorf("this host has no domain %q", name)
}

// Suspend asks a PV domain to suspend, and has its stream written: what is read of
// the Leaving. The caller calls End.
func (h *Host) Suspend(ctx context.Context, domain xen.Named) (*Leaving, error) {
	if domain.HVM {
		return nil, fmt.Errorf("domain %q is no PV domain, and which memory it has shows at the end of its stream only: save it to a file", domain.Name)
	}
	l := &Leaving{host: h, domain: domain.Domain, Pages: 2*max(domain.MaxKiB/4, domain.Pages) + spareNumbers, done: make(chan error, 1)}
	err := h.with(func(t *Toolstack) (err error) {
		l.Config, err = t.Config(domain.Domain)
		return err
	})
	if err != nil {
		return nil, err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	l.File = read
	_, _ = unix.FcntlInt(read.Fd(), unix.F_SETPIPE_SZ, pipeSize) // else it is smaller
	go func() {
		err := h.with(func(t *Toolstack) error { return t.Save(domain.Domain, write.Fd()) })
		_ = write.Close() // the reader finds the end
		l.done <- err
	}()
	return l, nil
}

// End ends the domain if its stream has been kept, and lets it go on otherwise, or
// if it could not be saved. A second call does nothing.
func (l *Leaving) End(kept bool) error {
	if l.done == nil {
		return nil
	}
	_ = l.Close() // a writer is not left waiting
	err := <-l.done
	l.done = nil
	if kept && err == nil {
		return l.host.Destroy(l.domain)
	}
	info, looked := l.host.control.Info(l.domain)
	if looked == nil && info.Shutdown && info.Reason == xen.ReasonSuspend {
		looked = l.host.with(func(t *Toolstack) error { return t.Resume(l.domain) })
	}
	if !kept {
		err = nil // whoever did not want it knows why
	}
	return errors.Join(err, looked)
}

// Arrive makes a domain of a stream that write writes, and lets it run. After an
// error there is none.
func (h *Host) Arrive(config []byte, write func(io.Writer) error) (domain uint32, err error) {
	read, out, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	done := make(chan restored, 1)
	go func() {
		var r restored
		r.err = h.with(func(t *Toolstack) (err error) {
			r.domain, err = t.Restore(config, read.Fd())
			return err
		})
		_ = read.Close() // a writer is not left waiting
		done <- r
	}()
	err = errors.Join(write(out), out.Close())
	r := <-done
	if errors.Is(err, syscall.EPIPE) && r.err != nil {
		err = nil // that is why
	}
	if err = errors.Join(r.err, err); err == nil {
		err = h.with(func(t *Toolstack) error { return t.Unpause(r.domain) })
	}
	if err != nil && r.domain != 0 {
		if ended := h.Destroy(r.domain); !errors.Is(ended, syscall.ESRCH) {
			err = errors.Join(err, ended)
		}
	}
	return r.domain, err
}
