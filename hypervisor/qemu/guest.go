package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"understudy/epoch"
	"understudy/hypervisor"
	"understudy/hypervisor/qemu/dirty"
	"understudy/hypervisor/qemu/stream"
)

// Guest is a running QEMU. It implements hypervisor.Guest.
//
// One goroutine reads QEMU's events (events.go). It is owned by the Guest and
// ends with it, by Detach, by Destroy or by QEMU's own end.
type Guest struct {
	driver  *Driver
	vm      *vm
	spec    *machineSpec
	packed  hypervisor.Spec
	side    []sideBlock
	main    uint64   // pages of main memory
	mem     *os.File // QEMU's memory, for the side blocks
	pagemap *os.File // QEMU's page tables, of the side blocks
	checker *stream.Checker

	// life is held for reading by whoever touches what over frees.
	life   sync.RWMutex
	over   bool
	ending sync.Once

	tracking sync.Mutex // over tracker
	tracker  *dirty.Tracker
	resumed  bool // tracking went on since a former process collected last; of the first attachment

	saving sync.Mutex // over what follows
	state  *stateFile
	used   []uint64 // length of each block, as of the last time it was asked for
	head   []byte   // used, as it goes before each device state
	stale  atomic.Bool
	entry  []byte // scratch for stale

	// fill supplies what is missing after a lazy activation; nil otherwise.
	fill    atomic.Pointer[filler]
	filling sync.WaitGroup // finishFill

	stopping atomic.Bool // we have sent stop, and no cont since
	paused   atomic.Bool // and QEMU has stopped
	events   chan hypervisor.Event
	quit     chan struct{} // closed by Detach and Destroy
	heard    sync.WaitGroup
}

var _ hypervisor.Guest = (*Guest)(nil)

// attachLimit bounds the attachment that CollectDirty makes up for.
const attachLimit = 5 * time.Second

// newGuest puts a Guest together around a paused machine. It owns mem from
// here on; the machine stays its caller's until it succeeds.
func newGuest(ctx context.Context, d *Driver, v *vm, spec *machineSpec, side []sideBlock, mem *os.File) (_ *Guest, err error) {
	g := &Guest{
		driver: d, vm: v, spec: spec, side: side, main: v.ram.pages(), mem: mem,
		checker: stream.NewChecker(spec.Devices),
		events:  make(chan hypervisor.Event, 16), quit: make(chan struct{}),
		entry: make([]byte, 4096),
	}
	defer func() {
		if err != nil {
			_ = g.drop()
		}
	}()
	if g.packed, err = spec.pack(); err != nil {
		return nil, err
	}
	if g.pagemap, err = os.Open(fmt.Sprintf("/proc/%d/pagemap", v.proc.identity.PID)); err != nil {
		return nil, err
	}
	if g.state, err = newStateFile(ctx, v.client); err != nil {
		return nil, err
	}
	for _, b := range spec.Blocks {
		g.used = append(g.used, b.Used)
	}
	g.head = appendStateHead(nil, spec.Blocks, g.used)
	g.stale.Store(true)
	g.stopping.Store(true)
	g.paused.Store(true)
	return g, nil
}

// Pages returns the size of the image: main memory and every side block.
func (g *Guest) Pages() uint64 { return g.packed.Pages }

// Spec describes the machine for a standby.
func (g *Guest) Spec() hypervisor.Spec { return g.packed }

// Pause stops the guest. About 0.4 ms.
func (g *Guest) Pause(ctx context.Context) error {
	g.life.RLock()
	defer g.life.RUnlock()
	if err := g.usable(ctx, "pause"); err != nil {
		return err
	}
	g.stopping.Store(true)
	if err := g.vm.client.Execute(ctx, "stop", nil, nil); err != nil {
		return g.failed("pause", err)
	}
	g.paused.Store(true)
	return g.noticeResize()
}

// Resume lets the guest run on. About 0.2 ms. After an error that is not QEMU's
// refusal the guest may be running or not: Pause it, or Destroy it.
func (g *Guest) Resume(ctx context.Context) error {
	g.life.RLock()
	defer g.life.RUnlock()
	if err := g.usable(ctx, "resume"); err != nil {
		return err
	}
	g.stopping.Store(false)
	g.paused.Store(false)
	g.vm.ram.unsettle()
	if err := g.vm.client.Execute(ctx, "cont", nil, nil); err != nil {
		return g.failed("resume", err)
	}
	return nil
}

