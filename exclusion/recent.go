package exclusion

import "understudy/epoch"

// recent remembers the latest reads and writes of the disks, so that it can be
// said of each whether a write of the same sectors ran beside it: then nobody
// knows what is on the disk.
//
//	begin, accept → a ticket, ascending, and an entry ticket % len(entries)
//	landed        → the write is over
//	alone         → was no other write of these sectors under way or accepted
//	                from the ticket on?
//
// An operation that was begun so long ago that its entry is gone is not known
// to have been alone.
type recent struct {
	entries []traffic // a power of two of them
	last    uint64    // ticket given last
	oldest  uint64    // every write before this ticket is over
	lost    int       // writes under way whose entry is gone
	floor   uint64    // up to this ticket nothing is known
}

// traffic is one entry: a read (to == 0), or a write of the sectors from..to.
type traffic struct {
	from, to uint64
	since    uint64 // ticket of the oldest write under way as this began
	over     uint64 // ticket given last when the write was over; 0: under way
	disk     epoch.DiskID
}

// recentTraffic is how many operations are remembered.
const recentTraffic = 8192

func newRecent() recent { return recent{entries: make([]traffic, recentTraffic), oldest: 1} }

func (r *recent) at(ticket uint64) *traffic { return &r.entries[ticket%uint64(len(r.entries))] }

// kept reports whether a ticket still has its entry.
func (r *recent) kept(ticket uint64) bool {
	return ticket > 0 && ticket <= r.last && r.last-ticket < uint64(len(r.entries))
}

// begin gives a read its ticket.
func (r *recent) begin() uint64 { return r.add(traffic{over: 1}) }

// accept gives a write its ticket. A write that is not under way (it is held,
// and reads see it before the disk) is over at once.
func (r *recent) accept(disk epoch.DiskID, from, to uint64, underWay bool) uint64 {
	t := traffic{disk: disk, from: from, to: to}
	if !underWay {
		t.over = r.last + 1
	}
	return r.add(t)
}

func (r *recent) add(t traffic) uint64 {
	r.last++
	if old := r.at(r.last); r.last > uint64(len(r.entries)) && old.over == 0 {
		r.lost++
	}
	for r.oldest < r.last && (!r.kept(r.oldest) || r.at(r.oldest).over != 0) {
		r.oldest++
	}
	t.since = r.oldest
	*r.at(r.last) = t
	return r.last
}

// landed says, once, that the write with this ticket is over.
func (r *recent) landed(ticket uint64) {
	switch {
	case r.kept(ticket):
		if t := r.at(ticket); t.over == 0 {
			t.over = r.last
		}
	case r.lost > 0:
		r.lost--
		r.floor = r.last // it may have written at any time until now
	}
}

// alone reports whether no other write overlapping these sectors was under way
// when ticket was given, and none was accepted since.
func (r *recent) alone(ticket uint64, disk epoch.DiskID, from, to uint64) bool {
	if !r.kept(ticket) || r.lost > 0 || ticket <= r.floor {
		return false
	}
	since := r.at(ticket).since
	if !r.kept(since) {
		return false
	}
	for t := r.last; t >= since; t-- {
		e := r.at(t)
		if t == ticket || e.disk != disk || e.from >= to || e.to <= from {
			continue
		}
		if t > ticket || e.over == 0 || e.over >= ticket {
			return false
		}
	}
	return true
}
