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
	"net"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"understudy/backup"
	"understudy/demo/world"
	"understudy/guest"
	"understudy/guest/image"
)

// inside is the argument of the process that is in its own network namespace.
const inside = "inside"

type options struct {
	images string
	logs   string
	guest  string
	boots  string
	lease  time.Duration
	limit  time.Duration
}

// What guest is protected.
const (
	counting = "counting" // one program on a kernel, without devices
	linux    = "linux"    // the project's guest, with a network device
)

func main() {
	var o options
	flag.StringVar(&o.images, "image", "build/xen", "where the Xen host's image is, or is made (make xen-dom0)")
	flag.StringVar(&o.logs, "logs", "build/xen-logs", "where the hosts' logs are left if a check fails")
	flag.StringVar(&o.guest, "guest", counting, "which guest: \"counting\", without devices, or \"linux\", with a TCP connection that has to live on")
	flag.StringVar(&o.boots, "guest-files", "build/guest", "where the guest's vmlinuz and initrd are (make guest)")
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
	w, err := newWorld(ctx, dom0, o)
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
	if o.guest == linux {
		return s.connected(ctx, hostA, hostB)
	}
	return s.failover(ctx, hostA, hostB)
}

// story is what is told.
type story struct {
	world *pair
	began time.Time
}

func (s *story) tell(format string, args ...any) {
	fmt.Printf("%7.1f s  %s\n", time.Since(s.began).Seconds(), fmt.Sprintf(format, args...))
}

// What the guest may lose of its count: it goes on from the last checkpoint. It
// counts a line each tenth of a second.
const mayLose = 20

// failover waits until the guest is protected, ends the host that runs it as a loss
// of power does, and has the other go on: the guest's console tells.
func (s *story) failover(ctx context.Context, from, to string) error {
	w := s.world
	if err := s.protected(ctx, from, to); err != nil {
		return err
	}
	if _, err := w.count(ctx, from, w.last(from).n+30); err != nil {
		return err
	}
	before := w.last(from)
	killed, err := s.lose(ctx, from, to, fmt.Sprintf("the guest has counted to %d", before.n))
	if err != nil {
		return err
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

// connected is failover as a client of the guest sees it: one TCP connection, on
// which the guest counts. No line is lost, repeated or taken back.
func (s *story) connected(ctx context.Context, from, to string) error {
	client, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	if err := s.protected(ctx, from, to); err != nil {
		return err
	}
	if err := client.More(ctx, 200, patience); err != nil {
		return err
	}
	killed, err := s.lose(ctx, from, to, fmt.Sprintf("line %d of the guest", client.Last().Number))
	if err != nil {
		return err
	}
	if err := client.More(ctx, 200, patience); err != nil {
		return err
	}
	silence, first := client.Outage(killed)
	s.tell("the connection lives: line %d came %d ms after the kill, the longest silence was %d ms", first.Number, first.At.Sub(killed).Milliseconds(), silence.Milliseconds())
	if err := client.Err(); err != nil {
		return err
	}
	s.tell("it is at line %d; every check held", client.Last().Number)
	return nil
}

// connect waits until the guest is up, and has it count.
func (s *story) connect(ctx context.Context) (*world.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	at := fmt.Sprintf("%s:%d", guestAddress.Addr(), guest.CounterPort)
	for {
		conn, err := (&net.Dialer{Timeout: 3 * time.Second}).DialContext(ctx, "tcp", at)
		if err == nil {
			s.tell("the guest is up, and takes a connection")
			return world.Follow(ctx, conn)
		}
		if world.Sleep(ctx, 100*time.Millisecond) != nil {
			return nil, fmt.Errorf("the guest takes no connection: %w", err)
		}
	}
}

// protected waits until the guest is.
func (s *story) protected(ctx context.Context, from, to string) error {
	if err := s.world.await(ctx, from, "the guest is protected", isProtected); err != nil {
		return err
	}
	s.tell("the guest is protected: %s runs it, %s stands by", from, to)
	return nil
}

// lose ends a host as a loss of power does, and waits until the other one runs the
// guest.
func (s *story) lose(ctx context.Context, from, to, after string) (killed time.Time, err error) {
	w := s.world
	if _, took := w.find(to, tookOver); took {
		return killed, fmt.Errorf("host %s has taken the guest over, and nobody was lost", to)
	}
	killed = time.Now()
	w.hosts[from].Kill()
	s.tell("SIGKILL to host %s, after %s", from, after)
	for _, step := range []struct{ what, says string }{
		{"asks for the takeover", backup.LogAsking}, {"is granted it", backup.LogGranted}, {"runs the guest", backup.LogRunning},
	} {
		is := func(l line) bool { return l.came.After(killed) && l.Msg == step.says }
		if err := w.await(ctx, to, step.what, is); err != nil {
			return killed, err
		}
		l, _ := w.find(to, is)
		s.tell("host %s %s, %d ms after the kill", to, step.what, l.came.Sub(killed).Milliseconds())
	}
	return killed, nil
}
