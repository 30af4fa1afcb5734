package egress

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// maxSocketPath is the longest path of a Unix socket in bytes (unix(7)).
const maxSocketPath = 107

// SocketConfig says where a Datagram lives.
type SocketConfig struct {
	// Local is the path this side binds. A socket file that is already there
	// is replaced in one step, so that a new daemon can take over from an old
	// one; a file of another kind is an error.
	Local string
	// Remote is the path the other side binds. It need not exist yet.
	Remote string
	// UID and GID own the socket file, -1 leaves them as they are. The file has
	// mode 0600: only this user can send to it, which is how an unprivileged
	// QEMU is let in and everybody else is not.
	UID, GID int
	// Buffer is the size in bytes asked for each direction's socket buffer;
	// zero means DefaultSocketBuffer. Without CAP_NET_ADMIN the kernel grants at
	// most net.core.rmem_max and wmem_max.
	Buffer int

	// inPlace binds Local itself: what the other side sees as the sender is
	// the path that was bound, whatever it was renamed to.
	inPlace bool
}

// DefaultSocketBuffer is the default of SocketConfig.Buffer, in bytes.
const DefaultSocketBuffer = 8 << 20

// queueLength is how many datagrams a socket shall be able to hold: more than
// fit into a sender's buffer of the default size. A sender whose buffer is full
// sleeps until its frames are read; one that finds the receiver's queue full
// does not (poll(2) calls it writable), and QEMU's main loop spins. The kernel's
// default, net.unix.max_dgram_qlen, is 10.
const queueLength = 2048

// Datagram is a link over a pair of Unix datagram sockets, one datagram one
// frame: the other end of QEMU's `-netdev dgram` with local.type=unix and
// remote.type=unix. Frames to a peer that is not there or does not keep up are
// lost; datagrams that are no frames are counted and passed over.
type Datagram struct {
	*pollFD
	path  string
	inode uint64
	bad   atomic.Uint64

	sending sync.Mutex // unix.Sendto writes into remote
	remote  unix.SockaddrUnix
}

// OpenGuestSocket binds c.Local and returns the link to the guest at c.Remote.
func OpenGuestSocket(c SocketConfig) (*Datagram, error) {
	for _, path := range []string{c.Local, c.Remote} {
		if path == "" || len(path) > maxSocketPath-len(".new") {
			return nil, fmt.Errorf("socket path %q: want 1 to %d bytes; choose a shorter run directory",
				path, maxSocketPath-len(".new"))
		}
	}
	if st, err := os.Lstat(c.Local); err == nil && st.Mode().Type() != fs.ModeSocket {
		return nil, fmt.Errorf("socket path %s: a %s is in the way", c.Local, st.Mode().Type())
	}
	// The queue's length is fixed when a socket is made, and this is the only
	// way to a longer one, for all sockets of the network namespace. A refusal
	// costs throughput, nothing else.
	raiseSysctl("/proc/sys/net/unix/max_dgram_qlen", queueLength)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("making a datagram socket: %w", err)
	}
	p, err := newPollFD(fd, c.Local)
	if err != nil {
		return nil, err
	}
	d := &Datagram{pollFD: p, path: c.Local, remote: unix.SockaddrUnix{Name: c.Remote}}
	if err := d.bind(c); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return d, nil
}

// bind makes the socket file under a temporary name and moves it to its place
// once it has its owner and mode: nobody ever finds it half made.
func (d *Datagram) bind(c SocketConfig) error {
	size := c.Buffer
	if size == 0 {
		size = DefaultSocketBuffer
	}
	for _, o := range [][2]int{{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}} {
		if unix.SetsockoptInt(d.fd, unix.SOL_SOCKET, o[0], size) == nil {
			continue
		}
		if err := unix.SetsockoptInt(d.fd, unix.SOL_SOCKET, o[1], size); err != nil {
			return fmt.Errorf("socket %s: a buffer of %d bytes: %w", c.Local, size, err)
		}
	}
	fresh := c.Local + ".new"
	if c.inPlace {
		fresh = c.Local
	}
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("binding %s: %w", c.Local, err)
	}
	if err := unix.Bind(d.fd, &unix.SockaddrUnix{Name: fresh}); err != nil {
		return fmt.Errorf("binding %s: %w", c.Local, err)
	}
	undo := func(err error) error {
		return errors.Join(fmt.Errorf("binding %s: %w", c.Local, err), os.Remove(fresh))
	}
	if err := os.Chmod(fresh, 0o600); err != nil {
		return undo(err)
	}
	if c.UID >= 0 || c.GID >= 0 {
		if err := os.Chown(fresh, c.UID, c.GID); err != nil {
			return undo(err)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(fresh, &st); err != nil {
		return undo(err)
	}
	if fresh != c.Local {
		if err := os.Rename(fresh, c.Local); err != nil {
			return undo(err)
		}
	}
	d.inode = st.Ino
	return nil
}

// ReadFrame moves the next frame into buf.
func (d *Datagram) ReadFrame(buf []byte) (int, error) {
	for {
		n, err := d.read(buf)
		if err != nil {
			return 0, err
		}
		// A datagram longer than buf arrives cut to it, which is more than
		// MaxFrame by the contract of ReadFrame.
		if checkSize(buf[:n]) == nil {
			return n, nil
		}
		d.bad.Add(1)
	}
}

// WriteFrame sends one frame to the peer's path.
func (d *Datagram) WriteFrame(frame []byte) error {
	if err := checkSize(frame); err != nil {
		return err
	}
	return d.send(frame)
}

func (d *Datagram) send(b []byte) error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.closed {
		return net.ErrClosed
	}
	d.sending.Lock()
	defer d.sending.Unlock()
	for {
		// Not connected: a connected socket would refuse the frames of a QEMU
		// that was started anew on the same path.
		switch err := unix.Sendto(d.fd, b, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, &d.remote); err {
		case nil:
			return nil
		case unix.EINTR:
		default:
			return ErrNotTaken
		}
	}
}

// Malformed counts the datagrams that were no frames.
func (d *Datagram) Malformed() uint64 { return d.bad.Load() }

// Close ends the link and removes the socket file, unless another process has
// put its own in its place.
func (d *Datagram) Close() error {
	var st unix.Stat_t
	if unix.Lstat(d.path, &st) == nil && st.Ino == d.inode {
		// Best effort: a file left behind is replaced at the next start.
		_ = os.Remove(d.path)
	}
	return d.pollFD.Close()
}

// raiseSysctl raises a number under /proc/sys if it is lower than want, as far
// as this process is allowed to.
func raiseSysctl(path string, want int) {
	now, err := os.ReadFile(path)
	if err != nil {
		return
	}
	if n, err := strconv.Atoi(strings.TrimSpace(string(now))); err != nil || n >= want {
		return
	}
	_ = os.WriteFile(path, []byte(strconv.Itoa(want)), 0)
}
