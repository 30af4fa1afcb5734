package xen

// This file is a running domain as a hypervisor.Guest.
//
//	Pause: Asker.Ask ─> the guest suspends ─> Xen tells the watch goroutine ─> paused
//	                 └─ it does not answer: Withdraw, and an error
//	CollectDirty: log, grants that are mapped, the toolstack's rings
//	AppendDeviceState: Domain.State as the tail of a stream
//
// One goroutine waits for what happens to the domain (life.go). It is owned by the
// Guest and ends with Detach, Destroy or the domain.

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"understudy/epoch"
	"understudy/hypervisor"
	"understudy/hypervisor/xen/stream"
)

var errNotThere = fs.ErrNotExist

// ErrShape says that the domain has memory that is no part of its image: its toolstack
// gave it more, or let it have back what a balloon had taken. Nothing can be made of such
// a domain any more, and its devices would miss it.
var ErrShape = errors.New("the domain was given memory, which its devices and checkpoints cannot see: give memory to a guest by its configuration")

// ErrMoved says that the guest has put other memory where some of its image was: what is
// mapped here is not what it uses. Nothing can be made of it any more, either.
var ErrMoved = errors.New("the guest has put other memory in the place of some of its own (XENMEM_add_to_physmap), which its devices and checkpoints cannot follow")

// Patience is how long a guest that has begun to suspend may take to, before it is
// given up.
const Patience = 60 * time.Second

// Guest is a PVH or HVM domain. It implements hypervisor.Guest.
type Guest struct {
	name   string
	frames *Frames
	packed hypervisor.Spec
	stream stream.Domain
	again  func(context.Context) (*Successor, error)

	// swap is held for reading by whoever uses the domain, which a reboot replaces.
	swap    sync.RWMutex
	domain  Domain
	ask     Asker
	plugged Plugged
	rings   []uint64

	sizing sync.Mutex
	pages  uint64 // of the domain, by its Info

	stop   context.CancelFunc
	heard  sync.WaitGroup
	events chan hypervisor.Event

	// looking is held from a look at the domain to what follows from it, and over
	// Resume: what was seen before it must not count after it.
	looking sync.Mutex
	asking  atomic.Bool // a suspend is what we want
	paused  atomic.Bool // it stands still
	// still is what others than the guest write to, as it was when it came to stand
	// still; nil: it runs.
	still atomic.Pointer[[]keptPage]

	displaced atomic.Bool // memory of it is elsewhere than is mapped
	up        atomic.Bool // its drivers are

	mu      sync.Mutex
	fate    fate
	ended   error         // why the domain is of no use any more
	changed chan struct{} // closed and made anew when what is above, or paused, changes
	// restarting is set while a guest that has crashed is to begin anew, and wake ends
	// the wait for what happens to it.
	restarting bool
	wake       context.CancelFunc

	collecting sync.Mutex
	known      bool // the log has been read without a failure since it began
	ran        bool // since the log was read while it stood still
	saving     sync.Mutex
	state      State
	over       atomic.Bool
}

var _ hypervisor.Guest = (*Guest)(nil)

// keptPage is a page as it was at one moment.
type keptPage struct {
	page    epoch.GFN
	content []byte
}

// GuestConfig says of which domain a Guest is made.
type GuestConfig struct {
	Name   string
	Domain Domain
	Ask    Asker
	Spec   Spec
	// Rings are the frames that others than the guest write to for good (its console
	// and xenstore): they are dirty whenever it has run.
	Rings []uint64
	// Plugged are its devices; nil: none.
	Plugged Plugged
	// Again makes the domain that follows one which has rebooted; nil: it cannot.
	Again func(ctx context.Context) (*Successor, error)
}

