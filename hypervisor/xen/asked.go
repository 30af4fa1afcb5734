package xen

// This file tells what a processor has asked Xen for that stands still because Xen says
// that the domain's frames are not what they were: by the hypercall it has just made.
//
//	registers (the CPU record of an HVM context) ─> which operation ─> its argument, in
//	the guest's memory, by the guest's page tables ─> can other memory be at a place?
//
// Linux puts its grant table in its place anew whenever it has suspended, so the answer
// is no at every pause. What is not understood is yes. A guest that makes its processor
// look as if it had asked for something else deceives nobody but itself: it is its own
// image that has not what it wrote.
//
// Sources: Xen's public/memory.h, public/arch-x86/hvm/save.h (struct hvm_hw_cpu), the
// calling convention of 64-bit guests (public/arch-x86/xen-x86_64.h); paging as in the
// AMD64 Architecture Programmer's Manual, volume 2, 5.3.

import (
	"encoding/binary"

	"understudy/epoch"
)

// Where the registers are in the record, in bytes from its begin.
const (
	cpuRSI     = 512 + 5*8
	cpuRDI     = 512 + 6*8
	cpuCR3     = 672
	cpuCR4     = 680
	cpuCode    = 888 // what the code segment may do
	cpuCodeEnd = 892

	codeLong   = 1 << 9  // 64-bit
	cr4Levels5 = 1 << 12 // page tables of five levels
)

// Operations on memory (the first argument; above the mask is how far it has got), and
// what XENMEM_add_to_physmap puts in a place (the second half of its argument's first
// word).
const (
	memoryOperation     = 1<<6 - 1
	decreaseReservation = 1
	addToPhysmap        = 7
	removeFromPhysmap   = 15

	spaceSharedInfo = 0
	spaceGrantTable = 1
)

// TakesOnly reports whether the hypercall that a processor has just made can have left
// no other memory of the domain at any place: it has taken frames away, or has put Xen's
// own into a place. cpu is the processor's record in an HVM context; page returns a frame
// of the domain's memory, nil if it has none.
func TakesOnly(cpu []byte, page func(frame uint64) []byte) bool {
	if len(cpu) < cpuCodeEnd || binary.LittleEndian.Uint32(cpu[cpuCode:])&codeLong == 0 {
		return false
	}
	register := func(at int) uint64 { return binary.LittleEndian.Uint64(cpu[at:]) }
	switch register(cpuRDI) & memoryOperation {
	case decreaseReservation, removeFromPhysmap:
		return true
	case addToPhysmap:
		at := register(cpuRSI)
		if at%8 != 0 {
			return false
		}
		argument, ok := physical(register(cpuCR3), register(cpuCR4), at, page)
		if !ok {
			return false
		}
		p := page(argument / epoch.PageSize)
		if p == nil {
			return false
		}
		space := binary.LittleEndian.Uint64(p[argument%epoch.PageSize:]) >> 32
		return space == spaceSharedInfo || space == spaceGrantTable
	}
	return false
}

// Of an entry of a page table.
const (
	entryPresent = 1 << 0
	entryLarge   = 1 << 7 // no further table
	entryAddress = 1<<52 - epoch.PageSize
)

// physical translates an address of the guest's by its page tables.
func physical(cr3, cr4, at uint64, page func(frame uint64) []byte) (address uint64, ok bool) {
	levels := 4
	if cr4&cr4Levels5 != 0 {
		levels = 5
	}
	table := cr3 & entryAddress
	for level := levels - 1; ; level-- {
		p := page(table / epoch.PageSize)
		if p == nil {
			return 0, false
		}
		shift := 12 + 9*level
		entry := binary.LittleEndian.Uint64(p[at>>shift%512*8:])
		if entry&entryPresent == 0 {
			return 0, false
		}
		if level == 0 || level < 3 && entry&entryLarge != 0 {
			within := uint64(1)<<shift - 1
			return entry&entryAddress&^within | at&within, true
		}
		table = entry & entryAddress
	}
}
