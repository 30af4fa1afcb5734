package daemon

// The status endpoint on the network, as [api] wants it on this host. It is no
// part of protecting guests: what goes wrong with it is told, tried again, and
// ends nothing else.

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net"
	"os"
	"time"

	"understudy/config"
	"understudy/events"
	"understudy/failover"
	"understudy/status"
	"understudy/transport/pki"
)

// apiAgain is how long to wait before the endpoint is tried again.
const apiAgain = 5 * time.Second

// serveAPI serves the endpoint until ctx ends, if this host has one.
func serveAPI(ctx context.Context, o Options, self config.Host, server *status.Server) {
	api, on := o.Config.APIOf(self)
	if !on {
		return
	}
	said := ""
	for ctx.Err() == nil {
		err := serveAPIOnce(ctx, o, self, api, server)
		if ctx.Err() != nil {
			return
		}
		if err != nil && err.Error() != said {
			said = err.Error()
			o.Slog.Error("the status endpoint on the network is not there; it is tried again", "listen", api.Listen, "every", apiAgain, "err", err)
		}
		select {
		case <-time.After(apiAgain):
		case <-ctx.Done():
		}
	}
}

func serveAPIOnce(ctx context.Context, o Options, self config.Host, api config.API, server *status.Server) error {
	e, err := endpoint(o, self, api)
	if err != nil {
		return err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", api.Listen)
	if err != nil {
		return err
	}
	o.Slog.Info("the status endpoint is up", "listen", l.Addr())
	return server.ServeTLS(ctx, l, e)
}

func endpoint(o Options, self config.Host, api config.API) (status.Endpoint, error) {
	dir := o.Config.DirsOf(self).TLS
	cert, key := api.Cert, api.Key
	if cert == "" {
		cert, key = pki.CertificateFile(dir, self.Name), pki.KeyFile(dir, self.Name)
	}
	e := status.Endpoint{Readers: api.Readers, Operators: api.Operators, Tokens: api.Tokens}
	switch api.Anonymous {
	case config.AnonymousHealth:
		e.Anonymous = status.Health
	case config.AnonymousRead:
		e.Anonymous = status.Read
	}
	var err error
	if e.Certificate, err = status.CertificateFiles(cert, key, o.Slog); err != nil {
		return e, err
	}
	if len(api.Readers)+len(api.Operators) > 0 {
		ca := api.ClientCA
		if ca == "" {
			ca = pki.AuthorityFile(dir)
		}
		e.ClientCAs, err = readAuthorities(ca)
	}
	return e, err
}

// maxAuthorities bounds a file of certificates, in bytes.
const maxAuthorities = 1 << 20

func readAuthorities(path string) (*x509.CertPool, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("authority of clients' certificates: %w", err)
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxAuthorities+1))
	if err != nil {
		return nil, fmt.Errorf("authority of clients' certificates %s: %w", path, err)
	}
	pool := x509.NewCertPool()
	if len(text) > maxAuthorities || !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("authority of clients' certificates: %s holds none in PEM, or more than %d bytes", path, maxAuthorities)
	}
	return pool, nil
}

// clusterOf is a voter's view as the endpoint tells it.
func clusterOf(v failover.View) status.Cluster {
	c := status.Cluster{Host: v.Self, Leader: v.Leader, Leads: v.Leads, Term: v.Term,
		Last: v.Last, Committed: v.Committed, Applied: v.Applied, Contact: v.Contact, Voters: make([]status.Voter, 0, len(v.Voters))}
	for _, p := range v.Voters {
		c.Voters = append(c.Voters, status.Voter{Host: p.ID, Address: p.Address, Witness: p.Witness, Leader: p.ID == v.Leader && v.Leader != "", Heard: p.Heard})
	}
	return c
}

// told is the host's record of events as the endpoint tells of it.
type told struct{ log *events.Log }

func (t told) Since(seq uint64, guest, kind string, limit int) []status.Event {
	return eventsOf(t.log.Since(seq, filterOf(guest, kind), limit))
}

func (t told) Newest(guest, kind string, limit int) []status.Event {
	return eventsOf(t.log.Newest(limit, filterOf(guest, kind)))
}

func (t told) Follow(ctx context.Context, seq uint64, guest, kind string) iter.Seq[status.Event] {
	return func(yield func(status.Event) bool) {
		for e := range t.log.Follow(ctx, seq, filterOf(guest, kind)) {
			if one := eventsOf([]events.Event{e}); len(one) == 1 && !yield(one[0]) {
				return
			}
		}
	}
}

func filterOf(guest, kind string) events.Filter {
	f := events.Filter{Guest: guest}
	if kind != "" {
		f.Kinds = []events.Kind{events.Kind(kind)}
	}
	return f
}

func eventsOf(all []events.Event) []status.Event {
	out := make([]status.Event, 0, len(all))
	for _, e := range all {
		text, err := json.Marshal(e)
		if err != nil {
			continue // a time that JSON cannot express; the record refuses it, too
		}
		out = append(out, status.Event{Seq: e.Seq, JSON: text})
	}
	return out
}
