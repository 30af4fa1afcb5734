package main

// Workloads run in a process of their own, so that they leave no memory behind:
// this program, started again.
//
//	init workload DIRECTORY NAME [SETTING=NUMBER…]

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"understudy/guest/workload"
)

// asWorkload is the whole life of a process that runs a workload.
func asWorkload(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	if err := workload.Run(ctx, args[0], args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// children keeps apart those who wait for a child of their own and the one who
// collects every child that has ended: he would take their child away.
type children struct {
	waiting sync.RWMutex
	again   chan struct{} // something may have been left to be collected
}

// workload runs a workload on the disk that is mounted on dir.
func (c *children) workload(dir string) func(context.Context, []string, io.Writer) error {
	return func(ctx context.Context, words []string, out io.Writer) error {
		defer func() {
			select {
			case c.again <- struct{}{}:
			default:
			}
		}()
		c.waiting.RLock()
		defer c.waiting.RUnlock()
		cmd := exec.CommandContext(ctx, "/proc/self/exe", append([]string{"workload", dir}, words...)...)
		complaint := &bytes.Buffer{}
		cmd.Stdout, cmd.Stderr = out, complaint
		// With all that it started: nothing must use the disk when it is unmounted.
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, unix.SIGKILL) }
		err := cmd.Run()
		if said := strings.TrimSpace(complaint.String()); err != nil && said != "" {
			return errors.New(said[:min(len(said), 3000)])
		}
		return err
	}
}

// collect reaps what has ended, unless somebody waits for a child: then it is
// called again when he is done.
func (c *children) collect(shell int) (shellEnded bool) {
	if !c.waiting.TryLock() {
		return false
	}
	defer c.waiting.Unlock()
	return reap(shell)
}
