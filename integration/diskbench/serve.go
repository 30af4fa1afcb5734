package main

// The three who serve the same file: QEMU itself (only its command line is here),
// qemu-storage-daemon, and this engine's back end, each of the latter two in a
// process of its own that ends with its parent.

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"understudy/clock"
	"understudy/disk"
	"understudy/disk/store"
	"understudy/disk/vhost"
	"understudy/epoch"
	"understudy/exclusion"
)

// server is a process that serves a disk over vhost-user.
type server struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	socket string
}

const startTime = 20 * time.Second

// startServer starts a process that will listen on socket.
func startServer(socket string, name string, args ...string) (_ *server, err error) {
	s := &server{cmd: exec.Command(name, args...), socket: socket}
	s.cmd.Stderr = os.Stderr
	// The benchmark may be killed: nothing must stay behind. See run.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if s.stdin, err = s.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	// Not by connecting: a back end serves one hypervisor.
	for deadline := time.Now().Add(startTime); ; {
		if info, err := os.Stat(socket); err == nil && info.Mode()&os.ModeSocket != 0 {
			return s, nil
		}
		if time.Now().After(deadline) {
			return nil, errors.Join(fmt.Errorf("%s does not listen on %s after %v", name, socket, startTime), s.close())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// cpu is the time that the process, all its threads, has run on a processor; 0
// without a server.
func (s *server) cpu() time.Duration {
	if s == nil {
		return 0
	}
	// The clock of another process: clock_getcpuclockid(3).
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^s.cmd.Process.Pid)<<3|2, &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

// close ends the process.
func (s *server) close() error {
	err := s.stdin.Close()
	if e := s.cmd.Process.Signal(syscall.SIGTERM); e != nil && !errors.Is(e, os.ErrProcessDone) {
		err = errors.Join(err, e)
	}
	var exit *exec.ExitError
	if e := s.cmd.Wait(); e != nil && !errors.As(e, &exit) {
		err = errors.Join(err, e)
	}
	return err
}

// startQSD starts qemu-storage-daemon. aio is how it reaches the file: threads,
// native or io_uring. The file is not locked: all three have it open, and one at
// a time is used.
func startQSD(file, socket, aio string) (*server, error) {
	return startServer(socket, "qemu-storage-daemon",
		"--blockdev", "driver=file,locking=off,node-name=f,cache.direct=on,cache.no-flush=off,discard=unmap,aio="+aio+",filename="+file,
		"--export", "type=vhost-user-blk,id=e,node-name=f,writable=on,addr.type=unix,addr.path="+socket)
}

const serveCommand = "serve-disk"

// startOurs starts our back end.
func startOurs(file, socket, profile string) (*server, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return startServer(socket, self, serveCommand, "--file", file, "--socket", socket, "--profile", profile)
}

// serveMain is that process: a disk of an unprotected guest, made as the daemon
// makes it, until stdin ends.
func serveMain(args []string) error {
	f := flag.NewFlagSet(serveCommand, flag.ContinueOnError)
	file := f.String("file", "", "")
	socket := f.String("socket", "", "")
	profile := f.String("profile", "", "")
	if err := f.Parse(args); err != nil {
		return err
	}
	if *profile != "" {
		out, err := os.Create(*profile)
		if err != nil {
			return err
		}
		defer func() { _ = out.Close() }()
		if err := pprof.StartCPUProfile(out); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	signal.Ignore(os.Interrupt, syscall.SIGTERM) // stdin says when
	// The pages of any guest that is measured here.
	const pages = 1 << 30 / epoch.PageSize
	index := exclusion.NewIndex(exclusion.Config{Pages: pages, Key: 0x1badb002})
	one, err := store.Open(store.Config{Path: *file, Shared: true, Host: "a"})
	if err != nil {
		return err
	}
	set, err := disk.NewSet(disk.SetConfig{
		Pages: pages, Disks: []disk.DiskConfig{{Store: one, Serial: "bench"}}, Clock: clock.Boot{}, Index: index,
	})
	if err != nil {
		return errors.Join(err, one.Close())
	}
	defer func() { _ = set.Close() }()
	set.Own(1)
	set.Pass()
	if err := set.Allow(clock.Boot{}.Now().Add(time.Hour)); err != nil {
		return err
	}
	runtime.GOMAXPROCS(runtime.NumCPU() + 1) // as the daemon has
	front, err := vhost.Listen(vhost.Config{Path: *socket, Backend: set.Disk(0), Linger: new(vhost.Linger)})
	if err != nil {
		return err
	}
	if err := set.Disk(0).Attach(front); err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	return front.Close()
}

// randomFile makes a file of size bytes, every one of them written: a file with
// holes is read and written in another way than one without.
func randomFile(ctx context.Context, path string, size int64) (err error) {
	from, err := os.Open("/dev/urandom")
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for done := int64(0); done < size; done += 1 << 20 {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := io.CopyN(f, from, min(1<<20, size-done)); err != nil {
			return fmt.Errorf("write %s: %w", filepath.Base(path), err)
		}
	}
	return f.Sync()
}

// freeAddress is an address on loopback that was free a moment ago.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}
