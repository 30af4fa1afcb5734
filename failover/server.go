package failover

// server.go: the called end of the connections. One goroutine per connection
// reads requests, one per request answers it; both end with the connection.
// Who asks is taken from the connection's verified peer, and for a relayed
// request from the voter that relays it.

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"understudy/ownership"
)

// maxServing bounds the requests of one connection being answered; beyond it
// the connection is not read.
const maxServing = 256

// inbound remembers the one connection each peer has to us. A new one replaces
// the old, whose other end has certainly given it up.
type inbound struct {
	mu   sync.Mutex
	conn map[ownership.HostID]net.Conn
}

func (i *inbound) replace(peer ownership.HostID, c net.Conn) {
	i.mu.Lock()
	old := i.conn[peer]
	i.conn[peer] = c
	i.mu.Unlock()
	if old != nil {
		_ = old.Close()
	}
}

func (i *inbound) remove(peer ownership.HostID, c net.Conn) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.conn[peer] == c {
		delete(i.conn, peer)
	}
}

func (n *Node) serve(c net.Conn, peer ownership.HostID) {
	n.inbound.replace(peer, c)
	defer n.inbound.remove(peer, c)
	ctx, cancel := context.WithCancel(n.ctx)
	s := &serving{n: n, c: c, peer: peer, slots: make(chan struct{}, maxServing), cancels: map[uint64]context.CancelFunc{}}
	err := s.read(ctx)
	cancel()
	_ = c.Close()
	s.wg.Wait()
	if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) && n.ctx.Err() == nil {
		n.log.Info("ended a peer's connection", "peer", peer, "err", err)
	}
}

type serving struct {
	n     *Node
	c     net.Conn
	peer  ownership.HostID
	slots chan struct{}
	wg    sync.WaitGroup
	write sync.Mutex

	mu      sync.Mutex
	cancels map[uint64]context.CancelFunc
}

func (s *serving) read(ctx context.Context) error {
	r := bufio.NewReader(s.c)
	for {
		f, err := readFrame(r)
		if err != nil {
			return err
		}
		if f.kind == kindCancel {
			s.mu.Lock()
			if cancel := s.cancels[f.id]; cancel != nil {
				cancel()
			}
			s.mu.Unlock()
			continue
		}
		req, err := decodeRequest(f)
		if err != nil {
			return err
		}
		select {
		case s.slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		rctx, cancel := context.WithTimeout(ctx, req.Timeout)
		s.mu.Lock()
		s.cancels[f.id] = cancel
		s.mu.Unlock()
		s.wg.Go(func() {
			a := s.n.handle(rctx, s.peer, f.kind, req)
			s.mu.Lock()
			delete(s.cancels, f.id)
			s.mu.Unlock()
			cancel()
			<-s.slots
			s.answer(f.id, a)
		})
	}
}

// maxText bounds the text of an answer, in bytes.
const maxText = 4096

func (s *serving) answer(id uint64, a answer) {
	if len(a.Text) > maxText {
		a.Text = a.Text[:maxText]
	}
	f, err := encodeFrame(kindAnswer, id, a)
	if err == nil {
		s.write.Lock()
		defer s.write.Unlock()
		if err = s.c.SetWriteDeadline(time.Now().Add(greetTimeout)); err == nil {
			_, err = s.c.Write(f)
		}
	}
	if err != nil {
		_ = s.c.Close() // the reader ends, and with it everything else
	}
}

// handle answers a request of a verified peer, which may be this node itself.
func (n *Node) handle(ctx context.Context, peer ownership.HostID, k kind, req request) answer {
	received := n.cfg.Clock.Now()
	who := peer
	if req.Origin != "" {
		// Only a voter gets here, and raft trusts voters anyway: a relay is
		// believed when it says whose connection a request came from.
		if !n.isPeer(req.Origin) && req.Origin != n.cfg.Self {
			return answer{Code: codeRefused, Text: "relayed for " + string(req.Origin) + ", which is no voter"}
		}
		who = req.Origin
	}
	switch k {
	case kindConfirm:
		if !n.transport.admitted.Load() {
			// It may have voted for another, and forgotten it.
			return answer{Code: codeLater, Text: "this voter's log has not been filled yet"}
		}
		return answer{Code: codeOK, Term: n.raft.CurrentTerm()}
	case kindStatus:
		return n.status(req)
	}
	r, err := n.reigns.wait(ctx)
	if err != nil {
		hint := n.Leader()
		if req.Relay && hint != "" && hint != n.cfg.Self && hint != peer {
			return n.relay(ctx, hint, who, k, req)
		}
		return answer{Code: codeNotLeader, Leader: hint, Text: err.Error()}
	}
	switch k {
	case kindRenew:
		return r.renew(ctx, who, req, received)
	case kindPropose:
		return r.propose(ctx, who, req)
	case kindRead:
		return r.read(ctx, req)
	case kindSession:
		return r.session(ctx, who, req)
	case kindLease:
		return r.setLease(ctx, req)
	case kindMembers:
		return r.changeMembers(ctx, req)
	}
	return answer{Code: codeRefused, Text: "unknown kind of request"}
}

// relay passes a request on to the leader, in the name of the peer whose
// connection it came by. It is passed on once only.
func (n *Node) relay(ctx context.Context, leader, who ownership.HostID, k kind, req request) answer {
	req.Relay, req.Origin = false, who
	l := n.link(leader)
	if l == nil {
		return answer{Code: codeNotLeader, Text: "relayed by " + string(n.cfg.Self) + ": the leader, " + string(leader) + ", is not known here"}
	}
	a, err := l.call(ctx, k, req)
	switch {
	case err == nil:
		return a
	case errors.Is(err, errNotSent):
		return answer{Code: codeNotLeader, Text: "relayed by " + string(n.cfg.Self) + ": " + err.Error()}
	default:
		return answer{Code: codeUnknown, Text: "relayed by " + string(n.cfg.Self) + ": " + err.Error()}
	}
}
