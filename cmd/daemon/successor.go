package daemon

// This file is the old daemon's side of an upgrade: it starts the new one beside
// itself, and hands everything over once that is ready (predecessor.go is the
// other side, upgrade.go what happens between).
//
//	old                                        new
//	start it, hello{formats} ───────────────>  configuration, certificates
//	     <──────────────────────── ready | refused
//	guests stand still, everything is closed
//	yours{names} + descriptors ─────────────>  opens everything
//	     <───────────────────────────────── up
//
// The two speak over a pair of sockets that only they have; each message is a
// packet of JSON. The end of the connection is the other's end.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"understudy/disk"
	"understudy/host"
	"understudy/status"
)

const (
	readyTime = 10 * time.Second // a new daemon has, to read its configuration
	upTime    = 30 * time.Second // and to take part, once everything is its own
	// guestsTime is upTime where guests wait for it: less than a backup's patience
	// (primary.Config), so that they can still go on here.
	guestsTime = 4 * time.Second
	reapTime   = 5 * time.Second
)

// word is a message between the two daemons.
type word struct {
	// Kind is hello, ready, refused, yours or up.
	Kind    string         `json:"kind"`
	Version string         `json:"version,omitempty"`
	Formats map[string]int `json:"formats,omitempty"` // of hello: what outlives the old daemon
	Why     string         `json:"why,omitempty"`     // of refused
	Names   []string       `json:"names,omitempty"`   // of yours: of its descriptors, in order
}

const maxWord = 64 << 10

// formats are the versions of what outlives a daemon and is not read by other
// hosts.
func formats() map[string]int {
	return map[string]int{"left": host.LeftFormat, "held writes": disk.JournalVersion}
}

// successor is a new daemon that this one has started.
type successor struct {
	cmd     *exec.Cmd
	conn    *net.UnixConn
	version string
	ended   chan struct{} // closed when the process has
	end     error         // then: how
}

// startSuccessor starts the program with the arguments of this one, and waits
// until it is ready to take everything over. Nothing of this daemon's is touched.
func startSuccessor(ctx context.Context, argv []string) (_ *successor, err error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	s := &successor{conn: ours, ended: make(chan struct{})}
	s.cmd = exec.Command(argv[0], append(argv[1:len(argv):len(argv)], fmt.Sprintf("--%s=%d", TakeOverFlag, firstExtra))...)
	s.cmd.Stdout, s.cmd.Stderr, s.cmd.ExtraFiles = os.Stdout, os.Stderr, []*os.File{theirs}
	s.cmd.Env = environment()
	// It shall not get the signals meant for this process's group.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = s.cmd.Start()
	_ = theirs.Close()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", argv[0], err), ours.Close())
	}
	go func() { // ends with the process, which kill ends
		defer close(s.ended)
		s.end = s.cmd.Wait()
	}()
	defer func() {
		if err != nil {
			err = errors.Join(err, s.kill())
		}
	}()
	if err := s.send(word{Kind: "hello", Version: status.Version, Formats: formats()}, nil); err != nil {
		return nil, s.explain("before it was ready", err)
	}
	w, err := s.receive(ctx, readyTime)
	switch {
	case err != nil:
		return nil, s.explain("before it was ready", err)
	case w.Kind == "refused":
		return nil, fmt.Errorf("the new daemon, version %s, refuses: %s", w.Version, w.Why)
	case w.Kind != "ready":
		return nil, fmt.Errorf("the new daemon says %q instead of being ready", w.Kind)
	}
	s.version = w.Version
	return s, nil
}

// environment is this process's, for the process that takes its place: systemd
// watches over whoever is the service (sd_watchdog_enabled(3)).
func environment() []string {
	return slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, "WATCHDOG_PID=") })
}

// firstExtra is the number of exec.Cmd's first extra file in the new process.
const firstExtra = 3

func socketPair() (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("sockets for the new daemon: %w", err)
	}
	theirs = os.NewFile(uintptr(fds[1]), "upgrade")
	if ours, err = packets(fds[0]); err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return ours, theirs, nil
}

