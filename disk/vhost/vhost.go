// Package vhost is the front end of a disk that speaks vhost-user with a
// hypervisor: it serves one virtio block device (vhost-user-blk) from the
// guest's own rings and memory.
//
//	hypervisor ── Unix socket ─> session (session.go, message.go): memory, rings, features
//	guest ── kick ─> ring (ring.go): chain.go reads the request ─> work.go carries it out
//	    Backend.Accept (taken: complete at once) or Backend.Do ─> complete: used ring, call
//
// What of the guest is touched is reported to the backend: Landed for a read's
// bytes, Touched for status bytes and rings; and to the hypervisor's dirty log
// while it migrates (memory.go). Between the reply to GET_VRING_BASE and the
// ring's next start nothing is written: what finishes meanwhile completes then.
//
// Sources: QEMU's docs/interop/vhost-user.rst; virtio 1.2, 2.7 (split rings)
// and 5.2 (block device).
package vhost

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"

	"understudy/disk"
)

// Bounds of Config.
const (
	MaxQueues    = 16
	MaxQueueSize = 1024
)

// defaultBuffers is the memory for reads under way, in bytes.
const defaultBuffers = 64 << 20

// Config says what to serve and where.
type Config struct {
	// Path is the Unix socket to listen on. A socket that a former process
	// left there is replaced. Its mode is 0600.
	Path string
	// UID and GID are who may connect besides us; UID 0 leaves the owner as it is.
	UID, GID int
	// Backend serves the requests.
	Backend disk.Backend
	// Queues is how many rings the device has, 1 to MaxQueues; 0 means 1.
	Queues int
	// QueueSize is the largest ring in entries, a power of two up to
	// MaxQueueSize; 0 means 128. It is also how many requests of a ring may be
	// with the backend at a time, up to Workers.
	QueueSize int
	// Workers bounds how many requests of one ring are in Backend.Do at a time;
	// 0 means 32.
	Workers int
	// Buffers bounds the memory for reads under way, in bytes; 0 means 64 MiB.
	// Requests beyond it wait in the guest's ring.
	Buffers int
	// Linger makes waits faster to wake from; nil: not.
	Linger *Linger
	// Memory decides whether the file with this device and inode number is the
	// guest's main memory; the hypervisor may hand over no other. nil allows
	// any one file. Offsets in it are the image: GFN = offset / 4096.
	Memory func(dev, ino uint64) error
	// Inherited is the connection of a hypervisor that a former process has kept
	// (Server.Keep); nil: none. The Server takes it over.
	Inherited *os.File
	// Log is told of connections and of what ends them.
	Log *slog.Logger
}

// Server serves one disk. It implements disk.Frontend. Its methods may be
// called from several goroutines.
type Server struct {
	cfg     Config
	backend disk.Backend
	info    disk.Info
	log     *slog.Logger
	limits  limits
	ln      *net.UnixListener
	rings   []*ring
	budget  *budget

	connected    atomic.Bool
	running      atomic.Int32 // rings that touch guest memory
	lost         atomic.Int32 // rings of which nobody knows where they stand
	writeThrough atomic.Bool  // a write completes when it is durable
	wce          atomic.Uint32
	dirty        *dirtyLog // of the session
	orphans      waiting   // requests of a former life of the guest, still in Do

	mu     sync.Mutex
	conn   *net.UnixConn // of the session
	closed bool
	done   sync.WaitGroup // the accept loop
}

var _ disk.Frontend = (*Server)(nil)

