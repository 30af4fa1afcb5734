package daemon

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy/status"
)

// successorWord is the first argument by which this test's program plays a new
// daemon; the next says which.
const successorWord = "play-a-successor"

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == successorWord {
		os.Exit(playSuccessor(os.Args[2]))
	}
	os.Exit(m.Run())
}

// playSuccessor is what a started process does. It has descriptor 3.
func playSuccessor(part string) int {
	p, err := NewPredecessor(firstExtra)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	switch part {
	case "ends":
		return 3
	case "hangs":
		select {}
	case "speaks-another-language":
		_ = sendWord(p.conn, word{Kind: "hello"}, nil)
		select {}
	case "refuses":
		if _, _, err := receiveWord(context.Background(), p.conn, readyTime); err != nil {
			return 1
		}
		_ = sendWord(p.conn, word{Kind: "refused", Version: "0.0.9", Why: "what is left is newer than me"}, nil)
		return 1
	}
	in, err := p.await(context.Background())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	switch part {
	case "dies-late":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case "hangs-late":
		select {}
	}
	f := in.take("tap/web/0")
	if f == nil {
		return 1
	}
	if _, err := f.WriteString("inherited"); err != nil {
		return 1
	}
	if err := p.up(); err != nil {
		return 1
	}
	return 0
}

// successor starts this test's program as a new daemon.
func play(t *testing.T, part string) (*successor, error) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	return startSuccessor(ctx, []string{self, successorWord, part})
}

// gone checks that a process that was started is not there any more.
func gone(t *testing.T, s *successor) {
	t.Helper()
	select {
	case <-s.ended:
	case <-time.After(10 * time.Second):
		t.Errorf("process %d is there", s.cmd.Process.Pid)
	}
}

func TestANewDaemonThatIsNotReadyChangesNothing(t *testing.T) {
	for part, want := range map[string]string{
		"ends":                    "ended before it was ready (exit status 3)",
		"hangs":                   "failed before it was ready",
		"speaks-another-language": `says "hello" instead of being ready`,
		"refuses":                 "version 0.0.9, refuses: what is left is newer than me",
	} {
		t.Run(part, func(t *testing.T) {
			t.Parallel()
			if s, err := play(t, part); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%+v, %v, want %q", s, err, want)
			}
		})
	}
	if s, err := startSuccessor(t.Context(), []string{"/nowhere/understudyd"}); err == nil {
		t.Errorf("a program that is not there: %+v", s)
	}
}

// something is what can be passed on.
func something(t *testing.T) (*kept, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tap")
	tap, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	disk, err := os.Create(path + ".disk")
	if err != nil {
		t.Fatal(err)
	}
	k := &keeping{}
	k.add(tapName("web", 0), func() (*os.File, error) { return tap, nil })
	k.add(diskName("web", 0), func() (*os.File, error) { return disk, nil })
	k.add(diskName("web", 1), func() (*os.File, error) { return nil, nil })
	all, err := k.all()
	if err != nil || len(all.files) != 2 {
		t.Fatalf("%+v, %v", all, err)
	}
	return all, path
}

func TestEverythingIsPassedOn(t *testing.T) {
	s, err := play(t, "good")
	if err != nil || s.version != status.Version {
		t.Fatalf("%+v, %v", s, err)
	}
	k, path := something(t)
	if err := s.handOn(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	k.close()
	gone(t, s)
	if text, err := os.ReadFile(path); err != nil || string(text) != "inherited" {
		t.Errorf("%q, %v", text, err)
	}
}

func TestANewDaemonThatFailsLateIsGone(t *testing.T) {
	for _, part := range []string{"dies-late", "hangs-late"} {
		t.Run(part, func(t *testing.T) {
			s, err := play(t, part)
			if err != nil {
				t.Fatal(err)
			}
			k, _ := something(t)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			if err := s.handOn(ctx, k); err == nil {
				t.Error("it is taken for a daemon that takes part")
			}
			gone(t, s)
			in := k.ownAgain()
			defer in.rest()
			if f := in.take(tapName("web", 0)); f == nil {
				t.Error("what was kept is not this process's again")
			} else if err := f.Close(); err != nil {
				t.Error(err)
			}
			if in.take(diskName("web", 0)) != nil {
				t.Error("a hypervisor's connection is used again, whatever was sent through it")
			}
		})
	}
}

func TestAnOlderFormatIsRefused(t *testing.T) {
	ours, theirs, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ours.Close() }()
	p, err := NewPredecessor(int(theirs.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.conn.Close() }()
	if err := sendWord(ours, word{Kind: "hello", Version: "9.9.9", Formats: map[string]int{"left": 99}}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := p.await(t.Context()); err == nil || !strings.Contains(err.Error(), "format 99") {
		t.Errorf("%v", err)
	}
	w, _, err := receiveWord(t.Context(), ours, time.Second)
	if err != nil || w.Kind != "refused" || !strings.Contains(w.Why, "9.9.9 has left") {
		t.Errorf("%+v, %v", w, err)
	}
}
