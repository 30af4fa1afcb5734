package store

// This file reads pins: OpenPin checks a pin's file, a PinView is the disk as it
// was when it was pinned, Rollback makes it so again.

import (
	"errors"
	"fmt"
	"os"

	"understudy/epoch"
)

// OpenPin opens a pin's file and checks all of it. What a crash has torn at its
// end is left out. It goes on being right only while the disk is not written, or
// is written through the store that has the pin armed and a view of it is made
// there (View).
func OpenPin(path string) (*Pin, error) { return openPin(path, os.O_RDONLY) }

func openPin(path string, flags int) (*Pin, error) {
	file, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return nil, fmt.Errorf("open pin: %w", err)
	}
	p := &Pin{Path: path, file: file, kept: keptTable{}}
	if err := p.load(); err != nil {
		p.close()
		return nil, fmt.Errorf("open pin %s: %w", path, err)
	}
	return p, nil
}

func (p *Pin) load() error {
	info, err := p.file.Stat()
	if err != nil {
		return err
	}
	p.PinHead, p.end, err = scanPin(p.file, info.Size(), func(c oldContent, at int64) error {
		if c.kind == recordBroken {
			p.broken = "it says so itself"
		}
		p.bytes += uint64(len(c.data))
		return p.kept.add(c, at)
	})
	return err
}

// Close closes a pin that OpenPin opened. An armed pin is closed by its store.
func (p *Pin) Close() { p.close() }

// PinView is a disk as it was when it was pinned.
type PinView struct {
	pin  *Pin
	disk Source
}

// View returns the disk as it was when it was pinned: old content where there is
// some, else what disk has now. If disk is a *File that knows nothing of the pin,
// or knows that it is broken, that is an error.
func (p *Pin) View(disk Source) (*PinView, error) {
	live, err := p.of(disk)
	if err != nil {
		return nil, fmt.Errorf("view of disk through pin %s: %w", p.Path, err)
	}
	return &PinView{pin: live, disk: disk}, nil
}

// of returns the pin that is armed in disk, if it is this one.
func (p *Pin) of(disk Source) (*Pin, error) {
	if disk.Sectors() != p.Sectors {
		return nil, fmt.Errorf("it is of a disk with %d sectors, this one has %d", p.Sectors, disk.Sectors())
	}
	live := p
	if f, ok := disk.(*File); ok {
		for _, armed := range f.Pins() {
			if armed.ID == p.ID {
				live = armed
			}
		}
		if err := f.knows(p.ID); err != nil {
			return nil, err
		}
	}
	return live, live.whole()
}

// knows refuses a pin that is not armed, or broken.
func (f *File) knows(id PinID) error {
	r, err := f.Record()
	if err != nil {
		return err
	}
	for _, p := range r.Pins {
		if p.ID != id {
			continue
		}
		if p.Broken != "" {
			return fmt.Errorf("%w: %s", ErrPinBroken, p.Broken)
		}
		return nil
	}
	return fmt.Errorf("%w: the disk %s does not have it armed", ErrPinBroken, f.cfg.Path)
}

func (p *Pin) whole() error {
	if reason := p.Broken(); reason != "" {
		return fmt.Errorf("%w: %s", ErrPinBroken, reason)
	}
	return nil
}

// Sectors returns the disk's size.
func (v *PinView) Sectors() uint64 { return v.pin.Sectors }

// ReadAt reads whole sectors of the pinned disk.
func (v *PinView) ReadAt(p []byte, sector uint64) error {
	// What the disk has comes first: a block that is overwritten meanwhile has
	// its old content in the pin before that happens, and the pin is asked
	// afterwards.
	if err := v.disk.ReadAt(p, sector); err != nil {
		return err
	}
	v.pin.mu.RLock()
	defer v.pin.mu.RUnlock()
	if v.pin.broken != "" {
		return fmt.Errorf("read through pin %s: %w: %s", v.pin.Path, ErrPinBroken, v.pin.broken)
	}
	for len(p) > 0 {
		inside := sector % blockSectors * epoch.SectorSize
		n := min(pinBlock-int(inside), len(p))
		switch at := v.pin.kept.get(sector / blockSectors); at {
		case 0:
		case keptZero:
			clear(p[:n])
		default:
			if _, err := v.pin.file.ReadAt(p[:n], at+int64(inside)); err != nil {
				return fmt.Errorf("read pin: %w", err)
			}
		}
		p, sector = p[n:], sector+uint64(n/epoch.SectorSize)
	}
	return nil
}

// Target is a disk that can be written.
type Target interface {
	Source
	WriteAt(p []byte, sector uint64) error
	Zero(sector uint64, sectors uint32, discard bool) error
	Sync() error
}

// Rollback makes the disk what it was when it was pinned; nobody else may write
// to it meanwhile. After a crash in the middle it is called again; until it has
// ended only AcquireTorn gets a *File. The pin stays armed. A *File has its old
// write stamp again at the end.
func (p *Pin) Rollback(disk Target) error {
	if err := p.rollback(disk); err != nil {
		return fmt.Errorf("roll back to pin %s: %w", p.Path, err)
	}
	return nil
}

func (p *Pin) rollback(disk Target) error {
	live, err := p.of(disk)
	if err != nil {
		return err
	}
	live.mu.RLock()
	end := live.end
	live.mu.RUnlock()
	f, recorded := disk.(*File)
	if recorded {
		if err := f.beginRolling(live.ID); err != nil {
			return err
		}
	}
	// Nothing of it is kept once more: all these blocks are.
	_, read, err := scanPin(live.file, end, func(c oldContent, _ int64) error {
		if c.kind == recordZero {
			return disk.Zero(c.sector, c.sectors, false)
		}
		return disk.WriteAt(c.data, c.sector)
	})
	if err == nil && read != end {
		err = fmt.Errorf("%w: damaged at offset %d since it was opened", ErrPin, read)
	}
	if err != nil {
		return err
	}
	if err := disk.Sync(); err != nil {
		return err
	}
	if err := live.whole(); err != nil {
		return err
	}
	if recorded {
		return f.restoreStamp(live.Stamp)
	}
	return nil
}

// beginRolling notes, durably, that the disk is about to be neither old nor new.
func (f *File) beginRolling(id PinID) error {
	f.gate.Lock()
	defer f.gate.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.known {
		return ErrNotWriter
	}
	next := f.record
	next.Rolling = id
	return f.saveLocked(next)
}

// restoreStamp says that the disk is again what it was under a stamp.
func (f *File) restoreStamp(s Stamp) error {
	f.gate.Lock()
	defer f.gate.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.known {
		return errors.Join(errors.New("the disk was let go meanwhile"), ErrNotWriter)
	}
	next := f.record
	next.Stamp, next.Rolling = s, PinID{}
	if err := f.saveLocked(next); err != nil {
		return err
	}
	f.pristine.Store(true)
	return nil
}
