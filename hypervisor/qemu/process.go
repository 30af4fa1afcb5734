package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A QEMU is our child when we started it and somebody else's when we adopted
// it. Either way it is held by a pidfd, so that a signal can never reach
// another process that was given its number.

// endLimit is how long a killed process may take to be gone. It has to give
// its memory back first.
const endLimit = 30 * time.Second

// process is a QEMU on this host.
type process struct {
	identity identity
	pidfd    int
	messages *tail // what it said on stderr; empty after an adoption

	stopWatch int           // eventfd: ends the watching goroutine
	gone      chan struct{} // closed when the process has ended
	watched   chan struct{} // closed when the watching goroutine has ended
	release   sync.Once
}

// identity tells one process of one boot from every other.
type identity struct {
	PID int `json:"pid"`
	// Start is when the process started, in clock ticks since boot
	// (proc_pid_stat(5), field 22).
	Start uint64 `json:"start"`
	// Boot is the kernel's random boot id.
	Boot string `json:"boot"`
}

// launch starts a program in a session of its own, so that it outlives us and
// what a terminal or a service manager sends to our session. files are
// passed on, the first as descriptor 3.
func launch(program string, args []string, as account, groups []uint32, files []*os.File) (*process, error) {
	cmd := exec.Command(program, args...)
	cmd.Dir = "/"
	cmd.ExtraFiles = files
	// Settings of our environment must not change the machine.
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C", "TMPDIR=/var/tmp"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if as.set {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: as.uid, Gid: as.gid, Groups: groups}
	}
	// A pipe of our own: QEMU ignores SIGPIPE, so that it can go on when we
	// are gone, and os/exec's would tie Wait to it.
	said, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = theirs
	err = cmd.Start()
	_ = theirs.Close()
	if err != nil {
		_ = said.Close()
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	id, err := identify(cmd.Process.Pid)
	var p *process
	if err == nil {
		p, err = watch(id, said)
	}
	if err != nil {
		_ = said.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	_ = cmd.Process.Release() // reaped by the watching goroutine
	return p, nil
}

// find takes hold of a process that somebody else started. It returns
// os.ErrProcessDone if that process has ended.
func find(id identity) (*process, error) {
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	if id.Boot != boot {
		return nil, os.ErrProcessDone
	}
	return watch(id, nil)
}

// watch opens a process and starts the goroutine that notices its end.
func watch(id identity, said *os.File) (*process, error) {
	pidfd, err := unix.PidfdOpen(id.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, os.ErrProcessDone
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", id.PID, err)
	}
	p := &process{identity: id, pidfd: pidfd, messages: &tail{}, gone: make(chan struct{}), watched: make(chan struct{})}
	// The pidfd is open: from here on the number cannot be given to another.
	now, err := identify(id.PID)
	if err == nil && now != id {
		err = os.ErrProcessDone
	}
	if err == nil {
		p.stopWatch, err = unix.Eventfd(0, unix.EFD_CLOEXEC)
	}
	if err != nil {
		_ = unix.Close(pidfd)
		return nil, err
	}
	go p.await(said)
	return p, nil
}

// await closes gone when the process ends. It is owned by the process and ends
// with it or with letGo.
func (p *process) await(said *os.File) {
	defer close(p.watched)
	var reader sync.WaitGroup
	if said != nil {
		reader.Go(func() { _, _ = io.Copy(p.messages, said) })
	}
	fds := []unix.PollFd{{Fd: int32(p.pidfd), Events: unix.POLLIN}, {Fd: int32(p.stopWatch), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, -1)
		if err == nil || !errors.Is(err, unix.EINTR) {
			break
		}
	}
	ended := fds[0].Revents != 0
	if ended {
		// Reap it if it is our child; it is not after an adoption.
		_, _ = unix.Wait4(p.identity.PID, nil, 0, nil)
	} else if said != nil {
		_ = said.Close()
	}
	reader.Wait()
	if said != nil {
		_ = said.Close()
	}
	if ended {
		close(p.gone)
	}
}

// ended reports whether the process has ended, also if that was not noticed yet,
// or is ending: one that was killed may need many milliseconds for its memory,
// and runs nothing any more. It must not be called beside letGo.
func (p *process) ended() bool {
	ending := p.ending() // first: as long as the pidfd is not readable, the number is the process's
	fd := []unix.PollFd{{Fd: int32(p.pidfd), Events: unix.POLLIN}}
	n, err := unix.Poll(fd, 0)
	return ending || n > 0 && err == nil // a pidfd becomes readable with the end of its process: pidfd_open(2)
}

// ending reports whether the process has SIGKILL before it or is past it.
func (p *process) ending() bool {
	dir := fmt.Sprintf("/proc/%d/", p.identity.PID)
	// SIGKILL is laid before every thread at once, and taken by each when it runs.
	status, err := os.ReadFile(dir + "status")
	if err != nil {
		return false
	}
	for line := range bytes.Lines(status) {
		name, value, _ := bytes.Cut(line, []byte(":"))
		if string(name) != "SigPnd" && string(name) != "ShdPnd" {
			continue
		}
		pending, err := strconv.ParseUint(string(bytes.TrimSpace(value)), 16, 64)
		if err == nil && pending&(1<<(unix.SIGKILL-1)) != 0 {
			return true
		}
	}
	// Field 9 has the kernel's flags of the thread, proc_pid_stat(5); fields are
	// counted behind the name, which may have anything in it.
	stat, err := os.ReadFile(dir + "stat")
	if err != nil {
		return false
	}
	const flagExiting = 0x4 // PF_EXITING, linux/sched.h
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 7 {
		return false
	}
	flags, err := strconv.ParseUint(string(fields[6]), 10, 64)
	return err == nil && flags&flagExiting != 0
}

// kill ends the process and returns after it is gone.
func (p *process) kill() error {
	select {
	case <-p.gone:
		return nil
	default:
	}
	if err := unix.PidfdSendSignal(p.pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill QEMU (process %d): %w", p.identity.PID, err)
	}
	limit := time.NewTimer(endLimit)
	defer limit.Stop()
	select {
	case <-p.gone:
		return nil
	case <-limit.C:
		return fmt.Errorf("QEMU (process %d) has not ended %v after SIGKILL: it hangs in the kernel, in I/O most likely", p.identity.PID, endLimit)
	}
}

// letGo ends the watching and leaves the process as it is.
func (p *process) letGo() {
	p.release.Do(func() {
		_, _ = unix.Write(p.stopWatch, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		<-p.watched
		_ = unix.Close(p.stopWatch)
		_ = unix.Close(p.pidfd)
	})
}

// explain adds what QEMU said last to an error, if it has ended.
func (p *process) explain(err error) error {
	limit := time.NewTimer(100 * time.Millisecond) // its end trails its socket's
	defer limit.Stop()
	select {
	case <-p.gone:
		return fmt.Errorf("%w: QEMU has ended, saying %q", err, p.messages.String())
	case <-limit.C:
		if said := p.messages.String(); said != "" {
			return fmt.Errorf("%w: QEMU said %q", err, said)
		}
		return err
	}
}

// identify reads a running process's identity.
func identify(pid int) (identity, error) {
	boot, err := bootID()
	if err != nil {
		return identity{}, err
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return identity{}, os.ErrProcessDone
	}
	if err != nil {
		return identity{}, err
	}
	start, err := parseStat(text)
	if err != nil {
		return identity{}, fmt.Errorf("process %d: %w", pid, err)
	}
	return identity{PID: pid, Start: start, Boot: boot}, nil
}

// parseStat takes the start time out of /proc/PID/stat. The second field is
// the program's name in parentheses and may hold anything.
func parseStat(text []byte) (uint64, error) {
	i := bytes.LastIndexByte(text, ')')
	if i < 0 {
		return 0, fmt.Errorf("stat line %.60q has no name", text)
	}
	const startField = 22 - 3 // fields after the name begin with the third
	fields := strings.Fields(string(text[i+1:]))
	if len(fields) <= startField {
		return 0, fmt.Errorf("stat line %.60q is too short", text)
	}
	return strconv.ParseUint(fields[startField], 10, 64)
}

func bootID() (string, error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(text)), nil
}

// tail keeps the last bytes written to it.
type tail struct {
	mu   sync.Mutex
	data []byte
}

const tailSize = 8 << 10

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := len(b)
	if len(b) > tailSize {
		b = b[len(b)-tailSize:]
	}
	if over := len(t.data) + len(b) - tailSize; over > 0 {
		t.data = append(t.data[:0], t.data[over:]...)
	}
	t.data = append(t.data, b...)
	return n, nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.data))
}

// waitGone waits for the end of a process.
func (p *process) waitGone(ctx context.Context) error {
	select {
	case <-p.gone:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for QEMU (process %d) to end: %w", p.identity.PID, ctx.Err())
	}
}
