package checkpoint

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"understudy/epoch"
)

// Records leave through pieces of memory that the disk takes by itself, past the
// page cache, while the next ones are packed:
//
//	worker: a record and its place ─ put ─> pieces that are there, full ones
//	─> one goroutine: O_DIRECT ─> free ones        drain: the last one's beginning
//
// So nobody copies what a save writes into the page cache, out of which it would
// push what is of use, and the fsync of Commit finds little to do. Where the file
// system knows no O_DIRECT, the page cache it is.

// pieceBytes is large enough for a disk to be quick with one of them at a time.
const pieceBytes = 1 << 20

// output writes records. put may be called by several goroutines.
type output struct {
	file   *os.File // through the page cache
	direct *os.File // past it; nil: not to be had
	most   int      // pieces

	mu      sync.Mutex
	changed *sync.Cond // a piece is free, or the goroutine has ended
	made    int
	free    [][]byte
	open    []*piece // some of whose bytes are missing
	full    []*piece // in the order in which they became so
	writing bool     // there is a goroutine for full
	err     error    // the first one
}

// piece is a part of the file, by number, on its way.
type piece struct {
	number uint64
	data   []byte
	filled int
}

// newOutput begins with what the file begins with already. workers is how many
// goroutines call put.
func newOutput(file *os.File, begin []byte, workers int) (*output, error) {
	// Every goroutine may wait for others with two pieces that they have begun.
	o := &output{file: file, most: 2*workers + 4}
	o.changed = sync.NewCond(&o.mu)
	if f, err := os.OpenFile(file.Name(), os.O_WRONLY|unix.O_DIRECT, 0); err == nil {
		o.direct = f
	}
	return o, o.put(begin, 0)
}

// put takes bytes for their place in the file. They are not kept. All of what lies
// before them must have come, or come soon.
func (o *output) put(b []byte, at uint64) error {
	for len(b) > 0 {
		p, err := o.piece(at / pieceBytes)
		if err != nil {
			return err
		}
		n := copy(p.data[at%pieceBytes:], b)
		o.advance(p, n)
		b, at = b[n:], at+uint64(n)
	}
	return nil
}

// piece returns the piece with a number, which some of the bytes are missing of.
func (o *output) piece(number uint64) (*piece, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.err == nil {
		if i := slices.IndexFunc(o.open, func(p *piece) bool { return p.number == number }); i >= 0 {
			return o.open[i], nil
		}
		var data []byte
		switch n := len(o.free); {
		case n > 0:
			data, o.free = o.free[n-1], o.free[:n-1]
		case o.made < o.most:
			o.made++
			data = aligned(pieceBytes)
		default:
			o.changed.Wait()
			continue
		}
		p := &piece{number: number, data: data}
		o.open = append(o.open, p)
		return p, nil
	}
	return nil, o.err
}

// aligned returns memory as O_DIRECT wants it.
func aligned(size int) []byte {
	b := make([]byte, size+epoch.PageSize)
	at := -uintptr(unsafe.Pointer(unsafe.SliceData(b))) % epoch.PageSize
	return b[at:][:size:size]
}

// advance notes that n more bytes of a piece are there.
func (o *output) advance(p *piece, n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if p.filled += n; p.filled < pieceBytes {
		return
	}
	o.open = slices.DeleteFunc(o.open, func(q *piece) bool { return q == p })
	o.full = append(o.full, p)
	if !o.writing {
		o.writing = true
		go o.write() // ends when nothing is full; wait waits for it
	}
}

// write writes full pieces until there are none.
func (o *output) write() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.full) > 0 {
		p := o.full[0]
		o.full = o.full[1:]
		failed := o.err
		o.mu.Unlock()
		var err error
		if failed == nil {
			err = o.writePiece(p)
		}
		o.mu.Lock()
		if o.err == nil {
			o.err = err
		}
		o.free = append(o.free, p.data)
		o.changed.Broadcast()
	}
	o.writing = false
	o.changed.Broadcast()
}

func (o *output) writePiece(p *piece) error {
	at := int64(p.number * pieceBytes)
	if o.direct != nil {
		_, err := o.direct.WriteAt(p.data, at)
		if !errors.Is(err, unix.EINVAL) {
			return err
		}
		// Not this file system, or not at this alignment.
		if err := o.closeDirect(); err != nil {
			return err
		}
	}
	if _, err := o.file.WriteAt(p.data, at); err != nil {
		return err
	}
	// The disk may begin with it; no error of that matters.
	_ = unix.SyncFileRange(int(o.file.Fd()), at, pieceBytes, unix.SYNC_FILE_RANGE_WRITE)
	return nil
}

func (o *output) closeDirect() error {
	f := o.direct
	if o.direct = nil; f == nil {
		return nil
	}
	return f.Close()
}

// wait returns when nothing is being written any more.
func (o *output) wait() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.writing {
		o.changed.Wait()
	}
	return o.err
}

// drain writes what is left, up to the file's end so far, which is what comes
// after it. Nothing can be put any more.
func (o *output) drain(end uint64) error {
	err := o.wait()
	for _, p := range o.open {
		if err != nil {
			break
		}
		if want := min(end-p.number*pieceBytes, pieceBytes); uint64(p.filled) != want {
			return fmt.Errorf("%d of %d bytes at %d were never given", want-uint64(p.filled), want, p.number*pieceBytes)
		}
		_, err = o.file.WriteAt(p.data[:p.filled], int64(p.number*pieceBytes))
	}
	o.open, o.free = nil, nil
	return errors.Join(err, o.closeDirect())
}

// end gives up what has not been written.
func (o *output) end() error {
	_ = o.wait() // an error of it has been told, or nobody cares
	return o.closeDirect()
}
