package disk

import (
	"fmt"
	"math/bits"

	"github.com/zeebo/xxh3"

	"understudy/epoch"
)

// This file keeps the two copies of a replicated disk equal. The owner's side
// knows, for each chunk of 64 KiB, one of
//
//	unknown ─ NextHashes ─> asked ─ Differ ─┬─> equal
//	                                     └─> differs ─ SyncWrites(n) ─> sent
//	any ─ written while unprotected ─> differs            sent ─ Synced(n) ─> equal
//	                                            sent ─ epoch lost ─> differs
//
// While writes are held nothing has to be noted: each travels in its epoch.

// chunkSectors is the size of a chunk.
const chunkSectors = epoch.HashChunk / epoch.SectorSize

// syncState is what is known of the backup's copy of one disk. The Set's lock
// protects it. A chunk is in at most one of unknown and asked; it may differ
// as well.
type syncState struct {
	chunks                    uint64
	unknown, asked, differ    []uint64
	sending                   []uint64 // chunks of Set.sent
	unknowns, askeds, differs uint64   // how many
	next, from                uint64   // where NextHashes and SyncWrites go on
}

// sentChunks are the chunks of a disk that went with an epoch.
type sentChunks struct {
	n      epoch.Number
	disk   epoch.DiskID
	chunks []uint64
}

func newSyncState(sectors uint64) *syncState {
	n := (sectors + chunkSectors - 1) / chunkSectors
	words := (n + 63) / 64
	y := &syncState{
		chunks: n, unknown: make([]uint64, words), asked: make([]uint64, words),
		differ: make([]uint64, words), sending: make([]uint64, words),
	}
	y.forget()
	return y
}

// forget makes every chunk unknown.
func (y *syncState) forget() {
	for i := range y.unknown {
		y.unknown[i] = ^uint64(0)
	}
	if tail := y.chunks % 64; tail != 0 {
		y.unknown[len(y.unknown)-1] = 1<<tail - 1
	}
	clear(y.asked)
	clear(y.differ)
	clear(y.sending)
	y.unknowns, y.askeds, y.differs, y.next, y.from = y.chunks, 0, 0, 0, 0
}

func put(set []uint64, count *uint64, chunk uint64, in bool) {
	w, bit := &set[chunk/64], uint64(1)<<(chunk%64)
	switch {
	case in && *w&bit == 0:
		*w |= bit
		*count++
	case !in && *w&bit != 0:
		*w &^= bit
		*count--
	}
}

func has(set []uint64, chunk uint64) bool { return set[chunk/64]&(1<<(chunk%64)) != 0 }

// find returns the first chunk of the set at or after from, going round.
func find(set []uint64, chunks, from uint64) (uint64, bool) {
	for _, part := range [2][2]uint64{{from, chunks}, {0, from}} {
		for c := part[0]; c < part[1]; {
			if w := set[c/64] >> (c % 64); w != 0 {
				c += uint64(bits.TrailingZeros64(w))
				return c, c < part[1]
			}
			c = (c/64 + 1) * 64
		}
	}
	return 0, false
}

// equal reports whether the backup's chunk is known to equal ours.
func (y *syncState) equal(chunk uint64) bool {
	return !has(y.unknown, chunk) && !has(y.asked, chunk) && !has(y.differ, chunk) && !has(y.sending, chunk)
}

// extent returns the sectors of a chunk; the last may be short.
func (d *Device) extent(chunk uint64) (sector uint64, sectors uint32) {
	sector = chunk * chunkSectors
	return sector, uint32(min(chunkSectors, d.info.Sectors-sector))
}

// markLocked notes that sectors get bytes that travel in no epoch.
func (d *Device) markLocked(sector uint64, sectors uint32) {
	if d.copies == nil || sectors == 0 {
		return
	}
	for c := sector / chunkSectors; c <= (sector+uint64(sectors)-1)/chunkSectors; c++ {
		if !has(d.copies.differ, c) {
			d.differsLocked(c)
		}
	}
}

