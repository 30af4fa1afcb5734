package store

// This file arms pins: from Pin on, the old content of every block goes to the
// pin's file before the block is changed for the first time.
//
//	WriteAt, Zero ── keep: blocks not kept yet ── read them ── append records ──
//	sync the pin ── now the write may be made
//
// A pin that cannot go on (its limit, its file) is broken: noted in the disk's
// record before the write is made, and in the log. Armed pins stand in the
// record, so that they go on when the disk is opened again.

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/zeebo/xxh3"

	"understudy/epoch"
)

// Pin is old content of a disk: what stood there when the pin was armed.
type Pin struct {
	PinHead
	Path string

	mu     sync.RWMutex
	file   *os.File
	kept   keptTable
	end    int64  // whole records end here
	bytes  uint64 // of old content
	broken string // why
	noted  bool   // broken stands in the disk's record
	buffer []byte // aligned, pinPiece bytes
	hasher *xxh3.Hasher
}

// Pin arms a pin: a new file at path that keeps the disk's content as it is now.
// Writes that have begun are over before. limit bounds the old content in bytes;
// 0: unbounded. Only the writer of the disk can.
func (f *File) Pin(path string, limit uint64) (*Pin, error) {
	p, err := f.pin(path, limit)
	if err != nil {
		return nil, fmt.Errorf("pin disk %s at %s: %w", f.cfg.Path, path, err)
	}
	return p, nil
}

func (f *File) pin(path string, limit uint64) (*Pin, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	f.gate.Lock()
	defer f.gate.Unlock()
	if f.closed {
		return nil, ErrClosed
	}
	if !f.writer {
		return nil, ErrNotWriter
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.record.Pins) >= maxPins {
		return nil, fmt.Errorf("%d pins are armed already", maxPins)
	}
	p := &Pin{PinHead: PinHead{Stamp: f.record.Stamp, Sectors: f.sectors, Limit: limit}, Path: path}
	_, _ = rand.Read(p.ID[:]) // never fails (crypto/rand)
	if p.file, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return nil, err
	}
	p.prepare(f.align.memory)
	if err = p.begin(); err == nil {
		next := f.record
		next.Pins = append(slices.Clone(next.Pins), PinRecord{ID: p.ID, Path: path})
		err = f.saveLocked(next)
	}
	if err != nil {
		p.close()
		return nil, errors.Join(err, os.Remove(path))
	}
	f.pristine.Store(true) // the pin has recorded the stamp
	f.pins = append(f.pins, p)
	return p, nil
}

func (p *Pin) prepare(align int) {
	p.buffer = alignedBuffer(pinPiece, max(align, epoch.PageSize))
	p.hasher = xxh3.New()
	if p.kept == nil {
		p.kept = keptTable{}
	}
}

func (p *Pin) begin() error {
	if _, err := p.file.WriteAt(p.encode(), 0); err != nil {
		return err
	}
	if err := p.file.Sync(); err != nil {
		return err
	}
	p.end = pinHeader
	return syncDir(filepath.Dir(p.Path))
}

// keep appends the old content of what is about to be changed. The gate is held
// for reading.
func (f *File) keep(p *Pin, sector, sectors uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.broken == "" {
		err := p.append(f, sector/blockSectors, (sector+sectors-1)/blockSectors)
		if err == nil {
			return nil
		}
		p.broken = err.Error()
	}
	if p.noted {
		return nil
	}
	// The write goes on, but not before everybody can know that the pin is not
	// whole.
	if err := f.noteBroken(p); err != nil {
		return fmt.Errorf("pin %s is broken (%s), and that cannot be noted: %w", p.Path, p.broken, err)
	}
	p.noted = true
	mark := appendRecordHead(nil, p.ID, oldContent{kind: recordBroken}, p.hasher)
	if _, err := p.file.WriteAt(mark, p.end); err == nil {
		_ = p.file.Sync() // the disk's record says it in any case
	}
	f.log.Error("pin is broken: the disk's old content cannot be had back from it",
		"pin", p.Path, "reason", p.broken, "kept", p.bytes)
	return nil
}