// ReadPages copies pages of main memory from our own mapping, and pages of the
// other blocks out of QEMU.
func (g *Guest) ReadPages(first epoch.GFN, dst []byte) error {
	g.life.RLock()
	defer g.life.RUnlock()
	if g.over {
		return g.gone("read pages")
	}
	if err := checkRange(first, len(dst), g.packed.Pages); err != nil {
		return fmt.Errorf("read pages of guest %q: %w", g.driver.cfg.Name, err)
	}
	page := uint64(first)
	if page < g.main {
		n := min(uint64(len(dst)), (g.main-page)*epoch.PageSize)
		if err := g.fill.Load().fill(first, n/epoch.PageSize); err != nil {
			return g.failed("read pages", err)
		}
		if err := g.vm.ram.read(page, dst[:n]); err != nil {
			return err
		}
		page, dst = page+n/epoch.PageSize, dst[n:]
	}
	for i := 0; i < len(g.side) && len(dst) > 0; i++ {
		s := &g.side[i]
		if page >= s.first+s.pages {
			continue
		}
		n := min(uint64(len(dst)), (s.first+s.pages-page)*epoch.PageSize)
		if err := s.read(g.mem, page, dst[:n]); err != nil {
			return err
		}
		page, dst = page+n/epoch.PageSize, dst[n:]
	}
	return nil
}

// Hole returns how many of count pages from first on are known to be zero, since
// nothing was ever written there (package checkpoint, sparse).
func (g *Guest) Hole(first epoch.GFN, count uint64) uint64 {
	g.life.RLock()
	defer g.life.RUnlock()
	page := uint64(first)
	if g.over || page >= g.main || g.fill.Load() != nil { // what is missing still is a hole, too
		return 0
	}
	return g.vm.ram.hole(page, min(count, g.main-page))
}

// Alive returns an error once QEMU has ended.
func (g *Guest) Alive() error {
	g.life.RLock()
	defer g.life.RUnlock()
	if g.over {
		return g.gone("look for")
	}
	if g.vm.proc.ended() {
		return g.failed("look for", os.ErrProcessDone)
	}
	return nil
}

// Fill returns when the pages are in the image.
func (g *Guest) Fill(first epoch.GFN, count uint64) error {
	if err := g.fill.Load().fill(first, count); err != nil {
		return g.failed("fill memory", err)
	}
	return nil
}

// CollectDirty reports what was written since the last call.
func (g *Guest) CollectDirty(set *epoch.PageSet) error {
	g.life.RLock()
	defer g.life.RUnlock()
	if g.over {
		return g.gone("collect dirty pages")
	}
	if set.Pages() != g.packed.Pages {
		return fmt.Errorf("collect dirty pages of guest %q: a set over %d pages, the image has %d", g.driver.cfg.Name, set.Pages(), g.packed.Pages)
	}
	g.tracking.Lock()
	defer g.tracking.Unlock()
	if g.tracker == nil {
		ctx, cancel := context.WithTimeout(context.Background(), attachLimit)
		defer cancel()
		if err := g.attachLocked(ctx, false); err != nil {
			return g.failed("collect dirty pages", err)
		}
	}
	err := g.collect(set)
	if err == nil {
		err = g.vm.ram.collectFreed(set, &g.paused)
	}
	if err != nil {
		// The next call attaches anew, and reports every page.
		err = errors.Join(err, g.tracker.Close())
		g.tracker = nil
		return g.failed("collect dirty pages", err)
	}
	g.noteTables(set)
	return nil
}

// collect is the tracker's Collect. It ends the supply of pages that has
// nothing left to supply, while the guest stands still: not one write is lost
// or made up by that.
func (g *Guest) collect(set *epoch.PageSet) error {
	f := g.fill.Load()
	if f == nil || !f.isWhole() || !g.paused.Load() {
		return g.tracker.Collect(set)
	}
	if err := g.tracker.Release(f.pager, set); err != nil {
		return err
	}
	return g.endFill(f)
}

// finishFill ends the supply of pages when nothing is missing any more. It is
// the last goroutine of the filling; it ends with it.
func (g *Guest) finishFill(f *filler) {
	select {
	case <-f.whole:
	case <-f.life.Done():
		return
	}
	g.tracking.Lock()
	defer g.tracking.Unlock()
	var err error
	switch {
	case g.fill.Load() == nil: // collect was first
		return
	case g.tracker != nil:
		// Writes are tracked already, and the guest runs: collect ends it.
		err = g.saveRecord(roleGuest, fillHoles)
	default:
		// The first Collect, which is still to come, reports every page.
		if err = f.pager.Release(); err == nil {
			err = g.endFill(f)
		}
	}
	if err != nil {
		g.driver.log.Warn("all of the guest's memory is there, but the end of its filling failed", "err", err)
	}
}

