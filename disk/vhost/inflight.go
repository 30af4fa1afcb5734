package vhost

// This file is the region of shared memory in which the requests under way are
// noted, so that a daemon that is started anew under a running guest submits
// them again (vhost-user: "Inflight I/O tracking", split rings). The
// hypervisor keeps the region for us. What is in it may be anything.

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"understudy/epoch"
)

// The region has a part for each queue: struct QueueRegionSplit { u64 features;
// u16 version, desc_num, last_batch_head, used_idx; DescStateSplit desc[] } with
// DescStateSplit { u8 inflight, padding[5]; u16 next; u64 counter }.
const (
	partHeader    = 16
	partVersion   = 8
	partNum       = 10
	partLastBatch = 12
	partUsedIdx   = 14
	descState     = 16
	descNext      = 6
	descCounter   = 8

	// Behind the queues is a note of our own, in our own file: whether the guest
	// has a write cache, which nobody would tell a daemon that comes later.
	noteSize  = 64
	noteMagic = 0x65686361632d7375 // "us-cache"
)

// partSize is the length of one queue's part.
func partSize(depth int) int { return (partHeader + depth*descState + 63) &^ 63 }

func regionSize(queues, depth int) int { return queues*partSize(depth) + noteSize }

// inflightRegion is the mapped region.
type inflightRegion struct {
	mapped   []byte
	data     []byte
	queues   int
	depth    int
	dev, ino uint64
	off      uint64
}

// newInflight makes an empty region; the caller owns fd.
func newInflight(queues, depth int) (size, fd int, err error) {
	size = regionSize(queues, depth)
	fd, err = unix.MemfdCreate("understudy-inflight", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return 0, -1, fmt.Errorf("make the memory for requests in flight: %w", err)
	}
	data := make([]byte, size)
	for q := range queues {
		part := data[q*partSize(depth):]
		binary.LittleEndian.PutUint16(part[partVersion:], 1)
		binary.LittleEndian.PutUint16(part[partNum:], uint16(depth))
	}
	if _, err = unix.Pwrite(fd, data, 0); err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err != nil {
		_ = unix.Close(fd)
		return 0, -1, fmt.Errorf("write the memory for requests in flight: %w", err)
	}
	return size, fd, nil
}

// mapInflight maps a region that the hypervisor hands over.
func mapInflight(at inflightAt, fd int) (*inflightRegion, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("stat the memory for requests in flight: %w", err)
	}
	queues, depth := int(at.queues), int(at.depth)
	switch {
	case queues < 1 || queues > MaxQueues || depth < 1 || depth > MaxQueueSize:
		return nil, fmt.Errorf("requests in flight for %d queues of %d", queues, depth)
	case at.size < uint64(queues*partSize(depth)) || at.size > 1<<20:
		return nil, fmt.Errorf("requests in flight of %d queues of %d in %d bytes", queues, depth, at.size)
	case at.off%64 != 0 || at.off > 1<<30 || st.Size < 0 || at.off+at.size > uint64(st.Size):
		return nil, fmt.Errorf("requests in flight are %d bytes at %d of a file of %d", at.size, at.off, st.Size)
	}
	mapped, err := unix.Mmap(fd, 0, int(at.off+at.size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the memory for requests in flight: %w", err)
	}
	return &inflightRegion{
		mapped: mapped, data: mapped[at.off:], queues: queues, depth: depth,
		dev: st.Dev, ino: st.Ino, off: at.off,
	}, nil
}

func (f *inflightRegion) unmap() {
	if f != nil {
		_ = unix.Munmap(f.mapped)
	}
}

// same reports whether a descriptor is this region.
func (f *inflightRegion) same(at inflightAt, fd int) bool {
	var st unix.Stat_t
	return f != nil && unix.Fstat(fd, &st) == nil && st.Dev == f.dev && st.Ino == f.ino && at.off == f.off &&
		int(at.queues) == f.queues && int(at.depth) == f.depth
}

// note is our own note, or nil.
func (f *inflightRegion) note() []byte {
	if f == nil || len(f.data) < regionSize(f.queues, f.depth) {
		return nil
	}
	return f.data[f.queues*partSize(f.depth):]
}

func (f *inflightRegion) setWCE(wce byte) {
	if n := f.note(); n != nil {
		n[8] = wce
		binary.LittleEndian.PutUint64(n, noteMagic)
	}
}

func (f *inflightRegion) getWCE() (wce byte, ok bool) {
	n := f.note()
	if n == nil || binary.LittleEndian.Uint64(n) != noteMagic {
		return 0, false
	}
	return n[8] & 1, true
}

// part is one queue's part, nil if there is none for a ring of num entries.
func (f *inflightRegion) part(queue, num int) flightPart {
	if f == nil || queue >= f.queues || num > f.depth {
		return nil
	}
	size := partSize(f.depth)
	return flightPart(f.data[queue*size:][:size:size])
}

// flightPart is one queue's part. A nil one notes nothing. The order of the
// stores matters: we may be killed between any two of them.
type flightPart []byte

func (p flightPart) desc(head uint16) []byte {
	return p[partHeader+int(head)*descState:][:descState]
}

// taken notes a request before it is begun.
func (p flightPart) taken(head uint16, counter uint64) {
	if p == nil {
		return
	}
	d := p.desc(head)
	binary.LittleEndian.PutUint64(d[descCounter:], counter)
	d[0] = 1
}

