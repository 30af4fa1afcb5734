package strike

// What the acts are on Linux: processes by pidfd, so that no signal reaches one
// that was given another's number; how a daemon was started, from /proc.

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Real does what it says, to this machine.
type Real struct{}

// Signal sends s to exactly that process.
func (Real) Signal(p Process, s syscall.Signal) error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return os.ErrProcessDone
	}
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	// Held now: from here on its number is given to no other.
	if now, err := identify(p.PID); err != nil {
		return err
	} else if now != p {
		return os.ErrProcessDone
	}
	if err := unix.PidfdSendSignal(fd, s, nil, 0); errors.Is(err, unix.ESRCH) {
		return os.ErrProcessDone
	} else if err != nil {
		return err
	}
	return nil
}

// Start starts a daemon in a session of its own, with this process' standard
// output and error.
func (Real) Start(s Start) error {
	program := s.Program
	if _, err := os.Stat(program); err != nil { // replaced meanwhile by another way than renaming
		if found, lookErr := exec.LookPath(s.Args[0]); lookErr == nil {
			program = found
		}
	}
	cmd := exec.Cmd{Path: program, Args: s.Args, Env: s.Env, Dir: s.Dir, Stdout: os.Stdout, Stderr: os.Stderr,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true}}
	if err := cmd.Start(); err != nil {
		return err
	}
	return cmd.Process.Release()
}

// bootID names this boot of the machine (proc(5), /proc/sys/kernel/random).
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// identify returns the process that has this number now.
func identify(pid int) (Process, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return Process{}, os.ErrProcessDone
	}
	if err != nil {
		return Process{}, err
	}
	began, err := beganIn(stat)
	if err != nil {
		return Process{}, fmt.Errorf("/proc/%d/stat: %w", pid, err)
	}
	return Process{PID: pid, Began: began}, nil
}

// beganIn finds field 22. The second, a name in parentheses, may hold anything.
func beganIn(stat []byte) (uint64, error) {
	after := stat[bytes.LastIndexByte(stat, ')')+1:]
	fields := bytes.Fields(after)
	if len(fields) < 20 {
		return 0, errors.New("it has too few fields")
	}
	return strconv.ParseUint(string(fields[19]), 10, 64)
}

// startOf tells how a process was started.
func startOf(pid int) (Start, error) {
	proc := func(name string) string { return fmt.Sprintf("/proc/%d/%s", pid, name) }
	var s Start
	var err error
	if s.Program, err = os.Readlink(proc("exe")); err != nil {
		return s, err
	}
	s.Program = strings.TrimSuffix(s.Program, " (deleted)") // replaced by an upgrade: the new one
	if s.Dir, err = os.Readlink(proc("cwd")); err != nil {
		return s, err
	}
	for _, one := range []struct {
		name string
		to   *[]string
	}{{"cmdline", &s.Args}, {"environ", &s.Env}} {
		text, err := os.ReadFile(proc(one.name))
		if err != nil {
			return s, err
		}
		*one.to = words(text)
	}
	if len(s.Args) == 0 {
		return s, errors.New("it has no arguments")
	}
	return s, nil
}

// words splits what /proc separates with NULs.
func words(text []byte) []string {
	if len(text) == 0 {
		return []string{}
	}
	return strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")
}

// managed reports whether systemd runs this process as a service's: then it
// starts it again.
func managed() bool {
	cgroups, err := os.ReadFile("/proc/self/cgroup")
	return err == nil && os.Getppid() == 1 && os.Getenv("INVOCATION_ID") != "" && inService(string(cgroups))
}

// inService reports whether a process with these cgroups (cgroups(7)) is a service.
func inService(cgroups string) bool {
	for line := range strings.Lines(cgroups) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) == 3 && (fields[1] == "" || fields[1] == "name=systemd") && path.Ext(path.Base(fields[2])) == ".service" {
			return true
		}
	}
	return false
}
