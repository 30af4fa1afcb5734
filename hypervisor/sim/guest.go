package sim

import (
	"context"
	"errors"
	"fmt"

	"understudy/epoch"
	"understudy/hypervisor"
)

// ErrHalted is returned by Resume for a guest that has powered itself off or
// has panicked.
var ErrHalted = errors.New("the guest has halted by itself and cannot run on")

// Guest is a simulated guest in the hands of its owner.
type Guest struct {
	handle
	events chan hypervisor.Event
}

var _ hypervisor.Guest = (*Guest)(nil)

// Spec describes the machine for a Standby on another host.
func (g *Guest) Spec() hypervisor.Spec {
	g.m.mu.RLock()
	defer g.m.mu.RUnlock()
	return makeSpec(g.m.cfg)
}

// Pause waits for the step under way. After it, no page is written and no
// frame is sent.
func (g *Guest) Pause(ctx context.Context) error {
	g.m.mu.RLock()
	faults := g.m.cfg.Faults
	g.m.mu.RUnlock()
	if err := faults.stall(ctx); err != nil {
		return fmt.Errorf("pause %s on %s: %w", g.m.cfg.Name, g.m.host.name, err)
	}
	return g.do(ctx, "pause", func(m *machine) error {
		m.pause()
		return nil
	})
}

// Resume lets the guest run on. It returns ErrHalted for one that cannot.
func (g *Guest) Resume(ctx context.Context) error {
	return g.do(ctx, "resume", func(m *machine) error {
		if m.regs.halted != 0 {
			return fmt.Errorf("%w (%s)", ErrHalted, hypervisor.EventKind(m.regs.halted))
		}
		m.phase = phaseRunning
		m.wake()
		return nil
	})
}

// CollectDirty moves the dirty pages into set.
func (g *Guest) CollectDirty(set *epoch.PageSet) error {
	return g.do(context.Background(), "collect dirty pages of", func(m *machine) error {
		if set.Pages() != m.mem.pages() {
			return fmt.Errorf("a set over %d pages for an image of %d", set.Pages(), m.mem.pages())
		}
		f := m.cfg.Faults
		if err := f.collect.next(); err != nil {
			m.mem.dirty.Clear() // as the contract has it: nothing is known now
			return err
		}
		if f.lies(LieForgetDirty) && m.mem.dirty.Count() < m.mem.pages() {
			for first := range m.mem.dirty.Runs {
				m.mem.dirty.RemoveRange(first, 1)
				break
			}
		}
		set.Union(m.mem.dirty)
		m.mem.dirty.Clear()
		if f.lies(LieLateWrite) {
			m.writeHeapPage(systemPages, m.mem.pages()-systemPages)
		}
		return nil
	})
}

// Fill has nothing to do: Load fetched every page.
func (g *Guest) Fill(epoch.GFN, uint64) error { return nil }

// AppendDeviceState appends the registers and the sums that bind them to this
// very memory.
func (g *Guest) AppendDeviceState(ctx context.Context, dst []byte) ([]byte, error) {
	err := g.do(ctx, "save device state of", func(m *machine) error {
		if m.phase != phasePaused {
			return errors.New("it is running: pause it first")
		}
		f := m.cfg.Faults
		if err := f.deviceState.next(); err != nil {
			return err
		}
		if f.lies(LieStateWrites) {
			m.writeHeapPage(systemPages, m.mem.pages()-systemPages)
		}
		dst = appendState(dst, m)
		return nil
	})
	return dst, err
}

// Alive returns an error once the machine has ended.
func (g *Guest) Alive() error {
	g.m.mu.RLock()
	defer g.m.mu.RUnlock()
	return g.check()
}

// Events tells what the guest did by itself.
func (g *Guest) Events() <-chan hypervisor.Event { return g.events }

// Detach lets go of the guest, which runs on if it was running.
func (g *Guest) Detach() error {
	return g.do(context.Background(), "detach from", func(m *machine) error {
		m.ticket = 0
		close(m.events)
		return nil
	})
}

// Destroy ends the guest. A second call does nothing.
func (g *Guest) Destroy() error { return g.destroy() }

// Step takes one step of a running guest: first the frames that have arrived,
// then the step itself. Tests of a guest without an Interval drive it so. Such a
// guest has no clock; one with an Interval reads the time in each step.
func (g *Guest) Step() error {
	var frames <-chan []byte
	err := g.do(context.Background(), "step", func(m *machine) error {
		if m.phase != phaseRunning {
			return errors.New("it is not running")
		}
		if m.nic != nil {
			frames = m.nic.Receive()
		}
		return nil
	})
	if err != nil {
		return err
	}
	for range maxInbox {
		select {
		case frame := <-frames:
			g.m.step(frame, false, 0)
			continue
		default:
		}
		break
	}
	g.m.step(nil, true, 0)
	return nil
}

// PowerOff makes the guest shut itself down.
func (g *Guest) PowerOff() error {
	return g.act("power off", func(m *machine) { m.halt(hypervisor.EventShutdown, "the guest powered itself off") })
}

// Panic makes the guest's kernel panic.
func (g *Guest) Panic() error {
	return g.act("panic", func(m *machine) { m.halt(hypervisor.EventPanic, "the guest was asked to panic") })
}

// Reboot makes the guest restart: it forgets its connections and its heap, and
// has another boot id.
func (g *Guest) Reboot() error {
	return g.act("reboot", func(m *machine) {
		cfg := m.cfg
		cfg.DirtyPages, cfg.Pattern = int(m.mem.get(atDirty)), Pattern(m.mem.get(atPattern))
		cfg.LineEvery, cfg.RetransmitAfter = int(m.mem.get(atLineEvery)), int(m.mem.get(atRetransmit))
		cfg.DiskEvery = int(m.mem.get(atDiskEvery))
		m.event = append(m.event, hypervisor.Event{Kind: hypervisor.EventReset, Detail: "the guest rebooted"})
		m.kernel.boot(cfg, m.random(), m.mem.get(atBoots)+1)
	})
}

// SetDirtyPages makes the guest write another number of pages in each step.
func (g *Guest) SetDirtyPages(pages int) error {
	return g.act("change the load of", func(m *machine) { m.mem.put(atDirty, uint64(max(0, pages))) })
}

// act makes a running guest do something, between two steps.
func (g *Guest) act(what string, f func(m *machine)) error {
	return g.do(context.Background(), what, func(m *machine) error {
		if m.phase != phaseRunning {
			return errors.New("it is not running")
		}
		f(m)
		if m.regs.halted != 0 {
			m.phase = phasePaused
			m.wake()
		}
		m.tell()
		return nil
	})
}
