package bubble

import (
	"context"
	"errors"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// This file runs a check: a command of the operator's in a process group of its
// own, which is ended as a whole, and of whose output little is kept.

// waitFor is how long a command's output is waited for once it was killed: a
// process that has left its group may hold on to it.
const waitFor = 2 * time.Second

// RunCheck runs a command and says what became of it. start starts a process, in
// whatever network it belongs to; nil: as any other.
func RunCheck(ctx context.Context, argv, env []string, start func(*exec.Cmd) error) Check {
	if start == nil {
		start = (*exec.Cmd).Start
	}
	c := Check{Command: argv, Exit: -1}
	began := time.Now()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = "/"
	// Settings of the daemon's environment must not change the check.
	cmd.Env = append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/"}, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = waitFor
	var out bounded
	cmd.Stdout, cmd.Stderr = &out, &out
	err := start(cmd)
	if err == nil {
		err = cmd.Wait()
		// What it has left in the background ends with it.
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		c.Exit = cmd.ProcessState.ExitCode()
	}
	c.Took = time.Since(began)
	c.Output, c.Truncated = out.text()
	var exit *exec.ExitError
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded) && c.Exit != 0:
		c.TimedOut = true
	case err != nil && !errors.As(err, &exit):
		c.Error = err.Error()
	}
	return c
}

// bounded keeps the first MaxOutput bytes written to it.
type bounded struct {
	mu   sync.Mutex
	b    []byte
	more bool
}

func (o *bounded) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := min(len(p), MaxOutput-len(o.b))
	o.b = append(o.b, p[:n]...)
	o.more = o.more || n < len(p)
	return len(p), nil
}

func (o *bounded) text() (string, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.b), o.more
}
