// Package status is the HTTP endpoint of one host. It listens on a Unix socket
// that only root may open; `understudy status` and the other commands of the
// operator's tool are its clients (client.go).
//
//	GET  /api/v1/status                       → Report
//	POST /api/v1/guests/NAME/switchover       → the log's new state
//	POST /api/v1/guests/NAME/stop | start     → the log's new state
//	POST /api/v1/guests/NAME/verify           → VerifyResult
//	POST /api/v1/guests/NAME/checkpoint/…     → a stream (stream.go)
//
// An error is answered with a status code that is not 2xx and {"error": "…"}.
package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"understudy/host"
	"understudy/ownership"
	"understudy/primary"
)

// Version is the release, for reports.
const Version = "0.1.0"

// MaxBody bounds requests and answers, in bytes.
const MaxBody = 4 << 20

// Operations is what the endpoint offers (package host).
type Operations interface {
	Status() []host.GuestStatus
	Switchover(ctx context.Context, guest string) (ownership.Guest, error)
	Stop(ctx context.Context, guest string) (ownership.Guest, error)
	Start(ctx context.Context, guest string) (ownership.Guest, error)
	Verify(ctx context.Context, guest string) (primary.VerifyResult, error)
	Checkpoints
}

// Report is the answer to GET /api/v1/status.
type Report struct {
	Version string             `json:"version"`
	Host    ownership.HostID   `json:"host"`
	Leader  ownership.HostID   `json:"leader"` // of the ownership log, "" if unknown
	Lease   time.Duration      `json:"lease_ns"`
	Guests  []host.GuestStatus `json:"guests"`
	// Exits lists each guest's ways out and how each is treated (RULES 27).
	Exits map[string][]Exit `json:"exits"`
}

// Exit is one way out of a guest.
type Exit struct {
	Device string `json:"device"`
	// Held: what leaves this way waits for its epoch's commit.
	Held      bool   `json:"held"`
	Treatment string `json:"treatment"`
}

// Server answers requests on a Unix socket.
type Server struct {
	ops    Operations
	static func() Report
	http   *http.Server
}

// NewServer returns a server; static fills in what does not come from ops.
func NewServer(ops Operations, static func() Report) *Server {
	s := &Server{ops: ops, static: static}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/status", s.status)
	mux.HandleFunc("POST /api/v1/guests/{guest}/switchover", s.operation(func(ctx context.Context, g string) (any, error) { return ops.Switchover(ctx, g) }))
	mux.HandleFunc("POST /api/v1/guests/{guest}/stop", s.operation(func(ctx context.Context, g string) (any, error) { return ops.Stop(ctx, g) }))
	mux.HandleFunc("POST /api/v1/guests/{guest}/start", s.operation(func(ctx context.Context, g string) (any, error) { return ops.Start(ctx, g) }))
	mux.HandleFunc("POST /api/v1/guests/{guest}/verify", s.operation(func(ctx context.Context, g string) (any, error) { return ops.Verify(ctx, g) }))
	handleCheckpoints(mux, ops)
	s.http = &http.Server{Handler: http.MaxBytesHandler(mux, MaxBody), ReadHeaderTimeout: 5 * time.Second,
		MaxHeaderBytes: 64 << 10, IdleTimeout: time.Minute}
	return s
}

// Serve listens on the socket at path until ctx ends.
func (s *Server) Serve(ctx context.Context, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("status socket: %w", err)
	}
	// A socket that a former process left behind refuses connections; a live
	// daemon's is not taken away.
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = c.Close()
		return fmt.Errorf("status socket %s: another daemon answers there", path)
	}
	if st, err := os.Lstat(path); err == nil && st.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("status socket %s: a file that is no socket is in the way", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("status socket: %w", err)
	}
	// The socket gets the mode it is bound with from its descriptor, so that
	// there is no moment in which others could open it.
	listen := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if refused := c.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), 0o600) }); refused != nil {
			return refused
		}
		return err
	}}
	l, err := listen.Listen(ctx, "unix", path)
	if err != nil {
		return fmt.Errorf("status socket: %w", err)
	}
	done := make(chan error, 1)
	go func() { done <- s.http.Serve(l) }()
	select {
	case err = <-done:
	case <-ctx.Done():
		stop, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if s.http.Shutdown(stop) != nil {
			_ = s.http.Close()
		}
		err = <-done
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("status socket: %w", err)
}

func (s *Server) status(w http.ResponseWriter, _ *http.Request) {
	r := s.static()
	r.Version, r.Guests = Version, s.ops.Status()
	answer(w, http.StatusOK, r)
}

func (s *Server) operation(f func(ctx context.Context, guest string) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := f(r.Context(), r.PathValue("guest"))
		if err != nil {
			answer(w, http.StatusConflict, map[string]string{"error": err.Error()})
			return
		}
		answer(w, http.StatusOK, v)
	}
}

func answer(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v) // the client may be gone; nobody else can be told
}
