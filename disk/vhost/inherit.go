package vhost

// This file passes a hypervisor's connection on to the next process. While its
// guest stands still nothing is on its way through it, and a hypervisor sets
// everything up anew when the guest goes on: features, memory, requests in flight,
// rings (session.go has what QEMU leaves out). So the connection alone is enough,
// and the hypervisor does not notice; else it would come back only after a second.

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Keep returns another descriptor of the hypervisor's connection, nil if there is
// none. The guest must stand still, and the Server be closed before it goes on;
// the hypervisor does not notice that. The caller closes the descriptor.
func (s *Server) Keep() (*os.File, error) {
	s.mu.Lock()
	conn := s.conn
	s.mu.Unlock()
	if conn == nil || !s.Connected() {
		return nil, nil
	}
	if !s.Stopped() {
		return nil, fmt.Errorf("keeping the connection to %s: the guest runs", s.cfg.Path)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("keeping the connection to %s: %w", s.cfg.Path, err)
	}
	fd := -1
	var dupErr error
	err = raw.Control(func(old uintptr) { fd, dupErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
	if err = errors.Join(err, dupErr); err != nil {
		return nil, fmt.Errorf("keeping the connection to %s: %w", s.cfg.Path, err)
	}
	return os.NewFile(uintptr(fd), s.cfg.Path), nil
}

// inherit begins with the connection that a former process has kept, if there is
// one. The accept loop calls it.
func (s *Server) inherit() *net.UnixConn {
	file := s.cfg.Inherited
	if file == nil {
		return nil
	}
	c, err := net.FileConn(file)
	err = errors.Join(err, file.Close())
	conn, ok := c.(*net.UnixConn)
	if err != nil || !ok {
		s.log.Warn("the hypervisor's connection was not inherited: it has to come back", "socket", s.cfg.Path, "error", err)
		return nil
	}
	return conn
}
