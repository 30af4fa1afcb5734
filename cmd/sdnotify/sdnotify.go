// Package sdnotify tells systemd how a service of Type=notify does: sd_notify(3).
// The protocol is a datagram of NAME=VALUE lines to the Unix socket that the
// environment names.
//
//	environment → New → Notifier → Ready, Status, Alive, Reloading, Stopping → datagram
//
// Where nobody wants to know, the Notifier is nil, and says nothing.
package sdnotify

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The variables by which systemd says where and how often it wants to be told.
const (
	socketVariable   = "NOTIFY_SOCKET"
	watchdogVariable = "WATCHDOG_USEC"
	watchdogPID      = "WATCHDOG_PID"
)

const (
	// patience is how long a datagram may wait for room in systemd's queue.
	patience = time.Second
	// maxStatus bounds a status line, in bytes: it is for a screen's width or two.
	maxStatus = 500
)

// Notifier tells one service manager. Its methods may be called from any
// goroutine; what cannot be delivered is an error and changes nothing else.
type Notifier struct {
	to       *net.UnixAddr
	interval time.Duration
}

// New reads the environment by lookup, os.LookupEnv for one. It returns nil
// without a socket there, and an error for a variable that makes no sense.
func New(lookup func(name string) (string, bool)) (*Notifier, error) {
	path, ok := lookup(socketVariable)
	if !ok || path == "" {
		return nil, nil //nolint:nilnil // nobody to tell is not an error, and a nil Notifier is one to use
	}
	if !filepath.IsAbs(path) && !strings.HasPrefix(path, "@") {
		return nil, fmt.Errorf("%s=%q: want the path of a Unix socket, or @NAME", socketVariable, path)
	}
	if len(path) >= len(unix.RawSockaddrUnix{}.Path) {
		return nil, fmt.Errorf("%s: a socket's path has less than %d bytes, this one %d", socketVariable, len(unix.RawSockaddrUnix{}.Path), len(path))
	}
	n := &Notifier{to: &net.UnixAddr{Name: path, Net: "unixgram"}}
	var err error
	n.interval, err = watchdog(lookup)
	return n, err
}

// watchdog returns how often systemd wants a sign of life; 0: never.
func watchdog(lookup func(name string) (string, bool)) (time.Duration, error) {
	text, ok := lookup(watchdogVariable)
	if !ok || text == "" {
		return 0, nil
	}
	if pid, ok := lookup(watchdogPID); ok && pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return 0, nil // it is meant for another process
	}
	us, err := strconv.ParseInt(text, 10, 64)
	if err != nil || us <= 0 || us > int64(24*time.Hour/time.Microsecond) {
		return 0, fmt.Errorf("%s=%q: want microseconds, at most a day", watchdogVariable, text)
	}
	return time.Duration(us) * time.Microsecond, nil
}

// Interval is the longest time without a call of Alive after which systemd
// thinks the service hung; 0: it does not watch.
func (n *Notifier) Interval() time.Duration {
	if n == nil {
		return 0
	}
	return n.interval
}

// Ready says that the service is up, or back from a reload.
func (n *Notifier) Ready() error { return n.tell("READY=1") }

// Status says in a line for people how the service does.
func (n *Notifier) Status(line string) error { return n.tell("STATUS=" + oneLine(line)) }

// Alive is the sign of life for which Interval is the bound.
func (n *Notifier) Alive() error { return n.tell("WATCHDOG=1") }

// Reloading says that a new configuration is being taken over; Ready ends it.
func (n *Notifier) Reloading() error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return fmt.Errorf("read the monotonic clock: %w", err)
	}
	return n.tell("RELOADING=1", fmt.Sprintf("MONOTONIC_USEC=%d", now.Nano()/1000))
}

// MainPID says that the process pid is the service from now on.
func (n *Notifier) MainPID(pid int) error { return n.tell(fmt.Sprintf("MAINPID=%d", pid)) }

// Stopping says that the service goes down on purpose.
func (n *Notifier) Stopping() error { return n.tell("STOPPING=1") }

func (n *Notifier) tell(lines ...string) error {
	if n == nil {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, n.to)
	if err != nil {
		return fmt.Errorf("tell systemd: %w", err)
	}
	defer func() { _ = c.Close() }()
	err = c.SetWriteDeadline(time.Now().Add(patience))
	if err == nil {
		_, err = c.Write([]byte(strings.Join(lines, "\n") + "\n"))
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("tell systemd: it has not read from %s for %v", n.to, patience)
	}
	if err != nil {
		return fmt.Errorf("tell systemd: %w", err)
	}
	return nil
}

// oneLine makes a line of text that cannot end early: a second line would be
// another message.
func oneLine(s string) string {
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }), " ")
	if len(s) > maxStatus {
		s = strings.ToValidUTF8(s[:maxStatus-len("…")], "") + "…"
	}
	return s
}