func (d *Device) differsLocked(chunk uint64) {
	y := d.copies
	was := y.equal(chunk)
	put(y.differ, &y.differs, chunk, true)
	if was {
		from, n := d.extent(chunk)
		d.set.index.SetVerified(d.id, from, from+uint64(n), false)
	}
}

// verifyLocked tells the index of a chunk that is equal now.
func (d *Device) verifyLocked(chunk uint64) {
	if d.copies.equal(chunk) {
		from, n := d.extent(chunk)
		d.set.index.SetVerified(d.id, from, from+uint64(n), true)
	}
}

// unsentLocked notes the held writes that will travel in no epoch, now that they
// are released without one.
func (s *Set) unsentLocked() {
	for i := max(s.core.released, s.held.first); i < s.held.next; i++ {
		e := s.held.at(i)
		s.disks[e.disk].markLocked(e.sector, e.sectors)
	}
}

// lostLocked puts back what went with epochs that may never be committed.
func (s *Set) lostLocked() {
	for _, c := range s.sent {
		for _, chunk := range c.chunks {
			s.disks[c.disk].differsLocked(chunk)
			s.disks[c.disk].copies.sending[chunk/64] &^= 1 << (chunk % 64)
		}
	}
	s.sent = s.sent[:0]
}

// SyncAll says that nothing is known of the backup's own copies of the disks.
func (s *Set) SyncAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.syncAllLocked()
}

func (s *Set) syncAllLocked() {
	s.sent = s.sent[:0]
	for _, d := range s.disks {
		if d.copies != nil {
			d.copies.forget()
			s.index.SetVerified(d.id, 0, d.info.Sectors, false)
		}
	}
}

// Equal says that the backup's copies equal ours, but for what is held: a former
// process of this host knew it, and left its guest standing still.
func (s *Set) Equal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.disks {
		if y := d.copies; y != nil {
			clear(y.unknown)
			clear(y.asked)
			clear(y.differ)
			y.unknowns, y.askeds, y.differs = 0, 0, 0
			s.index.SetVerified(d.id, 0, d.info.Sectors, true)
		}
	}
}

// Unsynced returns how many bytes of the disks are known to differ, what is on
// its way included, and how many have not been compared. 0 for shared disks.
func (s *Set) Unsynced() (differ, compare uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.disks {
		if d.copies != nil {
			differ += d.copies.differs * epoch.HashChunk
			compare += (d.copies.unknowns + d.copies.askeds) * epoch.HashChunk
		}
	}
	for _, c := range s.sent {
		differ += uint64(len(c.chunks)) * epoch.HashChunk
	}
	return differ, compare
}

// NextHashes returns the next hashes to send to the backup, at most limit of them and
// at most epoch.MaxHashes, or false if all have been sent. It reads the disk.
func (s *Set) NextHashes(limit int) (h epoch.DiskHashes, more bool, err error) {
	count := min(limit, epoch.MaxHashes)
	if count <= 0 {
		return h, false, fmt.Errorf("comparing disks: %d hashes at a time", limit)
	}
	s.mu.Lock()
	var d *Device
	for _, candidate := range s.disks {
		if y := candidate.copies; y != nil && d == nil {
			if first, ok := find(y.unknown, y.chunks, y.next); ok {
				d, h.Disk, h.First = candidate, candidate.id, first
			}
		}
	}
	if d == nil {
		s.mu.Unlock()
		return h, false, nil
	}
	y := d.copies
	n := uint64(0)
	for n < uint64(count) && h.First+n < y.chunks && has(y.unknown, h.First+n) {
		put(y.unknown, &y.unknowns, h.First+n, false)
		put(y.asked, &y.askeds, h.First+n, true)
		n++
	}
	y.next = (h.First + n) % y.chunks
	s.mu.Unlock()

	h.Hashes, err = d.hash(h.First, int(n), ^uint64(0))
	if err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		for c := h.First; c < h.First+n; c++ {
			put(y.asked, &y.askeds, c, false)
			put(y.unknown, &y.unknowns, c, true)
		}
		return epoch.DiskHashes{}, false, fmt.Errorf("comparing disk %d: %w", d.id, err)
	}
	return h, true, nil
}

