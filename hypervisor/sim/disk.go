package sim

import (
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/zeebo/xxh3"

	"understudy/hypervisor"
)

// BlockSize is the size in bytes of one block of a simulated disk.
const BlockSize = 4096

// Disk is what the guest sees of its disk. It is called within a step, so it
// must not wait for the guest to be paused or resumed. What it is given is
// valid during the call only.
type Disk interface {
	Blocks() uint64
	ReadBlock(n uint64, dst []byte) error
	WriteBlock(n uint64, src []byte) error
}

// The guest writes numbered records round and round over the disk. Record n
// is in block n mod Blocks and holds, little endian: n, the checksum of record
// n-1, the step, the boot id, zeros, and at the end its own checksum.
const (
	recordPrev = 8
	recordStep = 16
	recordBoot = 24
	recordSum  = BlockSize - 8
)

// useDisk reads the last record back and writes the next one. A disk that has
// not got the last record, or that is ahead of the guest (a write reached it
// from a time the guest was rolled back behind), makes the guest panic.
func (k *kernel) useDisk() {
	next, blocks := k.mem.get(atDiskNext), k.disk.Blocks()
	if next > 1 {
		n, sum, err := k.readRecord((next - 1) % blocks)
		switch {
		case err != nil:
			k.halt(hypervisor.EventPanic, "disk: %v", err)
			return
		case n != next-1 || sum != k.mem.get(atDiskLast):
			k.halt(hypervisor.EventPanic, "disk: block %d holds record %d (%#x), the guest wrote record %d (%#x)",
				(next-1)%blocks, n, sum, next-1, k.mem.get(atDiskLast))
			return
		}
	}
	n, _, err := k.readRecord(next % blocks)
	switch {
	case err != nil:
		k.halt(hypervisor.EventPanic, "disk: %v", err)
		return
	case n >= next:
		k.halt(hypervisor.EventPanic, "disk: block %d holds record %d, which the guest has yet to write (next is %d)",
			next%blocks, n, next)
		return
	}

	b := k.block[:]
	clear(b)
	binary.LittleEndian.PutUint64(b, next)
	binary.LittleEndian.PutUint64(b[recordPrev:], k.mem.get(atDiskLast))
	binary.LittleEndian.PutUint64(b[recordStep:], k.regs.step)
	copy(b[recordBoot:], k.mem.bytes[atBoot:atBoot+16])
	sum := xxh3.Hash(b[:recordSum])
	binary.LittleEndian.PutUint64(b[recordSum:], sum)
	if err := k.disk.WriteBlock(next%blocks, b); err != nil {
		k.halt(hypervisor.EventPanic, "disk: write record %d to block %d: %v", next, next%blocks, err)
		return
	}
	k.mem.put(atDiskNext, next+1)
	k.mem.put(atDiskLast, sum)
}

// findDiskEnd makes a freshly booted guest go on after the last record.
func (k *kernel) findDiskEnd() {
	if k.disk == nil {
		return
	}
	for block := range k.disk.Blocks() {
		n, sum, err := k.readRecord(block)
		if err != nil {
			k.halt(hypervisor.EventPanic, "disk: %v", err)
			return
		}
		if n >= k.mem.get(atDiskNext) {
			k.mem.put(atDiskNext, n+1)
			k.mem.put(atDiskLast, sum)
		}
	}
}

// readRecord returns the number and checksum of the record in a block; both
// are 0 for a block of zeros.
func (k *kernel) readRecord(block uint64) (n, sum uint64, err error) {
	b := k.block[:]
	if err := k.disk.ReadBlock(block, b); err != nil {
		return 0, 0, fmt.Errorf("read block %d: %w", block, err)
	}
	n = binary.LittleEndian.Uint64(b)
	sum = binary.LittleEndian.Uint64(b[recordSum:])
	if n == 0 && sum == 0 {
		return 0, 0, nil
	}
	if want := xxh3.Hash(b[:recordSum]); sum != want {
		return 0, 0, fmt.Errorf("block %d: record %d has checksum %#x, its content makes %#x", block, n, sum, want)
	}
	return n, sum, nil
}

// MemDisk is a Disk in memory. Two hosts that are given the same one share it.
type MemDisk struct {
	mu     sync.Mutex
	bytes  []byte
	blocks uint64
}

// NewMemDisk returns a disk of zeros.
func NewMemDisk(blocks uint64) *MemDisk {
	return &MemDisk{bytes: make([]byte, blocks*BlockSize), blocks: blocks}
}

// Blocks returns the size of the disk in blocks.
func (d *MemDisk) Blocks() uint64 { return d.blocks }

// ReadBlock copies block n into dst, which is BlockSize bytes long.
func (d *MemDisk) ReadBlock(n uint64, dst []byte) error { return d.move(n, dst, true) }

// WriteBlock copies src, which is BlockSize bytes long, into block n.
func (d *MemDisk) WriteBlock(n uint64, src []byte) error { return d.move(n, src, false) }

func (d *MemDisk) move(n uint64, b []byte, read bool) error {
	if n >= d.blocks || len(b) != BlockSize {
		return fmt.Errorf("%d bytes at block %d of a disk of %d blocks of %d bytes", len(b), n, d.blocks, BlockSize)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	on := d.bytes[n*BlockSize : (n+1)*BlockSize]
	if read {
		copy(b, on)
	} else {
		copy(on, b)
	}
	return nil
}
