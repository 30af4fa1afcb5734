package sim

import (
	"context"
	"errors"
	"fmt"

	"understudy/epoch"
	"understudy/hypervisor"
)

// Standby is an image that is kept up to date, and a machine that waits for
// its device state.
type Standby struct{ handle }

var _ hypervisor.Standby = (*Standby)(nil)

// WritePages copies data into the image. After Load it is an error.
func (s *Standby) WritePages(first epoch.GFN, data []byte) error {
	return s.do(context.Background(), "write pages of", func(m *machine) error {
		if m.phase != phaseWaiting {
			return errors.New("a device state was loaded or has failed to load: Reset comes first")
		}
		if err := inImage(m.mem.pages(), first, data); err != nil {
			return err
		}
		copy(m.mem.bytes[uint64(first)*epoch.PageSize:], data)
		return nil
	})
}

// Load takes the device state of the last commit. It fails if the state is
// damaged, or if the image is not the memory that the state was saved with; for
// that check every missing page is fetched first.
func (s *Standby) Load(ctx context.Context, deviceState []byte, missing hypervisor.Filler) error {
	return s.do(ctx, "load device state of", func(m *machine) error {
		if m.phase != phaseWaiting {
			return errors.New("a device state was loaded or has failed to load: Reset comes first")
		}
		m.phase = phaseSpent
		f := m.cfg.Faults
		if f.lies(LieLoadWrites) {
			m.mem.bytes[len(m.mem.bytes)-1]++
		}
		if err := f.load.next(); err != nil {
			return err
		}
		if err := m.fetch(missing); err != nil {
			return err
		}
		regs, err := parseState(deviceState, &m.mem)
		if err != nil {
			return err
		}
		m.regs = regs
		m.phase = phaseLoaded
		return nil
	})
}

// Reset forgets the loaded device state. The image stays as it is.
func (s *Standby) Reset(ctx context.Context) error {
	return s.do(ctx, "reset", func(m *machine) error {
		m.regs = registers{}
		m.phase = phaseWaiting
		if m.cfg.Faults.lies(LieResetWrites) {
			m.mem.bytes[len(m.mem.bytes)-1]++
		}
		return nil
	})
}

// Run lets the loaded machine run. The Guest's concrete type is *Guest. It
// fails if a guest of this name is on the host already.
func (s *Standby) Run(ctx context.Context) (hypervisor.Guest, error) {
	h := s.m.host
	h.mu.Lock() // no other guest of this name appears meanwhile
	defer h.mu.Unlock()
	other := h.find(s.m.cfg.Name)
	var g *Guest
	err := s.do(ctx, "run", func(m *machine) error {
		if m.phase != phaseLoaded {
			return errors.New("it has no device state: Load comes first")
		}
		if other != nil {
			return errors.New("a guest of this name is on this host already")
		}
		g = m.takeLocked()
		m.mem.dirty.Fill()
		m.phase = phaseRunning
		if kind := hypervisor.EventKind(m.regs.halted); kind != 0 {
			m.phase = phasePaused
			m.event = append(m.event, hypervisor.Event{Kind: kind, Detail: "happened before the takeover"})
			m.tell()
		}
		m.startLoop()
		return nil
	})
	if err != nil {
		return nil, err
	}
	return g, nil
}

// Fill has nothing to do: Load fetched every page.
func (s *Standby) Fill(epoch.GFN, uint64) error { return nil }

// Destroy ends the waiting machine and frees the image. A second call does
// nothing.
func (s *Standby) Destroy() error { return s.destroy() }

// fetch puts every missing page into the image.
func (m *machine) fetch(missing hypervisor.Filler) error {
	if missing == nil {
		return nil
	}
	set := epoch.NewPageSet(uint64(len(m.mem.bytes)) / epoch.PageSize)
	missing.Missing(set)
	for first, count := range set.Runs {
		for page := first; page < first+epoch.GFN(count); page++ {
			at := uint64(page) * epoch.PageSize
			if err := missing.Content(page, m.mem.bytes[at:at+epoch.PageSize]); err != nil {
				return fmt.Errorf("fetch page %d: %w", page, err)
			}
			missing.Filled(page)
		}
	}
	return nil
}
