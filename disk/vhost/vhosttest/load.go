package vhosttest

// This file is a load: requests of one kind, a number of them always under way.

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"time"
)

const (
	typeIn    = 0
	typeOut   = 1
	typeFlush = 4

	sectorSize   = 512
	descNext     = 1
	descWrite    = 2
	descIndirect = 4
)

// Load says what requests.
type Load struct {
	Write bool
	// Sync follows each write with a flush, and both are one operation.
	Sync   bool
	Random bool
	Block  int   // bytes of a request, whole sectors, at most MaxBlock
	Depth  int   // requests under way, 1 to MaxDepth
	Size   int64 // bytes of the disk that are used
	Time   time.Duration
}

// Result is what came of it. Times are those of single operations.
type Result struct {
	Ops                 int
	Took                time.Duration
	P50, P99, P999, Max time.Duration
}

// IOPS is operations per second.
func (r Result) IOPS() float64 { return float64(r.Ops) / r.Took.Seconds() }

// operation is what a slot of the driver does.
type operation struct {
	began    time.Time
	flushing bool
}

// Run puts the load on the back end, and ends with no request under way unless
// it fails. ctx ends it early, between two completions.
func (d *Driver) Run(ctx context.Context, l Load) (r Result, err error) {
	blocks := int64(0)
	if l.Block > 0 {
		blocks = l.Size / int64(l.Block)
	}
	if l.Block%sectorSize != 0 || l.Block > MaxBlock || l.Depth < 1 || l.Depth > MaxDepth || blocks < 1 {
		return r, fmt.Errorf("%d requests of %d bytes within %d are no load", l.Depth, l.Block, l.Size)
	}
	// We sleep in system calls: without a thread of our own each would first
	// have to be taken from the scheduler.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	chance, next := rand.New(rand.NewPCG(1, 2)), int64(0)
	slots := make([]operation, l.Depth)
	times := make([]time.Duration, 0, 1<<16)
	begin := func(slot int, now time.Time) {
		block := chance.Int64N(blocks)
		if !l.Random {
			block, next = next%blocks, next+1
		}
		slots[slot] = operation{began: now}
		kind := uint32(typeIn)
		if l.Write {
			kind = typeOut
			binary.LittleEndian.PutUint64(d.data(slot), chance.Uint64()) // no write equals the last
		}
		d.put(slot, kind, uint64(block)*uint64(l.Block)/sectorSize, l.Block)
	}
	start := time.Now()
	for slot := range slots {
		begin(slot, start)
	}
	if err := d.publish(d.avail - uint16(l.Depth)); err != nil {
		return r, err
	}
	for left := l.Depth; left > 0; {
		if err := d.await(); err != nil {
			return r, err
		}
		old := d.avail
		for now, end := time.Now(), d.index(); d.seen != end; d.seen++ {
			slot := int(binary.LittleEndian.Uint32(d.mem[usedAt+4+8*(int(d.seen)%ringSize):]))
			if slot >= len(slots) {
				return r, fmt.Errorf("a request of number %d was completed: there are %d", slot, len(slots))
			}
			if status := d.header(slot)[statusOff]; status != 0 {
				return r, fmt.Errorf("a request has failed with status %d", status)
			}
			if l.Sync && !slots[slot].flushing {
				slots[slot].flushing = true
				d.put(slot, typeFlush, 0, 0)
				continue
			}
			times = append(times, now.Sub(slots[slot].began))
			if now.Sub(start) >= l.Time || ctx.Err() != nil {
				left--
				continue
			}
			begin(slot, now)
		}
		if err := d.publish(old); err != nil {
			return r, err
		}
	}
	r = Result{Ops: len(times), Took: time.Since(start)}
	slices.Sort(times)
	at := func(q float64) time.Duration { return times[min(int(q*float64(len(times))), len(times)-1)] }
	r.P50, r.P99, r.P999, r.Max = at(0.5), at(0.99), at(0.999), at(1)
	return r, ctx.Err()
}

// header is the page of a slot's header, table and status, and data its data.
func (d *Driver) header(slot int) []byte { return d.mem[headersAt+slot*headerSize:][:headerSize] }
func (d *Driver) data(slot int) []byte   { return d.mem[dataAt+slot*MaxBlock:][:MaxBlock] }

// put writes a request into the available ring, in an indirect table.
func (d *Driver) put(slot int, kind uint32, sector uint64, length int) {
	le := binary.LittleEndian
	h := d.header(slot)
	at := uint64(headersAt + slot*headerSize)
	le.PutUint32(h, kind)
	le.PutUint32(h[4:], 0)
	le.PutUint64(h[8:], sector)
	h[statusOff] = 0xff
	table, n := h[tableOff:], 0
	describe := func(addr uint64, length uint32, flags uint16) {
		putDescriptor(table[16*n:], addr, length, flags, uint16(n+1))
		n++
	}
	describe(at, 16, descNext)
	if length > 0 {
		flags := uint16(descNext)
		if kind == typeIn {
			flags |= descWrite
		}
		describe(uint64(dataAt+slot*MaxBlock), uint32(length), flags)
	}
	describe(at+statusOff, 1, descWrite)
	putDescriptor(d.mem[descAt+16*slot:], at+tableOff, uint32(16*n), descIndirect, 0)
	le.PutUint16(d.mem[availAt+4+2*(int(d.avail)%ringSize):], uint16(slot))
	d.avail++
}

func putDescriptor(p []byte, addr uint64, length uint32, flags, next uint16) {
	le := binary.LittleEndian
	le.PutUint64(p, addr)
	le.PutUint32(p[8:], length)
	le.PutUint16(p[12:], flags)
	le.PutUint16(p[14:], next)
}
