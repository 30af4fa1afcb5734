package strike

// The acts for real: on processes that the test starts (this test's own program,
// as a daemon, as its machine and as the agent), and on the network of a
// namespace of its own.

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// actorWord makes this program play a part.
const actorWord = "strike-test-actor"

// actor plays: a machine, which only is; a daemon, which strikes itself; an agent.
func actor(args []string) int {
	if len(args) == 0 {
		return 2
	}
	switch args[0] {
	case "machine":
		_, _ = os.Stdin.Read(make([]byte, 1)) // until the test closes it
		return 0
	case "agent":
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		if err := Agent(ctx, args[1], os.NewFile(3, "told"), Real{}); err != nil {
			fmt.Println("agent:", err)
			return 1
		}
		return 0
	case "daemon": // DIR SPEC MACHINE
		return daemon(args[1], args[2], args[3])
	}
	return 2
}

// daemon undoes what it finds, says so, strikes itself if it is to, and ticks.
func daemon(dir, spec, machine string) int {
	undone, err := Undo(dir, Real{})
	if err != nil {
		fmt.Println("undo:", err)
		return 1
	}
	cwd, _ := os.Getwd()
	fmt.Printf("up %d undone %d in %s with %s\n", os.Getpid(), len(undone), cwd, os.Getenv("STRIKE_TEST"))
	wait := func() error { return nil }
	if len(undone) == 0 && spec != "" {
		var s Spec
		var pid int
		if err := json.Unmarshal([]byte(spec), &s); err != nil {
			fmt.Println(err)
			return 1
		}
		if _, err := fmt.Sscan(machine, &pid); err != nil {
			fmt.Println(err)
			return 1
		}
		r, err := Plan(s, Target{Guest: "web", Machines: []int{pid}, Also: []string{"db"}})
		if err == nil {
			wait, err = Begin(context.Background(), dir, r, []string{"/proc/self/exe", actorWord, "agent"})
		}
		if err != nil {
			fmt.Println(err)
			return 1
		}
		text, _ := json.Marshal(r.Struck)
		fmt.Printf("struck %s\n", text)
	}
	go func() {
		if err := wait(); err == nil && len(undone) == 0 && spec != "" {
			fmt.Println("undone")
		}
	}()
	for range time.Tick(20 * time.Millisecond) {
		fmt.Println("tick")
	}
	return 0
}

// theatre is a daemon, its machine, and what the daemon says.
type theatre struct {
	t       *testing.T
	dir     string
	daemon  *exec.Cmd
	machine *exec.Cmd
	said    *bufio.Scanner
	pids    []int
}

func open(t *testing.T, s Spec) *theatre {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "strike")
	if err != nil {
		t.Fatal(err)
	}
	th := &theatre{t: t, dir: dir}
	th.machine = exec.Command(self, actorWord, "machine")
	in, err := th.machine.StdinPipe()
	if err == nil {
		err = th.machine.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	spec, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	th.daemon = exec.Command(self, actorWord, "daemon", filepath.Join(dir, "strikes"), string(spec), fmt.Sprint(th.machine.Process.Pid))
	th.daemon.Dir, th.daemon.Env = dir, append(os.Environ(), "STRIKE_TEST=a value")
	hear, say, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	th.daemon.Stdout, th.daemon.Stderr = say, say
	if err := th.daemon.Start(); err != nil {
		t.Fatal(err)
	}
	_ = say.Close()
	_ = hear.SetReadDeadline(time.Now().Add(time.Minute))
	th.said = bufio.NewScanner(hear)
	t.Cleanup(func() {
		for _, pid := range th.pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		_ = in.Close()
		_ = th.machine.Process.Kill()
		_, _ = th.daemon.Wait(), th.machine.Wait()
		for th.said.Scan() { // until the last of them is gone
		}
		_ = hear.Close()
		_ = os.RemoveAll(dir)
	})
	return th
}

// next returns the rest of the next line that begins with word.
func (th *theatre) next(word string) string {
	th.t.Helper()
	for th.said.Scan() {
		rest, ok := strings.CutPrefix(th.said.Text(), word)
		switch {
		case ok && word == "up ":
			var pid int
			_, _ = fmt.Sscan(rest, &pid)
			th.pids = append(th.pids, pid)
			return rest
		case ok:
			return rest
		case th.said.Text() != "tick":
			th.t.Logf("said %q", th.said.Text())
		}
	}
	th.t.Fatalf("waiting for %q: %v", word, th.said.Err())
	return ""
}

