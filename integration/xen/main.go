// Command xen tries the engine on real Xen hosts, in QEMU's emulation. It tells one of
// its stories, and how long each step took; its exit status is 0 only if every check
// held. With a witness beside them, two hosts protect a PVH or HVM guest from one to
// the other (takeovers), or one host keeps a guest in checkpoint files (files), which
// can be measured beside xl's own (compare).
//
//	main.go   rounds of the story
//	story.go  one round: a host is lost, comes back, and gets its guest back
//	saved.go  the other story: a guest is saved, gone, restored, and comes from xl
//	compare.go, comparison.go  what saving costs beside xl save; its figures
//	xl.go     a guest that xl runs
//	guest.go  the guest, as its clients see it
//	world.go  the hosts, the witness, and the network between them
//	files.go  what is on them: programs, certificates, configuration, the guest
//	lines.go  what they say, and when it came
//
// It runs in namespaces of its own (it starts itself anew in them), so that no
// process and no network is left behind however it ends.
//
//	go run ./integration/xen
//	go run ./integration/xen -repeat 20
//	go run ./integration/xen -story files
//	go run ./integration/xen -story compare -type pvh,hvm,pv -report FILE
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"understudy/config"
	"understudy/guest/image"
)

// inside is the argument of the process that is in namespaces of its own.
const inside = "inside"

type options struct {
	story  string
	images string
	logs   string
	guest  string
	kind   string
	boots  string
	lease  time.Duration
	limit  time.Duration
	repeat int
	seed   uint64
	// restart has a daemon restarted in each round.
	restart bool
	report  string
	debian  string // image of the disk of guests that are compared
}

// The stories.
const (
	takeovers = "takeovers"
	saves     = "files"
	compares  = "compare"
)

// What guest is protected.
const (
	counting = "counting" // one program on a kernel, without devices
	linux    = "linux"    // the project's guest, with a network device and a disk
)

func main() {
	var o options
	flag.StringVar(&o.story, "story", takeovers, "which story: \"takeovers\" between two hosts; on one, \"files\", of a guest in checkpoint files, or \"compare\", of what they cost beside xl's")
	flag.StringVar(&o.images, "image", "build/xen", "where the Xen host's image is, or is made (make xen-dom0)")
	flag.StringVar(&o.logs, "logs", "build/xen-logs", "where the hosts' logs are left")
	flag.StringVar(&o.guest, "guest", linux, "which guest: \"linux\", with a disk and a TCP connection that has to live on, or \"counting\", without devices, which is tried once and in one direction")
	flag.StringVar(&o.kind, "type", config.TypePVH, "the type of its domain: \"pvh\" or \"hvm\"; to compare, several with commas, \"pv\" as well")
	flag.StringVar(&o.boots, "guest-files", "build/guest", "where the guest's vmlinuz and initrd are (make guest)")
	flag.DurationVar(&o.lease, "lease", time.Second, "the owner's lease; a busy machine needs a longer one")
	flag.DurationVar(&o.limit, "limit", 20*time.Minute, "the boot, and each round, ends after that")
	flag.IntVar(&o.repeat, "repeat", 1, "how many rounds, each of which loses a host at another moment; to compare, how many saves of each kind")
	flag.StringVar(&o.report, "report", "", "to compare: where the figures are written, as JSON")
	flag.Uint64Var(&o.seed, "seed", 0, "of those moments; 0: another one each time")
	flag.BoolVar(&o.restart, "restart", false, "end each round with a restart of the daemon of the guest's host, under the guest")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	var err error
	switch {
	case o.repeat < 1 || o.guest != linux && o.guest != counting:
		err = fmt.Errorf("%d rounds of a guest %q", o.repeat, o.guest)
	case o.story != takeovers && (o.story != saves && o.story != compares || o.guest != linux):
		err = fmt.Errorf("a story %q of a guest %q", o.story, o.guest)
	case flag.Arg(0) == inside:
		if err = ownProcesses(); err == nil {
			err = run(ctx, o)
		}
	default:
		err = again(ctx)
	}
	stop()
	var other *exec.ExitError
	told := flag.Arg(0) != inside && errors.As(err, &other) // by the process in the namespaces
	if err != nil && !told {
		fmt.Fprintln(os.Stderr, "xen:", err)
	}
	if err != nil {
		os.Exit(1)
	}
}

