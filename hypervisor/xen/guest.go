package xen

// This file is a running domain as a hypervisor.Guest.
//
//	Pause: Asker.Ask ─> the guest suspends ─> Xen tells the watch goroutine ─> paused
//	                 └─ it does not answer: Withdraw, and an error
//	CollectDirty: log, grants that are mapped, the toolstack's rings
//	AppendDeviceState: Domain.State as the tail of a stream
//
// One goroutine waits for what happens to the domain. It is owned by the Guest and
// ends with Detach, Destroy or the domain.

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"understudy/epoch"
	"understudy/hypervisor"
	"understudy/hypervisor/xen/stream"
)

var errNotThere = fs.ErrNotExist

// ErrShape says that the domain's memory is not what its image was made of: it was
// ballooned, or its toolstack gave or took memory. A new Guest has to be made.
var ErrShape = errors.New("the domain's memory has another shape than at the start: it was ballooned")

// Patience is how long a guest that has begun to suspend may take to, before it is
// given up.
const Patience = 60 * time.Second

// Guest is a PVH or HVM domain. It implements hypervisor.Guest.
type Guest struct {
	name   string
	domain Domain
	ask    Asker
	frames *Frames
	packed hypervisor.Spec
	stream stream.Domain
	pages  uint64 // of the domain, by its Info

	stop   context.CancelFunc
	heard  sync.WaitGroup
	events chan hypervisor.Event

	// looking is held from a look at the domain to what follows from it, and over
	// Resume: what was seen before it must not count after it.
	looking sync.Mutex
	asking  atomic.Bool // a suspend is what we want
	paused  atomic.Bool

	mu      sync.Mutex
	ended   error         // why the domain is of no use any more
	changed chan struct{} // closed and made anew when what is above, or paused, changes

	collecting sync.Mutex
	known      bool // the log has been read without a failure since it began
	rings      []uint64
	saving     sync.Mutex
	state      State
	over       atomic.Bool
}

var _ hypervisor.Guest = (*Guest)(nil)

// GuestConfig says of which domain a Guest is made.
type GuestConfig struct {
	Name   string
	Domain Domain
	Ask    Asker
	Spec   Spec
}

// NewGuest makes a Guest of a domain that stands still after a suspend, or has yet
// to run for the first time. It owns the domain from here on, unless it fails.
func NewGuest(c GuestConfig) (*Guest, error) {
	packed, err := c.Spec.Pack()
	if err != nil {
		return nil, fmt.Errorf("guest %q: %w", c.Name, err)
	}
	frames, err := NewFrames(c.Spec.Memory)
	if err != nil {
		return nil, fmt.Errorf("guest %q: %w", c.Name, err)
	}
	d, err := ParseHead(c.Spec.Head)
	if err != nil {
		return nil, fmt.Errorf("guest %q: %w", c.Name, err)
	}
	info, err := c.Domain.Info()
	if err != nil {
		return nil, fmt.Errorf("guest %q: %w", c.Name, err)
	}
	switch {
	case !info.HVM || !info.Nested:
		return nil, &hypervisor.Refusal{What: fmt.Sprintf("domain %d is a PV domain, or its memory is not translated by hardware", info.Domain), Remedy: "make it PVH or HVM; PV domains can be saved to checkpoint files only"}
	case uint64(len(c.Domain.Memory())) != frames.Pages()*epoch.PageSize:
		return nil, fmt.Errorf("guest %q: %d bytes of memory are mapped, it has %d pages", c.Name, len(c.Domain.Memory()), frames.Pages())
	}
	ctx, stop := context.WithCancel(context.Background())
	g := &Guest{
		name: c.Name, domain: c.Domain, ask: c.Ask, frames: frames, packed: packed, stream: d, pages: info.Pages,
		stop: stop, events: make(chan hypervisor.Event, 16), changed: make(chan struct{}),
	}
	g.paused.Store(info.Paused || info.Shutdown && info.Reason == ReasonSuspend)
	g.asking.Store(true)
	g.heard.Go(func() { g.watch(ctx) })
	return g, nil
}

// Pages returns the size of the image.
func (g *Guest) Pages() uint64 { return g.packed.Pages }

// Spec describes the domain for a standby.
func (g *Guest) Spec() hypervisor.Spec { return g.packed }

// Events tells what the domain does by itself.
func (g *Guest) Events() <-chan hypervisor.Event { return g.events }

// Fill has nothing to do: a restore brings all memory before the domain runs.
func (g *Guest) Fill(epoch.GFN, uint64) error { return nil }

