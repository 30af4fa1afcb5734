package qemu

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"understudy/epoch"
	"understudy/hypervisor"
	"understudy/hypervisor/qemu/dirty"
	"understudy/hypervisor/qemu/stream"
)

// Standby is a guest's image and a QEMU that waits on it. It implements
// hypervisor.Standby. Main memory is the file that QEMU has mapped already;
// the other RAM blocks' pages are kept here and go into the incoming stream.
type Standby struct {
	driver *Driver
	place  place
	ram    *ramFile
	spec   *machineSpec
	side   []sideBlock
	main   uint64
	pages  uint64
	extra  []byte // the side blocks' pages

	// life is held for reading by whoever touches what over frees.
	life  sync.RWMutex
	over  bool
	made  made   // the first QEMU, which may still be made
	vm    *vm    // the waiting QEMU; nil after a failed Reset
	ready *Guest // made by Load, not running yet
	spent bool   // the waiting QEMU has been given a state
	lazy  bool   // the waiting QEMU can be supplied with pages while it runs
	// fill supplies them from Load on; it stays here for Fill when it is the
	// Guest's already.
	fill atomic.Pointer[filler]
}

var _ hypervisor.Standby = (*Standby)(nil)

// newStandby makes an empty image without a machine. It owns the place and the
// memory file from here on.
func newStandby(d *Driver, m *machineSpec, at place, ram *ramFile) *Standby {
	side, pages := layout(m.Blocks)
	main := ram.pages()
	return &Standby{
		driver: d, place: at, ram: ram, spec: m, side: side, main: main, pages: pages,
		extra: make([]byte, (pages-main)*epoch.PageSize),
	}
}

// made is the making of the first machine, behind which the image can be written.
type made struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when err, and the Standby's vm, are set
	err    error
}

// begin has the first machine made by a goroutine, which ends with that, or
// soon after ctx or a call of cancel. Nothing else touches what wait sets before.
func (s *Standby) begin(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	s.made = made{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(s.made.done)
		if s.made.err = s.driver.agrees(ctx, s.spec); s.made.err == nil {
			s.made.err = s.wait(ctx)
		}
	}()
}

// awaitMachine returns what came of the first machine.
func (s *Standby) awaitMachine() error {
	<-s.made.done
	s.made.cancel()
	return s.made.err
}

// wait starts the QEMU that waits. The caller holds life, or is alone.
func (s *Standby) wait(ctx context.Context) error {
	d := s.driver
	v, err := d.boot(ctx, machine{Type: s.spec.Machine, Accel: s.spec.Accel}, s.place, s.ram, true)
	if err != nil {
		return err
	}
	if err := s.checkMachine(ctx, v); err != nil {
		return errors.Join(v.proc.explain(err), v.end())
	}
	s.vm, s.spent = v, false
	return nil
}

// checkMachine checks that the waiting machine has the guest's RAM blocks, and
// prepares it for what would otherwise cost time after the takeover.
func (s *Standby) checkMachine(ctx context.Context, v *vm) error {
	if err := prepareMigration(ctx, v.client); err != nil {
		return err
	}
	sizes, err := queryRAMBlocks(ctx, v.client)
	if err != nil {
		return err
	}
	for _, b := range s.spec.Blocks {
		if got, ok := sizes[b.Name]; !ok || got[1] != b.Total {
			return &hypervisor.Refusal{
				What:   fmt.Sprintf("RAM block %s can have %d bytes at the guest's host, %d here", b.Name, b.Total, got[1]),
				Remedy: "install the same QEMU and firmware packages on both hosts",
			}
		}
	}
	if len(sizes) != len(s.spec.Blocks) {
		return &hypervisor.Refusal{
			What:   fmt.Sprintf("the machine has %d RAM blocks at the guest's host, %d here", len(s.spec.Blocks), len(sizes)),
			Remedy: "install the same QEMU and firmware packages on both hosts",
		}
	}
	// The descriptor that tracks writes is made now, and stays inside QEMU
	// when we let go of it: the guest that this becomes finds it there.
	pid := v.proc.identity.PID
	regions, err := dirty.FileRegions(pid, s.ram.file, 0)
	if err != nil {
		return err
	}
	t, err := dirty.Attach(ctx, dirty.Config{PID: pid, Helper: s.driver.cfg.Helper, Regions: regions})
	if err != nil {
		return err
	}
	if s.lazy = t.CanPage(); !s.lazy {
		s.driver.log.Warn("a takeover has to fetch all missing memory before the guest runs: QEMU cannot be supplied with it later (no /dev/userfaultfd here, or vm.unprivileged_userfaultfd is 0)")
	}
	return t.Close()
}

