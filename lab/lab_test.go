package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "own-a-lab" {
		ownALab(os.Args[2])
		return
	}
	goleak.VerifyTestMain(m)
}

// testPrefix is unlike any that a demo or another package's test uses.
const testPrefix = "labtest"

func newTestLab(t *testing.T, hosts ...string) *Lab {
	t.Helper()
	l, err := New(Options{Prefix: testPrefix, Hosts: hosts})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		left, err := Leftovers(testPrefix)
		if err != nil {
			t.Error(err)
		}
		for _, x := range left {
			if strings.Contains(x, l.Name()) {
				t.Errorf("closing the lab left %s", x)
			}
		}
	})
	return l
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// echo sends one datagram from one host to a server on another and reports
// whether an answer comes back.
func echo(t *testing.T, from, to *Host) bool {
	t.Helper()
	conn, err := from.Dial(testContext(t), "udp", fmt.Sprintf("%s:7", to.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	buf := make([]byte, 16)
	for range 3 {
		if _, err := conn.Write([]byte("ping")); err != nil {
			continue
		}
		if err := conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(buf); err == nil {
			return true
		}
	}
	return false
}

// serveEcho answers datagrams on port 7 of a host, and counts them.
func serveEcho(t *testing.T, h *Host) (count func() int) {
	t.Helper()
	var pc net.PacketConn
	if err := h.Do(func() (err error) {
		pc, err = net.ListenPacket("udp", fmt.Sprintf("%s:7", h.Addr()))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	n := make(chan int, 1)
	n <- 0
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 16)
		for {
			k, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			n <- <-n + 1
			_, _ = pc.WriteTo(buf[:k], from)
		}
	}()
	t.Cleanup(func() {
		pc.Close()
		<-done
	})
	return func() int { v := <-n; n <- v; return v }
}

func TestHostsReachEachOtherAtOnce(t *testing.T) {
	l := newTestLab(t, "a", "b", "c")
	began := time.Now()
	serveEcho(t, l.Host("b"))
	for _, from := range []string{"a", "c"} {
		if !echo(t, l.Host(from), l.Host("b")) {
			t.Errorf("%s does not reach b", from)
		}
	}
	// A bridge port that listens and learns first would take 15 or 30 seconds.
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the first datagrams took %v", took)
	}
}

func TestLabsWithTheSameAddressesStandSideBySide(t *testing.T) {
	first, second := newTestLab(t, "a", "b"), newTestLab(t, "a", "b")
	heard := serveEcho(t, second.Host("b"))
	if echo(t, first.Host("a"), first.Host("b")) || heard() != 0 {
		t.Error("a datagram went from one lab to the other")
	}
	if !echo(t, second.Host("a"), second.Host("b")) {
		t.Error("the second lab does not work beside the first")
	}
}

func TestCuttingACable(t *testing.T) {
	l := newTestLab(t, "a", "b")
	a, b := l.Host("a"), l.Host("b")
	heard := serveEcho(t, b)
	if !echo(t, a, b) {
		t.Fatal("no connection to begin with")
	}
	for _, c := range []struct {
		name    string
		host    *Host
		d       Direction
		arrives bool // the question, if not the answer
	}{
		{"all of a", a, Both, false},
		{"what a sends", a, FromHost, false},
		{"what a receives", a, ToHost, true},
		{"all of b", b, Both, false},
		{"what b sends", b, FromHost, true},
		{"what b receives", b, ToHost, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := c.host.Cut(c.d); err != nil {
				t.Fatal(err)
			}
			before := heard()
			if echo(t, a, b) {
				t.Error("an answer came through the cut")
			}
			if got := heard() > before; got != c.arrives {
				t.Errorf("the question arrived: %v, want %v", got, c.arrives)
			}
			if err := c.host.Restore(); err != nil {
				t.Fatal(err)
			}
			if !echo(t, a, b) {
				t.Error("no connection after the cable was mended")
			}
		})
	}
	if err := a.Cut(0); err == nil {
		t.Error("a cut in no direction was accepted")
	}
}

