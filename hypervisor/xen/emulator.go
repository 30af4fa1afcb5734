package xen

// This file is an HVM domain's device model, QEMU, as far as its checkpoints need it:
// it must not write to the domain's memory while that stands still, what it has
// written has to be logged, and its own state is part of the tail.
//
//	Log:         "xen-set-global-dirty-log"   before Xen's own log is believed (RULES 29)
//	Still:       "stop"                       the domain has suspended
//	AppendState: "xen-save-devices-state"     into a file, which is read
//	Go:          "cont"                       the domain is about to go on
//
// Logging makes each byte that it writes a call of the hypervisor, and byte by byte it
// brings the kernel: so it is told to log only when that runs.
//
// The toolstack, which could resume both, opens a connection of its own each time.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Monitor is a QMP connection to a device model.
type Monitor interface {
	Execute(ctx context.Context, command string, arguments, result any) error
	Close() error
}

// maxEmulator bounds a device model's state, in bytes: without video memory it is
// some tens of KiB.
const maxEmulator = 64 << 20

// Emulator is a domain's device model. Its methods are called by one goroutine at a
// time.
type Emulator struct {
	monitor Monitor
	dir     string
	file    *os.File
}

// NewEmulator takes a device model on. Its state is saved below dir, which belongs on
// a tmpfs, and is the device model's to write to. It owns the connection, unless it
// fails.
func NewEmulator(m Monitor, dir string) (_ *Emulator, err error) {
	e := &Emulator{monitor: m}
	// A directory of our own: nobody else can have put something in the file's place.
	if e.dir, err = os.MkdirTemp(dir, "understudy-emulator-"); err != nil {
		return nil, fmt.Errorf("a directory for a device model's state: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.remove())
		}
	}()
	if e.file, err = os.OpenFile(filepath.Join(e.dir, "state"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return nil, fmt.Errorf("a file for a device model's state: %w", err)
	}
	return e, nil
}

// Log has the device model log what it writes from here on.
func (e *Emulator) Log(ctx context.Context) error { return e.log(ctx, true) }

func (e *Emulator) log(ctx context.Context, enable bool) error {
	if err := e.monitor.Execute(ctx, "xen-set-global-dirty-log", map[string]bool{"enable": enable}, nil); err != nil {
		return fmt.Errorf("have the device model log what it writes (%v): %w", enable, err)
	}
	return nil
}

// Still returns when the device model writes nothing to the domain's memory any more,
// until it is let go on.
func (e *Emulator) Still(ctx context.Context) error {
	if err := e.monitor.Execute(ctx, "stop", nil, nil); err != nil {
		return fmt.Errorf("stop the device model: %w", err)
	}
	return nil
}

// AppendState appends the device model's state to dst. The domain stands still.
func (e *Emulator) AppendState(ctx context.Context, dst []byte) ([]byte, error) {
	// It truncates the file. live: it goes on afterwards, and gives nothing up.
	if err := e.monitor.Execute(ctx, "xen-save-devices-state", map[string]any{"filename": e.file.Name(), "live": true}, nil); err != nil {
		return dst, fmt.Errorf("save the device model's state: %w", err)
	}
	info, err := e.file.Stat()
	if err != nil {
		return dst, fmt.Errorf("look at the device model's state: %w", err)
	}
	size := info.Size()
	if size == 0 || size > maxEmulator {
		return dst, fmt.Errorf("the device model has saved a state of %d bytes, want 1 to %d", size, maxEmulator)
	}
	at := len(dst)
	dst = append(dst, make([]byte, size)...)
	if _, err := io.ReadFull(io.NewSectionReader(e.file, 0, size), dst[at:]); err != nil {
		return dst[:at], fmt.Errorf("read the device model's state: %w", err)
	}
	return dst, nil
}

// Go lets the device model go on, which Still has stopped.
func (e *Emulator) Go(ctx context.Context) error {
	if err := e.monitor.Execute(ctx, "cont", nil, nil); err != nil {
		return fmt.Errorf("let the device model go on: %w", err)
	}
	return nil
}

// Close ends the log, unless the device model is gone, and the connection.
func (e *Emulator) Close(ctx context.Context) error {
	_ = e.log(ctx, false) // what was left on costs a little, and is nobody's any more
	return errors.Join(e.monitor.Close(), e.remove())
}

func (e *Emulator) remove() (err error) {
	if e.file != nil {
		err = e.file.Close()
	}
	return errors.Join(err, os.RemoveAll(e.dir))
}
