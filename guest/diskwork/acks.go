package diskwork

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
)

// Ack tells of a write that the disk has: fsync returned.
type Ack struct {
	// N is the number of the acknowledgement in this run of the work: 1, 2, 3 …
	N uint64
	// File is what was written, up to Version, whose bytes have the xxh3 Sum.
	File         int
	Version, Sum uint64
}

// String is the line that stands for a on a connection.
func (a Ack) String() string { return fmt.Sprintf("ack %d %s", a.N, a.Known()) }

// Known is a without its number.
func (a Ack) Known() string { return fmt.Sprintf("%d %d %016x", a.File, a.Version, a.Sum) }

// ParseAck reads what String wrote.
func ParseAck(line string) (Ack, error) {
	rest, ok := strings.CutPrefix(line, "ack ")
	number, known, found := strings.Cut(rest, " ")
	if !ok || !found {
		return Ack{}, fmt.Errorf("%q is no line ack <number> <file> <version> <checksum>", line)
	}
	a, err := ParseKnown(strings.Fields(known))
	if err == nil {
		a.N, err = strconv.ParseUint(number, 10, 64)
	}
	if err != nil {
		return Ack{}, fmt.Errorf("in the acknowledgement %q: %w", line, err)
	}
	return a, nil
}

// ParseKnown reads the words that Known wrote.
func ParseKnown(words []string) (Ack, error) {
	if len(words) != 3 {
		return Ack{}, fmt.Errorf("%d words, want <file> <version> <checksum>", len(words))
	}
	file, err := strconv.ParseUint(words[0], 10, 31)
	if err != nil || file >= MaxFiles {
		return Ack{}, fmt.Errorf("file %q is not a number below %d", words[0], MaxFiles)
	}
	version, err := strconv.ParseUint(words[1], 10, 64)
	if err != nil || version == 0 {
		return Ack{}, fmt.Errorf("version %q is no positive number", words[1])
	}
	sum, err := strconv.ParseUint(words[2], 16, 64)
	if err != nil || len(words[2]) != 16 {
		return Ack{}, fmt.Errorf("checksum %q is not 16 hexadecimal digits", words[2])
	}
	return Ack{File: int(file), Version: version, Sum: sum}, nil
}

// keptAcks is how many acknowledgements a follower may be behind.
const keptAcks = 1 << 14

// ackLog hands out the acknowledgements' numbers and keeps the newest ones.
type ackLog struct {
	mu     sync.Mutex
	last   uint64
	kept   [keptAcks]Ack // by N modulo its length
	more   chan struct{} // closed at the next acknowledgement, or at the end
	closed bool
}

func newAckLog() *ackLog { return &ackLog{more: make(chan struct{})} }

// add numbers a and wakes the followers.
func (l *ackLog) add(a Ack) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	a.N = l.last
	l.kept[a.N%keptAcks] = a
	close(l.more)
	l.more = make(chan struct{})
}

// close tells the followers that no more will come.
func (l *ackLog) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.closed = true
		close(l.more)
	}
}

func (l *ackLog) count() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

var errEnded = errors.New("the work has ended")

// after returns up to len(batch) acknowledgements from number next on; it waits
// until there is one.
func (l *ackLog) after(ctx context.Context, next uint64, batch []Ack) (int, error) {
	for {
		l.mu.Lock()
		if next+keptAcks <= l.last {
			last := l.last
			l.mu.Unlock()
			return 0, fmt.Errorf("acknowledgement %d is no longer kept: the last one is %d, %d are kept", next, last, keptAcks)
		}
		n := 0
		for ; n < len(batch) && next <= l.last; n++ {
			batch[n] = l.kept[next%keptAcks]
			next++
		}
		more, closed := l.more, l.closed
		l.mu.Unlock()
		if n > 0 {
			return n, nil
		}
		if closed {
			return 0, errEnded
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-more:
		}
	}
}
