package integration

// The tests in real_*_test.go bring up real daemons (package demo/world): three
// hosts in network namespaces, Linux guests under QEMU, clients beside them.
//
//	real_main_test.go      the programs, and a world in which stories are told
//	real_capture_test.go   what leaves each host's network device
//	real_stories_test.go   one pair, one guest: what can happen to them
//	real_two_test.go       two guests that protect each other's host
//	real_strangers_test.go who must not get in
//	real_bubble_test.go    the backup's copy in isolation
//	real_drills_test.go    drills of every kind in a row, as mixed_test.go plans them

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"understudy/config"
	"understudy/demo/world"
	"understudy/guest/image"
	"understudy/host"
	"understudy/ownership"
)

// programs is the directory of understudy and understudyd.
var programs string

func TestMain(m *testing.M) {
	var err error
	if programs, err = world.Programs(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(programs)
		os.Exit(code)
	}))
}

// Time limits; generous, since machines are slow and shared.
const (
	soon = 30 * time.Second
	late = 2 * time.Minute
)

// real is a world of real hosts in which a test tells a story. Its methods end
// the test when what they wait for does not come.
type real struct {
	*world.QEMU
	t    *testing.T
	ctx  context.Context
	wire wire
}

// newReal brings up the three hosts; the guests boot.
func newReal(t *testing.T, prefix string, guests ...world.Guest) *real {
	t.Helper()
	return newRealWith(t, world.Options{Prefix: prefix, Guests: guests})
}

// newRealWith is newReal, for what the options say of guests and drills.
func newRealWith(t *testing.T, o world.Options) *real {
	t.Helper()
	images, err := filepath.Abs("../build/guest")
	if err != nil {
		t.Fatal(err)
	}
	small, err := image.Small(t.Context(), images)
	if err != nil {
		t.Fatal(err)
	}
	o.Daemon, o.Profile = filepath.Join(programs, "understudyd"), config.Standard
	q, err := world.NewQEMU(world.QEMUOptions{
		Options: o, Kernel: filepath.Join(images, "vmlinuz"), Initrd: filepath.Join(images, "initrd"), Image: small,
	})
	if err != nil {
		t.Fatal(err)
	}
	r := &real{QEMU: q, t: t, ctx: context.Background()}
	if r.wire.Wire, err = world.Listen(r.Lab, world.HostA, world.HostB); err == nil {
		err = q.StartAll(r.ctx)
	}
	if err != nil {
		r.end(o.Prefix)
		t.Fatal(err)
	}
	return r
}

// end takes everything down and looks for what is left.
func (r *real) end(prefix string) {
	r.t.Helper()
	if r.wire.Wire != nil {
		r.wire.Close()
	}
	if err := r.Close(); err != nil {
		r.t.Error(err)
	}
	nothingLeft(r.t, prefix)
}

// nothingLeft checks that every world of a test is gone without a trace.
func nothingLeft(t *testing.T, prefix string) {
	t.Helper()
	left, err := world.Leftovers(prefix)
	if err != nil {
		t.Error(err)
	}
	for _, what := range left {
		t.Errorf("left behind: %s", what)
	}
}

func (r *real) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// cli runs the operator's tool on a host and returns its output and exit status.
func (r *real) cli(name string, args ...string) (string, int) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.ctx, late)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(programs, "understudy"), append([]string{"--config", r.ConfigFile(), "--host", name}, args...)...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		r.t.Fatalf("%s: %v", cmd, err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// protected waits until want, or any host with "", runs the guest protected.
func (r *real) protected(guest, want string) string {
	r.t.Helper()
	h, err := r.Protected(r.ctx, guest, want, late)
	r.must(err)
	return h
}

// until waits until a host that is up says of the guest what done asks for.
func (r *real) until(guest, what string, done func(name string, g host.GuestStatus) bool) {
	r.t.Helper()
	_, err := r.Await(r.ctx, guest, what, soon, done)
	r.must(err)
}

// log is a guest's state in the ownership log, as a host has applied it.
func (r *real) log(guest, name string) ownership.Guest {
	r.t.Helper()
	g, err := r.Status(r.ctx, name, guest)
	r.must(err)
	return g.Log
}

// machines lists the QEMU processes on a host.
func (r *real) machines(name string) []int {
	r.t.Helper()
	found, err := r.Machines(name)
	r.must(err)
	return found
}

// noMachine waits until a host has none of these QEMU processes.
func (r *real) noMachine(name string, pids ...int) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.ctx, soon)
	defer cancel()
	for {
		left := 0
		for _, pid := range pids {
			if syscall.Kill(pid, 0) == nil {
				left++
			}
		}
		if left == 0 {
			return
		}
		if world.Sleep(ctx, 10*time.Millisecond) != nil {
			r.t.Fatalf("%d of QEMU processes %v are still on host %s after %v", left, pids, name, soon)
		}
	}
}

// dump shows what the daemons have said since a point in time.
func (r *real) dump(since time.Time) {
	for _, h := range world.Hosts() {
		var text strings.Builder
		for _, e := range r.Log(h, since) {
			fmt.Fprintln(&text, e.Text)
		}
		r.t.Logf("host %s said:\n%s", h, text.String())
	}
}