// endFill forgets a filler that was released. The caller holds tracking.
func (g *Guest) endFill(f *filler) error {
	f.close()
	err := g.saveRecord(roleGuest, fillDone)
	g.fill.Store(nil)
	g.driver.log.Info("all of the guest's memory is there", "faults", f.faults.Load())
	return err
}

// attach begins to track writes.
func (g *Guest) attach(ctx context.Context, resume bool) error {
	g.tracking.Lock()
	defer g.tracking.Unlock()
	return g.attachLocked(ctx, resume)
}

// attachLocked goes on where a former process left off if resume says so and that
// is possible; resumed tells.
func (g *Guest) attachLocked(ctx context.Context, resume bool) error {
	if g.driver.cfg.FreePageReporting {
		if err := g.vm.ram.watch(); err != nil {
			return err
		}
	}
	pid := g.vm.proc.identity.PID
	regions, err := dirty.FileRegions(pid, g.vm.ram.file, 0)
	if err != nil {
		return err
	}
	for _, s := range g.side {
		regions = append(regions, dirty.Region{Addr: s.addr, Length: s.pages * epoch.PageSize, FirstPage: epoch.GFN(s.first)})
	}
	g.tracker, err = dirty.Attach(ctx, dirty.Config{PID: pid, Helper: g.driver.cfg.Helper, Regions: regions, Resume: resume})
	g.resumed = err == nil && g.tracker.Resumed()
	return err
}

// Freed returns how many pages the guest has given back, as CollectDirty has
// found them.
func (g *Guest) Freed() uint64 { return g.vm.ram.freed.Load() }

// AppendDeviceState appends the state of vCPUs and devices. About 0.7 ms.
func (g *Guest) AppendDeviceState(ctx context.Context, dst []byte) ([]byte, error) {
	g.life.RLock()
	defer g.life.RUnlock()
	if err := g.usable(ctx, "save the device state"); err != nil {
		return dst, err
	}
	g.saving.Lock()
	defer g.saving.Unlock()
	out, err := g.save(ctx, dst)
	if err != nil {
		return dst, g.failed("save the device state", err)
	}
	return out, nil
}

func (g *Guest) save(ctx context.Context, dst []byte) ([]byte, error) {
	saved, err := g.state.begin(ctx, g.vm.client)
	if err != nil {
		return nil, err
	}
	if g.stale.Load() {
		if err := g.askLengths(ctx); err != nil {
			return nil, errors.Join(err, saved.Wait(ctx, nil))
		}
		g.stale.Store(false)
	}
	if err := saved.Wait(ctx, nil); err != nil {
		return nil, err
	}
	dst = append(dst, g.head...)
	at := len(dst)
	if dst, err = g.state.appendTo(dst); err != nil {
		return nil, err
	}
	if err := g.checker.Check(dst[at:]); err != nil {
		return nil, &hypervisor.Refusal{
			What:   fmt.Sprintf("the guest's devices are not those it was started with: %v", err),
			Remedy: "the standby has to be prepared anew from a restarted guest",
		}
	}
	return dst, nil
}

// noticeResize looks, while the guest stands still, whether one of the tables
// was written that may change their length. Only then QEMU is asked for it.
func (g *Guest) noticeResize() error {
	if g.stale.Load() {
		return nil
	}
	g.saving.Lock()
	defer g.saving.Unlock()
	for i := range g.side {
		s := &g.side[i]
		if !g.spec.Blocks[s.index].resizable() {
			continue
		}
		w, err := written(g.pagemap, s.addr, s.pages, g.entry)
		if err != nil {
			return g.failed("pause", err)
		}
		if w {
			g.stale.Store(true)
			break
		}
	}
	return nil
}

// noteTables marks the lengths stale if a collected page belongs to a table:
// noticeResize cannot see that any more.
func (g *Guest) noteTables(set *epoch.PageSet) {
	for i := range g.side {
		s := &g.side[i]
		if !g.spec.Blocks[s.index].resizable() {
			continue
		}
		for p := s.first; p < s.first+s.pages; p++ {
			if set.Contains(epoch.GFN(p)) {
				g.stale.Store(true)
				return
			}
		}
	}
}

