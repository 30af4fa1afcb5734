package status

// Hosts ask each other. The pair's own port carries this endpoint, too, for the
// hosts of the configuration, each known by its certificate: they may ask
// everything, as who asks on the Unix socket may (ServePeers). So whoever reaches
// one host reaches all of them:
//
//	ANY /api/v1/hosts/HOST/PATH   PATH, asked of that host
//
// and what only a guest's owner can do is sent on to it (toOwner). Nothing goes
// further than one hop: a request that came from a host is answered here, or
// refused.
//
// A request is sent on with its body, read here within the same bounds as any;
// the answer comes back as it comes, event streams and lines of progress too.
// Neither a silent peer, nor an endless one, nor a client that does not read
// holds more than one goroutine and one small buffer, and that for a bounded
// time, but for an operation, which takes as long as it takes and ends with its
// client.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"understudy/ownership"
)

// Peers are the hosts of the configuration.
type Peers interface {
	// Hosts lists them, this one included.
	Hosts() []ownership.HostID
	// Client returns a client of a host's daemon, of this one's, too.
	Client(host ownership.HostID) (*Client, error)
}

const (
	maxPeerConns      = 128              // connections of other hosts
	maxPeerConnsOfOne = 48               // … of one of them
	passTime          = 10 * time.Second // for a host's answer that changes nothing
	maxSilence        = 3 * stillHere    // … of its stream of events
	hostsPath         = "/api/v1/hosts/"
)

// peerKey is of the name, in a request's context, of the host it came from.
type peerKey struct{}

// cameFrom returns the host that a request came from, "" for none.
func cameFrom(r *http.Request) ownership.HostID {
	h, _ := r.Context().Value(peerKey{}).(ownership.HostID)
	return h
}

// ServePeers answers other hosts on l, which it closes, until ctx ends. name
// tells which host, verified, a connection of l is to.
func (s *Server) ServePeers(ctx context.Context, l net.Listener, name func(net.Conn) ownership.HostID) error {
	identify := func(r *http.Request) (who, *denial) {
		return who{level: Root, name: "host " + string(cameFrom(r))}, nil
	}
	server := s.boundedServer(identify, MaxBody)
	server.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if p, ok := c.(*boundedConn[ownership.HostID]); ok {
			ctx = context.WithValue(ctx, peerKey{}, p.from)
		}
		return ctx
	}
	bounded := newBoundedListener(l, maxPeerConns, maxPeerConnsOfOne, func(c net.Conn) (ownership.HostID, bool) {
		host := name(c)
		return host, host != ""
	})
	if err := runServer(ctx, server, func() error { return server.Serve(bounded) }); err != nil {
		return fmt.Errorf("the endpoint for other hosts: %w", err)
	}
	return nil
}

func (s *Server) peerRoutes() []route {
	return []route{
		{"GET /api/v1/hosts", Read, s.hosts},
		{"GET /api/v1/hosts/{host}/{path...}", Read, s.askHost},
		{"POST /api/v1/hosts/{host}/{path...}", Operate, s.askHost},
		{"DELETE /api/v1/hosts/{host}/{path...}", Operate, s.askHost},
	}
}

// HostList is the answer to GET /api/v1/hosts.
type HostList struct {
	Host  ownership.HostID   `json:"host"` // who answers
	Hosts []ownership.HostID `json:"hosts"`
}

func (s *Server) hosts(w http.ResponseWriter, _ *http.Request) {
	list := HostList{Host: s.Report().Host}
	if list.Hosts = []ownership.HostID{list.Host}; s.Peers != nil {
		list.Hosts = s.Peers.Hosts()
	}
	answer(w, http.StatusOK, list)
}

// askHost answers ANY /api/v1/hosts/HOST/PATH.
func (s *Server) askHost(w http.ResponseWriter, r *http.Request) {
	host := ownership.HostID(r.PathValue("host"))
	_, path, _ := strings.Cut(strings.TrimPrefix(r.URL.EscapedPath(), hostsPath), "/")
	at, err := url.Parse("/" + path)
	if err != nil || at.Host != "" || strings.HasPrefix(at.Path, hostsPath) {
		refuse(w, http.StatusLoopDetected, fmt.Sprintf("%.200q is not asked of host %.40q: one host is asked through another, and no further", "/"+path, host))
		return
	}
	at.RawQuery = r.URL.RawQuery
	inner := r.Clone(r.Context())
	inner.URL, inner.RequestURI, inner.Pattern = at, at.RequestURI(), ""
	// What is known here to need more than reading needs that there, too. What is
	// not known here may be anything.
	_, pattern := s.mux.Handler(inner)
	need, known := s.need[pattern]
	if !known {
		need = Root
	}
	if asks := asking(r); asks.level < need {
		forbid(w, asks, need)
		return
	}
	self := s.Report().Host
	switch {
	case host == self && known:
		s.mux.ServeHTTP(w, inner)
	case host == self:
		find, _ := s.mux.Handler(inner)
		s.elsewhere(w, inner, find)
	default:
		s.pass(w, inner, host)
	}
}

