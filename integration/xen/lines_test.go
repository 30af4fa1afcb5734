package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"understudy/config"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Lines count once, when they are whole, and in whose file they are.
func TestWhatHostsSayIsFollowed(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, hostB), 0o755); err != nil {
		t.Fatal(err)
	}
	say := func(name, text string) {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err == nil {
			_, err = f.WriteString(text)
		}
		if err != nil || f.Close() != nil {
			t.Fatal(err)
		}
	}
	f := follow(dir)
	defer f.stop()
	say("a.log", `{"msg":"protection","is":"prot`)
	say("b/guest-web.standby-12ab.log", "noise\ncount 7\r\ncou")
	if c, err := f.count(t.Context(), hostB, 0); err != nil || c.n != 7 {
		t.Errorf("counted %+v, error %v", c, err)
	}
	if _, found := f.find(hostA, says("protection", time.Time{})); found {
		t.Error("half a line counts")
	}
	say("a.log", `ected"}`+"\n")
	say("b/guest-web.standby-12ab.log", "nt 8\n")
	if err := f.await(t.Context(), hostA, "it is protected", says("protection", time.Time{})); err != nil {
		t.Error(err)
	}
	if c, err := f.count(t.Context(), hostB, 8); err != nil || c.n != 8 || f.last(hostB).n != 8 || time.Since(c.came) > time.Minute {
		t.Errorf("counted %+v, error %v", c, err)
	}
	if f.last(hostA) != (counted{}) {
		t.Error("another host's guest has counted")
	}
}

// The hosts' configuration is one that they take.
func TestTheHostsAreConfigured(t *testing.T) {
	for _, o := range []options{{story: takeovers, guest: counting}, {story: takeovers, guest: linux}, {story: saves, guest: linux}} {
		o.kind, o.lease = config.TypeHVM, time.Second
		dir := t.TempDir()
		c, err := configure(dir, o)
		if err != nil {
			t.Errorf("%s, %s: %v", o.story, o.guest, err)
			continue
		}
		voter, err := config.Load(filepath.Join(dir, voterFile))
		if err != nil || len(voter.Guests) != 0 || len(voter.Hosts) != len(c.Hosts) {
			t.Errorf("%s: who only votes has %d guests of %d hosts, %v", o.story, len(voter.Guests), len(voter.Hosts), err)
		}
	}
}
