//go:build xen

package xenctl

// This file is the Xen host as a xen.Driver wants it: the libraries' handles, kept
// open, and what takes several of them.
//
//	goroutine: SIGCHLD ─> every Toolstack is told, since each forks helpers of its own
//
// It is owned by the Host, and ends with Close.

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"understudy/hypervisor/xen"
	"understudy/hypervisor/xen/xenbus"
	"understudy/hypervisor/xen/xenstore"
)

// Host is this host's Xen. It implements xen.Host. Its methods may be called from
// several goroutines.
type Host struct {
	control *Control
	store   *xenstore.Client
	monitor Monitors
	ended   chan os.Signal
	told    sync.WaitGroup

	mu       sync.Mutex
	all      map[*Toolstack]bool // true: nobody uses it
	restores map[*waiting]bool   // those that are neither finished nor discarded
	over     bool
}

var _ xen.Host = (*Host)(nil)

// Monitors connects to a device model's QMP socket.
type Monitors func(ctx context.Context, path string) (xen.Monitor, error)

// OpenHost opens the interfaces of this host's Xen. It needs to be root of the first
// domain. HVM domains need their device models' monitors.
func OpenHost(ctx context.Context, monitor Monitors) (*Host, error) {
	control, err := Open()
	if err != nil {
		return nil, err
	}
	store, err := xenstore.Dial(ctx, xenstore.Socket)
	if err != nil {
		return nil, errors.Join(err, control.Close())
	}
	h := &Host{control: control, store: store, monitor: monitor, ended: make(chan os.Signal, 1), all: map[*Toolstack]bool{}, restores: map[*waiting]bool{}}
	signal.Notify(h.ended, syscall.SIGCHLD)
	h.told.Go(func() {
		for range h.ended {
			h.mu.Lock()
			all := slices.Collect(maps.Keys(h.all))
			h.mu.Unlock()
			for _, t := range all { // none is closed before this goroutine has ended
				t.ChildEnded()
			}
		}
	})
	return h, nil
}

// Close closes everything. Nobody uses the Host any more; restores that wait for their
// last piece are discarded, since libxenlight ends the process if it is let go of while
// one of its helpers runs.
func (h *Host) Close() error {
	h.mu.Lock()
	left := slices.Collect(maps.Keys(h.restores))
	h.mu.Unlock()
	var errs []error
	for _, w := range left {
		errs = append(errs, w.Discard())
	}
	signal.Stop(h.ended)
	close(h.ended)
	h.told.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.over = true
	for t := range h.all {
		errs = append(errs, t.Close())
	}
	clear(h.all)
	return errors.Join(append(errs, h.store.Close(), h.control.Close())...)
}

// Control is the connection to the hypervisor.
func (h *Host) Control() *Control { return h.control }

// Store is the connection to xenstored.
func (h *Host) Store() *xenstore.Client { return h.store }

// with does something with a Toolstack that nobody else uses meanwhile.
func (h *Host) with(do func(*Toolstack) error) error {
	t, err := h.borrow()
	if err != nil {
		return err
	}
	defer func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.all[t] = true
	}()
	return do(t)
}

func (h *Host) borrow() (*Toolstack, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over {
		return nil, errors.New("use libxenlight: this host's Xen was let go of")
	}
	for t, free := range h.all {
		if free {
			h.all[t] = false
			return t, nil
		}
	}
	t, err := NewToolstack()
	if err != nil {
		return nil, err
	}
	h.all[t] = false
	return t, nil
}

// Create makes a domain, paused, and has the firmware of an HVM domain lay its memory
// out: that decides which frames the domain has. It has no device yet. The toolstack's
// own part of it cannot be cut short by ctx, the firmware's can.
func (h *Host) Create(ctx context.Context, config []byte) (domain uint32, err error) {
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("create a domain: %w", err)
	}
	parsed, err := parseConfig(config)
	if err != nil {
		return 0, err
	}
	err = h.with(func(t *Toolstack) error {
		if domain, err = t.Create(config); err != nil || parsed.kind != string(xen.HVM) {
			return err
		}
		return h.layOut(ctx, t, domain)
	})
	return domain, err
}

// layOutLimit bounds the time that hvmloader takes, which is a fraction of a second.
const layOutLimit = time.Minute

// layOut lets a domain run until hvmloader has made all the memory that it makes,
// which is some time before it gives way to the BIOS.
func (h *Host) layOut(ctx context.Context, t *Toolstack, domain uint32) error {
	if err := t.Unpause(domain); err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, layOutLimit)
	defer cancel()
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for {
		done, err := h.control.LaidOut(domain)
		if err != nil {
			return err
		}
		if done {
			return h.control.Pause(domain)
		}
		select {
		case <-look.C:
		case <-bounded.Done():
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("wait until the firmware of domain %d has laid out its memory: %w", domain, err)
			}
			return fmt.Errorf("domain %d: its firmware has not laid out its memory within %v (xl dmesg tells)", domain, layOutLimit)
		}
	}
}

// began notes a restore that Close would have to end, and forget that it need not.
func (h *Host) began(w *waiting) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.restores[w] = true
}

func (h *Host) forget(w *waiting) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.restores, w)
}

// Rename changes a domain's name.
func (h *Host) Rename(domain uint32, name string) error {
	return h.with(func(t *Toolstack) error { return t.Rename(domain, name) })
}

// Destroy ends a domain.
func (h *Host) Destroy(domain uint32) error {
	return h.with(func(t *Toolstack) error { return t.Destroy(domain) })
}

// Domains lists the host's domains.
func (h *Host) Domains(ctx context.Context) ([]xen.Named, error) {
	all, err := h.control.Domains()
	if err != nil {
		return nil, err
	}
	var named []xen.Named
	for _, one := range all {
		name, err := h.store.Read(ctx, 0, fmt.Sprintf("/local/domain/%d/name", one.Domain))
		if err != nil && !errors.Is(err, syscall.ENOENT) {
			return nil, err
		}
		named = append(named, xen.Named{Info: one, Name: name})
	}
	return named, nil
}

// Sweep removes our nodes in xenstore of domains that are gone.
func (h *Host) Sweep(ctx context.Context) error {
	return xenbus.Sweep(ctx, h.store, func(domain uint32) (bool, error) {
		_, err := h.control.Info(domain)
		if errors.Is(err, syscall.ESRCH) {
			return true, nil
		}
		return false, err
	})
}

// Attach takes a domain on: its memory is mapped, and its writes are logged from here
// on.
func (h *Host) Attach(ctx context.Context, domain uint32) (*xen.Attached, error) {
	major, minor, err := h.control.Version()
	if err != nil {
		return nil, err
	}
	policies, err := h.control.Policies(domain)
	if err != nil {
		return nil, err
	}
	a := &xen.Attached{Ask: xen.Control{Store: h.store, Domain: domain}}
	if a.Head, err = xen.Head(major, minor, policies); err != nil {
		return nil, err
	}
	params, err := h.control.Params(domain, nil)
	if err != nil {
		return nil, err
	}
	a.Rings = (&xen.State{Params: params}).Transient()
	if a.Frames, err = h.control.Frames(domain); err != nil {
		return nil, err
	}
	memory, err := h.control.Map(domain, a.Frames, true)
	if err != nil {
		return nil, err
	}
	d, err := h.take(ctx, domain, memory, a.Frames)
	if err != nil {
		return nil, errors.Join(err, memory.Close())
	}
	a.Domain = d
	return a, nil
}
