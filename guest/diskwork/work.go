// Package diskwork keeps a disk busy and notices every byte that it lost. Its
// workers write files and read them back all the time: each round writes the
// next version of one file, waits until fsync has returned, tells of it by an
// acknowledgement, and reads two files back, one from the page cache and one from
// the disk. Every sector tells what it is (content.go), so damage shows at once,
// and after a crash too.
//
//	Start ─> round: write ─> fsync ─> Ack ─> read back     Follow hands the acks to whoever keeps them elsewhere
//	Check ─> every file against what this run wrote        Verify: every file against acks that were kept elsewhere
package diskwork

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of Options, and what stands for a zero value in them.
const (
	MaxFiles   = 4096
	maxSize    = 16 << 20
	MaxWorkers = 16

	defaultFiles   = 48
	defaultSize    = 64 << 10
	defaultWorkers = 2
)

// Options say what the work is to do.
type Options struct {
	// Files is how many files are written in turn, 1 to 4096; 0 means 48. A third
	// of them is replaced by rename, a third overwritten through the page cache,
	// a third overwritten past it.
	Files int
	// Size of a file in bytes, a multiple of 4096 up to 16 MiB; 0 means 64 KiB.
	Size int
	// Every is the pause of a worker between two rounds; 0 means none.
	Every time.Duration
	// Workers is how many rounds run at once, 1 to 16; 0 means 2.
	Workers int
}

func (o *Options) complete() error {
	if o.Files == 0 {
		o.Files = defaultFiles
	}
	if o.Size == 0 {
		o.Size = defaultSize
	}
	if o.Workers == 0 {
		o.Workers = min(defaultWorkers, o.Files)
	}
	switch {
	case o.Files < 1 || o.Files > MaxFiles:
		return fmt.Errorf("%d files, want 1 to %d", o.Files, MaxFiles)
	case o.Size < blockSize || o.Size > maxSize || o.Size%blockSize != 0:
		return fmt.Errorf("files of %d bytes, want a multiple of %d up to %d", o.Size, blockSize, maxSize)
	case o.Workers < 1 || o.Workers > MaxWorkers || o.Workers > o.Files:
		return fmt.Errorf("%d workers for %d files, want 1 to %d and not more than files", o.Workers, o.Files, MaxWorkers)
	case o.Every < 0:
		return fmt.Errorf("a pause of %s", o.Every)
	}
	return nil
}

// Damage says that a file does not hold what it must.
type Damage struct{ What string }

func (d *Damage) Error() string { return d.What }

// Status is how far a work has come.
type Status struct {
	Rounds, Acked, Errors uint64
	// First is the first error; it and Errors include damage that was read back.
	First error
}

// Work is a running work; Stop ends it.
type Work struct {
	dir    string
	opts   Options
	acks   *ackLog
	cancel context.CancelFunc
	ends   sync.WaitGroup

	// pause is held for reading by each round, for writing by what wants to see
	// the files at rest.
	pause sync.RWMutex

	mu     sync.Mutex
	status Status
	files  map[int]known
}

// Start begins to work in dir, which is made if it is not there. Files that an
// earlier run left are checked and go on with their next version.
func Start(dir string, o Options) (*Work, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	w := &Work{dir: dir, opts: o, acks: newAckLog(), files: map[int]known{}}
	if _, err := examine(context.Background(), dir, func(file int, found seen) error {
		err := judge(found, known{}, inPlace(file))
		// A write that a crash cut short left pieces of the next version: it is
		// written again, to the same bytes.
		w.files[file] = known{version: found.low, sum: found.sum, exact: found.low == found.high}
		return err
	}); err != nil {
		return nil, fmt.Errorf("what is in %s already: %w", dir, err)
	}
	if err := enoughRoom(dir, int64(o.Files+o.Workers)*int64(o.Size)); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	for n := range o.Workers {
		w.ends.Go(func() { w.worker(ctx, n) })
	}
	return w, nil
}