// Pages returns the size of the image.
func (s *Standby) Pages() uint64 { return s.pages }

// ReadPages copies pages of the image.
func (s *Standby) ReadPages(first epoch.GFN, dst []byte) error {
	s.life.RLock()
	defer s.life.RUnlock()
	if err := s.usable(first, len(dst)); err != nil {
		return fmt.Errorf("read pages of the standby of %q: %w", s.driver.cfg.Name, err)
	}
	page := uint64(first)
	n := s.inMain(page, len(dst))
	if err := s.fill.Load().fill(first, uint64(n)/epoch.PageSize); err != nil {
		return fmt.Errorf("read pages of the standby of %q: %w", s.driver.cfg.Name, err)
	}
	if err := s.ram.read(page, dst[:n]); err != nil {
		return err
	}
	if len(dst) > n {
		copy(dst[n:], s.extra[(max(page, s.main)-s.main)*epoch.PageSize:])
	}
	return nil
}

// WritePages copies pages into the image.
func (s *Standby) WritePages(first epoch.GFN, data []byte) error {
	s.life.RLock()
	defer s.life.RUnlock()
	err := s.usable(first, len(data))
	if err == nil && s.ready != nil {
		err = errors.New("its machine holds a device state already, Reset it first")
	}
	if err != nil {
		return fmt.Errorf("write pages of the standby of %q: %w", s.driver.cfg.Name, err)
	}
	page := uint64(first)
	n := s.inMain(page, len(data))
	if err := s.ram.write(page, data[:n]); err != nil {
		return err
	}
	if len(data) > n {
		copy(s.extra[(max(page, s.main)-s.main)*epoch.PageSize:], data[n:])
	}
	return nil
}

// inMain returns how many of size bytes from page on lie in main memory.
func (s *Standby) inMain(page uint64, size int) int {
	if page >= s.main {
		return 0
	}
	return int(min(uint64(size), (s.main-page)*epoch.PageSize))
}

func (s *Standby) usable(first epoch.GFN, size int) error {
	if s.over {
		return errOver
	}
	return checkRange(first, size, s.pages)
}

// Load puts a device state into the waiting machine, which stays paused.
func (s *Standby) Load(ctx context.Context, deviceState []byte, missing hypervisor.Filler) (err error) {
	made := s.awaitMachine()
	s.life.Lock()
	defer s.life.Unlock()
	defer func() {
		if err != nil {
			err = fmt.Errorf("load the standby of %q: %w", s.driver.cfg.Name, err)
		}
	}()
	switch {
	case s.over:
		return errOver
	case ctx.Err() != nil:
		return ctx.Err()
	case s.vm == nil && made != nil && !s.spent:
		return made
	case s.spent || s.vm == nil:
		return errors.New("its machine has been given a state already, Reset it first")
	}
	lacking, err := s.fetch(missing)
	if err != nil {
		return err
	}
	file, err := s.compose(deviceState)
	if err != nil {
		return err // nothing was touched
	}
	defer func() { _ = file.Close() }()
	s.spent = true
	if lacking != nil {
		f, err := newFiller(s.ram, func() (*dirty.Pager, error) { return s.page(ctx) }, missing, lacking, s.driver.log)
		if err != nil {
			return err
		}
		s.fill.Store(f)
		var giveUp func()
		ctx, giveUp = f.bound(ctx)
		defer giveUp()
	}
	if err := migrate(ctx, s.vm.client, "migrate-incoming", file); err != nil {
		return s.vm.proc.explain(because(ctx, err))
	}
	g, err := s.makeGuest(ctx)
	if err != nil {
		return s.vm.proc.explain(because(ctx, err))
	}
	g.fill.Store(s.fill.Load())
	s.ready = g
	return nil
}

