package egress

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// Bounds of a Switch: what a misbehaving port can make it remember.
const (
	maxPorts = 64
	maxMACs  = 1024
)

// Switch is a learning Ethernet switch on a Unix datagram socket, for
// simulations without root: one datagram is one frame, a port is the address it
// came from, and an empty datagram only makes a port known. A frame to an
// address that was seen goes to that port, any other to all but its own. A
// port whose socket is gone is forgotten; frames for a port that is full are
// lost. It is made for tests and demonstrations: it allocates per frame.
type Switch struct {
	conn *net.UnixConn
	raw  syscall.RawConn
	path string
	log  *slog.Logger
	wg   sync.WaitGroup

	// Owned by serve.
	ports map[string]*unix.SockaddrUnix
	macs  map[[6]byte]string

	forwarded, flooded, lost atomic.Uint64
}

// SwitchStats counts frames: sent to the one port that has the address, sent to
// all others, and not taken by a port.
type SwitchStats struct{ Forwarded, Flooded, Lost uint64 }

// NewSwitch starts a switch whose ports send to path, which must not exist.
func NewSwitch(path string, log *slog.Logger) (*Switch, error) {
	raiseSysctl("/proc/sys/net/unix/max_dgram_qlen", queueLength)
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("virtual switch: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("virtual switch: %w", err), conn.Close())
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("virtual switch: %w", err), conn.Close())
	}
	s := &Switch{conn: conn, raw: raw, path: path, log: log, ports: make(map[string]*unix.SockaddrUnix), macs: make(map[[6]byte]string)}
	s.wg.Go(s.serve)
	return s, nil
}

// serve forwards frames until the socket is closed.
func (s *Switch) serve() {
	buf := make([]byte, MaxFrame+1)
	for {
		n, from, err := s.conn.ReadFromUnix(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			s.log.Error("virtual switch: reading", "socket", s.path, "error", err)
			return
		}
		if from == nil || from.Name == "" || !s.knows(from) || checkSize(buf[:n]) != nil {
			continue
		}
		s.forward(from.Name, buf[:n])
	}
}

// knows makes from a port unless there are too many.
func (s *Switch) knows(from *net.UnixAddr) bool {
	if s.ports[from.Name] != nil {
		return true
	}
	if len(s.ports) == maxPorts {
		return false
	}
	s.ports[from.Name] = &unix.SockaddrUnix{Name: from.Name}
	return true
}

func (s *Switch) forward(from string, frame []byte) {
	if src := source(frame); src[0]&1 == 0 {
		if _, seen := s.macs[src]; seen || len(s.macs) < maxMACs {
			s.macs[src] = from
		}
	}
	dst := destination(frame)
	if to, seen := s.macs[dst]; seen && dst[0]&1 == 0 {
		if to != from {
			s.forwarded.Add(1)
			s.sendTo(to, frame)
		}
		return
	}
	s.flooded.Add(1)
	for to := range s.ports {
		if to != from {
			s.sendTo(to, frame)
		}
	}
}

// sendTo never waits for a port: one that is stuck must not stop the others.
func (s *Switch) sendTo(to string, frame []byte) {
	var err error
	if ctlErr := s.raw.Control(func(fd uintptr) {
		err = unix.Sendto(int(fd), frame, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, s.ports[to])
	}); ctlErr != nil {
		return // closed
	}
	if err == nil {
		return
	}
	s.lost.Add(1)
	if err == unix.ECONNREFUSED || err == unix.ENOENT {
		delete(s.ports, to)
		for mac, port := range s.macs {
			if port == to {
				delete(s.macs, mac)
			}
		}
	}
}

// Stats returns a snapshot.
func (s *Switch) Stats() SwitchStats {
	return SwitchStats{Forwarded: s.forwarded.Load(), Flooded: s.flooded.Load(), Lost: s.lost.Load()}
}

// Close ends the switch and removes its socket.
func (s *Switch) Close() error {
	err := s.conn.Close()
	s.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
