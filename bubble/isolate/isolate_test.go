package isolate

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"understudy/netspace"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testName is a name that nobody else has.
func testName(t *testing.T) string { return Name("isolate", t.TempDir()) }

// TestANetworkThatNothingLeaves: the host's own address answers in there, there is
// no other link, no route, and nothing is left afterwards.
func TestANetworkThatNothingLeaves(t *testing.T) {
	name := testName(t)
	n, err := New(Config{Name: name, Address: netip.MustParsePrefix("192.0.2.1/24"), TAPs: 2})
	if err != nil {
		t.Fatal(err)
	}
	if len(n.TAPs()) != 2 || n.Name() != name {
		t.Errorf("%d TAPs in %s", len(n.TAPs()), n.Name())
	}
	c := n.Check(t.Context(), []string{"/bin/sh", "-c", "cat /proc/net/dev; ip -4 -o addr show dev br0; ip route"}, nil)
	if !c.Well() {
		t.Fatalf("%+v", c)
	}
	links := 0
	for line := range strings.Lines(c.Output) {
		device, _, found := strings.Cut(strings.TrimSpace(line), ":")
		switch {
		case !found || strings.Contains(device, " "):
		case device == "lo" || device == "br0" || device == "tap0" || device == "tap1":
			links++
		case strings.Contains(line, "br0"):
		default:
			t.Errorf("there is a link %q", device)
		}
	}
	if links != 4 || !strings.Contains(c.Output, "192.0.2.1/24") || strings.Contains(c.Output, "default") {
		t.Errorf("%d links:\n%s", links, c.Output)
	}
	outside := exec.CommandContext(t.Context(), "/bin/sh", "-c", "cat /proc/net/dev")
	if out, err := outside.Output(); err != nil || strings.Contains(string(out), "tap1:") {
		t.Errorf("outside there is %s (%v)", out, err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(netspace.Path(name)); !os.IsNotExist(err) {
		t.Errorf("network %s is left", name)
	}
}

// TestWhatAProcessLeavesEndsWithTheNetwork: also what has left its group.
func TestWhatAProcessLeavesEndsWithTheNetwork(t *testing.T) {
	name := testName(t)
	n, err := New(Config{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "pid")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c := n.Check(ctx, []string{"/bin/sh", "-c", fmt.Sprintf("setsid /bin/sh -c 'echo $$ > %s; exec sleep 1000' >/dev/null 2>&1 & while [ ! -s %s ]; do sleep 0.01; done", file, file)}, nil)
	pid, err := os.ReadFile(file)
	if err != nil || !c.Well() {
		t.Fatalf("%v, %+v", err, c)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	state, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/stat")
	if err == nil && !strings.Contains(string(state), ") Z ") {
		t.Errorf("a process is left: %s", state)
	}
}

// TestANetworkThatIsThereIsReplaced: a former daemon's.
func TestANetworkThatIsThereIsReplaced(t *testing.T) {
	name := testName(t)
	former, err := New(Config{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	n, err := New(Config{Name: name, TAPs: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if err := former.Close(); err != nil {
		t.Error(err)
	}
	if err := Clean(name); err != nil {
		t.Error(err)
	}
}

func TestNames(t *testing.T) {
	a, b := Name("web", "/run/a"), Name("web", "/run/b")
	if a == b || a != Name("web", "/run/a") || !strings.HasPrefix(a, "usbubble-web-") {
		t.Errorf("%s and %s", a, b)
	}
	if long := Name(strings.Repeat("x", 63), "/run/a"); len(long) > 40 {
		t.Errorf("%s", long)
	}
}