// enoughRoom refuses a work that would fill more than what is free now.
func enoughRoom(dir string, need int64) error {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return fmt.Errorf("ask how much room %s has: %w", dir, err)
	}
	if free := int64(s.Bavail) * s.Bsize; need > free {
		return fmt.Errorf("the files need %d MiB, %d MiB are free", need>>20, free>>20)
	}
	return nil
}

// Stop ends the rounds and waits for them. Check and Verify still know what was
// written.
func (w *Work) Stop() {
	w.cancel()
	w.ends.Wait()
	w.acks.close()
}

// Status tells how far the work has come.
func (w *Work) Status() Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.status
	s.Acked = w.acks.count()
	return s
}

// worker goes through those files whose number is n modulo the workers, so that
// no file has two of them.
func (w *Work) worker(ctx context.Context, n int) {
	buf, chance := aligned(w.opts.Size), rand.New(rand.NewPCG(uint64(n), 7))
	for file := n; ; {
		if ctx.Err() != nil {
			return
		}
		w.pause.RLock()
		w.round(file, n, buf, chance)
		w.pause.RUnlock()
		if file += w.opts.Workers; file >= w.opts.Files {
			file = n
		}
		if w.opts.Every > 0 {
			select {
			case <-ctx.Done():
			case <-time.After(w.opts.Every):
			}
		}
	}
}

// round writes one file and reads two.
func (w *Work) round(file, n int, buf []byte, chance *rand.Rand) {
	w.note(w.writeNext(file, buf))
	mine := (w.opts.Files - n + w.opts.Workers - 1) / w.opts.Workers
	for _, how := range []int{cached, dropped + chance.IntN(readings-dropped)} {
		w.note(w.readBack(n+chance.IntN(mine)*w.opts.Workers, how, buf))
	}
	w.mu.Lock()
	w.status.Rounds++
	w.mu.Unlock()
}

func (w *Work) note(err error) {
	if err == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.status.Errors++; w.status.First == nil {
		w.status.First = err
	}
}

func (w *Work) writeNext(file int, buf []byte) error {
	w.mu.Lock()
	old := w.files[file]
	w.mu.Unlock()
	next := known{version: old.version + 1, exact: true}
	next.sum = fill(buf, file, next.version)
	if err := write(w.dir, file, buf); err != nil {
		// The file may hold any part of it now; the next round tries it again.
		old.exact = false
		w.mu.Lock()
		w.files[file] = old
		w.mu.Unlock()
		return fmt.Errorf("write version %d of file %d: %w", next.version, file, err)
	}
	w.mu.Lock()
	w.files[file] = next
	w.mu.Unlock()
	w.acks.add(Ack{File: file, Version: next.version, Sum: next.sum})
	return nil
}

func (w *Work) readBack(file, how int, buf []byte) error {
	w.mu.Lock()
	k, ok := w.files[file]
	w.mu.Unlock()
	if !ok {
		return nil // its first round has not come yet
	}
	data, err := read(w.dir, file, how, buf)
	if err != nil {
		return fmt.Errorf("read file %d %s: %w", file, readingNames[how], err)
	}
	found, err := inspect(file, data)
	if err == nil {
		err = judge(found, k, inPlace(file))
	}
	if err != nil {
		return &Damage{fmt.Sprintf("file %d, read %s: %v", file, readingNames[how], err)}
	}
	return nil
}

// Follow hands every acknowledgement from number next on (0: the next that comes)
// to give, in order and without a gap, until ctx or the work ends or give fails.
// A follower that is more than 16384 behind is given up with an error.
func (w *Work) Follow(ctx context.Context, next uint64, give func([]Ack) error) error {
	if next == 0 {
		next = w.acks.count() + 1
	}
	batch := make([]Ack, 256)
	for {
		n, err := w.acks.after(ctx, next, batch)
		if errors.Is(err, errEnded) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := give(batch[:n]); err != nil {
			return err
		}
		next += uint64(n)
	}
}
