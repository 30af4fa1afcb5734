package workload

// A load like a busy mail server's, after the published description of PostMark:
// J. Katcher, "PostMark: A New File System Benchmark", Network Appliance TR-3022,
// 1997. First a pool of text files of random sizes is made, then transactions are
// done: each reads a whole random file or appends to one, and creates a file or
// deletes a random one, as the two biases say; then the files that are left are
// deleted. Its defaults are ours: 500 files of 500 B to 9.77 KiB, 500
// transactions, biases 5 of 10, reads and writes of 512 bytes. The program itself
// is another one: ours is written anew, and its random numbers differ.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// spool is the state of a run.
type spool struct {
	dir       string
	chance    *rand.Rand
	text      []byte // what files are filled from
	low, high int64
	block     int64
	files     []int64 // numbers of those that exist
	sizes     map[int64]int64
	next      int64

	created, deleted, read, appended, bytesRead, bytesWritten int64
}

func postmark(ctx context.Context, j *job) (int64, error) {
	set := j.settings
	switch {
	case set["files"] < 1 || set["low"] > set["high"] || set["high"] < 1 || set["block"] < 1 || set["block"] > 1<<20:
		return 0, fmt.Errorf("want files, high and block of at least 1, block of at most 1 MiB, low not above high")
	case set["read"] > 10 || set["create"] > 10:
		return 0, fmt.Errorf("biases are parts of 10")
	}
	s := &spool{
		dir:    filepath.Join(j.root, "spool"),
		chance: newChance(set["seed"]),
		low:    set["low"], high: set["high"], block: set["block"],
		sizes: map[int64]int64{},
	}
	s.text = make([]byte, s.high+s.block)
	for i := range s.text {
		s.text[i] = byte(' ' + s.chance.IntN(95))
	}
	if err := errors.Join(os.RemoveAll(s.dir), os.Mkdir(s.dir, 0o755)); err != nil {
		return 0, err
	}
	for range set["files"] {
		if err := s.create(ctx); err != nil {
			return 0, err
		}
	}
	j.tell("made %d files of %d KiB in all", s.created, s.bytesWritten>>10)
	for range set["transactions"] {
		if err := s.transaction(ctx, set["read"], set["create"]); err != nil {
			return 0, err
		}
	}
	j.tell("read %d, appended to %d, created %d, deleted %d; %d KiB read, %d KiB written",
		s.read, s.appended, s.created-set["files"], s.deleted, s.bytesRead>>10, s.bytesWritten>>10)
	for len(s.files) > 0 {
		if err := s.remove(ctx); err != nil {
			return 0, err
		}
	}
	return set["transactions"], os.Remove(s.dir)
}

// transaction does one of each pair. A pool that has become empty is given a file
// first.
func (s *spool) transaction(ctx context.Context, readBias, createBias int64) error {
	if len(s.files) == 0 {
		if err := s.create(ctx); err != nil {
			return err
		}
	}
	file := s.files[s.chance.IntN(len(s.files))]
	var err error
	if s.chance.Int64N(10) < readBias {
		err = s.readWhole(file)
	} else {
		err = s.appendTo(file)
	}
	if err != nil {
		return err
	}
	if s.chance.Int64N(10) < createBias {
		return s.create(ctx)
	}
	return s.remove(ctx)
}

func (s *spool) path(file int64) string { return filepath.Join(s.dir, fmt.Sprintf("%d", file)) }

func (s *spool) create(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	size := s.low + s.chance.Int64N(s.high-s.low+1)
	if err := s.write(s.next, os.O_CREATE|os.O_EXCL, size); err != nil {
		return err
	}
	s.files = append(s.files, s.next)
	s.sizes[s.next] = size
	s.next++
	s.created++
	return nil
}

// write adds n bytes to a file, block by block.
func (s *spool) write(file int64, flags int, n int64) (err error) {
	f, err := os.OpenFile(s.path(file), os.O_WRONLY|os.O_APPEND|flags, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for n > 0 {
		piece := min(n, s.block)
		at := s.chance.Int64N(s.high)
		wrote, err := f.Write(s.text[at:][:min(piece, int64(len(s.text))-at)])
		s.bytesWritten += int64(wrote)
		if err != nil {
			return err
		}
		n -= int64(wrote)
	}
	return nil
}

func (s *spool) readWhole(file int64) error {
	f, err := os.Open(s.path(file))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	buf, size := make([]byte, s.block), int64(0)
	for {
		n, err := f.Read(buf)
		size += int64(n)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	if size != s.sizes[file] {
		return fmt.Errorf("file %d has %d bytes, %d were written", file, size, s.sizes[file])
	}
	s.read++
	s.bytesRead += size
	return nil
}

// appendTo lets a file grow by what is left to the largest size, at random.
func (s *spool) appendTo(file int64) error {
	room := s.high - s.sizes[file]
	if room <= 0 {
		return nil // it is full, as the description has it
	}
	n := 1 + s.chance.Int64N(room)
	if err := s.write(file, 0, n); err != nil {
		return err
	}
	s.sizes[file] += n
	s.appended++
	return nil
}

func (s *spool) remove(ctx context.Context) error {
	if len(s.files) == 0 {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	i := s.chance.IntN(len(s.files))
	if err := os.Remove(s.path(s.files[i])); err != nil {
		return err
	}
	delete(s.sizes, s.files[i])
	s.files[i] = s.files[len(s.files)-1]
	s.files = s.files[:len(s.files)-1]
	s.deleted++
	return nil
}
