package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"understudy/drill"
)

// abort gives up the drill that a file names, and waits until it is over.
func abort(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: abort FILE")
	}
	var begun struct{ ID string }
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &begun))
	flags := []string{"--config", ts.Getenv("CONFIG"), "--host", "a"}
	ts.Check(ts.Exec("understudy", append(flags, "drill", "abort", begun.ID)...))
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		ts.Check(ts.Exec("understudy", append(flags, "drill", "report", begun.ID, "-o", "json")...))
		var r drill.Report
		ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &r))
		if r.State.Over() {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("drill %s is not over: %s", begun.ID, r.Phase)
		}
	}
}

// struck ends, when the script does, the daemon of a host that a strike has started
// again: the pair knows the one alone that it has started itself.
func struck(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: struck HOST")
	}
	want := []string{"--config", ts.Getenv("CONFIG"), "--host", args[0]}
	ts.Defer(func() {
		all, err := filepath.Glob("/proc/[0-9]*/cmdline")
		ts.Check(err)
		for _, name := range all {
			text, err := os.ReadFile(name)
			if err != nil {
				continue // it has ended
			}
			words := strings.Split(string(text), "\x00")
			if len(words) < 5 || filepath.Base(words[0]) != "understudyd" || !slices.Equal(words[1:5], want) {
				continue
			}
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			ts.Check(err)
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				ts.Fatalf("kill the daemon of host %s: %v", args[0], err)
			}
		}
	})
}

// TestTheVerdictIsTheExitStatus: 0, 6, or 1.
func TestTheVerdictIsTheExitStatus(t *testing.T) {
	for state, want := range map[drill.State]int{drill.Held: 0, drill.Failed: exitDrillFailed, drill.Refused: exitFailed, drill.Aborted: exitFailed, drill.Interrupted: exitFailed, drill.Skipped: exitFailed} {
		err := verdictOf(drill.Report{ID: "a", State: state, Why: "so"})
		got := 0
		if err != nil {
			got = exitFailed
		}
		if e, ok := err.(exitError); ok { //nolint:errorlint // as run() meets it
			got = e.status
		}
		if got != want {
			t.Errorf("%s: exit status %d, want %d", state, got, want)
		}
	}
}