// again starts this program in namespaces of its own, and lets it end by itself. When
// it has ended, the kernel ends every process that it has started.
func again(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("namespaces need root")
	}
	self := exec.CommandContext(ctx, "/proc/self/exe", append(os.Args[1:], inside)...)
	self.Stdout, self.Stderr = os.Stdout, os.Stderr
	self.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGTERM}
	self.Cancel = func() error { return self.Process.Signal(syscall.SIGTERM) }
	self.WaitDelay = time.Minute
	return self.Run()
}

// ownProcesses shows the processes of this namespace below /proc.
func ownProcesses() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts to ourselves: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}

// run tells the story in a world of its own.
func run(ctx context.Context, o options) (err error) {
	if o.seed == 0 {
		o.seed = rand.Uint64()
	}
	dom0, err := image.MakeDom0(ctx, o.images)
	if err != nil {
		return err
	}
	if o.story == compares {
		return compareAll(ctx, o, dom0)
	}
	return inWorld(ctx, o, dom0, func(s *story) error {
		if o.story == takeovers && o.guest == linux {
			return s.rounds(ctx, o)
		}
		bounded, cancel := within(ctx, o.limit)
		defer cancel()
		if o.story == saves {
			return s.saves(bounded)
		}
		return s.counted(bounded, hostA, hostB)
	})
}

// inWorld tells a story in a world that is up, and ends the world.
func inWorld(ctx context.Context, o options, dom0 image.Dom0, tell func(*story) error) (err error) {
	w, err := newWorld(ctx, dom0, o)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, w.keepLogs(o.logs), w.close())
	}()
	s := &story{world: w, began: time.Now()}
	if err := s.begin(ctx, o.limit); err != nil {
		return err
	}
	return tell(s)
}

// within bounds a part of the story.
func within(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, limit, fmt.Errorf("it is not over after %v", limit))
}

// begin boots the hosts, and starts the daemons.
func (s *story) begin(ctx context.Context, limit time.Duration) error {
	ctx, cancel := within(ctx, limit)
	defer cancel()
	s.tell("%d Xen hosts boot", len(s.world.names))
	if err := s.world.boot(ctx); err != nil {
		return err
	}
	if len(s.world.config.Guests) == 0 {
		return nil
	}
	s.tell("they are up; the daemons start")
	return s.world.startDaemons(ctx)
}

// longest is how long a round runs at most before a host is lost.
const longest = 3 * time.Second

// rounds tells the story as often as is asked for, of one guest and one connection.
func (s *story) rounds(ctx context.Context, o options) error {
	s.tell("%d rounds, seed %d", o.repeat, o.seed)
	g, err := s.meet(ctx)
	if err != nil {
		return err
	}
	defer g.lines.Close()
	moments := rand.New(rand.NewPCG(o.seed, 0))
	var silences []time.Duration
	from, to := hostA, hostB
	for n := range o.repeat {
		moment := time.Duration(moments.Int64N(int64(longest)))
		s.tell("round %d of %d", n+1, o.repeat)
		bounded, cancel := within(ctx, o.limit)
		silence, err := s.round(bounded, g, from, to, moment)
		if err == nil && o.restart {
			from, to, err = s.restart(bounded, g, from, to)
		}
		cancel()
		if err != nil {
			return fmt.Errorf("round %d of %d, seed %d: %w", n+1, o.repeat, o.seed, err)
		}
		silences = append(silences, silence)
	}
	slices.Sort(silences)
	s.tell("%d of %d rounds held; the client's longest silence after a loss: median %d ms, at most %d ms",
		o.repeat, o.repeat, silences[len(silences)/2].Milliseconds(), silences[len(silences)-1].Milliseconds())
	return nil
}
