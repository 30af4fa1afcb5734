// Package diskspeed measures a disk the way fio does: a number of readers or
// writers, each with one request under way, past the page cache (O_DIRECT), on a
// file or a device, for a while.
//
//	Options ─> open (a file is written full first) ─> depth loops of pread or pwrite ─> Result
package diskspeed

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Mode is what is measured.
type Mode string

const (
	Read      Mode = "read"      // one after the other
	Write     Mode = "write"     //
	RandRead  Mode = "randread"  // anywhere
	RandWrite Mode = "randwrite" //
)

func (m Mode) writes() bool { return m == Write || m == RandWrite }
func (m Mode) random() bool { return m == RandRead || m == RandWrite }

// Bounds of Options.
const (
	MaxBlock = 4 << 20
	MaxDepth = 128
	MaxTime  = 10 * time.Minute
	MaxSize  = 1 << 40
)

// Options say what to measure.
type Options struct {
	Mode Mode
	// Block is the size of a request in bytes, a multiple of 512 up to 4 MiB.
	Block int
	// Depth is how many requests are under way at once, 1 to 128.
	Depth int
	// Sync has each write return only when the disk has it (O_DSYNC).
	Sync bool
	// Time is how long to measure, up to 10 minutes.
	Time time.Duration
	// Size is how many bytes of the target are used; of a device, 0 means all.
	Size int64
}

func (o Options) check() error {
	switch {
	case !slices.Contains([]Mode{Read, Write, RandRead, RandWrite}, o.Mode):
		return fmt.Errorf("mode %q is none of read, write, randread, randwrite", o.Mode)
	case o.Block < 512 || o.Block > MaxBlock || o.Block%512 != 0:
		return fmt.Errorf("requests of %d bytes, want a multiple of 512 up to %d", o.Block, MaxBlock)
	case o.Depth < 1 || o.Depth > MaxDepth:
		return fmt.Errorf("a depth of %d, want 1 to %d", o.Depth, MaxDepth)
	case o.Time <= 0 || o.Time > MaxTime:
		return fmt.Errorf("a time of %s, want more than none and at most %s", o.Time, MaxTime)
	case o.Size < 0 || o.Size > MaxSize:
		return fmt.Errorf("a size of %d bytes, want at most %d", o.Size, int64(MaxSize))
	}
	return nil
}

// Result is what was measured.
type Result struct {
	Ops      int64
	Bytes    int64
	Took     time.Duration
	P50, P99 time.Duration // how long a request took
}

// IOPS is requests per second.
func (r Result) IOPS() float64 { return float64(r.Ops) / r.Took.Seconds() }

// MBs is megabytes (10^6) per second.
func (r Result) MBs() float64 { return float64(r.Bytes) / 1e6 / r.Took.Seconds() }

// File measures on a file, which is made, written full before, and removed after.
func File(ctx context.Context, path string, o Options) (Result, error) {
	if err := o.check(); err != nil {
		return Result{}, err
	}
	defer func() { _ = os.Remove(path) }()
	if err := prepare(ctx, path, o.Size); err != nil {
		return Result{}, fmt.Errorf("prepare %s: %w", path, err)
	}
	return measure(ctx, path, o, 0)
}

// Device measures on a block device. To write to it, it must not be mounted.
func Device(ctx context.Context, path string, o Options) (Result, error) {
	if err := o.check(); err != nil {
		return Result{}, err
	}
	flags := 0
	if o.Mode.writes() {
		flags = unix.O_EXCL // of a device: nobody else uses it, no file system above all
	}
	return measure(ctx, path, o, flags)
}

// prepare writes size random bytes to a new file.
func prepare(ctx context.Context, path string, size int64) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	content, chunk := rand.NewChaCha8([32]byte{1}), make([]byte, 1<<20)
	for left := size; left > 0; left -= int64(len(chunk)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		chunk = chunk[:min(left, int64(len(chunk)))]
		_, _ = content.Read(chunk) // never fails
		if _, err := f.Write(chunk); err != nil {
			return err
		}
	}
	return f.Sync()
}

func measure(ctx context.Context, path string, o Options, flags int) (Result, error) {
	access := os.O_RDONLY
	if o.Mode.writes() {
		access = os.O_WRONLY
	}
	if o.Sync {
		flags |= unix.O_DSYNC
	}
	f, err := os.OpenFile(path, access|flags|unix.O_DIRECT, 0)
	if err != nil {
		return Result{}, err
	}
	defer func() { _ = f.Close() }()
	end, err := f.Seek(0, 2)
	if err != nil {
		return Result{}, err
	}
	if o.Size == 0 || o.Size > end {
		o.Size = end
	}
	blocks := o.Size / int64(o.Block)
	if blocks == 0 {
		return Result{}, fmt.Errorf("%s has %d bytes, less than one request", path, o.Size)
	}

	ctx, cancel := context.WithTimeout(ctx, o.Time)
	defer cancel()
	var next atomic.Int64
	var loops sync.WaitGroup
	times, errs := make([]histogram, o.Depth), make([]error, o.Depth)
	begin := time.Now()
	for i := range o.Depth {
		loops.Go(func() {
			chance := rand.New(rand.NewPCG(uint64(i), 3))
			buf := aligned(o.Block)
			for j := range buf {
				buf[j] = byte(chance.Uint32())
			}
			for ctx.Err() == nil {
				block := chance.Int64N(blocks)
				if !o.Mode.random() {
					block = next.Add(1) % blocks
				}
				at, began := block*int64(o.Block), time.Now()
				if o.Mode.writes() {
					_, errs[i] = f.WriteAt(buf, at)
				} else {
					_, errs[i] = f.ReadAt(buf, at)
				}
				if errs[i] != nil {
					cancel()
					return
				}
				times[i].add(time.Since(began))
			}
		})
	}
	loops.Wait()
	r := Result{Took: time.Since(begin)}
	var all histogram
	for i := range times {
		all.merge(&times[i])
	}
	r.Ops = int64(all.count)
	r.Bytes = r.Ops * int64(o.Block)
	r.P50, r.P99 = all.quantile(0.50), all.quantile(0.99)
	return r, errors.Join(errs...)
}

// aligned is a buffer of n bytes that direct input and output accepts.
func aligned(n int) []byte {
	const to = 4096
	b := make([]byte, n+to)
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & (to - 1)
	return b[skip : skip+n]
}
