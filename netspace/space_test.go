package netspace

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testPrefix begins the names of these tests' namespaces.
const testPrefix = "netspacetest-"

func newTestSpace(t *testing.T) *Space {
	t.Helper()
	var r [4]byte
	rand.Read(r[:])
	s, err := New(testPrefix + hex.EncodeToString(r[:]))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(Kill(s.Name()), s.Close()); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(Path(s.Name())); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left", s.Name())
		}
	})
	return s
}

// TestABridgeWithItsPort: what is made in a namespace is there, on its own thread
// and on one that visits it, and nowhere else.
func TestABridgeWithItsPort(t *testing.T) {
	s := newTestSpace(t)
	if err := s.AddBridge("br0", 1400, netip.MustParsePrefix("192.0.2.1/24")); err != nil {
		t.Fatal(err)
	}
	if err := s.AddBridge("br6", 0, netip.MustParsePrefix("2001:db8::1/64")); err != nil {
		t.Fatal(err)
	}
	show := func(run func(func() error) error) (out string) {
		if err := run(func() error {
			b, err := exec.CommandContext(t.Context(), "ip", "-o", "addr", "show").CombinedOutput()
			out = string(b)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return out
	}
	for where, run := range map[string]func(func() error) error{"on its thread": s.Do, "on a visit": s.Visit} {
		out := show(run)
		for _, want := range []string{"127.0.0.1/8", "192.0.2.1/24", "2001:db8::1/64"} {
			if !strings.Contains(out, want) {
				t.Errorf("%s there is no %s:\n%s", where, want, out)
			}
		}
	}
	if out := show(func(f func() error) error { return f() }); strings.Contains(out, "2001:db8::1/64") {
		t.Errorf("outside there is\n%s", out)
	}
	if err := s.Join("lo", "no-bridge"); err == nil || !strings.Contains(err.Error(), s.Name()) {
		t.Errorf("a port of a bridge that is not there: %v", err)
	}
}

// TestWhoIsInIt: processes are found by the namespace's name and killed, also such
// as have a session of their own; others are left alone.
func TestWhoIsInIt(t *testing.T) {
	s, other := newTestSpace(t), newTestSpace(t)
	start := func(s *Space, argv ...string) *exec.Cmd {
		c := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
		if err := s.Do(c.Start); err != nil {
			t.Fatal(err)
		}
		return c
	}
	mine, theirs := start(s, "setsid", "sleep", "1000"), start(other, "sleep", "1000")
	pids, err := Processes(s.Name())
	if err != nil || !slices.Contains(pids, mine.Process.Pid) || slices.Contains(pids, theirs.Process.Pid) {
		t.Errorf("processes %v, %v", pids, err)
	}
	if err := Kill(s.Name()); err != nil {
		t.Error(err)
	}
	var exit *exec.ExitError
	if err := mine.Wait(); !errors.As(err, &exit) {
		t.Errorf("it ended with %v, want a signal", err)
	}
	if err := theirs.Process.Signal(unix.Signal(0)); err != nil {
		t.Errorf("another namespace's process: %v", err)
	}
	if err := Kill(other.Name()); err != nil {
		t.Error(err)
	}
	_ = theirs.Wait() // killed
}

// TestAClosedNamespaceDoesNothing, not even in the network of who asks; closing it
// again is no error, and its name is free.
func TestAClosedNamespaceDoesNothing(t *testing.T) {
	s := newTestSpace(t)
	if again, err := New(s.Name()); err == nil {
		t.Error("two of one name", again.Close())
	}
	if names, err := Names(s.Name()); err != nil || len(names) != 1 {
		t.Errorf("there are %v, %v", names, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"its thread": s.Do(func() error { return nil }), "a visit": s.Visit(func() error { return nil }),
		"a link": s.Up("lo"), "a bridge": s.AddBridge("br0", 0, netip.Prefix{}), "its descriptor": s.Use(func(int) error { return nil }),
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s: %v", what, err)
		}
	}
	next, err := New(s.Name())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil { // takes nothing from the next of its name
		t.Error(err)
	}
	if _, err := os.Lstat(Path(next.Name())); err != nil {
		t.Error(err)
	}
	if err := next.Close(); err != nil {
		t.Error(err)
	}
}
