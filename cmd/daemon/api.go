package daemon

// The status endpoint on the network, as [api] wants it on this host. It is no
// part of protecting guests: what goes wrong with it is told, tried again, and
// ends nothing else.

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"os"
	"reflect"
	"sync"
	"time"

	"understudy/config"
	"understudy/events"
	"understudy/failover"
	"understudy/status"
	"understudy/transport/pki"
)

// apiAgain is how long to wait before the endpoint is tried again.
const apiAgain = 5 * time.Second

// endpointKeeper serves the endpoint as the configuration has it, and then as it
// has it after a change. A change of anything but the address keeps the socket, so
// that nobody is refused meanwhile.
type endpointKeeper struct {
	o    Options
	self string

	mu      sync.Mutex
	now     endpointSettings
	changed chan struct{} // closed and replaced by commit
}

// endpointSettings are those of one configuration.
type endpointSettings struct {
	config *config.Config
	api    config.API
	on     bool
	opened *net.TCPListener // by prepare; nil: there was no need
	same   bool             // as what runs
}

func newEndpointKeeper(o Options, self config.Host) *endpointKeeper {
	k := &endpointKeeper{o: o, self: self.Name, changed: make(chan struct{})}
	k.now = endpointSettings{config: o.Config}
	k.now.api, k.now.on = o.Config.APIOf(self)
	return k
}

// prepare looks whether the endpoint of another configuration would be there, and
// opens its address. What it returns goes to commit, or is dropped.
func (k *endpointKeeper) prepare(ctx context.Context, next *config.Config) (endpointSettings, error) {
	self, _ := next.Host(k.self)
	e := endpointSettings{config: next}
	e.api, e.on = next.APIOf(self)
	k.mu.Lock()
	was := k.now
	k.mu.Unlock()
	if e.same = reflect.DeepEqual(e.api, was.api); e.same || !e.on {
		return e, nil
	}
	if _, err := endpoint(k.options(e), self, e.api); err != nil {
		return e, err
	}
	if !was.on || e.api.Listen != was.api.Listen {
		var err error
		if e.opened, err = openEndpoint(ctx, e.api.Listen); err != nil {
			return e, err
		}
	}
	return e, nil
}

func (e endpointSettings) drop() {
	if e.opened != nil {
		_ = e.opened.Close()
	}
}

// commit makes the endpoint what prepare has prepared.
func (k *endpointKeeper) commit(e endpointSettings) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if e.same {
		return
	}
	k.now.drop() // nobody has come to it
	k.now = e
	close(k.changed)
	k.changed = make(chan struct{})
}

// take returns the settings; an address that was opened for them is the caller's.
func (k *endpointKeeper) take() endpointSettings {
	k.mu.Lock()
	defer k.mu.Unlock()
	e := k.now
	k.now.opened = nil
	return e
}

// next is closed when there are others.
func (k *endpointKeeper) next() <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.changed
}

func (k *endpointKeeper) options(e endpointSettings) Options {
	o := k.o
	o.Config = e.config
	return o
}

// serve serves the endpoint until ctx ends, while this host has one.
func (k *endpointKeeper) serve(ctx context.Context, server *status.Server) {
	var l *net.TCPListener // open, at the address at
	at, said := "", ""
	closeIt := func() {
		if l != nil {
			_ = l.Close()
		}
		l, at = nil, ""
	}
	defer func() {
		closeIt()
		k.take().drop()
	}()
	for ctx.Err() == nil {
		changed := k.next() // asked first, so that no change is missed
		e := k.take()
		if !e.on || at != e.api.Listen || e.opened != nil {
			closeIt()
		}
		if !e.on {
			select {
			case <-changed:
			case <-ctx.Done():
			}
			continue
		}
		var err error
		switch {
		case e.opened != nil:
			l = e.opened
		case l == nil:
			l, err = openEndpoint(ctx, e.api.Listen)
		}
		if err == nil {
			at = e.api.Listen
			serving, stop := context.WithCancel(ctx)
			var watch sync.WaitGroup
			watch.Go(func() {
				select {
				case <-changed:
					stop()
				case <-serving.Done():
				}
			})
			err = k.once(serving, e, server, l)
			stop()
			watch.Wait()
		}
		select {
		case <-changed:
			continue // with the same socket, if the address is the same
		default:
		}
		closeIt()
		if err != nil && err.Error() != said && ctx.Err() == nil {
			said = err.Error()
			k.o.Slog.Error("the status endpoint on the network is not there; it is tried again", "listen", e.api.Listen, "every", apiAgain, "err", err)
		}
		select {
		case <-time.After(apiAgain):
		case <-changed:
		case <-ctx.Done():
		}
	}
}

func openEndpoint(ctx context.Context, address string) (*net.TCPListener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("listening on %s gave a %T", address, l), l.Close())
	}
	return tcp, nil
}

// once serves the endpoint on l, which it leaves open.
func (k *endpointKeeper) once(ctx context.Context, e endpointSettings, server *status.Server, l *net.TCPListener) error {
	self, _ := e.config.Host(k.self)
	made, err := endpoint(k.options(e), self, e.api)
	if err != nil {
		return err
	}
	k.o.Slog.Info("the status endpoint is up", "listen", l.Addr())
	if err := l.SetDeadline(time.Time{}); err != nil {
		return err
	}
	return server.ServeTLS(ctx, lent{l}, made)
}

// lent is a listener whose Close only ends Accept: the next one goes on with it,
// and with the connections that wait.
type lent struct{ *net.TCPListener }

// Close ends Accept.
func (l lent) Close() error { return l.SetDeadline(time.Unix(1, 0)) }

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
		c.Voters = append(c.Voters, status.Voter{Host: p.ID, Address: p.Address, Witness: p.Witness, Leader: p.ID == v.Leader && v.Leader != "", Heard: p.Heard,
			Configured: p.Configured, Member: p.Member, Votes: p.Votes})
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
