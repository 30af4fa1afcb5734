package isolate

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// This file is who is in a network: a thread of ours, by which things are made and
// started there, and the processes that were.

// thread is one thread that stays in one namespace; it ends with stop, since the
// goroutine that is locked to it does.
type thread struct {
	work       chan func()
	quit, done chan struct{}
	once       sync.Once
}

func newThread() *thread {
	t := &thread{work: make(chan func()), quit: make(chan struct{}), done: make(chan struct{})}
	go t.start()
	return t
}

func (t *thread) start() {
	runtime.LockOSThread()
	if unix.Gettid() == os.Getpid() {
		// The first thread stands for the whole process in /proc, and cannot end
		// alone. As long as it is locked, another goroutine gets another.
		locked := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(locked)
			t.run()
		}()
		<-locked
		runtime.UnlockOSThread()
		return
	}
	t.run()
}

func (t *thread) run() {
	defer close(t.done)
	for {
		select {
		case f := <-t.work:
			f()
		case <-t.quit:
			return
		}
	}
}

var errClosed = errors.New("the network is closed")

// do calls f on the thread and waits for it.
func (t *thread) do(f func() error) error {
	result := make(chan error, 1)
	select {
	case t.work <- func() { result <- f() }:
		return <-result
	case <-t.quit:
		return errClosed
	}
}

func (t *thread) stop() {
	t.once.Do(func() { close(t.quit) })
	<-t.done
}

// endTime bounds the wait for killed processes to be gone.
const endTime = 10 * time.Second

// endProcesses kills every process but ours in the namespace mounted at path, until
// there is none.
func endProcesses(path string) error {
	var ns unix.Stat_t
	if err := unix.Stat(path, &ns); err != nil {
		return err
	}
	deadline := time.Now().Add(endTime)
	for {
		left, err := endOnce(&ns, deadline)
		if err != nil || left == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d processes are still in it %v after SIGKILL", left, endTime)
		}
	}
}

// endOnce kills those that there are now, and returns how many.
func endOnce(ns *unix.Stat_t, deadline time.Time) (found int, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() || !isIn(pid, ns) {
			continue
		}
		found++
		if err := end(pid, ns, deadline); err != nil {
			return found, fmt.Errorf("end process %d: %w", pid, err)
		}
	}
	return found, nil
}

// isIn reports whether a process is in a namespace.
func isIn(pid int, ns *unix.Stat_t) bool {
	var st unix.Stat_t
	err := unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &st)
	return err == nil && st.Ino == ns.Ino && st.Dev == ns.Dev
}

// end kills one process and waits for its end. The descriptor keeps its number
// from meaning another process.
func end(pid int, ns *unix.Stat_t, deadline time.Time) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if !isIn(pid, ns) {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return nil // endProcesses says so
		}
		if _, err := unix.Poll(fds, int(left.Milliseconds())+1); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
