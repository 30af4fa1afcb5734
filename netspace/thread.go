package netspace

// Doing things inside a namespace.

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Do calls f on the namespace's own thread, which lives as long as the Space: a
// process that f starts is in the namespace, and gets its parent-death signal
// (prctl(2)) when the Space is closed, not before.
func (s *Space) Do(f func() error) error { return s.thread.do(f) }

// Visit calls f on a thread that is in the namespace for as long, beside others
// that do. What f starts in other goroutines is not in the namespace; sockets and
// files that it opens stay in it. A thread that does not find its way back is not
// used again: it ends with its goroutine, which stays locked to it.
func (s *Space) Visit(f func() error) error {
	result := make(chan error, 1)
	go func() {
		err := errors.New("the function ended its goroutine")
		defer func() { result <- err }()
		runtime.LockOSThread()
		home, homeErr := netns.Get()
		if homeErr != nil {
			err = fmt.Errorf("find this thread's network namespace: %w", homeErr)
			return
		}
		if enterErr := s.enter(); enterErr != nil {
			err = errors.Join(enterErr, home.Close())
			return
		}
		defer func() {
			if netns.Set(home) == nil {
				runtime.UnlockOSThread()
			}
			_ = home.Close()
		}()
		err = f()
	}()
	return <-result
}

func (s *Space) enter() error {
	return s.Use(func(ns int) error {
		if err := netns.Set(netns.NsHandle(ns)); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", s.name, err)
		}
		return nil
	})
}

// thread is one operating system thread that stays in one namespace. Its
// goroutine ends with stop, and the thread with it.
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

// do calls f on the thread and waits for it.
func (t *thread) do(f func() error) error {
	result := make(chan error, 1)
	select {
	case t.work <- func() { result <- f() }:
		return <-result
	case <-t.quit:
		return ErrClosed
	}
}

func (t *thread) stop() {
	t.once.Do(func() { close(t.quit) })
	<-t.done
}