// because adds to an error why its context ended, if that is another reason.
func because(ctx context.Context, err error) error {
	if why := context.Cause(ctx); why != nil && !errors.Is(why, ctx.Err()) {
		return fmt.Errorf("%w: %w", err, why)
	}
	return err
}

// page has the waiting machine's memory supplied by us.
func (s *Standby) page(ctx context.Context) (*dirty.Pager, error) {
	pid := s.vm.proc.identity.PID
	regions, err := dirty.FileRegions(pid, s.ram.file, 0)
	if err != nil {
		return nil, err
	}
	return dirty.Page(ctx, dirty.Config{PID: pid, Helper: s.driver.cfg.Helper, Regions: regions})
}

// fetch puts missing pages into the image: those beside main memory, and all
// of them where the machine cannot be supplied with pages while it runs. It
// returns those that are still missing, nil for none.
func (s *Standby) fetch(missing hypervisor.Filler) (*epoch.PageSet, error) {
	if missing == nil {
		return nil, nil
	}
	set := epoch.NewPageSet(s.pages)
	missing.Missing(set)
	page := make([]byte, epoch.PageSize)
	for first, count := range set.Runs {
		for f := first; f < first+epoch.GFN(count); f++ {
			if uint64(f) < s.main && s.lazy {
				continue
			}
			if err := missing.Content(f, page); err != nil {
				return nil, fmt.Errorf("fetch page %d: %w", f, err)
			}
			if uint64(f) < s.main {
				if err := s.ram.write(uint64(f), page); err != nil {
					return nil, err
				}
			} else {
				copy(s.extra[(uint64(f)-s.main)*epoch.PageSize:], page)
			}
			missing.Filled(f)
		}
	}
	set.RemoveRange(epoch.GFN(s.main), s.pages-s.main)
	if !s.lazy || set.Empty() {
		return nil, nil
	}
	return set, nil
}

// Fill returns when the pages are in the image. Before Load it has nothing to do.
func (s *Standby) Fill(first epoch.GFN, count uint64) error {
	// Without the lock: Run holds it while the machine's disks need this.
	if err := s.fill.Load().fill(first, count); err != nil {
		return fmt.Errorf("fill memory of the standby of %q: %w", s.driver.cfg.Name, err)
	}
	return nil
}

// compose writes the incoming stream into a memory file.
func (s *Standby) compose(deviceState []byte) (_ *os.File, err error) {
	used, devices, err := splitState(deviceState, s.spec.Blocks)
	if err != nil {
		return nil, err
	}
	if err := stream.NewChecker(s.spec.Devices).Check(devices); err != nil {
		return nil, err
	}
	blocks := make([]stream.Block, len(s.spec.Blocks))
	start := make([]uint64, len(s.spec.Blocks)) // of a side block in extra
	for i, b := range s.spec.Blocks {
		blocks[i] = b.Block
		blocks[i].Used = used[i]
	}
	for _, b := range s.side {
		start[b.index] = (b.first - s.main) * epoch.PageSize
	}
	file, err := memoryFile("understudy-stream")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = file.Close()
		}
	}()
	w := bufio.NewWriterSize(file, 256<<10)
	err = stream.Compose(w, stream.Incoming{
		RAM: s.spec.RAM, Blocks: blocks, Devices: devices,
		Shared: func(i int) bool { return blocks[i].Name == mainBlock },
		Page: func(i int, offset uint64) ([]byte, error) {
			at := start[i] + offset
			return s.extra[at : at+epoch.PageSize], nil
		},
	})
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		_, err = file.Seek(0, io.SeekStart)
	}
	return file, err
}

