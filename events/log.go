package events

// This file is the ring of the newest events, and Add, its only way in:
//
//	Add: stamp → number → ring → wake the writer and the followers, wait for none

import (
	"errors"
	"log/slog"
	"sync"
	"time"

	"understudy/clock"
	"understudy/ownership"
)

// Config says whose record it is and where it is kept.
type Config struct {
	Host   ownership.HostID
	BootID string // see Event; "" if it is not known
	// Dir is where the files are; it is made. "" keeps events in memory only.
	Dir string
	// Ring is how many events are kept in memory; 0 means DefaultRing.
	Ring int
	// FileBytes is the size at which the next file is begun, Files how many are
	// kept; 0 means DefaultFileBytes, DefaultFiles.
	FileBytes int64
	Files     int
	Clock     clock.Clock // nil: the machine's
	Slog      *slog.Logger

	open func(path string) (file, error) // nil: os.OpenFile
}

const (
	// DefaultRing is some hours of a pair that has no trouble, in 1 MiB.
	DefaultRing = 4096
	// DefaultFileBytes times DefaultFiles is 32 MiB, some 100,000 events.
	DefaultFileBytes = 4 << 20
	DefaultFiles     = 8
)

// Log is the record of one host. All methods may be called from several
// goroutines. Its one goroutine writes the files, and ends with Close.
//
// An event is in the files as soon as the disk takes it, which a daemon's death
// does not undo, and is synced within syncAfter. While the disk takes nothing,
// events are kept as far as the ring reaches; those that it has lost by then
// show as a gap in Seq. Numbers that never came to the disk are given again
// after a restart.
type Log struct {
	cfg   Config
	files files

	mu        sync.Mutex
	ring      []Event // Seq s is at s % len(ring)
	first     uint64  // the oldest Seq in ring
	next      uint64  // the Seq of the next event
	limits    limiter
	followers map[chan struct{}]struct{}

	wake    chan struct{} // there is something to write
	done    chan struct{} // closed by Close
	closing sync.Once
	closed  error
	writing sync.WaitGroup
}

// Open opens a record, and goes on with one that is there: a last line that was
// not written whole is cut off.
func Open(c Config) (*Log, error) {
	if c.Host == "" {
		return nil, errors.New("open the record of events: whose host's?")
	}
	if c.Ring <= 0 {
		c.Ring = DefaultRing
	}
	if c.FileBytes <= 0 {
		c.FileBytes = DefaultFileBytes
	}
	if c.Files <= 0 {
		c.Files = DefaultFiles
	}
	if c.Clock == nil {
		c.Clock = clock.Boot{}
	}
	if c.Slog == nil {
		c.Slog = slog.New(slog.DiscardHandler)
	}
	if c.open == nil {
		c.open = openFile
	}
	l := &Log{cfg: c, files: files{dir: c.Dir}, ring: make([]Event, c.Ring), first: 1, next: 1, limits: limiter{},
		followers: map[chan struct{}]struct{}{}, wake: make(chan struct{}, 1), done: make(chan struct{})}
	if c.Dir == "" {
		return l, nil
	}
	w := writer{l: l, room: c.FileBytes, keep: c.Files}
	if err := w.resume(); err != nil {
		return nil, err
	}
	l.first, l.next = w.seq+1, w.seq+1
	l.writing.Go(w.run)
	return l, nil
}

// Add records an event: it gives it its number, and its time and host if it has
// none. It never waits for a disk or a reader, and allocates nothing. After
// Close it does nothing.
func (l *Log) Add(e Event) {
	if !e.Kind.valid() {
		l.cfg.Slog.Error("an event has no kind and is not recorded", "kind", cut(string(e.Kind), maxKind), "text", e.Text)
		return
	}
	e.clip()
	if e.Host == "" {
		e.Host = l.cfg.Host
	}
	e.BootID = l.cfg.BootID
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.done:
		return
	default:
	}
	now := l.cfg.Clock.Now()
	if e.Boot == 0 {
		e.Boot = now
	}
	if e.At.IsZero() {
		e.At = time.Now().Round(0).UTC()
	}
	var ok bool
	if e.Suppressed, ok = l.limits.admit(now, key{e.Guest, e.Kind}); !ok {
		return
	}
	e.Seq = l.next
	l.ring[e.Seq%uint64(len(l.ring))] = e
	l.next++
	if l.next-l.first > uint64(len(l.ring)) {
		l.first++
	}
	signal(l.wake)
	for f := range l.followers {
		signal(f)
	}
}

// signal leaves a token in a channel that has room for one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// oldest returns the number of the oldest event in the ring, or of the next one.
func (l *Log) oldest() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.first
}

// takeMost bounds how long a reader keeps Add waiting: some 10 µs.
const takeMost = 128

// take appends to buf, which is empty, the events in the ring from number seq
// on, a few at a time.
func (l *Log) take(seq uint64, buf []Event) []Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	seq = max(seq, l.first)
	for ; seq < l.next && len(buf) < takeMost; seq++ {
		buf = append(buf, l.ring[seq%uint64(len(l.ring))])
	}
	return buf
}

// Close writes what is left, ends every Follow and returns after the writer has
// ended. The error says that the record is not whole on the disk. A second call
// returns the same.
func (l *Log) Close() error {
	l.closing.Do(func() {
		l.mu.Lock()
		close(l.done)
		l.mu.Unlock()
	})
	l.writing.Wait()
	return l.closed
}
