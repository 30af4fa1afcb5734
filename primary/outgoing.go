package primary

// This file is what an epoch says of the disks:
//
//	captured pages ─> keep those that held writes were copied from
//	              ─> encoder (asks the disks' excluder about each page)
//	sealed writes  ─> encoder, by reference where a kept page still has the bytes
//
// and, for disks of which each host has its own copy, the comparison of hashes
// that tells what of them has to be sent.

import (
	"bytes"
	"fmt"

	"understudy/epoch"
	"understudy/protocol"
)

// maxSources bounds the pages that are kept for writes to refer to: what a
// guest writes in one epoch rarely comes from more.
const maxSources = 4096

// sources are the captured pages of one epoch that its held writes were copied
// from. It is also an excluder: those pages always travel themselves, because
// the writes refer to them.
type sources struct {
	next  epoch.Excluder // nil: nothing is left out
	dirty *epoch.PageSet // pages that the epoch brings
	want  map[epoch.GFN][]byte
	free  [][]byte // pages of memory, kept for the next epoch
}

// begin forgets the epoch before and notes what the writes were copied from.
func (s *sources) begin(next epoch.Excluder, dirty *epoch.PageSet, writes []epoch.DiskWrite) {
	for _, b := range s.want {
		if b != nil {
			s.free = append(s.free, b)
		}
	}
	if s.want == nil {
		s.want = make(map[epoch.GFN][]byte)
	}
	clear(s.want)
	s.next, s.dirty = next, dirty
	for i := range writes {
		for _, page := range writes[i].Pages {
			if page != epoch.NoPage && len(s.want) < maxSources && dirty.Contains(page) {
				s.want[page] = nil
			}
		}
	}
}

// keep copies what is wanted of a run of captured pages.
func (s *sources) keep(first epoch.GFN, data []byte) {
	if len(s.want) == 0 {
		return
	}
	for f := first; len(data) > 0; f, data = f+1, data[epoch.PageSize:] {
		if _, ok := s.want[f]; !ok {
			continue
		}
		var b []byte
		if n := len(s.free); n > 0 {
			b, s.free = s.free[n-1], s.free[:n-1]
		} else {
			b = make([]byte, epoch.PageSize)
		}
		copy(b, data)
		s.want[f] = b
	}
}

// equal reports whether the page has these bytes at the end of the epoch. A
// page that the epoch does not bring has not been written since before the
// bytes were copied from it.
func (s *sources) equal(page epoch.GFN, piece []byte) bool {
	if !s.dirty.Contains(page) {
		return true
	}
	return bytes.Equal(s.want[page], piece)
}

// Exclude implements epoch.Excluder.
func (s *sources) Exclude(page epoch.GFN, content []byte, delta bool) (epoch.Exclusion, bool) {
	if _, ok := s.want[page]; ok || s.next == nil {
		return epoch.Exclusion{}, false
	}
	return s.next.Exclude(page, content, delta)
}

// sealed returns the guest's writes that belong to the epoch: none before there
// are checkpoints. Without the disks' state a checkpoint would tell the backup
// that nothing was written.
func (l *link) sealed(j *job) ([]epoch.DiskWrite, []byte, error) {
	if _, none := l.p.Disks.(noDisks); none || j.kind != epoch.KindCheckpoint {
		return nil, nil, nil
	}
	writes, state := l.p.Disks.Sealed(j.number)
	if len(state) == 0 {
		return nil, nil, fmt.Errorf("the writes of epoch %d are not sealed any more", j.number)
	}
	return writes, state, nil
}

// writes returns what the epoch changes on the disks, synchronisation first.
func (l *link) writes(j *job, sealed []epoch.DiskWrite) ([]epoch.DiskWrite, error) {
	limit := l.p.cfg.SyncStep * epoch.PageSize
	if j.kind == epoch.KindCheckpoint {
		limit = 0 // a checkpoint leaves nothing out
	}
	sync, err := l.p.Disks.SyncWrites(j.number, limit)
	if err != nil {
		return nil, fmt.Errorf("read what the backup's copy of the disks lacks: %w", err)
	}
	if len(sync) == 0 {
		return sealed, nil
	}
	return append(sync, sealed...), nil
}

// comparing is how many messages with hashes may wait for their answer.
const comparing = 4

// compare begins to send hashes, if there is anything to compare.
func (l *link) compare() {
	if _, compare := l.p.Disks.Unsynced(); compare == 0 {
		return
	}
	l.workers.Add(1)
	go l.compareLoop()
}

func (l *link) compareLoop() {
	defer l.workers.Done()
	var payload []byte
	for {
		h, more, err := l.p.Disks.NextHashes(epoch.MaxHashes)
		if err == nil && len(h.Hashes) > 0 {
			select {
			case l.asked <- struct{}{}:
			case <-l.ctx.Done():
				return
			}
			payload = protocol.AppendDiskHashes(payload[:0], h)
			err = l.session.Send(l.ctx, protocol.KindHashes, payload)
		}
		if err != nil {
			l.fail(fmt.Errorf("compare the disks: %w", err))
			return
		}
		if !more {
			return
		}
	}
}

// differ takes an answer to hashes.
func (l *link) differ(payload []byte) error {
	d, err := protocol.ParseDiskDiffers(payload)
	if err != nil {
		return err
	}
	select {
	case <-l.asked:
	default:
		return fmt.Errorf("an answer to hashes that nobody sent, of disk %d from chunk %d on", d.Disk, d.First)
	}
	return l.p.Disks.Differ(d)
}
