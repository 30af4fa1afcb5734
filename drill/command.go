package drill

// The check's command, and the probe's connection: what a drill does on its own
// host.

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// RunCheck runs a command without a shell and returns what it said. When ctx
// ends, the command and all that it has started in its process group is killed.
func RunCheck(ctx context.Context, argv []string) Ran {
	if len(argv) == 0 {
		return Ran{Status: -1, Error: "there is no command"}
	}
	began := time.Now()
	out := &bounded{left: MaxOutput}
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	c.Stdout, c.Stderr = out, out
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	c.WaitDelay = 2 * time.Second // a grandchild may hold its output open
	err := c.Run()
	ran := Ran{Took: time.Since(began), Output: clip(out.String(), MaxOutput)}
	var exit *exec.ExitError
	switch {
	case err == nil:
	case ctx.Err() != nil:
		ran.Status, ran.Error = -1, fmt.Sprintf("it was killed after %v: its time was over", about(ran.Took))
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		ran.Status = exit.ExitCode()
	default:
		ran.Status, ran.Error = -1, err.Error()
	}
	return ran
}

// bounded keeps the first bytes of what is written, and counts the rest.
type bounded struct {
	mu      sync.Mutex
	kept    []byte
	left    int
	dropped int
}

func (b *bounded) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := min(b.left, len(p))
	b.kept = append(b.kept, p[:n]...)
	b.left -= n
	b.dropped += len(p) - n
	return len(p), nil
}

func (b *bounded) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.dropped == 0 {
		return string(b.kept)
	}
	note := fmt.Sprintf("\n… and %d bytes more", b.dropped)
	return clip(string(b.kept), MaxOutput-len(note)) + note
}

// Connect makes a TCP connection and closes it.
func Connect(ctx context.Context, address string) error {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return c.Close()
}
