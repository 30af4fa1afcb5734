package disk

import (
	"context"
	"time"

	"understudy/epoch"
)

// This file brings the content index what direct transfers went past it: which
// pages of the guest may have which sectors' content is noted as they end, and
// one goroutine for each disk reads those sectors once more, into memory of its
// own, when the disk has nothing else to do. What it reads is what is on the disk;
// that the page has it is a hint like any other, and its bytes decide (RULES 16).
//
//	End, Landed ─> note ─> (bounded, the oldest give way) ─> learn: idle? ─> ReadAt
//	─> known ─> Index.ReadLanded

const (
	maxCandidates = 1 << 16 // of a disk: 256 MiB of pages, for 1 MiB of memory
	learnPages    = 64      // of one read
	learnReads    = 32      // of an idle disk, before it is looked at again
	learnPause    = 20 * time.Millisecond
)

// candidate is a page that may have what is on the disk from sector on.
type candidate struct {
	sector uint64
	page   epoch.GFN
}

// learner is what there is to read again, under the Set's lock.
type learner struct {
	wake  chan struct{}
	ring  []candidate // nil: none was ever noted
	first int
	n     int
}

func (l *learner) add(c candidate) {
	if l.ring == nil {
		l.ring = make([]candidate, maxCandidates)
	}
	if l.n == len(l.ring) {
		l.first, l.n = (l.first+1)%len(l.ring), l.n-1
	}
	l.ring[(l.first+l.n)%len(l.ring)] = c
	l.n++
}

// take moves the next ones whose sectors follow each other into run.
func (l *learner) take(run []candidate) []candidate {
	for l.n > 0 && len(run) < learnPages {
		c := l.ring[l.first]
		if k := len(run); k > 0 && c.sector != run[k-1].sector+epoch.PageSectors {
			break
		}
		run = append(run, c)
		l.first, l.n = (l.first+1)%len(l.ring), l.n-1
	}
	return run
}

// note keeps in mind which pages a direct transfer was between.
func (d *Device) note(r *Request) {
	s := d.set
	if _, none := s.index.(noIndex); none {
		return
	}
	walk := pageWalk{segments: r.Segments}
	s.mu.Lock()
	defer s.mu.Unlock()
	for at := uint32(0); at+epoch.PageSectors <= r.Sectors; at += epoch.PageSectors {
		if page := walk.next(); page != epoch.NoPage {
			d.learner.add(candidate{r.Sector + uint64(at), page})
		}
	}
	signal(d.learner.wake)
}

// learn reads what was noted until ctx ends.
func (d *Device) learn(ctx context.Context) {
	var run []candidate
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.learner.wake:
		}
		for more, last := true, uint64(0); more; {
			pause.Reset(learnPause)
			select {
			case <-ctx.Done():
				return
			case <-pause.C:
			}
			// A busy disk is read from too, or nothing would ever be known of it.
			now := d.requests()
			reads := 1
			if now == last {
				reads = learnReads
			}
			last = now
			for range reads {
				if run, more = d.learnSome(run[:0]); !more || d.requests() != last {
					break
				}
			}
		}
	}
}

// requests is a number that changes with every request.
func (d *Device) requests() uint64 {
	s := d.set
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count.reads + s.count.direct + s.count.accepted
}

// learnSome reads the next stretch and reports whether there is more.
func (d *Device) learnSome(run []candidate) (_ []candidate, more bool) {
	s := d.set
	s.mu.Lock()
	if !s.core.readable(d.lane) {
		d.learner.n = 0 // another host may write now
		s.mu.Unlock()
		return run, false
	}
	run = d.learner.take(run)
	more = d.learner.n > 0
	// What is held is not on the disk yet, and comes to be known as it is flushed.
	skip := len(run) == 0 || d.lane.pending > 0 && d.overlay.any(run[0].sector, uint32(len(run))*epoch.PageSectors)
	ticket := uint64(0)
	if !skip {
		ticket = s.index.ReadBegins()
	}
	s.mu.Unlock()
	if skip {
		return run, more
	}
	buf := d.bounce.get(len(run) * epoch.PageSize)
	defer d.bounce.put(buf)
	if err := d.store.ReadAt(buf.b, run[0].sector); err != nil {
		s.log.Debug("what a page may have was not read again", "disk", d.id, "sector", run[0].sector, "error", err)
		return run, more
	}
	for i, c := range run {
		d.known(ticket, c.sector, c.page, buf.b[i*epoch.PageSize:][:epoch.PageSize])
	}
	return run, more
}
