package main

// The terminal view in a real terminal: tmux holds it, presses keys, and reads
// what a person would read.

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"understudy/config"
	"understudy/demo/world"
)

// tmux is a tmux server of our own with one window.
type tmux struct {
	t      *testing.T
	socket string
}

func newTmux(t *testing.T, columns, lines string) *tmux {
	t.Helper()
	dir, err := os.MkdirTemp("", "tmux") // short: it holds a Unix socket
	if err != nil {
		t.Fatal(err)
	}
	term := &tmux{t: t, socket: filepath.Join(dir, "s")}
	t.Cleanup(func() {
		_ = term.command("kill-server").Run() // ours alone, by its socket
		_ = os.RemoveAll(dir)
	})
	term.do("-f", "/dev/null", "new-session", "-d", "-x", columns, "-y", lines, "env PS1='ready$ ' bash --norc")
	return term
}

func (x *tmux) command(args ...string) *exec.Cmd {
	c := exec.Command("tmux", append([]string{"-S", x.socket}, args...)...)
	c.Env = []string{"PATH=" + programs + ":/usr/bin:/bin", "LC_ALL=C.UTF-8", "TERM=xterm-256color", "HOME=" + filepath.Dir(x.socket)}
	return c
}

func (x *tmux) do(args ...string) string {
	x.t.Helper()
	out, err := x.command(args...).CombinedOutput()
	if err != nil {
		x.t.Fatalf("tmux %q: %v\n%s", args, err, out)
	}
	return string(out)
}

// keys presses keys, as tmux names them.
func (x *tmux) keys(keys ...string) {
	x.t.Helper()
	x.do(append([]string{"send-keys"}, keys...)...)
}

// reads waits until the screen says all of want and none of not.
func (x *tmux) reads(not string, want ...string) string {
	x.t.Helper()
	screen := ""
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		screen = x.do("capture-pane", "-p")
		well := not == "" || !strings.Contains(screen, not)
		for _, w := range want {
			well = well && strings.Contains(screen, w)
		}
		if well {
			return screen
		}
	}
	x.t.Fatalf("the screen never said %q without %q:\n%s", want, not, screen)
	return ""
}

func TestTopInATerminal(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	s, err := world.NewSim(world.Options{Daemon: filepath.Join(programs, "understudyd"), Profile: config.Standard, Prefix: prefix,
		Guests: []world.Guest{{Name: "web", Home: world.HostA, Memory: 8 * config.MiB}}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := s.StartAll(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Protected(ctx, "web", world.HostA, time.Minute); err != nil {
		t.Fatal(err)
	}
	flags := " --config " + s.ConfigFile() + " --host " + world.HostA

	x := newTmux(t, "80", "24")
	x.reads("", "ready$")
	x.keys("understudy top --every 200ms"+flags, "Enter")
	x.reads("ready$", "a up", "b up", "w", "web", "protected", "a > b", "sent/s", "↑↓ guest", "█")
	x.keys("Enter")
	x.reads("", "last commit", "could take over", "held output")
	x.keys("e")
	x.reads("last commit", "b is in sync")
	x.keys("e", "?")
	x.reads("", "how long the guest stands still")
	x.keys("Escape")
	x.do("resize-window", "-x", "40", "-y", "10")
	x.reads("on > backup", "web", "protected")
	x.do("resize-window", "-x", "120", "-y", "30")
	x.reads("", "web", "commit", "held", "q quit")

	// A host is lost before its eyes.
	if err := s.Kill(world.HostB); err != nil {
		t.Fatal(err)
	}
	x.reads("", "b SILENT", "NOT PROTECTED")

	// It ends, by a key and by a signal, and the terminal is as it was.
	x.keys("q")
	x.reads("NOT PROTECTED", "ready$")
	x.keys("clear; understudy top"+flags, "Enter")
	x.reads("ready$", "web", "b SILENT")
	x.keys("C-c")
	x.reads("SILENT", "ready$")
	x.keys("clear; echo status $?; stty -a | grep -o ' echo '", "Enter")
	x.reads("", "status 0", " echo")

	// Without a terminal: one frame, and nothing that moves a cursor. It takes two
	// looks; with what the daemon remembers, one each second, its sparklines are longer.
	longer := regexp.MustCompile(`(?m)^ pause +\S+  [^ \n]{5}`)
	for deadline := time.Now().Add(time.Minute); ; {
		out, err := exec.Command(filepath.Join(programs, "understudy"), append([]string{"top", "--once", "--every", "200ms"}, strings.Fields(flags)...)...).Output()
		if err != nil || !strings.Contains(string(out), "NOT PROTECTED") || strings.Contains(string(out), "\x1b") {
			t.Errorf("%v\n%s", err, out)
		}
		if longer.Match(out) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("its sparklines begin with the first look:\n%s", out)
		}
	}
	out, err := exec.Command(filepath.Join(programs, "understudy"), append([]string{"top"}, strings.Fields(flags)...)...).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "--once") {
		t.Errorf("without a terminal: %v %s", err, out)
	}
}