// Listen starts to serve. The caller ends it with Close.
func Listen(cfg Config) (*Server, error) {
	if cfg.Queues == 0 {
		cfg.Queues = 1
	}
	if cfg.QueueSize == 0 {
		cfg.QueueSize = 128
	}
	if cfg.Workers == 0 {
		cfg.Workers = 32
	}
	if cfg.Buffers == 0 {
		cfg.Buffers = defaultBuffers
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	info := cfg.Backend.Info()
	lim, err := limitsOf(info, cfg)
	if err != nil {
		return nil, fmt.Errorf("serve a disk on %s: %w", cfg.Path, err)
	}
	s := &Server{cfg: cfg, backend: cfg.Backend, info: info, log: cfg.Log, limits: lim, budget: newBudget(cfg.Buffers)}
	s.orphans.cond.L = &s.orphans.mu
	s.wce.Store(1)
	for i := range cfg.Queues {
		s.rings = append(s.rings, newRing(s, i))
	}
	if err := s.listen(); err != nil {
		return nil, err
	}
	s.done.Go(s.accept)
	return s, nil
}

// listen makes the socket. It gets its mode and owner before it gets its name.
func (s *Server) listen() error {
	path := s.cfg.Path
	temp := fmt.Sprintf("%s.%d", path, os.Getpid())
	_ = os.Remove(temp)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return fmt.Errorf("listen for the guest's hypervisor: %w", err)
	}
	ln.SetUnlinkOnClose(false)
	err = os.Chmod(temp, 0o600)
	if err == nil && s.cfg.UID != 0 {
		err = os.Chown(temp, s.cfg.UID, s.cfg.GID)
	}
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		_ = ln.Close()
		_ = os.Remove(temp)
		return fmt.Errorf("make the disk's socket: %w", err)
	}
	s.ln = ln
	return nil
}

// accept runs one session after the other; a newer connection ends the older.
func (s *Server) accept() {
	var session sync.WaitGroup
	defer session.Wait()
	inherited := s.inherit()
	for {
		conn, err := inherited, error(nil)
		if inherited = nil; conn == nil {
			conn, err = s.ln.AcceptUnix()
		}
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				s.log.Error("the disk takes no connections any more", "socket", s.cfg.Path, "error", err)
			}
			return
		}
		s.mu.Lock()
		if s.conn != nil {
			_ = s.conn.Close()
		}
		s.conn = conn
		closed := s.closed
		s.mu.Unlock()
		if closed {
			_ = conn.Close()
			return
		}
		session.Wait()
		session.Go(func() { s.serve(conn) })
	}
}

// serve speaks with one hypervisor until its connection ends.
func (s *Server) serve(conn *net.UnixConn) {
	ctx, cancel := context.WithCancel(context.Background())
	c := newSession(ctx, s, conn)
	s.log.Info("a hypervisor has connected to the disk", "socket", s.cfg.Path)
	s.connected.Store(true)
	err := c.run()
	s.connected.Store(false)
	_ = conn.Close()
	// From here on guest memory is left alone. What is in Do is given up: a
	// hypervisor that comes back submits it anew.
	c.end()
	cancel()
	if err != nil {
		s.log.Error("the hypervisor's connection to the disk is given up", "socket", s.cfg.Path, "error", err)
		return
	}
	s.log.Info("the hypervisor has disconnected from the disk", "socket", s.cfg.Path)
}

// Close ends the session and every request, and removes the socket. Requests
// in Do see their context end. It returns once nothing runs any more.
func (s *Server) Close() error {
	s.mu.Lock()
	already := s.closed
	s.closed = true
	if s.conn != nil {
		_ = s.conn.Close()
	}
	s.mu.Unlock()
	if already {
		return nil
	}
	err := s.ln.Close()
	s.done.Wait()
	for _, r := range s.rings {
		r.workers.Wait()
	}
	s.setLog(nil)
	if removed := os.Remove(s.cfg.Path); removed != nil && !errors.Is(removed, os.ErrNotExist) {
		err = errors.Join(err, removed)
	}
	if err != nil {
		return fmt.Errorf("close the disk's socket: %w", err)
	}
	return nil
}

// Stopped implements disk.Frontend.
func (s *Server) Stopped() bool { return s.running.Load() == 0 }

// Connected reports whether a hypervisor is connected. A guest that was paused
// while none was (the daemon was started anew and the hypervisor has yet to
// come back) must not be checkpointed in that pause: the requests in flight are
// known only when the rings have been started again. So it is, and Connected says
// no, when a hypervisor that has missed the end of the former daemon stops its
// rings; they start again when the guest goes on.
func (s *Server) Connected() bool { return s.connected.Load() && s.lost.Load() == 0 }

// waiting counts things that others wait for to be gone.
type waiting struct {
	mu   sync.Mutex
	cond sync.Cond
	n    int
}

func (w *waiting) add(n int) {
	w.mu.Lock()
	w.n += n
	w.mu.Unlock()
	w.cond.Broadcast()
}

// none waits until the count is 0 or give reports true; whoever makes that so
// calls add(0).
func (w *waiting) none(give func() bool) {
	w.mu.Lock()
	for w.n > 0 && !give() {
		w.cond.Wait()
	}
	w.mu.Unlock()
}