// askLengths asks for the length of every block.
func (g *Guest) askLengths(ctx context.Context) error {
	sizes, err := queryRAMBlocks(ctx, g.vm.client)
	if err != nil {
		return err
	}
	used := slices.Clone(g.used)
	for i, b := range g.spec.Blocks {
		s, ok := sizes[b.Name]
		if !ok || s[1] != b.Total || b.accepts(s[0]) != nil {
			return &hypervisor.Refusal{
				What:   fmt.Sprintf("RAM block %s had %d of %d bytes, it has %d of %d now", b.Name, b.Used, b.Total, s[0], s[1]),
				Remedy: "do not add or remove devices while the guest runs; restart it",
			}
		}
		used[i] = s[0]
	}
	if len(sizes) != len(used) {
		return &hypervisor.Refusal{
			What:   fmt.Sprintf("the machine has %d RAM blocks, it was started with %d", len(sizes), len(used)),
			Remedy: "do not add devices while the guest runs; restart it",
		}
	}
	if !slices.Equal(used, g.used) {
		g.used = used
		g.head = appendStateHead(g.head[:0], g.spec.Blocks, used)
	}
	return nil
}

// detachLimit bounds how long Detach waits for missing pages.
const detachLimit = 10 * time.Second

// Detach lets go of the guest, which goes on as it is. If memory of it is still
// missing, Detach fetches that first, and returns an error if it could not: such
// a guest cannot be adopted.
func (g *Guest) Detach() error {
	err := g.fillUp()
	if !g.finish() {
		return g.gone("detach")
	}
	err = errors.Join(err, g.drop(), g.vm.ram.close())
	g.heard.Wait()
	g.vm.proc.letGo()
	return err
}

// fillUp waits until nothing is missing any more, as long as it goes well.
func (g *Guest) fillUp() error {
	f := g.fill.Load()
	if f == nil {
		return nil
	}
	f.walk()
	limit := time.NewTimer(detachLimit)
	defer limit.Stop()
	select {
	case <-f.whole:
	case <-f.life.Done(): // released, or the guest is gone
		return nil
	case <-limit.C:
		return g.failed("detach", errors.New("memory of it is still missing, so that it cannot be adopted"))
	}
	g.tracking.Lock()
	defer g.tracking.Unlock()
	if g.fill.Load() == nil {
		return nil
	}
	// Who adopts it counts every page as written.
	if err := f.pager.Release(); err != nil {
		return g.failed("detach", err)
	}
	return g.endFill(f)
}

// Destroy ends the guest.
func (g *Guest) Destroy() error {
	if !g.finish() {
		g.heard.Wait()
		return nil
	}
	err := errors.Join(g.vm.end(), g.drop(), g.vm.ram.close())
	g.heard.Wait()
	return errors.Join(err, g.vm.place.remove())
}

// finish ends the use of the guest, once, and waits for calls under way.
func (g *Guest) finish() bool {
	first := false
	g.ending.Do(func() {
		first = true
		close(g.quit) // before the connection: its end must not look like QEMU's
		_ = g.vm.client.Close()
		if f := g.fill.Load(); f != nil {
			f.close()
		}
		g.filling.Wait()
		g.life.Lock() // calls under way have failed by now
		g.over = true
		g.life.Unlock()
	})
	return first
}

// drop closes what the Guest itself has opened.
func (g *Guest) drop() error {
	var errs []error
	for _, f := range []*os.File{g.mem, g.pagemap} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	if g.state != nil {
		errs = append(errs, g.state.close())
	}
	if g.tracker != nil {
		errs = append(errs, g.tracker.Close())
	}
	return errors.Join(errs...)
}

func (g *Guest) saveRecord(as role, fill fillState) error {
	r := record{Role: as, Fill: fill, Process: g.vm.proc.identity, Pages: g.packed.Pages, Spec: g.packed.Machine}
	for _, s := range g.side {
		r.Side = append(r.Side, s.addr)
	}
	return g.vm.place.save(r)
}

// usable says why a call cannot be made. The caller holds life.
func (g *Guest) usable(ctx context.Context, what string) error {
	if g.over {
		return g.gone(what)
	}
	if err := ctx.Err(); err != nil {
		return g.failed(what, err)
	}
	return nil
}

func (g *Guest) failed(what string, err error) error {
	return fmt.Errorf("%s of guest %q: %w", what, g.driver.cfg.Name, err)
}

var errOver = errors.New("the guest is gone")

func (g *Guest) gone(what string) error { return g.failed(what, errOver) }
