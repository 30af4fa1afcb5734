package sim

import (
	"context"
	"fmt"
	"sync"
	"time"

	"understudy/epoch"
	"understudy/hypervisor"
)

type phase uint8

const (
	phaseWaiting phase = iota // a standby whose image is being filled
	phaseLoaded               // a standby that has its device state
	phaseSpent                // a standby whose Load has failed
	phasePaused
	phaseRunning
	phaseGone
)

// machine is one guest or standby on one host. Its lock is held for the whole
// of a step, so a pause waits for the step under way and nothing is half done
// when the lock is free.
//
// A guest with an Interval has one goroutine, loop: started by boot or run,
// ended and waited for by end.
type machine struct {
	host *Host
	cfg  Config

	mu sync.RWMutex
	kernel
	phase  phase
	gone   error                 // why, once phase is phaseGone
	ticket uint64                // which handle is valid; 0 for none
	last   uint64                // the last ticket given out
	events chan hypervisor.Event // of the valid handle
	inbox  [][]byte              // frames taken from the card while paused

	changed chan struct{} // phase or card is another one: loop looks again
	quit    chan struct{} // closed by end
	done    chan struct{} // closed when loop has ended; nil if there is none
}

// Room in a guest's event channel. Resets are merged when only the room for
// the events that stop a guest is left.
const (
	eventRoom  = 16
	eventSpare = 4
)

// maxInbox bounds the frames that wait for a paused guest; a card's ring is
// not endless either.
const maxInbox = 256

func newMachine(host *Host, cfg Config, p phase) *machine {
	return &machine{
		host:    host,
		cfg:     cfg,
		kernel:  kernel{mem: newMemory(cfg.Pages), nic: cfg.NIC, disk: cfg.Disk},
		phase:   p,
		changed: make(chan struct{}, 1),
		quit:    make(chan struct{}),
	}
}

func (m *machine) String() string {
	if m.isGuest() {
		return "guest " + m.cfg.Name
	}
	return "standby " + m.cfg.Name
}

func (m *machine) isGuest() bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.phase == phasePaused || m.phase == phaseRunning
}

// boot brings up the guest, paused.
func (m *machine) boot(seed uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.phase == phaseGone {
		return // the host was killed meanwhile; the handle says so
	}
	m.kernel.boot(m.cfg, seed, 1)
	m.tell()
	m.startLoop()
}

// take gives out a handle, which makes the former one invalid.
func (m *machine) take() *Guest {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.takeLocked()
}

func (m *machine) takeLocked() *Guest {
	if m.ticket != 0 {
		close(m.events)
	}
	m.last++
	m.ticket = m.last
	m.events = make(chan hypervisor.Event, eventRoom)
	if m.phase == phaseGone {
		close(m.events)
	}
	return &Guest{handle: handle{m: m, ticket: m.ticket}, events: m.events}
}

// adopt stops the machine, plugs it into the new owner's hardware and gives it
// to that owner.
func (m *machine) adopt(cfg Config) (*Guest, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.phase == phaseGone {
		return nil, fmt.Errorf("adopt guest %s on %s: %w", cfg.Name, m.host.name, m.gone)
	}
	g := m.takeLocked()
	m.cfg.NIC, m.cfg.Disk, m.cfg.Faults = cfg.NIC, cfg.Disk, cfg.Faults
	m.nic, m.disk = cfg.NIC, cfg.Disk
	m.phase = phasePaused
	m.mem.dirty.Fill()
	if kind := hypervisor.EventKind(m.regs.halted); kind != 0 {
		m.event = append(m.event, hypervisor.Event{Kind: kind, Detail: "happened before the guest was adopted"})
	}
	m.tell()
	m.wake()
	return g, nil
}

func (m *machine) startLoop() {
	if m.cfg.Interval > 0 {
		m.done = make(chan struct{})
		go m.loop()
	}
}

// loop runs the guest: a step at each interval, and each frame as it comes.
func (m *machine) loop() {
	defer close(m.done)
	timer := time.NewTimer(m.cfg.Interval)
	defer timer.Stop()
	for {
		frames, running := m.card()
		tick := timer.C
		if !running {
			tick = nil
		}
		select {
		case <-m.quit:
			return
		case <-m.changed:
			// The timer goes on during a pause, as an interrupt stays pending:
			// a guest that is paused often still gets its steps.
		case <-tick:
			next := m.cfg.Interval
			if !m.step(nil, true, uint64(time.Now().UnixNano())) {
				next = 0 // paused this moment: the step stays due
			}
			timer.Reset(next)
		case frame, ok := <-frames:
			if !ok {
				m.unplug()
				continue
			}
			m.step(frame, false, 0)
		}
	}
}

// card says whether the guest runs, and where its frames come from if it does.
func (m *machine) card() (frames <-chan []byte, running bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	running = m.phase == phaseRunning
	if running && m.nic != nil {
		frames = m.nic.Receive()
	}
	return frames, running
}

