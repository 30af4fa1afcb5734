package status

// What every endpoint that is reached over a network has in common: bounds on the
// connections, in all and of one client, and on the time and the bytes of a request.

import (
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	maxHeader  = 16 << 10 // bytes of a request's header
	headerTime = 5 * time.Second
	bodyTime   = 15 * time.Second
	idleTime   = 30 * time.Second
)

// boundedServer answers those whom identify knows, with bodies of at most maxBody
// bytes.
func (s *Server) boundedServer(identify func(*http.Request) (who, *denial), maxBody int64) *http.Server {
	return &http.Server{
		Handler:           http.MaxBytesHandler(s.handler(identify), maxBody),
		ReadHeaderTimeout: headerTime, ReadTimeout: bodyTime, IdleTimeout: idleTime, MaxHeaderBytes: maxHeader,
		// Whoever wants to can fill a log with failed handshakes.
		ErrorLog: slog.NewLogLogger(s.Slog.Handler(), slog.LevelDebug),
	}
}

// boundedListener closes connections beyond its bounds as they come. K is what
// counts as one client.
type boundedListener[K comparable] struct {
	net.Listener
	// client says whose a connection is; false: nobody's who is let in.
	client          func(net.Conn) (K, bool)
	most, mostOfOne int

	mu  sync.Mutex
	all int
	by  map[K]int
}

func newBoundedListener[K comparable](l net.Listener, most, mostOfOne int, client func(net.Conn) (K, bool)) *boundedListener[K] {
	return &boundedListener[K]{Listener: l, client: client, most: most, mostOfOne: mostOfOne, by: map[K]int{}}
}

// Accept returns a *boundedConn[K].
func (l *boundedListener[K]) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from, known := l.client(c)
		l.mu.Lock()
		room := known && l.all < l.most && l.by[from] < l.mostOfOne
		if room {
			l.all++
			l.by[from]++
		}
		l.mu.Unlock()
		if room {
			return &boundedConn[K]{Conn: c, of: l, from: from}, nil
		}
		_ = c.Close()
	}
}

// boundedConn is a connection that is counted. It is no *tls.Conn, in which
// net/http would look for a protocol of its own.
type boundedConn[K comparable] struct {
	net.Conn
	of   *boundedListener[K]
	from K
	once sync.Once
}

func (c *boundedConn[K]) Close() error {
	c.once.Do(func() {
		c.of.mu.Lock()
		defer c.of.mu.Unlock()
		c.of.all--
		if c.of.by[c.from]--; c.of.by[c.from] == 0 {
			delete(c.of.by, c.from)
		}
	})
	return c.Conn.Close()
}
