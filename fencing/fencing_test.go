package fencing

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy/clock"
)

func TestAHostIsFencedWhenATakeoverIsNotDoneInTime(t *testing.T) {
	var c Core
	at := func(d time.Duration) clock.Instant { return clock.Instant(time.Hour).Add(d) }
	for _, s := range []struct {
		after time.Duration // of the story
		host  string
		asked bool
		want  bool
	}{
		{0, "a", false, false},
		{time.Second, "a", true, false}, // asked for now
		{1900 * time.Millisecond, "a", true, false},
		{2 * time.Second, "a", true, true},
		{3 * time.Second, "a", false, false}, // it is done
		{4 * time.Second, "a", true, false},  // and asked for anew
		{4500 * time.Millisecond, "b", true, false},
		{5400 * time.Millisecond, "b", true, false}, // of another host
		{5500 * time.Millisecond, "b", true, true},
	} {
		if got := c.Step(at(s.after), s.host, s.asked, time.Second); got != s.want {
			t.Errorf("at %v: fence %s: %v, want %v", s.after, s.host, got, s.want)
		}
	}
	c.Failed(at(6 * time.Second))
	if c.Step(at(15*time.Second), "b", true, time.Second) || !c.Step(at(16*time.Second), "b", true, time.Second) {
		t.Error("what failed is not tried again after a while")
	}
}

func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fence")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil { //nolint:gosec // it is run
		t.Fatal(err)
	}
	return path
}

func TestBothCommandsMustGoWell(t *testing.T) {
	said := filepath.Join(t.TempDir(), "said")
	tell := script(t, `echo "$1 $2 $UNDERSTUDY_FENCE_HOST" >> `+said)
	no := script(t, "echo 'chassis power is on'\nexit 3")
	for _, c := range []struct {
		w    Way
		want string
	}{
		{Way{Command: []string{tell, "off"}, Verify: []string{tell, "check"}}, ""},
		{Way{Command: []string{tell, "off"}}, ""},
		{Way{}, "there is no fencing command"},
		{Way{Command: []string{no}, Verify: []string{tell}}, "exit status 3: it said: chassis power is on"},
		{Way{Command: []string{tell, "off"}, Verify: []string{no}}, "its verification did not"},
		{Way{Command: []string{"/no/such/command"}}, "no such file"},
	} {
		c.w.Timeout = 20 * time.Second
		err := Run(t.Context(), c.w, "alpha")
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.w, err, c.want)
		}
	}
	b, err := os.ReadFile(said)
	if err != nil || !strings.HasPrefix(string(b), "off alpha alpha\ncheck alpha alpha\n") {
		t.Errorf("the commands were told %q, %v", b, err)
	}
}

// TestACommandThatHangsIsKilledWithItsChildren, and does not fill the memory.
func TestACommandThatHangsIsKilledWithItsChildren(t *testing.T) {
	pid := filepath.Join(t.TempDir(), "pid")
	hang := script(t, "sleep 1000 &\necho $! > "+pid+"\nyes | head -c 100000\nwait")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, Way{Command: []string{hang}, Timeout: time.Minute}, "alpha") }()
	var child int
	for deadline := time.Now().Add(20 * time.Second); child == 0 && time.Now().Before(deadline); time.Sleep(time.Millisecond) { // until it is there
		b, _ := os.ReadFile(pid)
		child, _ = strconv.Atoi(strings.TrimSpace(string(b)))
	}
	cancel()
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "was killed") || len(err.Error()) > maxOutput+200 {
		t.Errorf("it ended with %.200v", err)
	}
	for deadline := time.Now().Add(20 * time.Second); syscall.Kill(child, 0) == nil && time.Now().Before(deadline); time.Sleep(time.Millisecond) { // until init has seen to it
		if b, err := os.ReadFile("/proc/" + strconv.Itoa(child) + "/stat"); err != nil || strings.Contains(string(b), ") Z ") {
			return
		}
	}
	if syscall.Kill(child, 0) == nil {
		t.Errorf("its child %d lives", child)
	}
}
