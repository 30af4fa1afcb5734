package demo

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"understudy/config"
	"understudy/host"
	"understudy/status"
	"understudy/transport/pki"
)

// entry is one line of a daemon's JSON log.
type entry struct {
	Time time.Time `json:"time"`
	Msg  string    `json:"msg"`
}

// base is what both worlds share: a directory on tmpfs with the configuration,
// certificates and logs, and the daemons.
type base struct {
	o      Options
	dir    string
	config *config.Config

	mu      sync.Mutex
	logs    map[string][]entry
	running map[string]*daemon
}

// daemon is one started understudyd and the goroutine that reads its log.
type daemon struct {
	kill func() error
	done chan struct{}
	err  error
}

func newBase(o Options, c *config.Config) (*base, error) {
	dir, err := os.MkdirTemp("/dev/shm", "understudy-demo-")
	if err != nil {
		return nil, fmt.Errorf("demo: %w", err)
	}
	b := &base{o: o, dir: dir, config: c, logs: map[string][]entry{}, running: map[string]*daemon{}}
	// QEMU runs as another user and must be able to reach its sockets.
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, errors.Join(err, b.remove())
	}
	c.Cluster, c.Profile = "demo", o.Profile
	for i := range c.Hosts {
		h := &c.Hosts[i]
		if err := os.Mkdir(filepath.Join(dir, h.Name), 0o755); err != nil {
			return nil, errors.Join(err, b.remove())
		}
		h.Run, h.State, h.TLS = filepath.Join(dir, h.Name, "run"), filepath.Join(dir, h.Name, "state"), filepath.Join(dir, "tls")
	}
	if err := pki.Init(filepath.Join(dir, "tls"), []string{hostA, hostB, witness}, 30*24*time.Hour); err != nil {
		return nil, errors.Join(err, b.remove())
	}
	return b, nil
}

// write renders the configuration, and reads it back the way the daemons do.
func (b *base) write() error {
	path := b.configPath()
	if err := os.WriteFile(path, b.config.Render(), 0o600); err != nil {
		return err
	}
	c, err := config.Load(path)
	if err != nil {
		return fmt.Errorf("demo: its own configuration: %w", err)
	}
	b.config = c
	return nil
}

func (b *base) configPath() string { return filepath.Join(b.dir, "understudy.toml") }

// args is a daemon's command line.
func (b *base) args(host string) []string {
	return []string{"--config", b.configPath(), "--host", host, "--log-format", "json"}
}

// launch starts a daemon and follows its log.
func (b *base) launch(name string, cmd *exec.Cmd, start func() error) error {
	out, in, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = in, in
	err = start()
	_ = in.Close()
	if err != nil {
		_ = out.Close()
		return fmt.Errorf("start the daemon of host %s: %w", name, err)
	}
	d := &daemon{kill: cmd.Process.Kill, done: make(chan struct{})}
	b.mu.Lock()
	b.running[name] = d
	b.mu.Unlock()
	go func() { // ends when the process has
		defer close(d.done)
		b.follow(name, out)
		_ = out.Close()
		d.err = cmd.Wait()
	}()
	return nil
}

// follow reads a daemon's log to its end.
func (b *base) follow(name string, out io.Reader) {
	keep := io.Discard
	if b.o.KeepLogs != "" {
		f, err := os.OpenFile(filepath.Join(b.o.KeepLogs, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err == nil {
			defer func() { _ = f.Close() }()
			keep = f
		}
	}
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		_, _ = keep.Write(append(lines.Bytes(), '\n')) // a log for people; losing it fails nothing
		var e entry
		if json.Unmarshal(lines.Bytes(), &e) == nil {
			b.mu.Lock()
			b.logs[name] = append(b.logs[name], e)
			b.mu.Unlock()
		}
	}
}

func (b *base) timeline(host string, since time.Time) []entry {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []entry
	for _, e := range b.logs[host] {
		if !e.Time.Before(since) {
			out = append(out, e)
		}
	}
	return out
}

// ended waits for a daemon that was killed.
func (b *base) ended(host string) error {
	b.mu.Lock()
	d := b.running[host]
	delete(b.running, host)
	b.mu.Unlock()
	if d == nil {
		return nil
	}
	select {
	case <-d.done:
		return nil
	case <-time.After(10 * time.Second):
		return fmt.Errorf("the daemon of host %s is still there 10 s after SIGKILL", host)
	}
}

// stop kills every daemon.
func (b *base) stop() error {
	b.mu.Lock()
	all := make(map[string]*daemon, len(b.running))
	for name, d := range b.running {
		all[name] = d
	}
	b.mu.Unlock()
	var errs []error
	for name, d := range all {
		if err := d.kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, err)
		}
		errs = append(errs, b.ended(name))
	}
	return errors.Join(errs...)
}

func (b *base) remove() error { return os.RemoveAll(b.dir) }

func (b *base) client(host string) *status.Client {
	h, _ := b.config.Host(host)
	return status.NewClient(filepath.Join(b.config.DirsOf(h).Run, "understudy.sock"))
}

func (b *base) status(ctx context.Context, name string) (host.GuestStatus, error) {
	call, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	r, err := b.client(name).Status(call)
	if err != nil {
		return host.GuestStatus{}, err
	}
	for _, g := range r.Guests {
		if g.Name == guest {
			return g, nil
		}
	}
	return host.GuestStatus{}, fmt.Errorf("host %s knows no guest %s", name, guest)
}

func (b *base) operate(ctx context.Context, name, operation string, result any) error {
	return b.client(name).Operate(ctx, guest, operation, result)
}
