// Command xen tries the engine on real Xen hosts: two of them in QEMU's emulation,
// with a witness beside them, and a PVH guest that is protected from one to the
// other. It tells what it does and how long each step took; its exit status is 0
// only if every check held.
//
//	main.go   the story
//	world.go  the hosts, the witness, and the network between them
//	files.go  what is on them: programs, certificates, configuration, the guest
//	lines.go  what they say, and when it came
//
// It runs in a network namespace of its own (it starts itself anew in one), so that
// nothing of its network is left behind however it ends.
//
//	go run ./integration/xen
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"understudy/backup"
	"understudy/guest/image"
)

// inside is the argument of the process that is in its own network namespace.
const inside = "inside"

type options struct {
	images string
	logs   string
	lease  time.Duration
	limit  time.Duration
}

func main() {
	var o options
	flag.StringVar(&o.images, "image", "build/xen", "where the Xen host's image is, or is made (make xen-dom0)")
	flag.StringVar(&o.logs, "logs", "build/xen-logs", "where the hosts' logs are left if a check fails")
	flag.DurationVar(&o.lease, "lease", time.Second, "the owner's lease; a busy machine needs a longer one")
	flag.DurationVar(&o.limit, "limit", 20*time.Minute, "all of it ends after that")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	var err error
	if flag.Arg(0) == inside {
		bounded, cancel := context.WithTimeout(ctx, o.limit)
		err = run(bounded, o)
		cancel()
	} else {
		err = again(ctx)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "xen:", err)
		os.Exit(1)
	}
}

// again starts this program in a network namespace, and lets it end by itself.
func again(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("network namespaces need root")
	}
	self := exec.CommandContext(ctx, "/proc/self/exe", append(os.Args[1:], inside)...)
	self.Stdout, self.Stderr = os.Stdout, os.Stderr
	self.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGTERM}
	self.Cancel = func() error { return self.Process.Signal(syscall.SIGTERM) }
	self.WaitDelay = time.Minute
	return self.Run()
}

// run tells the story in a world of its own.
func run(ctx context.Context, o options) (err error) {
	dom0, err := image.MakeDom0(ctx, o.images)
	if err != nil {
		return err
	}
	w, err := newWorld(ctx, dom0, o.lease)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.keepLogs(o.logs))
		}
		err = errors.Join(err, w.close())
	}()
	s := &story{world: w, began: time.Now()}
	s.tell("two Xen hosts boot")
	if err := w.boot(ctx); err != nil {
		return err
	}
	s.tell("both are up; the daemons start")
	if err := w.startDaemons(ctx); err != nil {
		return err
	}
	return s.failover(ctx, hostA, hostB)
}

// story is what is told.
type story struct {
	world *world
	began time.Time
}

func (s *story) tell(format string, args ...any) {
	fmt.Printf("%7.1f s  %s\n", time.Since(s.began).Seconds(), fmt.Sprintf(format, args...))
}

// What the guest may lose of its count: it goes on from the last checkpoint. It
// counts a line each tenth of a second.
const mayLose = 20

// failover waits until the guest is protected, ends the host that runs it as a loss
// of power does, and has the other go on.
func (s *story) failover(ctx context.Context, from, to string) error {
	w := s.world
	if err := w.await(ctx, from, "the guest is protected", isProtected); err != nil {
		return err
	}
	s.tell("the guest is protected: %s runs it, %s stands by", from, to)
	before, err := w.count(ctx, from, 0)
	if err != nil {
		return err
	}
	if before, err = w.count(ctx, from, before.n+30); err != nil {
		return err
	}
	if _, took := w.find(to, tookOver); took {
		return fmt.Errorf("host %s has taken the guest over, and nobody was lost", to)
	}
	killed := time.Now()
	w.hosts[from].Kill()
	s.tell("SIGKILL to host %s, after the guest has counted to %d", from, before.n)
	for _, step := range []struct {
		what string
		is   func(line) bool
	}{
		{"asked for the takeover", says(backup.LogAsking)}, {"was granted it", says(backup.LogGranted)}, {"runs the guest", says(backup.LogRunning)},
	} {
		if err := w.await(ctx, to, step.what, func(l line) bool { return l.came.After(killed) && step.is(l) }); err != nil {
			return err
		}
		l, _ := w.find(to, func(l line) bool { return l.came.After(killed) && step.is(l) })
		s.tell("host %s %s, %d ms after the kill", to, step.what, l.came.Sub(killed).Milliseconds())
	}
	after, err := w.count(ctx, to, 0)
	if err != nil {
		return err
	}
	s.tell("the guest counts there, from %d on, %d ms after the kill", after.n, after.came.Sub(killed).Milliseconds())
	if after.n+mayLose < before.n {
		return fmt.Errorf("the guest goes on with %d at host %s, and had counted to %d: it has lost more than an epoch, or begun anew", after.n, to, before.n)
	}
	if after, err = w.count(ctx, to, after.n+50); err != nil {
		return err
	}
	s.tell("it has counted to %d; every check held", after.n)
	return nil
}
