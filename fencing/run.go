package fencing

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// Way is how a host is fenced.
type Way struct {
	// Command and Verify are argument vectors; the host's name is appended, and is
	// in their environment as UNDERSTUDY_FENCE_HOST. A host counts as off when both
	// have exited with 0. Verify may be empty.
	Command, Verify []string
	// Timeout bounds each.
	Timeout time.Duration
}

// maxOutput bounds what is kept of a command's output, in bytes.
const maxOutput = 4 << 10

// drainTime is how long a killed command's pipe may stay open.
const drainTime = time.Second

// Run fences a host, and returns nil once it is known to be off. A command that
// takes too long is killed, with all that it has started.
func Run(ctx context.Context, w Way, host string) error {
	if len(w.Command) == 0 {
		return errors.New("there is no fencing command: set one in [fencing], or look after the host and say understudy fence confirm")
	}
	if err := one(ctx, w.Command, w.Timeout, host); err != nil {
		return fmt.Errorf("fence %s: %w", host, err)
	}
	if len(w.Verify) == 0 {
		return nil
	}
	if err := one(ctx, w.Verify, w.Timeout, host); err != nil {
		return fmt.Errorf("fence %s: the command went well, and its verification did not: %w", host, err)
	}
	return nil
}

func one(ctx context.Context, argv []string, limit time.Duration, host string) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	c := exec.CommandContext(ctx, argv[0], append(append([]string{}, argv[1:]...), host)...) //nolint:gosec // the operator's own command
	out := &bounded{}
	c.Stdout, c.Stderr = out, out
	c.Env = append(os.Environ(), "UNDERSTUDY_FENCE_HOST="+host)
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	c.WaitDelay = drainTime
	err := c.Run()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("%s did not end within %v and was killed%s", argv[0], limit, out)
	}
	return fmt.Errorf("%s: %w%s", argv[0], err, out)
}

// bounded keeps the first bytes written to it.
type bounded struct{ kept []byte }

func (b *bounded) Write(p []byte) (int, error) {
	b.kept = append(b.kept, p[:min(len(p), maxOutput-len(b.kept))]...)
	return len(p), nil
}

func (b *bounded) String() string {
	said := strings.Join(strings.Fields(strings.ToValidUTF8(string(b.kept), "?")), " ")
	if said == "" {
		return ""
	}
	return ": it said: " + said
}