func TestProcessesLiveAndDieWithTheLab(t *testing.T) {
	l := newTestLab(t, "a")
	out, err := l.Host("a").Command(testContext(t), "ip", "-o", "addr", "show", "dev", Bridge).CombinedOutput()
	if err != nil || !strings.Contains(string(out), l.Host("a").Prefix().String()) {
		t.Fatalf("ip addr in the namespace: %q, %v", out, err)
	}
	// A process with a child that knows nothing of parents and does not care for
	// polite signals.
	c := l.Host("a").Command(context.Background(), "sh", "-c", "trap '' TERM HUP; setsid sleep 1000 & echo started; wait")
	pipe, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(pipe, make([]byte, len("started"))); err != nil {
		t.Fatal(err)
	}
	left, err := Leftovers(testPrefix)
	if n := len(slices.DeleteFunc(left, func(s string) bool { return !strings.HasPrefix(s, "process") })); err != nil || n < 2 {
		t.Errorf("%d processes found in the lab, %v: want the shell and its child", n, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := c.Wait(); !errors.As(err, &exit) {
		t.Errorf("the shell ended with %v, want a signal", err)
	}
	if err := l.Host("a").Do(func() error { return nil }); err == nil {
		t.Error("a closed lab can be entered")
	}
	if err := l.Host("a").Command(context.Background(), "true").Run(); err == nil {
		t.Error("a process was started in a closed lab")
	}
}

func TestSweepRemovesTheLabsOfTheDead(t *testing.T) {
	mine := newTestLab(t, "a")
	// Another process makes a lab with a process in it, and is killed.
	const prefix = "labtestdead"
	child := exec.Command(os.Args[0], "own-a-lab", prefix)
	child.Stderr = os.Stderr
	pipe, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // whatever fails below
		_ = child.Process.Kill()
		_ = child.Wait()
		_, _ = Sweep(prefix)
	})
	name := make([]byte, 256)
	n, err := pipe.Read(name)
	if err != nil {
		t.Fatal(err)
	}
	left, err := Leftovers(prefix)
	if err != nil || len(left) < 2 {
		t.Fatalf("the other lab: %q, %v", left, err)
	}
	if removed, err := Sweep(prefix); err != nil || len(removed) != 0 {
		t.Fatalf("sweeping removed %q of a living process, %v", removed, err)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // it says that it was killed
	removed, err := Sweep(prefix)
	if err != nil || len(removed) != 2 {
		t.Errorf("swept %q, %v: want two namespaces of %s", removed, err, name[:n])
	}
	if left, err := Leftovers(prefix); err != nil || len(left) != 0 {
		t.Errorf("left after sweeping: %q, %v", left, err)
	}
	if _, err := mine.Host("a").Command(testContext(t), "true").Output(); err != nil {
		t.Errorf("my own lab suffered: %v", err)
	}
}

// ownALab is the other process of TestSweepRemovesTheLabsOfTheDead.
func ownALab(prefix string) {
	l, err := New(Options{Prefix: prefix, Hosts: []string{"x"}})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	c := l.Host("x").Command(context.Background(), "sh", "-c", "setsid sleep 1000 & wait")
	if err := c.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(l.Name())
	select {}
}

func TestNamesAreChecked(t *testing.T) {
	for _, o := range []Options{
		{Prefix: "", Hosts: []string{"a"}},
		{Prefix: "Under-study", Hosts: []string{"a"}},
		{Prefix: "averyveryverylongprefix", Hosts: []string{"a"}},
		{Prefix: "x"},
		{Prefix: "x", Hosts: []string{"sw"}},
		{Prefix: "x", Hosts: []string{"a", "a"}},
		{Prefix: "x", Hosts: []string{"../a"}},
		{Prefix: "x", Hosts: make([]string, 33)},
		{Prefix: "x", Hosts: []string{"a"}, MTU: -1},
	} {
		if l, err := New(o); err == nil {
			t.Errorf("%+v was accepted", o)
			_ = l.Close()
		}
	}
	for name, ok := range map[string]bool{
		"demo-12-34-abcd-a": true, "demo-12-34-abcd": false, "demo-0-34-abcd-a": false, "demo-x-34-abcd-a": false,
		"demo-12--1-abcd-a": false, "other-12-34-abcd-a": false, "demo": false, "": false, "demo-12-34-ab-c-d": false,
	} {
		if _, _, got := owner("demo", name); got != ok {
			t.Errorf("owner of %q: %v, want %v", name, got, ok)
		}
	}
}