// state is a process' state letter (proc_pid_stat(5)): R, S, T, Z…
func state(t *testing.T, pid int) string {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "gone"
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return after[:1]
}

func (th *theatre) await(what string, done func() bool) {
	th.t.Helper()
	for end := time.Now().Add(30 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			th.t.Fatalf("%s: not within 30 s", what)
		}
	}
}

func (th *theatre) struck() Struck {
	th.t.Helper()
	var s Struck
	if err := json.Unmarshal([]byte(th.next("struck ")), &s); err != nil {
		th.t.Fatal(err)
	}
	return s
}

// TestAKilledDaemonIsStartedAsItWas: with its arguments, directory, environment
// and its output, after the time; its machine stays dead.
func TestAKilledDaemonIsStartedAsItWas(t *testing.T) {
	th := open(t, Spec{ID: "d1", Kind: Kill, For: 500 * time.Millisecond})
	first := th.next("up ")
	s := th.struck()
	if s.Daemon != th.pids[0] || !slices.Equal(s.Machines, []int{th.machine.Process.Pid}) || !slices.Equal(s.Also, []string{"db"}) || s.Restart != AgentStarts {
		t.Errorf("struck %+v", s)
	}
	second := th.next("up ") // on the same pipe
	if early := time.Until(s.Undo); early > 0 {
		t.Errorf("it was started %v early", early)
	}
	if want := strings.Replace(first, "undone 0", "undone 1", 1); strings.SplitN(want, " ", 2)[1] != strings.SplitN(second, " ", 2)[1] || !strings.HasSuffix(first, th.dir+" with a value") {
		t.Errorf("first %q, then %q", first, second)
	}
	if th.pids[0] == th.pids[1] || th.daemon.Wait() == nil || th.machine.Wait() == nil {
		t.Error("they were not killed")
	}
	th.next("tick")
	if all, err := List(filepath.Join(th.dir, "strikes")); err != nil || len(all) > 0 {
		t.Errorf("left: %v, %v", all, err)
	}
}

func TestAFrozenDaemonGoesOn(t *testing.T) {
	th := open(t, Spec{ID: "d1", Kind: Freeze, For: 700 * time.Millisecond})
	th.next("up ")
	s := th.struck()
	th.await("both are frozen", func() bool { return state(t, s.Daemon) == "T" && state(t, s.Machines[0]) == "T" })
	if time.Now().Before(s.At) {
		t.Error("it struck early")
	}
	th.next("undone")
	if time.Now().Before(s.Undo) || state(t, s.Daemon) == "T" || state(t, s.Machines[0]) == "T" {
		t.Errorf("undone %v early, or still frozen", time.Until(s.Undo))
	}
}

// TestAnAgentThatIsKilledIsMadeUpForByTheNextDaemon.
func TestAnAgentThatIsKilledIsMadeUpForByTheNextDaemon(t *testing.T) {
	th := open(t, Spec{ID: "d1", Kind: Freeze, For: MaxFor})
	th.next("up ")
	s := th.struck()
	th.await("both are frozen", func() bool { return state(t, s.Daemon) == "T" && state(t, s.Machines[0]) == "T" })
	agent := childOf(t, s.Daemon)
	if err := syscall.Kill(agent, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	undone, err := Undo(filepath.Join(th.dir, "strikes"), Real{}) // as the next daemon does
	if err != nil || len(undone) != 1 {
		t.Fatalf("undone %v, %v", undone, err)
	}
	th.await("both go on", func() bool { return state(t, s.Daemon) != "T" && state(t, s.Machines[0]) != "T" })
	th.next("tick")
}

// childOf returns the one child of a process.
func childOf(t *testing.T, pid int) int {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range tasks {
		text, err := os.ReadFile(file)
		var child int
		if err == nil {
			if _, err := fmt.Sscan(string(text), &child); err == nil {
				return child
			}
		}
	}
	t.Fatalf("process %d has no child", pid)
	return 0
}

func TestASignalReachesNoOtherProcess(t *testing.T) {
	me, err := identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if err := (Real{}).Signal(me, 0); err != nil {
		t.Errorf("this process: %v", err)
	}
	me.Began++
	if err := (Real{}).Signal(me, syscall.SIGKILL); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("another of its number: %v", err)
	}
	if err := (Real{}).Signal(Process{PID: 1 << 22}, 0); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("none of that number: %v", err)
	}
}