// hash hashes chunks of the disk, with the held log over it as of bound.
func (d *Device) hash(first uint64, count int, bound uint64) ([]epoch.Hash, error) {
	s := d.set
	buf := d.bounce.get(epoch.HashChunk)
	defer d.bounce.put(buf)
	hashes := make([]epoch.Hash, 0, count)
	for c := first; c < first+uint64(count); c++ {
		sector, sectors := d.extent(c)
		b := buf.b[:sectors*epoch.SectorSize]
		s.mu.Lock()
		if s.core.closed {
			s.mu.Unlock()
			return nil, ErrClosed
		}
		var few [8]gap
		gaps := d.lookLocked(b, sector, bound, few[:0])
		s.mu.Unlock()
		if err := d.fillGaps(b, sector, gaps); err != nil {
			return nil, err
		}
		hashes = append(hashes, epoch.Hash(xxh3.Hash128(b).Bytes()))
	}
	return hashes, nil
}

// Differ notes the backup's answer to hashes. An answer nobody asked for, or
// that came after SyncAll, changes nothing.
func (s *Set) Differ(a epoch.DiskDiffers) error {
	if err := s.checkChunks(a.Disk, a.First, a.Count); err != nil {
		return fmt.Errorf("answer to hashes: %w", err)
	}
	if len(a.Bits) != (a.Count+7)/8 {
		return fmt.Errorf("answer to hashes of disk %d: %d bytes for %d chunks", a.Disk, len(a.Bits), a.Count)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.disks[a.Disk]
	y := d.copies
	for i := range uint64(a.Count) {
		c := a.First + i
		if !has(y.asked, c) {
			continue
		}
		put(y.asked, &y.askeds, c, false)
		if a.Bits[i/8]&(1<<(i%8)) != 0 {
			put(y.differ, &y.differs, c, true)
		}
		d.verifyLocked(c)
	}
	return nil
}

func (s *Set) checkChunks(disk epoch.DiskID, first uint64, count int) error {
	if int(disk) >= len(s.disks) || s.disks[disk].copies == nil {
		return fmt.Errorf("disk %d is no replicated disk here", disk)
	}
	if chunks := s.disks[disk].copies.chunks; count <= 0 || count > epoch.MaxHashes || first >= chunks || uint64(count) > chunks-first {
		return fmt.Errorf("disk %d: %d chunks from %d on, it has %d", disk, count, first, chunks)
	}
	return nil
}

// Compare hashes the same pieces of our own copy, as of the last commit, and
// says which differ.
func (s *Set) Compare(h epoch.DiskHashes) (epoch.DiskDiffers, error) {
	if err := s.checkChunks(h.Disk, h.First, len(h.Hashes)); err != nil {
		return epoch.DiskDiffers{}, fmt.Errorf("hashes of the peer's disk: %w", err)
	}
	s.mu.Lock()
	bound := s.core.asOf
	s.mu.Unlock()
	ours, err := s.disks[h.Disk].hash(h.First, len(h.Hashes), bound)
	if err != nil {
		return epoch.DiskDiffers{}, fmt.Errorf("comparing disk %d: %w", h.Disk, err)
	}
	a := epoch.DiskDiffers{Disk: h.Disk, First: h.First, Count: len(ours), Bits: make([]byte, (len(ours)+7)/8)}
	for i := range ours {
		if ours[i] != h.Hashes[i] {
			a.Bits[i/8] |= 1 << (i % 8)
		}
	}
	return a, nil
}

// SyncWrites returns up to limit bytes, at least one chunk, of what differs, and
// counts it as sent with epoch n; limit 0 is everything. It reads the disk as of
// epoch n, also while the guest runs on: what was accepted after Seal(n) lies in
// the held log, and cannot leave it before n is committed.
func (s *Set) SyncWrites(n epoch.Number, limit uint64) ([]epoch.DiskWrite, error) {
	var writes []epoch.DiskWrite
	bytes := uint64(0)
	for _, d := range s.disks {
		if d.copies == nil {
			continue
		}
		sent, ws, err := d.syncWrites(n, limit, &bytes)
		writes = append(writes, ws...)
		s.mu.Lock()
		if len(sent) > 0 {
			s.sent = append(s.sent, sentChunks{n, d.id, sent})
		}
		if err != nil {
			s.lostLocked()
		}
		s.mu.Unlock()
		if err != nil {
			return nil, fmt.Errorf("synchronising disk %d: %w", d.id, err)
		}
	}
	return writes, nil
}

func (d *Device) syncWrites(n epoch.Number, limit uint64, bytes *uint64) (sent []uint64, writes []epoch.DiskWrite, err error) {
	s, y := d.set, d.copies
	s.mu.Lock()
	defer s.mu.Unlock()
	for from, round := y.from, uint64(0); round < y.chunks; {
		if limit > 0 && *bytes > 0 && *bytes+epoch.HashChunk > limit {
			break
		}
		c, ok := find(y.differ, y.chunks, from)
		if !ok {
			break
		}
		// Each chunk is looked at once, from y.from on and round.
		step := (c + y.chunks - from) % y.chunks
		if round += step + 1; round > y.chunks {
			break
		}
		from = (c + 1) % y.chunks
		sector, sectors := d.extent(c)
		if s.core.closed {
			return sent, nil, ErrClosed
		}
		// First the mark, then the bytes: a direct write that ends after this
		// marks anew.
		put(y.differ, &y.differs, c, false)
		y.sending[c/64] |= 1 << (c % 64)
		sent = append(sent, c)
		data := make([]byte, int(sectors)*epoch.SectorSize)
		var few [8]gap
		gaps := d.lookLocked(data, sector, s.boundLocked(n), few[:0])
		s.mu.Unlock()
		err := d.fillGaps(data, sector, gaps)
		s.mu.Lock()
		y.from = from
		if err != nil {
			return sent, nil, err
		}
		writes = append(writes, epoch.DiskWrite{Disk: d.id, Kind: epoch.WriteSync, Sector: sector, Sectors: sectors, Data: data})
		*bytes += uint64(len(data))
	}
	return sent, writes, nil
}

// boundLocked returns the index before which entries belong to epoch n or to one
// before.
func (s *Set) boundLocked(n epoch.Number) uint64 {
	for _, p := range s.core.seals {
		if p.n == n {
			return p.to
		}
	}
	return s.held.next
}

// Synced says that the backup has committed epoch n: what SyncWrites sent with
// it, and with those before, need not be sent again.
func (s *Set) Synced(n epoch.Number) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var done []sentChunks
	keep := s.sent[:0]
	for _, c := range s.sent {
		if c.n <= n {
			done = append(done, c)
			s.disks[c.disk].sendingLocked(c.chunks, false)
		} else {
			keep = append(keep, c)
		}
	}
	s.sent = keep
	for _, c := range keep { // a chunk may have gone twice
		s.disks[c.disk].sendingLocked(c.chunks, true)
	}
	for _, c := range done {
		for _, chunk := range c.chunks {
			s.disks[c.disk].verifyLocked(chunk)
		}
	}
}

func (d *Device) sendingLocked(chunks []uint64, on bool) {
	for _, c := range chunks {
		if on {
			d.copies.sending[c/64] |= 1 << (c % 64)
		} else {
			d.copies.sending[c/64] &^= 1 << (c % 64)
		}
	}
}
