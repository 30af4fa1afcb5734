//go:build xen

package main

// This file is stock Remus: a process of its own in which libxl protects the guest, into
// a pipe that is read here and counted.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"understudy/integration/xen/remus/cell"
)

// pipeSize is the most that the kernel gives: whoever writes waits less.
const pipeSize = 1 << 20

// stockRun protects the guest by stock Remus.
func (b *bench) stockRun(ctx context.Context, interval time.Duration) (*cell.Run, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	if _, err := unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, pipeSize); err != nil {
		return nil, os.NewSyscallError("fcntl(F_SETPIPE_SZ)", err)
	}
	into := os.NewFile(uintptr(fds[1]), "stream")
	remus := exec.CommandContext(ctx, b.stock, strconv.FormatUint(uint64(b.domain), 10), strconv.FormatInt(interval.Milliseconds(), 10))
	var said bytes.Buffer
	remus.Stdout, remus.Stderr, remus.ExtraFiles = &said, os.Stderr, []*os.File{into}
	// Killed in a suspend, it would leave the guest suspended: it ends by the stream.
	remus.Cancel = func() error { return nil }
	if err := remus.Start(); err != nil {
		return nil, errors.Join(err, unix.Close(fds[0]), into.Close())
	}
	if err := into.Close(); err != nil {
		return nil, err
	}
	s := &stream{bench: b, ctx: ctx}
	err := s.drain(fds[0])
	err = errors.Join(err, unix.Close(fds[0]), remus.Wait())
	if err != nil {
		return nil, fmt.Errorf("stock Remus: %w", err)
	}
	r := &cell.Run{Side: cell.Stock, Full: s.all[0].Bytes, Took: s.ended.Sub(s.began), Written: s.written}
	if r.Epochs, err = cell.StockEpochs(said.String(), s.all); err != nil {
		return nil, err
	}
	r.Epochs = r.Epochs[s.first:]
	return r, nil
}

// stream is what came so far.
type stream struct {
	*bench
	ctx          context.Context
	all          []cell.Checkpoint
	first        int // that is measured
	began, ended time.Time
	opened       time.Time // the end of the full one
	written      uint64
}

// drain reads until there is enough.
func (s *stream) drain(fd int) error {
	m := cell.Meter{End: s.end}
	buf := make([]byte, pipeSize)
	for s.ended.IsZero() {
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return os.NewSyscallError("read", err)
		}
		if n == 0 {
			return errors.New("its stream has ended")
		}
		if _, err := m.Write(buf[:n]); err != nil {
			return err
		}
		if err := s.ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// end is the end of a checkpoint: the domain runs since it was written.
func (s *stream) end(c cell.Checkpoint) {
	moment := time.Now()
	s.all = append(s.all, c)
	switch {
	case s.opened.IsZero():
		s.opened = moment
	case s.first == 0 && moment.Sub(s.opened) >= s.settle:
		s.first, s.began, s.written = len(s.all), moment, s.page.Written()
	case s.first > 0 && s.ended.IsZero() && len(s.all) == s.first+s.epochs:
		s.ended, s.written = moment, s.page.Written()-s.written
	}
}