// NewGuest makes a Guest of a domain, which it owns from here on, with its devices,
// unless it fails.
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
	if err := c.Domain.Limit(info.Pages); err != nil {
		return nil, fmt.Errorf("guest %q: %w", c.Name, err)
	}
	if c.Plugged == nil {
		c.Plugged = plugs(nil)
	}
	ctx, stop := context.WithCancel(context.Background())
	g := &Guest{
		name: c.Name, domain: c.Domain, ask: c.Ask, plugged: c.Plugged, again: c.Again, frames: frames, packed: packed, stream: d,
		pages: info.Pages, rings: slices.Clone(c.Rings), ran: true,
		stop: stop, events: make(chan hypervisor.Event, 16), changed: make(chan struct{}),
	}
	g.asking.Store(true)
	suspended := info.Shutdown && info.Reason == ReasonSuspend
	if suspended {
		err = c.Domain.Still(ctx)
	}
	if err != nil {
		stop()
		return nil, fmt.Errorf("guest %q: %w", c.Name, err)
	}
	if suspended || info.Paused {
		g.freeze()
	}
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

// freeze notes that the domain stands still, and what others may still write to, as
// it is now: an image that stands still does not change.
func (g *Guest) freeze() {
	kept := make([]keptPage, 0, len(g.rings))
	for _, frame := range g.rings {
		if page, ok := g.frames.Page(frame); ok {
			kept = append(kept, keptPage{page, slices.Clone(g.domain.Memory()[uint64(page)*epoch.PageSize:][:epoch.PageSize])})
		}
	}
	g.still.Store(&kept)
	g.paused.Store(true)
}

// thaw is its other end.
func (g *Guest) thaw() {
	g.paused.Store(false)
	g.still.Store(nil)
}

// ReadPages copies pages out of the mapping.
func (g *Guest) ReadPages(first epoch.GFN, dst []byte) error {
	count := uint64(len(dst)) / epoch.PageSize
	if len(dst)%epoch.PageSize != 0 || uint64(first) > g.Pages() || count > g.Pages()-uint64(first) {
		return fmt.Errorf("read %d bytes from page %d on of guest %q: it has %d pages", len(dst), first, g.name, g.Pages())
	}
	g.swap.RLock()
	defer g.swap.RUnlock()
	if g.over.Load() || g.domain == nil {
		return g.failed("read pages", errOver)
	}
	copy(dst, g.domain.Memory()[uint64(first)*epoch.PageSize:])
	if kept := g.still.Load(); kept != nil {
		for _, k := range *kept {
			if k.page >= first && uint64(k.page-first) < count {
				copy(dst[uint64(k.page-first)*epoch.PageSize:], k.content)
			}
		}
	}
	return nil
}

// Hole returns how many of count pages from first on are zero, so that nobody has to
// copy them to find that out: much of a domain's memory is. A guest that runs may have
// written them since, and they are dirty then.
func (g *Guest) Hole(first epoch.GFN, count uint64) uint64 {
	g.swap.RLock()
	defer g.swap.RUnlock()
	if g.over.Load() || g.domain == nil || uint64(first) >= g.Pages() {
		return 0
	}
	count = min(count, g.Pages()-uint64(first))
	var kept []keptPage
	if still := g.still.Load(); still != nil {
		kept = *still
	}
	for n := range count {
		page := first + epoch.GFN(n)
		content := g.domain.Memory()[uint64(page)*epoch.PageSize:][:epoch.PageSize]
		for _, k := range kept {
			if k.page == page {
				content = k.content
			}
		}
		if !isZero(content) {
			return n
		}
	}
	return count
}

// ErrBooting is why a guest cannot be paused yet.
var ErrBooting = errors.New("the guest has no drivers for Xen yet that suspend it: it boots, or its system has none")

// Ready asks whether the guest's system has gone so far that it answers a request to
// suspend. Before that, the memory of an HVM guest would be copied again and again, on
// processors that its boot could use: its device model does not log.
func (g *Guest) Ready() error {
	if g.up.Load() {
		return nil
	}
	g.swap.RLock()
	defer g.swap.RUnlock()
	if g.over.Load() || g.domain == nil {
		return g.failed("ask whether it can be paused", errOver)
	}
	up, err := g.domain.Answers()
	if err == nil && !up {
		err = ErrBooting
	}
	if err != nil {
		return g.failed("ask whether it can be paused", err)
	}
	g.up.Store(true)
	return nil
}

