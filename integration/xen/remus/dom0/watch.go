//go:build xen

package main

// This file is a process of its own that watches the guest's ticks while it is protected,
// and says when there were none. It costs both sides the same.
//
//	bench.watch ─> this program again, as "watch" ── until its input ends ─> cell.Gap, as JSON

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"understudy/hypervisor/xen"
	"understudy/hypervisor/xen/xenctl"
	"understudy/integration/xen/remus/cell"
)

const (
	watchCommand = "watch"
	// often is how often it looks.
	often = 2 * time.Millisecond
)

// watchMain is the process: "watch DOMAIN FRAME".
func watchMain(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("%s: a domain and a frame, not %q", watchCommand, args)
	}
	domain, err := strconv.ParseUint(args[0], 10, 32)
	if err != nil {
		return err
	}
	frame, err := strconv.ParseUint(args[1], 10, 64)
	if err != nil {
		return err
	}
	control, err := xenctl.Open()
	if err != nil {
		return err
	}
	defer func() { _ = control.Close() }()
	one, err := xen.NewFrames([]xen.Run{{First: frame, Count: 1}})
	if err != nil {
		return err
	}
	mapped, err := control.Map(uint32(domain), one, true)
	if err != nil {
		return err
	}
	defer func() { _ = mapped.Close() }()
	var over atomic.Bool
	go func() { // ends with the process
		_, _ = io.Copy(io.Discard, os.Stdin)
		over.Store(true)
	}()
	runtime.LockOSThread()
	// Before whoever protects the guest: it is late otherwise.
	if err := unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0); err != nil {
		return os.NewSyscallError("sched_setattr", err)
	}
	page := cell.NewPage(mapped.Bytes())
	var w cell.Watcher
	for !over.Load() {
		pause := unix.NsecToTimespec(int64(often))
		_ = unix.Nanosleep(&pause, nil) // woken up early, it looks early
		began := now()
		ticks := page.Ticks()
		w.Look(began, now(), ticks)
	}
	return json.NewEncoder(os.Stdout).Encode(w.Gaps)
}

// watch starts the process. What it returns ends it, and returns what it has seen.
func (b *bench) watch() (func() ([]cell.Gap, error), error) {
	cmd := exec.Command("/proc/self/exe", watchCommand, strconv.FormatUint(uint64(b.domain), 10), strconv.FormatUint(b.frame, 10))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() (gaps []cell.Gap, err error) {
		err = in.Close()
		if e := json.NewDecoder(out).Decode(&gaps); e != nil {
			err = errors.Join(err, fmt.Errorf("the watch of the guest: %w", e))
		}
		return gaps, errors.Join(err, cmd.Wait())
	}, nil
}
