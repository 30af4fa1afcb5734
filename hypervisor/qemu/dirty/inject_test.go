package dirty

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// injectHere does the helper's work from the test itself.
func injectHere(t *testing.T, tg *target) {
	t.Helper()
	made, err := helper([]string{fmt.Sprint(tg.cmd.Process.Pid)})
	must(t, err)
	anchors, err := findAnchors(tg.cmd.Process.Pid)
	must(t, err)
	if len(anchors) != 1 || anchors[0] != (anchor{made.fd, 0}) {
		t.Fatalf("injected descriptor %d, found %+v", made.fd, anchors)
	}
}

// Again and again, into a process whose threads are busy or asleep and which
// is flooded with signals: it computes on, and no signal harms the injection.
func TestInjectionDoesNotDisturbTheTarget(t *testing.T) {
	tg := startTarget(t, 64, 0)
	pid := tg.cmd.Process.Pid
	flood := func(until <-chan struct{}) {
		for {
			select {
			case <-until:
				return
			default:
				_ = unix.Kill(pid, unix.SIGURG) // harmless to a Go program
			}
		}
	}
	cycles := func(n int) {
		for range n {
			injectHere(t, tg)
			tg.do(order{Do: "unanchor"})
		}
	}
	cycles(20)
	tg.do(order{Do: "loop", Pages: []uint64{1, 2, 3}, Threads: 4})
	var wg sync.WaitGroup
	enough := make(chan struct{})
	wg.Go(func() { flood(enough) })
	cycles(20)
	close(enough)
	wg.Wait()
	tg.do(order{Do: "halt"})
	tg.do(order{Do: "write", Pages: []uint64{1}})
}

// A process that was stopped by SIGSTOP takes the injection and stays stopped.
func TestInjectionIntoAStoppedTarget(t *testing.T) {
	tg := startTarget(t, 64, 0)
	pid := tg.cmd.Process.Pid
	must(t, unix.Kill(pid, unix.SIGSTOP))
	stopped := func() {
		t.Helper()
		var ws unix.WaitStatus
		if _, err := unix.Wait4(pid, &ws, unix.WUNTRACED, nil); err != nil || !ws.Stopped() {
			t.Fatalf("wait status %#x, %v", ws, err)
		}
	}
	stopped()
	injectHere(t, tg)
	must(t, unix.Kill(pid, unix.SIGCONT))
	tg.do(order{Do: "unanchor"})
}

func TestHelperRefuses(t *testing.T) {
	for _, args := range [][]string{{}, {"x"}, {"-1"}, {"1", "2"}, {"999999999"}} {
		if _, err := helper(args); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
}

// What a helper says on its standard error reaches the caller.
func TestInjectReportsTheHelpersReason(t *testing.T) {
	_, err := inject(999999999, helperArgv)
	if err == nil || !strings.Contains(err.Error(), "999999999/maps") {
		t.Fatalf("got %v", err)
	}
}

// A userfaultfd without asynchronous protection would hang the target at its
// first write: it is somebody else's.
func TestForeignAnchor(t *testing.T) {
	for features, ours := range map[uint64]bool{0: true, uffdFeatures: true, uffdFeatures | 1<<31: true, 1 << 31: false, uffdFeatureWPUnpopulated: false} {
		if got := (anchor{features: features}).ours(); got != ours {
			t.Errorf("features %#x: ours %v", features, got)
		}
	}
}