func TestAnAgentThatCannotIsAnErrorAndLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	for _, command := range [][]string{{"/nowhere/at/all"}, {"/bin/false"}} {
		if _, err := Begin(t.Context(), dir, record(Freeze), command); err == nil || !strings.Contains(err.Error(), "the agent of") {
			t.Errorf("%q: %v", command, err)
		}
		if all, err := List(dir); err != nil || len(all) > 0 {
			t.Errorf("%q left %v, %v", command, all, err)
		}
	}
}

// inNamespace runs f in a network of its own, with two hosts' addresses.
func inNamespace(t *testing.T, f func(own, other netip.Addr)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("a network namespace needs root: run the tests as root")
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends, and its namespace with it
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = addresses("192.0.2.1/24", "192.0.2.2/24", "2001:db8::1/64", "2001:db8::2/64")
		}
		if err == nil {
			f(netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"))
			f(netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2"))
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func addresses(all ...string) error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	for _, text := range all {
		var a *netlink.Addr
		if err == nil {
			a, err = netlink.ParseAddr(text)
		}
		if err == nil {
			a.Flags = unix.IFA_F_NODAD
			err = netlink.AddrAdd(lo, a)
		}
	}
	return err
}

// TestACutDropsThePairsPortAndNothingElse, both ways, and is mended by the agent
// or by the kernel.
func TestACutDropsThePairsPortAndNothingElse(t *testing.T) {
	inNamespace(t, func(own, other netip.Addr) {
		listen := func(at netip.AddrPort) net.Listener {
			l, err := net.Listen("tcp", at.String())
			if err != nil {
				t.Error(err)
				runtime.Goexit()
			}
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					_ = c.Close()
				}
			}()
			return l
		}
		here, there, beside := netip.AddrPortFrom(own, 7070), netip.AddrPortFrom(other, 7171), netip.AddrPortFrom(own, 22)
		for _, at := range []netip.AddrPort{here, there, beside} {
			l := listen(at)
			defer func() { _ = l.Close() }()
		}
		reaches := func(from netip.Addr, to netip.AddrPort) bool {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}, Timeout: 200 * time.Millisecond}
			c, err := d.Dial("tcp", to.String())
			if err == nil {
				_ = c.Close()
			}
			return err == nil
		}
		whole := func(when string) {
			t.Helper()
			if !reaches(other, here) || !reaches(own, there) {
				t.Errorf("%s: the cable is not whole", when)
			}
		}
		whole("at first")
		cable := Cable{Port: 7070, Peers: []netip.AddrPort{there}}
		for range 2 { // twice is as once
			if err := (Real{}).Cut(cable, time.Minute); err != nil {
				t.Error(err)
				return
			}
		}
		if reaches(other, here) || reaches(own, there) {
			t.Error("it is not cut")
		}
		if !reaches(other, beside) || !reaches(own, beside) {
			t.Error("more is cut than that port")
		}
		for range 2 {
			if err := (Real{}).Mend(); err != nil {
				t.Error(err)
			}
		}
		whole("mended")
		if err := (Real{}).Cut(cable, -grace+100*time.Millisecond); err == nil { // whoever is to mend it is dead
			for end := time.Now().Add(20 * time.Second); !reaches(other, here); {
				if time.Now().After(end) {
					t.Error("the kernel does not mend it")
					break
				}
			}
			whole("forgotten")
			_ = Real{}.Mend()
		} else {
			t.Error(err)
		}
	})
}

func TestACutNeedsHostsWithAddressesOfTheirOwn(t *testing.T) {
	own := netip.MustParseAddrPort("192.0.2.1:7070")
	for _, peers := range [][]netip.AddrPort{nil, {netip.MustParseAddrPort("192.0.2.1:7071")}, {netip.MustParseAddrPort("127.0.0.1:7071")}} {
		if _, err := Plan(Spec{ID: "x", Kind: Cut}, Target{Guest: "web", Port: own, Peers: peers}); err == nil {
			t.Errorf("cut off from %v", peers)
		}
	}
	r, err := Plan(Spec{ID: "x", Kind: Cut}, Target{Guest: "web", Port: own, Peers: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.2:7070")}, Machines: []int{os.Getpid()}})
	if err != nil || len(r.Victims) > 0 || r.Cable.Port != 7070 || len(r.Machines) > 0 {
		t.Errorf("%+v, %v", r, err)
	}
}