// step lets the guest handle what waits in its inbox, then frame, and then
// take a step of its own. A guest that does not run keeps the frame for later,
// and step returns false.
func (m *machine) step(frame []byte, tick bool, clock uint64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if frame != nil && len(m.inbox) < maxInbox {
		m.inbox = append(m.inbox, frame)
	}
	if m.phase != phaseRunning {
		return false
	}
	for i, f := range m.inbox {
		m.receive(f)
		m.inbox[i] = nil
	}
	m.inbox = m.inbox[:0]
	if tick {
		m.tick(clock)
	}
	if m.regs.halted != 0 {
		m.phase = phasePaused
	}
	m.tell()
	return true
}

// tell passes on to the owner what the guest did by itself. Without an owner
// it is forgotten: adopt finds it in the registers.
func (m *machine) tell() {
	for _, e := range m.event {
		if m.ticket == 0 || e.Kind == hypervisor.EventReset && len(m.events) >= eventRoom-eventSpare {
			continue
		}
		select {
		case m.events <- e:
		default: // an owner that does not read; the registers still say it
		}
	}
	m.event = m.event[:0]
}

// unplug forgets a card whose other end is gone.
func (m *machine) unplug() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.nic = nil
}

// wake makes loop look at what has changed.
func (m *machine) wake() {
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

// pause returns when the step under way, if any, has ended.
func (m *machine) pause() {
	if m.phase == phaseRunning {
		m.phase = phasePaused
		m.wake()
	}
}

// end makes an end of the machine for the given reason: no step follows, its
// memory is freed, its owner sees last (if any) and then a closed channel. It
// returns after the guest's goroutine has ended.
func (m *machine) end(why error, last *hypervisor.Event) {
	m.mu.Lock()
	first := m.phase != phaseGone
	if first {
		m.phase, m.gone = phaseGone, why
		m.mem = memory{dirty: epoch.NewPageSet(0)}
		m.inbox = nil
		if m.ticket != 0 {
			if last != nil {
				m.event = append(m.event[:0], *last)
				m.tell()
			}
			close(m.events)
		}
		close(m.quit)
	}
	done := m.done
	m.mu.Unlock()
	if done != nil {
		<-done
	}
	if first {
		m.host.remove(m)
	}
}

// handle is what an owner holds of a machine.
type handle struct {
	m      *machine
	ticket uint64
}

// check reports whether the handle is still good for what it is asked to do.
// The machine's lock is held.
func (h handle) check() error {
	switch {
	case h.m.phase == phaseGone:
		return h.m.gone
	case h.m.ticket != h.ticket:
		return errLetGo
	}
	return nil
}

// do runs f under the machine's lock, if the handle is good and ctx is not over.
func (h handle) do(ctx context.Context, what string, f func(m *machine) error) error {
	err := ctx.Err()
	if err == nil {
		h.m.mu.Lock()
		defer h.m.mu.Unlock()
		if err = h.check(); err == nil {
			err = f(h.m)
		}
	}
	if err != nil {
		return fmt.Errorf("%s %s on %s: %w", what, h.m.cfg.Name, h.m.host.name, err)
	}
	return nil
}

// Pages is the size of the image in pages.
func (h handle) Pages() uint64 { return h.m.cfg.Pages }

// ReadPages copies pages out of the image. It runs between two steps, so no
// page is torn, but two calls may see different moments of a running guest.
func (h handle) ReadPages(first epoch.GFN, dst []byte) error {
	h.m.mu.RLock()
	defer h.m.mu.RUnlock()
	if err := h.check(); err != nil {
		return fmt.Errorf("read pages of %s on %s: %w", h.m.cfg.Name, h.m.host.name, err)
	}
	if err := inImage(h.m.cfg.Pages, first, dst); err != nil {
		return fmt.Errorf("read pages of %s on %s: %w", h.m.cfg.Name, h.m.host.name, err)
	}
	copy(dst, h.m.mem.bytes[uint64(first)*epoch.PageSize:])
	return nil
}

// destroy ends the machine unless somebody else owns it by now.
func (h handle) destroy() error {
	h.m.mu.RLock()
	err := h.check()
	gone := h.m.phase == phaseGone
	h.m.mu.RUnlock()
	if err != nil && !gone {
		return fmt.Errorf("destroy %s on %s: %w", h.m.cfg.Name, h.m.host.name, err)
	}
	h.m.end(errGone, nil)
	return nil
}

func inImage(pages uint64, first epoch.GFN, b []byte) error {
	count := uint64(len(b)) / epoch.PageSize
	switch {
	case len(b)%epoch.PageSize != 0:
		return fmt.Errorf("%d bytes are not a whole number of pages of %d bytes", len(b), epoch.PageSize)
	case uint64(first) > pages || count > pages-uint64(first):
		return fmt.Errorf("pages %d+%d are outside an image of %d pages", first, count, pages)
	}
	return nil
}
