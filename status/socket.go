package status

// The Unix socket, which only root may open: who gets there may ask everything.

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// everything is the access of the Unix socket.
func everything(*http.Request) (who, *denial) { return who{level: Root, name: "root"}, nil }

// Serve listens on the socket at path until ctx ends.
func (s *Server) Serve(ctx context.Context, path string) error {
	l, err := listenUnix(ctx, path)
	if err != nil {
		return fmt.Errorf("status socket: %w", err)
	}
	if err := runServer(ctx, s.unix, func() error { return s.unix.Serve(l) }); err != nil {
		return fmt.Errorf("status socket: %w", err)
	}
	return nil
}

func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	// A socket that a former process left behind refuses connections; a live
	// daemon's is not taken away.
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = c.Close()
		return nil, fmt.Errorf("%s: another daemon answers there", path)
	}
	if st, err := os.Lstat(path); err == nil && st.Mode().Type() != os.ModeSocket {
		return nil, fmt.Errorf("%s: a file that is no socket is in the way", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	// The socket gets the mode it is bound with from its descriptor, so that
	// there is no moment in which others could open it.
	listen := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if refused := c.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), 0o600) }); refused != nil {
			return refused
		}
		return err
	}}
	return listen.Listen(ctx, "unix", path)
}

// endingKey is of the context in a request's that ends as soon as the server
// is to: a stream then ends at once, an operation is given its time.
type endingKey struct{}

func ending(ctx context.Context) context.Context {
	if e, ok := ctx.Value(endingKey{}).(context.Context); ok {
		return e
	}
	return ctx
}

// runServer runs a server until ctx ends.
func runServer(ctx context.Context, server *http.Server, run func() error) error {
	requests, end := context.WithCancel(context.WithValue(context.Background(), endingKey{}, ctx))
	defer end()
	server.BaseContext = func(net.Listener) context.Context { return requests }
	done := make(chan error, 1)
	go func() { done <- run() }()
	var err error
	ended := false
	select {
	case err = <-done:
		ended = true // its listener may end with ctx, and before it
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if server.Shutdown(stop) != nil {
		_ = server.Close()
	}
	if !ended {
		err = <-done
	}
	if ctx.Err() != nil && errors.Is(err, net.ErrClosed) {
		return nil
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
