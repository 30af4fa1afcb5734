package sim

import (
	"encoding/binary"
	"fmt"

	"understudy/epoch"
	"understudy/hypervisor"
)

// kernel is the software in the guest. It keeps nothing but what is in its
// memory and its registers; the rest of the struct is hardware. The machine
// calls boot, then tick for every step and receive for every frame, one at a
// time. In a step it writes its heap, then its disk, then speaks.
type kernel struct {
	mem  memory
	regs registers

	nic  NIC
	disk Disk

	frame [FrameSize]byte    // what goes to the card; nothing is kept in it
	block [BlockSize]byte    // what goes to the disk; nothing is kept in it
	event []hypervisor.Event // what the owner has yet to be told
}

// registers are the part of the guest's state that is not in its memory.
type registers struct {
	step   uint64 // steps ever taken, reboots included
	prng   uint64
	heap   uint64 // sum of the hashes of all heap pages, see memory.sum
	halted uint64 // 0, or the hypervisor.EventKind that stopped the guest
}

// boot writes a fresh machine: header, no connections, empty heap.
func (k *kernel) boot(cfg Config, seed, boots uint64) {
	clear(k.mem.bytes)
	k.mem.dirty.Fill()
	k.regs.prng, k.regs.halted = seed, 0

	m := &k.mem
	m.store(0, []byte(magic))
	m.put(atBoot, k.random())
	m.put(atBoot+8, k.random())
	m.put(atBoots, boots)
	m.store(atMAC, cfg.MAC)
	m.put(atDirty, uint64(cfg.DirtyPages))
	m.put(atPattern, uint64(cfg.Pattern))
	m.put(atLineEvery, uint64(cfg.LineEvery))
	m.put(atRetransmit, uint64(cfg.RetransmitAfter))
	m.put(atDiskEvery, uint64(cfg.DiskEvery))
	m.put(atDiskNext, 1)
	k.regs.heap = m.sum(systemPages, m.pages()-systemPages)
	k.findDiskEnd()
}

// tick is one step of the guest. clock is what it reads from its clock, an
// input like any other: it is mixed into the guest's randomness, so that a
// guest that was rolled back behind something it has said does not happen to
// say the same again. 0 means that it has no clock.
func (k *kernel) tick(clock uint64) {
	if k.regs.halted != 0 {
		return
	}
	if clock != 0 {
		k.regs.prng = mix(k.regs.prng, clock)
	}
	k.regs.step++
	counter := k.mem.get(atCounter) + 1
	k.mem.put(atCounter, counter)
	k.writeHeap()
	if k.disk != nil && counter%max(1, k.mem.get(atDiskEvery)) == 0 {
		k.useDisk()
	}
	if k.nic != nil && k.regs.halted == 0 {
		k.speak(counter)
	}
}

// writeHeap writes DirtyPages pages: most get a few new bytes, some become
// zero, some become a copy of another page.
func (k *kernel) writeHeap() {
	heap := k.mem.pages() - systemPages
	pattern := Pattern(k.mem.get(atPattern))
	for range min(k.mem.get(atDirty), heap) {
		var at uint64
		switch pattern {
		case PatternSequential:
			at = k.mem.get(atCursor) % heap
			k.mem.put(atCursor, at+1)
		case PatternHot:
			if at = k.random(); at%8 != 0 {
				at = at / 8 % max(1, heap/8)
			}
			at %= heap
		default:
			at = k.random() % heap
		}
		k.writeHeapPage(epoch.GFN(systemPages+at), heap)
	}
}

func (k *kernel) writeHeapPage(f epoch.GFN, heap uint64) {
	const longest = 256 // bytes a write changes at most
	k.regs.heap -= k.mem.hash(f)
	page := pageOf(k.mem.bytes, f)
	r := k.random()
	switch {
	case r%32 == 0:
		clear(page)
	case r%32 == 1:
		copy(page, pageOf(k.mem.bytes, epoch.GFN(systemPages+k.random()%heap)))
	default:
		at := (r >> 8) % (epoch.PageSize - longest)
		for end := at + 8 + (r>>24)%(longest-8); at+8 <= end; at += 8 {
			binary.LittleEndian.PutUint64(page[at:], k.random())
		}
	}
	k.mem.dirty.Add(f)
	k.regs.heap += k.mem.hash(f)
}

// random is the guest's only source of chance. What comes in from outside is
// mixed into its state, see receive.
func (k *kernel) random() uint64 {
	k.regs.prng += 0x9e3779b97f4a7c15
	return mix(k.regs.prng, 0)
}

// halt stops the guest by its own doing.
func (k *kernel) halt(kind hypervisor.EventKind, format string, args ...any) {
	if k.regs.halted == 0 {
		k.regs.halted = uint64(kind)
		k.event = append(k.event, hypervisor.Event{Kind: kind, Detail: fmt.Sprintf(format, args...)})
	}
}

// Boot is what a guest says of itself in its image.
type Boot struct {
	ID      [16]byte // random, new at every boot
	Boots   uint64   // 1 at the first boot, one more at each reboot
	Counter uint64   // steps since the boot
}

// ReadBoot reads the header of a guest's image, running, paused or standing by.
func ReadBoot(image hypervisor.Image) (Boot, error) {
	var page [epoch.PageSize]byte
	if err := image.ReadPages(0, page[:]); err != nil {
		return Boot{}, fmt.Errorf("read the guest's header: %w", err)
	}
	if string(page[:len(magic)]) != magic {
		return Boot{}, fmt.Errorf("read the guest's header: page 0 begins with %q, not with %q", page[:len(magic)], magic)
	}
	return Boot{
		ID:      [16]byte(page[atBoot : atBoot+16]),
		Boots:   binary.LittleEndian.Uint64(page[atBoots:]),
		Counter: binary.LittleEndian.Uint64(page[atCounter:]),
	}, nil
}
