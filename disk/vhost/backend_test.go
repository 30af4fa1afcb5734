package vhost

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"understudy/disk"
	"understudy/epoch"
)

// memoryDisk is a disk in memory. It can hold writes (Accept takes them), make
// requests wait at a gate, and fail; it notes what is reported to it.
type memoryDisk struct {
	info disk.Info
	hold atomic.Bool

	mu      sync.Mutex
	data    []byte
	gate    chan struct{} // not nil: Do waits until it is closed
	waiting map[uint64]bool
	arrived chan uint64 // sectors, as requests reach the gate
	begun   []uint64    // sectors of reads and writes, as begun
	fail    error
	again   int // how often Do says ErrAgain
	dirty   map[epoch.GFN]bool
	landed  int
	fills   map[epoch.GFN]bool
	flushes int
	quiet   bool // do not take notes
}

func newMemoryDisk(sectors uint64) *memoryDisk {
	return &memoryDisk{
		info: disk.Info{Sectors: sectors, Serial: "understudy-0", MaxSectors: 8192, MaxZeroSectors: 32768},
		data: make([]byte, sectors*epoch.SectorSize), dirty: map[epoch.GFN]bool{}, fills: map[epoch.GFN]bool{},
		arrived: make(chan uint64, 256), waiting: map[uint64]bool{},
	}
}

func (d *memoryDisk) Info() disk.Info { return d.info }

func (d *memoryDisk) Accept(r *disk.Request) (bool, error) {
	if !d.hold.Load() || r.Op == disk.OpRead {
		return false, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return true, d.apply(r)
}

func (d *memoryDisk) Do(ctx context.Context, r *disk.Request) error {
	d.mu.Lock()
	gate := d.gate
	if d.again > 0 {
		d.again--
		d.mu.Unlock()
		return disk.ErrAgain
	}
	d.mu.Unlock()
	if gate != nil {
		d.arrived <- r.Sector
		select {
		case <-gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.apply(r)
}

// apply carries a request out.
func (d *memoryDisk) apply(r *disk.Request) error {
	if d.fail != nil {
		return d.fail
	}
	if r.Op == disk.OpFlush {
		d.flushes++
		return nil
	}
	if r.Sector+uint64(r.Sectors) > d.info.Sectors {
		return fmt.Errorf("sectors %d+%d are not on the disk", r.Sector, r.Sectors)
	}
	if !d.quiet {
		d.begun = append(d.begun, r.Sector)
	}
	data := d.data[r.Sector*epoch.SectorSize:][:r.Sectors*epoch.SectorSize]
	switch r.Op {
	case disk.OpRead:
		if len(r.Buffer) != len(data) {
			return errors.New("a buffer of another length than the request")
		}
		copy(r.Buffer, data)
	case disk.OpWrite:
		n := 0
		for _, s := range r.Segments {
			n += copy(data[n:], s.Data)
		}
		if n != len(data) {
			return errors.New("segments of another length than the request")
		}
	case disk.OpDiscard, disk.OpWriteZeroes:
		clear(data)
	}
	return nil
}

func (d *memoryDisk) Landed(r *disk.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.landed++
	if d.quiet {
		return
	}
	for _, s := range r.Segments {
		d.note(s.Page, s.At+len(s.Data))
	}
}

func (d *memoryDisk) Touched(page epoch.GFN, length int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.quiet {
		d.note(page, length)
	}
}

func (d *memoryDisk) note(page epoch.GFN, length int) {
	for ; length > 0; length -= epoch.PageSize {
		d.dirty[page] = true
		page++
	}
}

func (d *memoryDisk) Fill(page epoch.GFN, count int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.quiet {
		return nil
	}
	for range count {
		d.fills[page] = true
		page++
	}
	return nil
}

// shut lets requests wait, and open lets them go.
func (d *memoryDisk) shut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.gate = make(chan struct{})
}

func (d *memoryDisk) open() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gate != nil {
		close(d.gate)
		d.gate = nil
	}
}

// content returns what the disk has.
func (d *memoryDisk) content(sector, length int) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]byte(nil), d.data[sector*epoch.SectorSize:][:length]...)
}