// ownersOwn are the operations that only the host that runs a guest can do.
var ownersOwn = [...]string{"switchover", "stop", "verify", "checkpoint/save", "pause", "resume", "protect", "unprotect", "failback"}

// toOwner makes a route's handler send its request on to the guest's owner, if
// that is another host.
func (s *Server) toOwner(r route) route {
	operation, ok := strings.CutPrefix(r.pattern, "POST /api/v1/guests/{guest}/")
	if !ok || !slices.Contains(ownersOwn[:], operation) {
		return r
	}
	here := r.serve
	r.serve = func(w http.ResponseWriter, req *http.Request) {
		if owner := s.ownerElsewhere(req.PathValue("guest")); owner != "" && cameFrom(req) == "" {
			s.pass(w, req, owner)
			return
		}
		here(w, req)
	}
	return r
}

// ownerElsewhere returns the other host that owns a guest, as far as it is known
// here; "" if this one runs it, or nothing is known.
func (s *Server) ownerElsewhere(guest string) ownership.HostID {
	if s.Peers == nil || s.Owner == nil {
		return ""
	}
	for _, g := range s.Operations.Status() {
		if g.Name == guest && g.Primary != nil {
			return ""
		}
	}
	if owner := s.Owner(guest); owner != s.Report().Host {
		return owner
	}
	return ""
}

// pass asks a request of another host, and answers with its answer.
func (s *Server) pass(w http.ResponseWriter, r *http.Request, host ownership.HostID) {
	if from := cameFrom(r); from != "" {
		refuse(w, http.StatusLoopDetected, fmt.Sprintf("host %s asks this one for what host %.40q has to answer: ask that one", from, host))
		return
	}
	if s.Peers == nil {
		refuse(w, http.StatusNotFound, "other hosts cannot be asked through this one")
		return
	}
	client, err := s.Peers.Client(host)
	if err != nil {
		refuse(w, http.StatusNotFound, err.Error())
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		code := http.StatusBadRequest
		if tooLong := new(http.MaxBytesError); errors.As(err, &tooLong) {
			code = http.StatusRequestEntityTooLarge
		}
		refuse(w, code, fmt.Sprintf("the request's body: %v", err))
		return
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	patience := time.AfterFunc(passTime, func() { cancel(errSlow) })
	defer patience.Stop()
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		forget := context.AfterFunc(ending(ctx), func() { cancel(nil) })
		defer forget()
	} else {
		patience.Stop() // an operation takes as long as it takes
	}
	resp, err := client.ask(ctx, r.Method, r.URL.RequestURI(), body, passed(r.Header, "Accept", "Content-Type", "Last-Event-Id"))
	switch {
	case err != nil && errors.Is(context.Cause(ctx), errSlow):
		refuse(w, http.StatusGatewayTimeout, fmt.Sprintf("host %s has not answered within %v", host, passTime))
		return
	case err != nil && r.Method == http.MethodPost:
		refuse(w, http.StatusBadGateway, fmt.Sprintf("this is for host %s to do, and whether it did is not known: %v", host, err))
		return
	case err != nil:
		refuse(w, http.StatusBadGateway, err.Error())
		return
	}
	defer func() { _ = resp.Body.Close() }()
	for name, values := range passed(resp.Header, "Content-Type", "Retry-After", "X-Accel-Buffering", "Allow") {
		w.Header()[name] = values
	}
	w.WriteHeader(resp.StatusCode)
	limit, more := MaxBody, func() {}
	switch kind := resp.Header.Get("Content-Type"); {
	case strings.HasPrefix(kind, "text/event-stream"):
		more = func() { patience.Reset(maxSilence) }
		limit = 0
	case strings.HasPrefix(kind, "application/x-ndjson"):
		patience.Stop()
		limit = 0
	}
	if !relay(w, resp.Body, limit, more) {
		panic(http.ErrAbortHandler) // half an answer must not look like a whole one
	}
}

var errSlow = errors.New("the host is slow")

// passed are the headers that go through. No others do: tokens and cookies are
// for this endpoint, and what is between two hops ends here.
func passed(h http.Header, names ...string) http.Header {
	out := http.Header{}
	for _, name := range names {
		if values := h.Values(name); len(values) > 0 {
			out[http.CanonicalHeaderKey(name)] = values
		}
	}
	return out
}

// relay copies an answer as it comes and calls more at each part; false if it
// broke off, or has more than limit bytes, where that is not 0.
func relay(w http.ResponseWriter, body io.Reader, limit int, more func()) bool {
	buffer := make([]byte, 16<<10)
	flush := http.NewResponseController(w)
	for sent := 0; ; {
		more()
		n, err := body.Read(buffer)
		if n > 0 {
			if sent += n; limit > 0 && sent > limit {
				return false
			}
			hurry(w)
			if _, gone := w.Write(buffer[:n]); gone != nil {
				return false
			}
			_ = flush.Flush() // its failure is the next write's
		}
		switch {
		case errors.Is(err, io.EOF):
			return true
		case err != nil:
			return false
		}
	}
}
