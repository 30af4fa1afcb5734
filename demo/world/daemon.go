package world

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"
)

// Entry is one line of a daemon's JSON log.
type Entry struct {
	Time time.Time `json:"time"`
	Msg  string    `json:"msg"`
	Text string    `json:"-"` // the whole line
}

// process is one started understudyd.
type process struct {
	kill  func() error
	ended chan struct{} // closed when it has ended and its log is read
	ready chan struct{} // closed when it says that it is up
	err   error         // its end, once ended is closed
}

// logUp is what a daemon says when it takes part (cmd/daemon).
const logUp = "understudy is up"

// startTime is how long a daemon may take to start.
const startTime = 30 * time.Second

// Start starts a host's daemon and waits until it takes part.
func (w *World) Start(ctx context.Context, name string) error {
	p, err := w.launch(name)
	if err != nil {
		return fmt.Errorf("start the daemon of host %s: %w", name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	select {
	case <-p.ready:
		return nil
	case <-p.ended:
		log := w.Log(name, time.Time{})
		text := ""
		if len(log) > 0 {
			text = log[len(log)-1].Text
		}
		return fmt.Errorf("the daemon of host %s ended at once (%w): %s", name, p.err, text)
	case <-ctx.Done():
		return fmt.Errorf("the daemon of host %s is not up within %v", name, startTime)
	}
}

// StartAll starts all three.
func (w *World) StartAll(ctx context.Context) error {
	for _, h := range Hosts() {
		if err := w.Start(ctx, h); err != nil {
			return err
		}
	}
	return nil
}

func (w *World) launch(name string) (*process, error) {
	if w.Up(name) {
		return nil, errors.New("it is up")
	}
	out, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	args := []string{"--config", w.ConfigFile(), "--host", name, "--log-format", "json"}
	if w.o.Arguments != nil {
		args = append(args, w.o.Arguments(name)...)
	}
	cmd, start := w.command(name, w.o.Daemon, args...)
	cmd.Stdout, cmd.Stderr = in, in
	p := &process{ended: make(chan struct{}), ready: make(chan struct{})}
	started := make(chan error)
	go func() { // ends when the process has
		defer close(p.ended)
		// A process is sent its death signal when the thread ends that forked it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := start()
		_ = in.Close()
		if err == nil {
			p.kill = cmd.Process.Kill
		}
		started <- err
		if err == nil {
			w.follow(name, out, p)
			p.err = cmd.Wait()
		}
		_ = out.Close()
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.running[name] = p
	return p, nil
}

// follow reads a daemon's log to its end. A QEMU that outlives the daemon has
// no part in it.
func (w *World) follow(name string, out io.Reader, p *process) {
	keep := io.Discard
	if w.o.KeepLogs != "" {
		f, err := os.OpenFile(filepath.Join(w.o.KeepLogs, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err == nil {
			defer func() { _ = f.Close() }()
			keep = f
		}
	}
	up := false
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		e := Entry{Text: lines.Text()}
		_, _ = fmt.Fprintln(keep, e.Text) // for people; losing it fails nothing
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			e.Time = time.Now() // such as a panic
		}
		w.mu.Lock()
		w.logs[name] = append(w.logs[name], e)
		w.mu.Unlock()
		if e.Msg == logUp && !up {
			up = true
			close(p.ready)
		}
	}
}

// Log returns what a host's daemon has logged since a point in time.
func (w *World) Log(name string, since time.Time) []Entry {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []Entry
	for _, e := range w.logs[name] {
		if !e.Time.Before(since) {
			out = append(out, e)
		}
	}
	return out
}

// Logged returns when a host's daemon first logged msg since a point in time.
func (w *World) Logged(name, msg string, since time.Time) (time.Time, bool) {
	log := w.Log(name, since)
	i := slices.IndexFunc(log, func(e Entry) bool { return e.Msg == msg })
	if i < 0 {
		return time.Time{}, false
	}
	return log[i].Time, true
}

// Up reports whether a host's daemon was started and has not ended.
func (w *World) Up(name string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.running[name]
	if p == nil {
		return false
	}
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// KillDaemon sends SIGKILL to a host's daemon alone.
func (w *World) KillDaemon(name string) error {
	w.mu.Lock()
	p := w.running[name]
	w.mu.Unlock()
	if p == nil {
		return nil
	}
	if err := p.kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill the daemon of host %s: %w", name, err)
	}
	return w.gone(name)
}

// gone waits for a daemon that was killed.
func (w *World) gone(name string) error {
	w.mu.Lock()
	p := w.running[name]
	delete(w.running, name)
	w.mu.Unlock()
	if p == nil {
		return nil
	}
	select {
	case <-p.ended:
		return nil
	case <-time.After(10 * time.Second):
		return fmt.Errorf("the daemon of host %s is still there 10 s after SIGKILL", name)
	}
}