// append keeps those of the blocks first to last that are not kept yet.
func (p *Pin) append(f *File, first, last uint64) error {
	end, unsynced := p.end, int64(0)
	sync := func() error {
		if unsynced == 0 {
			return nil
		}
		unsynced = 0
		if err := fdatasync(p.file); err != nil {
			return err
		}
		p.end = end
		return nil
	}
	for block := first; block <= last; {
		if p.kept.get(block) != 0 {
			block++
			continue
		}
		run := uint64(1)
		for block+run <= last && run < pinPiece/pinBlock && p.kept.get(block+run) == 0 {
			run++
		}
		c := oldContent{kind: recordData, sector: block * blockSectors}
		c.sectors = uint32(min(run*blockSectors, p.Sectors-c.sector))
		c.data = p.buffer[:int(c.sectors)*epoch.SectorSize]
		if err := f.rawRead(c.data, int64(c.sector*epoch.SectorSize)); err != nil {
			return fmt.Errorf("read old content: %w", err)
		}
		if allZero(c.data) {
			c.kind, c.data = recordZero, nil
		}
		if p.Limit != 0 && p.bytes+uint64(len(c.data)) > p.Limit {
			return fmt.Errorf("more than its limit of %d bytes would have to be kept", p.Limit)
		}
		head := appendRecordHead(make([]byte, 0, pinRecord), p.ID, c, p.hasher)
		if _, err := p.file.WriteAt(head, end); err != nil {
			return err
		}
		if _, err := p.file.WriteAt(c.data, end+pinRecord); err != nil {
			return err
		}
		if err := p.kept.add(c, end+pinRecord); err != nil {
			return err
		}
		n := pinRecord + int64(len(c.data))
		end, unsynced, p.bytes = end+n, unsynced+n, p.bytes+uint64(len(c.data))
		block += run
		if unsynced >= pinBatch {
			if err := sync(); err != nil {
				return err
			}
		}
	}
	return sync()
}

func allZero(b []byte) bool {
	// The first byte is zero, and each equals the one before it.
	return len(b) == 0 || b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1])
}

// noteBroken puts into the disk's record that a pin is broken.
func (f *File) noteBroken(p *Pin) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	next := f.record
	next.Pins = slices.Clone(next.Pins)
	for i := range next.Pins {
		if next.Pins[i].ID == p.ID {
			next.Pins[i].Broken = p.broken
		}
	}
	return f.saveLocked(next)
}

// Broken returns why the pin has stopped keeping old content, or "".
func (p *Pin) Broken() string {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.broken
}

// Kept returns how many bytes of old content the pin has.
func (p *Pin) Kept() uint64 {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.bytes
}

// Pins returns the armed pins, those broken in this process included.
func (f *File) Pins() []*Pin {
	f.gate.RLock()
	defer f.gate.RUnlock()
	return slices.Clone(f.pins)
}

// Unpin disarms a pin, broken or not, and removes its file.
func (f *File) Unpin(id PinID) error {
	f.gate.Lock()
	defer f.gate.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.known {
		return fmt.Errorf("unpin disk %s: %w", f.cfg.Path, ErrNotWriter)
	}
	i := slices.IndexFunc(f.record.Pins, func(r PinRecord) bool { return r.ID == id })
	if i < 0 {
		return fmt.Errorf("unpin disk %s: no pin %s is armed", f.cfg.Path, id)
	}
	if f.record.Rolling == id {
		return fmt.Errorf("unpin disk %s: %w", f.cfg.Path, ErrTorn)
	}
	next := f.record
	gone := next.Pins[i].Path
	next.Pins = slices.Delete(slices.Clone(next.Pins), i, i+1)
	if err := f.saveLocked(next); err != nil {
		return fmt.Errorf("unpin disk %s: %w", f.cfg.Path, err)
	}
	f.pins = slices.DeleteFunc(f.pins, func(p *Pin) bool {
		if p.ID == id {
			p.close()
		}
		return p.ID == id
	})
	if err := os.Remove(gone); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("the pin is disarmed, its file is left: %w", err)
	}
	return nil
}

// resumePins arms the pins of the record again. One whose file is not there or
// not whole is broken from now on (the disk may have another host's pins). The
// gate and mu are held.
func (f *File) resumePins() error {
	next := f.record
	next.Pins = slices.Clone(next.Pins)
	changed := false
	for i, r := range next.Pins {
		if r.Broken != "" {
			continue
		}
		p, err := openPin(r.Path, os.O_RDWR)
		if err == nil {
			err = p.resume(r.ID, f)
		}
		if err != nil {
			next.Pins[i].Broken = err.Error()
			changed = true
			f.log.Error("pin is broken: it cannot go on", "pin", r.Path, "reason", err)
			continue
		}
		f.pins = append(f.pins, p)
	}
	if changed {
		return f.saveLocked(next)
	}
	return nil
}

// resume makes an opened pin ready to keep more.
func (p *Pin) resume(id PinID, f *File) error {
	err := func() error {
		switch {
		case p.broken != "":
			return errors.New(p.broken)
		case p.ID != id:
			return fmt.Errorf("the file is pin %s, not %s", p.ID, id)
		case p.Sectors != f.sectors:
			return fmt.Errorf("it is of a disk with %d sectors, not %d", p.Sectors, f.sectors)
		}
		if err := p.file.Truncate(p.end); err != nil {
			return err
		}
		return p.file.Sync()
	}()
	if err != nil {
		p.close()
		return err
	}
	p.prepare(f.align.memory)
	return nil
}

func (p *Pin) close() { _ = p.file.Close() } // each record is durable already