// packets takes a descriptor over.
func packets(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "upgrade")
	c, err := net.FileConn(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("the connection between the daemons: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(errors.New("the connection between the daemons is no Unix socket"), c.Close())
	}
	return u, nil
}

// handOn gives everything that was kept to the new daemon, and waits until it
// takes part. After an error it is gone, and everything is this daemon's again.
func (s *successor) handOn(ctx context.Context, k *kept) error {
	err := s.send(word{Kind: "yours", Names: k.names}, k)
	var w word
	if err == nil {
		limit := upTime
		if len(k.files) > 0 {
			limit = guestsTime
		}
		w, err = s.receive(ctx, limit)
	}
	if err == nil && w.Kind != "up" {
		err = fmt.Errorf("it says %q", w.Kind)
	}
	if err != nil {
		return errors.Join(s.explain("before it took part", err), s.kill())
	}
	return s.conn.Close()
}

// explain says what became of the process, if it has ended.
func (s *successor) explain(when string, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		select {
		case <-s.ended:
			if s.end == nil {
				s.end = errors.New("exit status 0")
			}
			return fmt.Errorf("the new daemon ended %s (%w): see its messages in the log", when, s.end)
		case <-time.After(reapTime):
		}
	}
	return fmt.Errorf("the new daemon failed %s: %w", when, err)
}

// kill ends the process and waits for that.
func (s *successor) kill() error {
	err := s.cmd.Process.Kill()
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	if err == nil {
		select {
		case <-s.ended:
		case <-time.After(reapTime):
			err = fmt.Errorf("process %d of the new daemon is still there %v after SIGKILL", s.cmd.Process.Pid, reapTime)
		}
	}
	return errors.Join(err, s.conn.Close())
}

func (s *successor) send(w word, k *kept) error { return sendWord(s.conn, w, k) }

func (s *successor) receive(ctx context.Context, limit time.Duration) (word, error) {
	w, files, err := receiveWord(ctx, s.conn, limit)
	closeFiles(files) // it has none to give
	return w, err
}

func sendWord(c *net.UnixConn, w word, k *kept) error {
	text, err := json.Marshal(w)
	if err == nil && len(text) > maxWord {
		err = fmt.Errorf("a message of %d bytes, at most %d", len(text), maxWord)
	}
	if err != nil {
		return err
	}
	var rights []byte
	if k != nil && len(k.files) > 0 {
		var fds []int
		for _, f := range k.files {
			// Not Fd(), which would make the descriptor block for all who have it.
			raw, err := f.SyscallConn()
			if err == nil {
				err = raw.Control(func(fd uintptr) { fds = append(fds, int(fd)) })
			}
			if err != nil {
				return err
			}
		}
		rights = unix.UnixRights(fds...)
	}
	if err := c.SetWriteDeadline(time.Now().Add(readyTime)); err != nil {
		return err
	}
	_, _, err = c.WriteMsgUnix(text, rights, nil)
	return err
}

func receiveWord(ctx context.Context, c *net.UnixConn, limit time.Duration) (w word, files []*os.File, err error) {
	if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return w, nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	body, oob := make([]byte, maxWord), make([]byte, unix.CmsgSpace(4*maxKept))
	n, oobn, flags, _, err := c.ReadMsgUnix(body, oob)
	if err != nil {
		return w, nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return w, nil, err
	}
	for _, m := range messages {
		if fds, err := unix.ParseUnixRights(&m); err == nil {
			for _, fd := range fds {
				unix.CloseOnExec(fd)
				files = append(files, os.NewFile(uintptr(fd), "inherited"))
			}
		}
	}
	switch {
	case n == 0:
		err = io.EOF
	case flags&(unix.MSG_CTRUNC|unix.MSG_TRUNC) != 0:
		err = errors.New("a message that is too long")
	default:
		err = json.Unmarshal(body[:n], &w)
	}
	if err == nil && len(w.Names) != len(files) {
		err = fmt.Errorf("%d descriptors come with %d names", len(files), len(w.Names))
	}
	if err != nil {
		closeFiles(files)
		return word{}, nil, err
	}
	return w, files, nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // nobody else uses it
	}
}