// Pause asks the guest to suspend and waits until it has. When ctx ends before the
// guest has answered, the request is withdrawn; a guest that has answered is waited
// for beyond that, since it will suspend. A guest that has powered itself off, or
// crashed, stands still already.
func (g *Guest) Pause(ctx context.Context) error {
	err := ctx.Err()
	if g.over.Load() {
		err = errOver
	}
	if err == nil {
		err = g.pause(ctx)
	}
	if err != nil {
		return g.failed("pause", err)
	}
	return nil
}

func (g *Guest) pause(ctx context.Context) error {
	if !g.paused.Load() {
		if err := g.request(ctx); err != nil {
			return err
		}
		err := g.await(ctx)
		if err != nil && ctx.Err() != nil {
			err = g.withdraw(err)
		}
		if err != nil {
			return err
		}
	}
	return g.shape()
}

// request asks for a suspend, unless it stands still meanwhile: a reboot that was
// under way has ended so.
func (g *Guest) request(ctx context.Context) error {
	g.asking.Store(true)
	g.swap.RLock()
	defer g.swap.RUnlock()
	if g.paused.Load() {
		return nil
	}
	if g.domain == nil {
		return errOver
	}
	g.mu.Lock()
	ended := g.ended
	g.mu.Unlock()
	if ended != nil {
		return ended // a request would be a node of nobody's in xenstore
	}
	return g.ask.Ask(ctx)
}

// withdraw takes the request back, or waits for what it leads to.
func (g *Guest) withdraw(why error) error {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	withdrawn, err := g.takeBack(ctx)
	if err == nil && !withdrawn {
		return g.await(ctx)
	}
	if withdrawn {
		g.asking.Store(false)
		return fmt.Errorf("the guest does not answer the request to suspend (has it drivers for Xen?): %w", why)
	}
	return errors.Join(why, err)
}

func (g *Guest) takeBack(ctx context.Context) (bool, error) {
	g.swap.RLock()
	defer g.swap.RUnlock()
	if g.domain == nil {
		return false, errOver
	}
	return g.ask.Withdraw(ctx)
}

// await waits until the domain stands still, or is of no use any more.
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

// shape makes sure that the image has all of the domain's memory.
func (g *Guest) shape() error {
	g.swap.RLock()
	defer g.swap.RUnlock()
	if g.domain == nil {
		return errOver
	}
	info, err := g.domain.Info()
	if err == nil && info.Dying {
		err = errGone
	}
	if err == nil {
		err = g.fits(info)
	}
	if err != nil {
		return err
	}
	moved, err := g.domain.Moved()
	if err != nil || moved == 0 {
		return err
	}
	g.displaced.Store(true) // the watch ends what can happen to it
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.wake != nil {
		g.wake()
	}
	return fmt.Errorf("%w: %d pages", ErrMoved, moved)
}

// fits compares the domain's size with that of its image. What a balloon takes stays
// in the image as it was, and the domain's, since our mapping keeps it; the domain does
// not get it back, for that would be other memory, of which the mapping knows nothing.
func (g *Guest) fits(info Info) error {
	g.sizing.Lock()
	defer g.sizing.Unlock()
	switch {
	case info.Pages > g.pages:
		return fmt.Errorf("%w: %d pages, it had %d", ErrShape, info.Pages, g.pages)
	case info.Pages < g.pages:
		if err := g.domain.Limit(info.Pages); err != nil {
			return err
		}
		g.pages = info.Pages
	}
	return nil
}

// Resume lets the guest go on where it has suspended. One that has crashed begins
// anew.
func (g *Guest) Resume(ctx context.Context) error {
	err := ctx.Err()
	if g.over.Load() {
		err = errOver
	}
	if err == nil {
		err = g.resume(ctx)
	}
	if err != nil {
		return g.failed("resume", err)
	}
	return nil
}

