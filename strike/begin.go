package strike

// The daemon's side: from a Spec to a running agent.

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Target is whom a strike hits, as the daemon knows it.
type Target struct {
	Guest    string
	Machines []int    // processes of the guest's machines
	Also     []string // other guests of this host
	// Port is this host's on the pair's network, Peers are the other hosts'.
	Port  netip.AddrPort
	Peers []netip.AddrPort
}

// answerLimit is how long an agent may take until it is ready.
const answerLimit = 10 * time.Second

// Plan makes the record of a strike on this process and the target.
func Plan(s Spec, t Target) (Record, error) {
	if err := s.Check(); err != nil {
		return Record{}, err
	}
	boot, err := bootID()
	if err != nil {
		return Record{}, err
	}
	at := time.Now().Add(Lead).UTC().Round(0)
	r := Record{Struck: Struck{ID: s.ID, Kind: s.Kind, Guest: t.Guest, At: at, Undo: at.Add(s.For), Machines: t.Machines, Also: t.Also}, Boot: boot}
	if r.Machines == nil {
		r.Machines = []int{}
	}
	if r.Also == nil {
		r.Also = []string{}
	}
	if s.Kind == Cut {
		r.Machines = []int{}
		c, err := cable(t)
		r.Cable = &c
		return r, err
	}
	r.Daemon = os.Getpid()
	for _, pid := range append([]int{os.Getpid()}, t.Machines...) {
		p, err := identify(pid)
		if errors.Is(err, os.ErrProcessDone) {
			continue
		}
		if err != nil {
			return Record{}, err
		}
		r.Victims = append(r.Victims, p)
	}
	if s.Kind == Kill {
		if r.Restart = ManagerStarts; !managed() {
			r.Restart = AgentStarts
			start, err := startOf(os.Getpid())
			if err != nil {
				return Record{}, fmt.Errorf("how this daemon was started: %w", err)
			}
			r.Start = &start
		}
	}
	return r, nil
}

// cable says what a cut cuts.
func cable(t Target) (Cable, error) {
	if len(t.Peers) == 0 {
		return Cable{}, errors.New("there is no other host to be cut off from")
	}
	for _, p := range t.Peers {
		if p.Addr() == t.Port.Addr() || p.Addr().IsLoopback() {
			return Cable{}, fmt.Errorf("another host has the address %v of this one: a cut needs hosts with addresses of their own", p.Addr())
		}
	}
	return Cable{Port: t.Port.Port(), Peers: t.Peers}, nil
}

// Begin keeps the record in dir and starts its agent: command with the record's
// path as its last argument. It returns once the agent is ready, with a function
// that waits for the agent's end. The end of ctx makes the agent undo the strike
// at once.
func Begin(ctx context.Context, dir string, r Record, command []string) (wait func() error, err error) {
	file, err := r.create(dir)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, command[0], append(command[1:len(command):len(command)], file)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = answerLimit
	// The daemon it starts again says what it says where this one did.
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	hear, say, err := os.Pipe()
	if err == nil {
		cmd.ExtraFiles = []*os.File{say}
		err = cmd.Start()
		_ = say.Close()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start the agent of a strike: %w", err), remove(dir, r.ID))
	}
	defer func() { _ = hear.Close() }()
	_ = hear.SetReadDeadline(time.Now().Add(answerLimit)) // a pipe has deadlines
	said, err := bufio.NewReader(io.LimitReader(hear, 4096)).ReadString('\n')
	if said == ready {
		return cmd.Wait, nil
	}
	if said = strings.TrimSpace(said); said == "" {
		said = fmt.Sprintf("it said nothing: %v", err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // killed
	err = remove(filepath.Clean(dir), r.ID)
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return nil, errors.Join(fmt.Errorf("the agent of the strike: %s", said), err)
}