// makeGuest does, while the machine is paused, all that the guest will need.
func (s *Standby) makeGuest(ctx context.Context) (*Guest, error) {
	status, err := queryStatus(ctx, s.vm.client)
	if err != nil {
		return nil, err
	}
	if status.Running || status.Status != "paused" {
		return nil, fmt.Errorf("the loaded machine is in state %q, not paused", status.Status)
	}
	pid := s.vm.proc.identity.PID
	mem, err := openMemory(pid)
	if err != nil {
		return nil, err
	}
	sizes, err := queryRAMBlocks(ctx, s.vm.client)
	if err != nil {
		_ = mem.Close()
		return nil, err
	}
	side, _ := layout(s.spec.Blocks)
	content := func(i int) []byte {
		for _, b := range s.side {
			if b.index == i {
				at := (b.first - s.main) * epoch.PageSize
				return s.extra[at : at+sizes[s.spec.Blocks[i].Name][0]]
			}
		}
		return nil
	}
	for _, b := range s.spec.Blocks {
		if err := b.accepts(sizes[b.Name][0]); err != nil {
			_ = mem.Close()
			return nil, err
		}
	}
	if err := locate(pid, mem, s.spec.Blocks, side, content); err != nil {
		_ = mem.Close()
		return nil, err
	}
	return newGuest(ctx, s.driver, s.vm, s.spec, side, mem)
}

// Run lets the loaded machine run.
func (s *Standby) Run(ctx context.Context) (_ hypervisor.Guest, err error) {
	s.life.Lock()
	defer s.life.Unlock()
	defer func() {
		if err != nil {
			err = fmt.Errorf("run the standby of %q: %w", s.driver.cfg.Name, err)
		}
	}()
	switch {
	case s.over:
		return nil, errOver
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case s.ready == nil:
		return nil, errors.New("no device state has been loaded")
	}
	g := s.ready
	// Before it runs, so that a later process of ours can adopt it.
	f, state := g.fill.Load(), fillDone
	if f != nil {
		state = fillMissing
	}
	if err := g.saveRecord(roleGuest, state); err != nil {
		return nil, err
	}
	if err := g.Resume(ctx); err != nil {
		return nil, s.vm.proc.explain(err)
	}
	g.listen()
	if f != nil {
		f.walk()
		g.filling.Go(func() { g.finishFill(f) })
	}
	s.over, s.ready, s.vm, s.extra = true, nil, nil, nil // all of it is the Guest's now
	return g, nil
}

// Reset replaces the waiting machine by a fresh one on the same image.
func (s *Standby) Reset(ctx context.Context) (err error) {
	s.abandonFill()
	_ = s.awaitMachine() // there will be another one
	s.life.Lock()
	defer s.life.Unlock()
	defer func() {
		if err != nil {
			err = fmt.Errorf("reset the standby of %q: %w", s.driver.cfg.Name, err)
		}
	}()
	if s.over {
		return errOver
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.stop(); err != nil {
		return err
	}
	return s.wait(ctx)
}

// abandonFill ends the filling of a machine that is given up. Pages that were
// not filled stay the Filler's, and holes here. Who waits for one in a call
// that holds life goes on.
func (s *Standby) abandonFill() {
	s.life.RLock()
	defer s.life.RUnlock()
	if f := s.fill.Load(); f != nil && !s.over {
		f.close()
	}
}

// stop ends the waiting machine. The image stays.
func (s *Standby) stop() error {
	var err error
	if f := s.fill.Swap(nil); f != nil {
		f.close() // before QEMU ends: it must not see that as a failure
	}
	if s.ready != nil {
		err = s.ready.drop()
		s.ready = nil
	}
	if s.vm != nil {
		err = errors.Join(err, s.vm.end())
		s.vm = nil
	}
	return err
}

// Destroy ends the waiting machine and frees the image.
func (s *Standby) Destroy() error {
	s.abandonFill()
	s.made.cancel()
	_ = s.awaitMachine() // it is over
	s.life.Lock()
	defer s.life.Unlock()
	if s.over {
		return nil
	}
	s.over = true
	err := errors.Join(s.stop(), s.ram.close(), s.place.remove())
	s.extra = nil
	return err
}