// ReadPages copies pages out of the mapping.
func (g *Guest) ReadPages(first epoch.GFN, dst []byte) error {
	if len(dst)%epoch.PageSize != 0 || uint64(first) > g.Pages() || uint64(len(dst))/epoch.PageSize > g.Pages()-uint64(first) {
		return fmt.Errorf("read %d bytes from page %d on of guest %q: it has %d pages", len(dst), first, g.name, g.Pages())
	}
	if g.over.Load() {
		return g.failed("read pages", errOver)
	}
	copy(dst, g.domain.Memory()[uint64(first)*epoch.PageSize:])
	return nil
}

// Pause asks the guest to suspend and waits until it has. When ctx ends before the
// guest has answered, the request is withdrawn; a guest that has answered is waited
// for beyond that, since it will suspend.
func (g *Guest) Pause(ctx context.Context) error {
	if g.over.Load() {
		return g.failed("pause", errOver)
	}
	if g.paused.Load() {
		return g.shape()
	}
	g.asking.Store(true)
	if err := g.ask.Ask(ctx); err != nil {
		return g.failed("pause", err)
	}
	err := g.await(ctx)
	if err != nil && ctx.Err() != nil {
		err = g.withdraw(err)
	}
	if err != nil {
		return g.failed("pause", err)
	}
	return g.shape()
}

// withdraw takes the request back, or waits for what it leads to.
func (g *Guest) withdraw(why error) error {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	withdrawn, err := g.ask.Withdraw(ctx)
	if err == nil && !withdrawn {
		return g.await(ctx)
	}
	if withdrawn {
		g.asking.Store(false)
		return fmt.Errorf("the guest does not answer the request to suspend (has it drivers for Xen?): %w", why)
	}
	return errors.Join(why, err)
}

