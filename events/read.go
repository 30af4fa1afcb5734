package events

// This file is the readers' side: what the ring has no more comes from the files.
// A reader keeps nobody waiting; one that is too slow even for the files is told
// how much it has missed.

import (
	"context"
	"fmt"
	"iter"
	"slices"
)

// MaxResults bounds what Since and Newest return.
const MaxResults = 10_000

// each yields what is recorded from number seq on, in order, until there is
// nothing newer, and returns false when yield wants no more.
func (l *Log) each(seq uint64, yield func(Event) bool) bool {
	buf := make([]Event, 0, takeMost)
	for {
		for first := l.oldest(); seq < first; first = l.oldest() {
			before := seq
			for e, err := range l.files.from(seq, first) {
				if err != nil {
					l.cfg.Slog.Warn("the record is read without what is not in memory", "err", err)
					break
				}
				if !yield(e) {
					return false
				}
				seq = e.Seq + 1
			}
			if seq == before { // they have no more of it, either
				seq = first
				break
			}
		}
		buf = l.take(seq, buf[:0])
		if len(buf) == 0 {
			return true
		}
		if buf[0].Seq > seq && l.files.dir != "" {
			continue // the ring has moved on; the files may have it
		}
		for _, e := range buf {
			if !yield(e) {
				return false
			}
			seq = e.Seq + 1
		}
	}
}

// from returns the number of the first event wanted after seq. A seq that was
// not given yet is from another life of this record: all of it is wanted.
func (l *Log) from(seq uint64) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if seq >= l.next {
		return 1
	}
	return seq + 1
}

// Since returns the events after number seq that f is about, oldest first, at
// most limit of them; 0 means MaxResults. With a seq that was never given it
// returns them from the oldest on.
func (l *Log) Since(seq uint64, f Filter, limit int) []Event {
	limit = results(limit)
	var found []Event
	l.each(l.from(seq), func(e Event) bool {
		if f.Match(&e) {
			found = append(found, e)
		}
		return len(found) < limit
	})
	return found
}

// Newest returns the newest events that f is about, oldest first, at most limit
// of them; 0 means MaxResults.
func (l *Log) Newest(limit int, f Filter) []Event {
	limit = results(limit)
	var found []Event // newest first
	l.mu.Lock()
	first := l.first
	for seq := l.next; seq > first && len(found) < limit; seq-- {
		if e := &l.ring[(seq-1)%uint64(len(l.ring))]; f.Match(e) {
			found = append(found, *e)
		}
	}
	l.mu.Unlock()
	names, err := l.files.names()
	if err != nil {
		l.cfg.Slog.Warn("the record is read without what is not in memory", "err", err)
	}
	for _, name := range slices.Backward(names) {
		if len(found) >= limit {
			break
		}
		if name >= first {
			continue
		}
		var of []Event
		for e, err := range l.files.in(name) {
			if err != nil || e.Seq >= first {
				break
			}
			if f.Match(&e.Event) {
				of = append(of, e.Event)
			}
		}
		slices.Reverse(of)
		found = append(found, of...)
		first = name
	}
	found = found[:min(limit, len(found))]
	slices.Reverse(found)
	return found
}

func results(limit int) int {
	if limit <= 0 {
		return MaxResults
	}
	return min(limit, MaxResults)
}

// Follow yields the events after number seq that f is about, those that are
// there and then each as it comes, until ctx ends or the record is closed. Seq 0
// begins with the oldest. Where numbers are missing, because the reader was too
// slow or the disk took nothing, it yields a KindMissed, whatever f is about.
func (l *Log) Follow(ctx context.Context, seq uint64, f Filter) iter.Seq[Event] {
	return func(yield func(Event) bool) {
		news := make(chan struct{}, 1)
		l.mu.Lock()
		l.followers[news] = struct{}{}
		l.mu.Unlock()
		defer func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			delete(l.followers, news)
		}()
		next := l.from(seq)
		beginning := next == 1 // what is not kept any more was not missed
		for last := false; ; {
			ok := l.each(next, func(e Event) bool {
				if e.Seq > next && !beginning && !yield(l.missed(next, e)) {
					return false
				}
				beginning, next = false, e.Seq+1
				return ctx.Err() == nil && (!f.Match(&e) || yield(e))
			})
			if !ok || last {
				return
			}
			select {
			case <-news:
			case <-ctx.Done():
				return
			case <-l.done:
				last = true
			}
		}
	}
}

// missed stands for the events from number seq on that are missing before e.
func (l *Log) missed(seq uint64, e Event) Event {
	n := e.Seq - seq
	return Event{Seq: e.Seq - 1, At: e.At, Boot: e.Boot, BootID: e.BootID, Host: l.cfg.Host, Kind: KindMissed, Missed: n,
		Text: fmt.Sprintf("%d events are missing here: they were lost, or came faster than they were read", n)}
}