// completing notes which request is about to enter the used ring.
func (p flightPart) completing(head uint16) {
	if p == nil {
		return
	}
	le := binary.LittleEndian
	le.PutUint16(p.desc(head)[descNext:], le.Uint16(p[partLastBatch:]))
	le.PutUint16(p[partLastBatch:], head)
}

// completed notes that the used ring has it, and its index.
func (p flightPart) completed(head, used uint16) {
	if p == nil {
		return
	}
	p.desc(head)[0] = 0
	binary.LittleEndian.PutUint16(p[partUsedIdx:], used)
}

// recover returns the requests that were under way, oldest first, given the
// index of the guest's used ring, and puts the part in order. A former daemon
// may have put a batch of several into the used ring at once.
func (p flightPart) recover(num int, used uint16) (heads []uint16, counter uint64) {
	if p == nil {
		return nil, 0
	}
	le := binary.LittleEndian
	head := le.Uint16(p[partLastBatch:])
	for range min(int(used-le.Uint16(p[partUsedIdx:])), num) {
		if int(head) >= num {
			break
		}
		p.desc(head)[0] = 0
		head = le.Uint16(p.desc(head)[descNext:])
	}
	le.PutUint16(p[partUsedIdx:], used)
	counters := make([]uint64, num)
	for i := range num {
		if d := p.desc(uint16(i)); d[0] != 0 {
			heads = append(heads, uint16(i))
			counters[i] = le.Uint64(d[descCounter:])
			counter = max(counter, counters[i])
		}
	}
	slices.SortFunc(heads, func(a, b uint16) int { return cmp.Compare(counters[a], counters[b]) })
	return heads, counter
}

// reset forgets everything.
func (p flightPart) reset(used uint16) {
	if p == nil {
		return
	}
	for i := range (len(p) - partHeader) / descState {
		p.desc(uint16(i))[0] = 0
	}
	binary.LittleEndian.PutUint16(p[partUsedIdx:], used)
}

// flightState is what travels to another host for one ring: the requests that
// were taken and not completed, oldest first, and what tells this life of the
// ring from any other.
type flightState struct {
	shape ringShape
	last  uint16 // the next entry of the available ring
	heads []uint16
}

// The form of AppendInFlight: magic, version, whether writes are cached, number
// of rings; per ring with requests: index, entries, where desc, avail and used
// are in the image, last, count, heads.
const (
	stateMagic   = 0x4656 // "VF"
	stateVersion = 1
	stateHeader  = 5
	stateRing    = 1 + 2 + 24 + 2 + 2
)

func appendState(dst []byte, index int, f flightState) []byte {
	le := binary.LittleEndian
	dst = append(dst, byte(index))
	dst = le.AppendUint16(dst, f.shape.num)
	for _, off := range []uint64{f.shape.desc, f.shape.avail, f.shape.used} {
		dst = le.AppendUint64(dst, off)
	}
	dst = le.AppendUint16(dst, f.last)
	dst = le.AppendUint16(dst, uint16(len(f.heads)))
	for _, h := range f.heads {
		dst = le.AppendUint16(dst, h)
	}
	return dst
}

// parseState is the other end of AppendInFlight. It returns the state by ring;
// rings that nothing is said of have nil.
func parseState(p []byte, queues int) (wce byte, rings []*flightState, err error) {
	le := binary.LittleEndian
	bad := func(what string) (byte, []*flightState, error) {
		return 0, nil, fmt.Errorf("requests in flight: %s", what)
	}
	if len(p) < stateHeader || le.Uint16(p) != stateMagic {
		return bad("not made by this front end")
	}
	if p[2] != stateVersion {
		return bad(fmt.Sprintf("version %d, want %d: both hosts must run the same release", p[2], stateVersion))
	}
	if p[3] > 1 {
		return bad("no such write cache")
	}
	wce, rings = p[3], make([]*flightState, queues)
	count := int(p[4])
	p = p[stateHeader:]
	for range count {
		if len(p) < stateRing {
			return bad("cut off")
		}
		index := int(p[0])
		f := &flightState{shape: ringShape{num: le.Uint16(p[1:]), desc: le.Uint64(p[3:]), avail: le.Uint64(p[11:]), used: le.Uint64(p[19:])}, last: le.Uint16(p[27:])}
		n := int(le.Uint16(p[29:]))
		p = p[stateRing:]
		switch {
		case index >= queues || rings[index] != nil:
			return bad(fmt.Sprintf("ring %d is not one of %d, or named twice", index, queues))
		case f.shape.num == 0 || f.shape.num > MaxQueueSize || n == 0 || n > int(f.shape.num):
			return bad(fmt.Sprintf("%d requests in a ring of %d", n, f.shape.num))
		case max(f.shape.desc, f.shape.avail, f.shape.used) >= epoch.MaxPages*epoch.PageSize:
			return bad(fmt.Sprintf("ring %d is outside of any image", index))
		case len(p) < 2*n:
			return bad("cut off")
		}
		seen := make([]bool, f.shape.num)
		for i := range n {
			h := le.Uint16(p[2*i:])
			if h >= f.shape.num || seen[h] {
				return bad(fmt.Sprintf("head %d is not in a ring of %d, or named twice", h, f.shape.num))
			}
			seen[h] = true
			f.heads = append(f.heads, h)
		}
		p = p[2*n:]
		rings[index] = f
	}
	if len(p) != 0 {
		return bad(fmt.Sprintf("%d bytes too many", len(p)))
	}
	return wce, rings, nil
}