// await waits until the domain has suspended, or is of no use any more.
func (g *Guest) await(ctx context.Context) error {
	for {
		g.mu.Lock()
		changed, ended := g.changed, g.ended
		g.mu.Unlock()
		if ended != nil || g.paused.Load() {
			return ended
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// shape makes sure that the image is still all of the domain's memory.
func (g *Guest) shape() error {
	info, err := g.domain.Info()
	if err == nil && info.Pages != g.pages {
		err = fmt.Errorf("%w: %d pages, it had %d", ErrShape, info.Pages, g.pages)
	}
	if err != nil {
		return g.failed("pause", err)
	}
	return nil
}

// Resume lets the guest go on where it has suspended.
func (g *Guest) Resume(ctx context.Context) error {
	if g.over.Load() {
		return g.failed("resume", errOver)
	}
	if !g.paused.Load() {
		return nil
	}
	g.looking.Lock()
	err := g.domain.Resume(ctx)
	if err == nil {
		g.asking.Store(false)
		g.paused.Store(false)
	}
	g.looking.Unlock()
	if err == nil {
		err = g.ask.Resumed(ctx)
	}
	if err != nil {
		return g.failed("resume", err)
	}
	return nil
}

// CollectDirty adds what was written since the last call.
func (g *Guest) CollectDirty(set *epoch.PageSet) error {
	if g.over.Load() {
		return g.failed("collect dirty pages", errOver)
	}
	if set.Pages() != g.Pages() {
		return fmt.Errorf("collect dirty pages of guest %q: a set over %d pages, the image has %d", g.name, set.Pages(), g.Pages())
	}
	g.collecting.Lock()
	defer g.collecting.Unlock()
	known := g.known
	g.known = false
	words, err := g.domain.Clean()
	if err != nil {
		return g.failed("collect dirty pages", err)
	}
	if !known {
		set.Fill()
		g.known = true
		return nil
	}
	if err := g.frames.Dirty(words, set); err != nil {
		return g.failed("collect dirty pages", err)
	}
	for _, frame := range g.rings {
		g.add(set, frame)
	}
	if err := g.domain.Written(func(frame uint64) bool { g.add(set, frame); return true }); err != nil {
		return g.failed("collect dirty pages", err)
	}
	g.known = true
	return nil
}

// add puts a frame into the set if it is a page of the image: a guest may grant
// whatever it likes.
func (g *Guest) add(set *epoch.PageSet, frame uint64) {
	if page, ok := g.frames.Page(frame); ok {
		set.Add(page)
	}
}

// AppendDeviceState appends the tail of a stream.
func (g *Guest) AppendDeviceState(ctx context.Context, dst []byte) ([]byte, error) {
	if g.over.Load() {
		return dst, g.failed("save the device state", errOver)
	}
	if !g.paused.Load() {
		return dst, g.failed("save the device state", errors.New("the guest runs"))
	}
	g.saving.Lock()
	defer g.saving.Unlock()
	if err := g.domain.State(ctx, &g.state); err != nil {
		return dst, g.failed("save the device state", err)
	}
	out, err := g.state.AppendTail(dst, g.stream)
	if err != nil {
		return dst, g.failed("save the device state", err)
	}
	return out, nil
}

// Rings says which frames others than the guest write to for good (its console and
// xenstore): they are dirty at every collection.
func (g *Guest) Rings(frames []uint64) {
	g.collecting.Lock()
	defer g.collecting.Unlock()
	g.rings = append(g.rings[:0], frames...)
}

// Alive returns an error once the domain is gone.
func (g *Guest) Alive() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.over.Load() {
		return g.failed("look for", errOver)
	}
	if g.ended != nil {
		return g.failed("look for", g.ended)
	}
	return nil
}

// watch tells of what happens to the domain.
func (g *Guest) watch(ctx context.Context) {
	defer close(g.events)
	for {
		if event, over := g.look(); over {
			g.tell(ctx, event)
			return
		} else if event != nil {
			g.tell(ctx, event)
		}
		if err := g.domain.Await(ctx); err != nil {
			if ctx.Err() == nil {
				event := g.end(hypervisor.EventFault, err)
				g.tell(ctx, event)
			}
			return
		}
	}
}

// look asks what the domain is now; over: nothing more can happen to it.
func (g *Guest) look() (event *hypervisor.Event, over bool) {
	g.looking.Lock()
	defer g.looking.Unlock()
	info, err := g.domain.Info()
	switch {
	case errors.Is(err, syscall.ESRCH) || err == nil && info.Dying:
		return g.end(hypervisor.EventExited, errors.New("the domain was destroyed")), true
	case err != nil:
		return g.end(hypervisor.EventFault, err), true
	case info.Crashed || info.Shutdown && (info.Reason == ReasonCrash || info.Reason == ReasonWatchdog):
		return g.end(hypervisor.EventPanic, fmt.Errorf("the guest has crashed (reason %d)", info.Reason)), false
	case !info.Shutdown:
		return nil, false
	case info.Reason == ReasonSuspend && g.asking.Load():
		g.mu.Lock()
		defer g.mu.Unlock()
		if !g.paused.Swap(true) {
			close(g.changed)
			g.changed = make(chan struct{})
		}
		return nil, false
	case info.Reason == ReasonSuspend:
		return g.end(hypervisor.EventFault, errors.New("another program has suspended the domain (xl save, xl migrate)")), false
	case info.Reason == ReasonPowerOff:
		return g.end(hypervisor.EventShutdown, errors.New("the guest has powered itself off")), false
	}
	return g.end(hypervisor.EventFault, fmt.Errorf("the guest has rebooted (reason %d): its domain is over, and a new one has to be started", info.Reason)), false
}

// end notes why the domain is of no use any more, and returns the event for the
// first such reason.
func (g *Guest) end(kind hypervisor.EventKind, why error) *hypervisor.Event {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ended != nil {
		return nil
	}
	g.ended = why
	close(g.changed)
	g.changed = make(chan struct{})
	return &hypervisor.Event{Kind: kind, Detail: why.Error()}
}

func (g *Guest) tell(ctx context.Context, event *hypervisor.Event) {
	if event == nil {
		return
	}
	select {
	case g.events <- *event:
	case <-ctx.Done():
	}
}

// Detach lets go of the domain, which stays as it is.
func (g *Guest) Detach() error {
	if g.over.Swap(true) {
		return nil
	}
	g.stop()
	g.heard.Wait()
	return g.domain.Close()
}

// Destroy ends the domain.
func (g *Guest) Destroy() error {
	if g.over.Swap(true) {
		return nil
	}
	g.stop()
	g.heard.Wait()
	err := g.domain.Destroy()
	if errors.Is(err, syscall.ESRCH) {
		err = nil
	}
	if err = errors.Join(err, g.domain.Close()); err != nil {
		return g.failed("destroy", err)
	}
	return nil
}

var errOver = errors.New("it was let go of")

func (g *Guest) failed(what string, err error) error {
	return fmt.Errorf("%s guest %q: %w", what, g.name, err)
}