func (g *Guest) resume(ctx context.Context) error {
	if !g.paused.Load() {
		return nil
	}
	g.mu.Lock()
	fate := g.fate
	g.mu.Unlock()
	switch fate {
	case fateOff:
		return errors.New("the guest has powered itself off: it has to be started again")
	case fateCrashed:
		return g.restart(ctx)
	}
	g.looking.Lock()
	defer g.looking.Unlock()
	g.swap.RLock()
	defer g.swap.RUnlock()
	if g.domain == nil {
		return errOver
	}
	return g.run(ctx)
}

// run lets the domain run. The caller holds looking and swap.
func (g *Guest) run(ctx context.Context) error {
	g.plugged.Start()
	g.collecting.Lock()
	g.ran = true
	g.collecting.Unlock()
	if err := g.domain.Resume(ctx); err != nil {
		g.plugged.Stop()
		return err
	}
	g.asking.Store(false)
	g.thaw()
	return g.ask.Resumed(ctx)
}

// CollectDirty adds what was written since the last call.
func (g *Guest) CollectDirty(set *epoch.PageSet) error {
	if set.Pages() != g.Pages() {
		return fmt.Errorf("collect dirty pages of guest %q: a set over %d pages, the image has %d", g.name, set.Pages(), g.Pages())
	}
	g.swap.RLock()
	defer g.swap.RUnlock()
	if g.over.Load() || g.domain == nil {
		return g.failed("collect dirty pages", errOver)
	}
	g.collecting.Lock()
	defer g.collecting.Unlock()
	if err := g.collect(set); err != nil {
		g.known = false
		return g.failed("collect dirty pages", err)
	}
	return nil
}

func (g *Guest) collect(set *epoch.PageSet) error {
	still := g.paused.Load()
	words, whole, err := g.domain.Clean()
	if err != nil {
		return err
	}
	// Of a domain that is being destroyed Xen says that nothing was written.
	if info, err := g.domain.Info(); err != nil {
		return err
	} else if info.Dying {
		return errGone
	}
	switch {
	case !g.known || g.ran && !whole:
		set.Fill()
	case g.ran: // else what others write to is what it was at the last collection
		for _, frame := range g.rings {
			g.add(set, frame)
		}
		if err := g.domain.Written(func(frame uint64) bool { g.add(set, frame); return true }); err != nil {
			return err
		}
		if err := g.plugged.CollectDirty(set); err != nil {
			return err
		}
		fallthrough
	default:
		if err := g.frames.Dirty(words, set); err != nil {
			return err
		}
	}
	g.known = true
	if still {
		g.ran = false
	}
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
	g.swap.RLock()
	defer g.swap.RUnlock()
	switch {
	case ctx.Err() != nil:
		return dst, g.failed("save the device state", ctx.Err())
	case g.over.Load() || g.domain == nil:
		return dst, g.failed("save the device state", errOver)
	case !g.paused.Load():
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

// Detach lets go of the domain, which stays as it is, suspended or running. Who
// does that to a domain that has suspended has a next process adopt it.
func (g *Guest) Detach() error {
	if !g.end() {
		return nil
	}
	if g.domain == nil {
		return nil
	}
	return errors.Join(g.plugged.Leave(), g.domain.Close())
}

// Destroy ends the domain.
func (g *Guest) Destroy() error {
	if !g.end() || g.domain == nil {
		return nil
	}
	if err := errors.Join(gone(g.domain.Destroy()), g.plugged.Unplug(), g.domain.Close()); err != nil {
		return g.failed("destroy", err)
	}
	return nil
}

// end waits until nobody uses the domain any more. It returns false if somebody
// else has ended the guest before.
func (g *Guest) end() bool {
	if g.over.Swap(true) {
		return false
	}
	g.stop()
	g.heard.Wait()
	g.swap.Lock()
	g.swap.Unlock() //nolint:gocritic,staticcheck // who uses the domain now is waited for, who comes later finds it over
	return true
}

var (
	errOver = errors.New("it was let go of")
	errGone = errors.New("the domain was destroyed")
)

func (g *Guest) failed(what string, err error) error {
	return fmt.Errorf("%s guest %q: %w", what, g.name, err)
}
