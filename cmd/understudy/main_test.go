package main

// The operator's tool as an operator meets it: each file under
// testdata is a script of commands, what they print and how they exit. Besides
// testscript's own commands there are
//
//	exits STATUS PROGRAM ARG…   runs a program that must end with this status
//	pair up|start HOST|kill HOST|protected HOST|unprotected HOST
//	                            a pair of real daemons with a simulated guest
//	                            "web"; its configuration is $CONFIG
//	tokens CONFIG               gives a configuration a file of tokens
//	isjson                      the last output is one JSON value and nothing else
//	nobody PROGRAM ARG…         runs a program without any rights
//	checkpointfile FILE         makes a checkpoint file of a guest "lonely"
//	xlsave FILE pvh|pv DISK     makes what xl save would, and the domain's disk
//	xlconfig CONFIG DISK MEMORY makes a configuration with a Xen guest "web"
//	damage FILE OFFSET          turns a byte of a file over
//	struck HOST                 a strike starts that host's daemon again: it is ended, too
//	abort FILE                  gives up the drill that FILE names, and waits for its end

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"understudy/config"
	"understudy/demo/world"
	"understudy/host"
)

// programs is the directory of understudy and understudyd.
var programs string

func TestMain(m *testing.M) {
	var err error
	if programs, err = world.Programs(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(programs)
	os.Exit(code)
}

// prefix begins the names of what the scripts make on the machine.
const prefix = "uscli"

func TestScripts(t *testing.T) {
	all := pairs{of: map[*testscript.TestScript]*world.Sim{}}
	t.Cleanup(func() { // after the scripts, which run beside each other
		left, err := world.Leftovers(prefix)
		if err != nil || len(left) > 0 {
			t.Errorf("left behind: %q, %v", left, err)
		}
	})
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireUniqueNames:  true,
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", programs+string(filepath.ListSeparator)+e.Getenv("PATH"))
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits": exits, "isjson": isJSON, "nobody": nobody, "pair": all.command,
			"checkpointfile": checkpointFile, "damage": damage, "xlsave": xlSave, "xlconfig": xlConfig, "tokens": tokensFile, "abort": abort, "struck": struck,
		},
	})
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits STATUS PROGRAM ARG...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var exit *exec.ExitError
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
}

// tokensFile gives a configuration a file of tokens.
func tokensFile(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: tokens CONFIG")
	}
	path := ts.MkAbs(args[0])
	c, err := config.Load(path)
	ts.Check(err)
	c.API.Tokens = filepath.Join(filepath.Dir(path), "tokens")
	ts.Check(os.WriteFile(path, c.Render(), 0o600))
}

func isJSON(ts *testscript.TestScript, neg bool, args []string) {
	d := json.NewDecoder(bytes.NewReader([]byte(ts.ReadFile("stdout"))))
	var v any
	if neg || len(args) > 0 || d.Decode(&v) != nil || d.More() {
		ts.Fatalf("the output is not one JSON value")
	}
}

func nobody(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: nobody PROGRAM ARG...")
	}
	cmd := exec.Command(filepath.Join(programs, args[0]), args[1:]...)
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/bin:/bin"}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	out, err := cmd.CombinedOutput()
	_, _ = ts.Stdout().Write(out)
	ts.Check(err)
}

// pairs are the scripts' pairs.
type pairs struct {
	mu sync.Mutex
	of map[*testscript.TestScript]*world.Sim
}

func (p *pairs) get(ts *testscript.TestScript) *world.Sim {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.of[ts]
}

func (p *pairs) set(ts *testscript.TestScript, s *world.Sim) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.of[ts] = s
}

func (p *pairs) command(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: pair up|start HOST|kill HOST|protected HOST")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if args[0] == "up" {
		s, err := world.NewSim(world.Options{Daemon: filepath.Join(programs, "understudyd"), Profile: config.Standard, Prefix: prefix,
			Guests: []world.Guest{{Name: "web", Home: world.HostA, Memory: 8 * config.MiB}}})
		ts.Check(err)
		p.set(ts, s)
		ts.Defer(func() { ts.Check(s.Close()) })
		ts.Setenv("CONFIG", s.ConfigFile())
		ts.Check(s.StartAll(ctx))
		return
	}
	s := p.get(ts)
	if s == nil || len(args) != 2 {
		ts.Fatalf("pair %q: no pair is up, or no host is named", args)
	}
	var err error
	switch args[0] {
	case "start":
		err = s.Start(ctx, args[1])
	case "kill":
		err = s.Kill(args[1])
	case "protected":
		_, err = s.Protected(ctx, "web", args[1], time.Minute)
	case "unprotected":
		_, err = s.Await(ctx, "web", "unprotected", time.Minute, func(name string, g host.GuestStatus) bool {
			return name == args[1] && g.Protected == host.ProtectedNo
		})
	default:
		err = fmt.Errorf("pair %q is not known", args[0])
	}
	ts.Check(err)
}
