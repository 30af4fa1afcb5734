package simulation

// The primary's session, what primary/link.go does: connect → hello, welcome →
// epochs out, acknowledgements in → disconnect.

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"understudy/epoch"
	"understudy/primary"
	"understudy/protocol"
)

func (p *primaryShell) sendEpoch(l *link, m sent, n epoch.Number) {
	if n != l.at.Number+1 { // an epoch before it failed: the sender gives up
		p.d.after(0, func() { l.e.fail(fmt.Errorf("epoch %d on top of %v", n, l.at)) })
		return
	}
	m.parent, m.at = l.at, p.w.position(l.at)
	if err := p.encode(&m, n); err != nil {
		p.d.after(0, func() { l.e.fail(err) })
		return
	}
	if m.verify {
		l.expects[n] = m.whole
	}
	l.at = m.at
	l.sent = append(l.sent, m.at)
	p.w.remember(m)
	if p.w.at(p.d, stepSend) {
		return
	}
	l.e.send(m)
}

func (p *primaryShell) restore() {
	for _, f := range p.inflight {
		p.pending |= f.set
	}
	p.inflight = p.inflight[:0]
}

func (p *primaryShell) connect() {
	p.attempts++
	n := p.attempts
	p.dialing = n
	greeting := hello{Version: protocol.Version, Guest: "web", Host: p.d.h.id, Generation: p.generation, Known: slices.Clone(p.known), PrintKey: p.d.key}
	failed := func(err error) {
		if !p.ended {
			if p.dialing == n {
				p.dialing = 0
			}
			p.post(primary.LinkDown{Err: err, Refused: errors.Is(err, errRefused)})
		}
	}
	p.w.dial(p.d, func(e *end, err error) {
		if err != nil {
			failed(err)
			return
		}
		e.down = failed
		e.recv = func(m any) {
			switch m := m.(type) {
			case protocol.Welcome:
				if p.dialing != n || p.ended { // given up meanwhile
					e.down = func(error) {}
					e.close()
					failed(errors.New("no session is wanted any more"))
					return
				}
				p.adopt(e, m)
			case damaged:
				_, err := m.parse(p.w)
				e.fail(err)
			case refusal:
				e.down = func(error) {}
				e.close()
				failed(errors.New("refused: " + m.reason))
			}
		}
		if p.w.at(p.d, stepHello) {
			return
		}
		e.send(greeting)
	})
}

func (p *primaryShell) adopt(e *end, m protocol.Welcome) {
	p.dialing = 0
	resumed := slices.Contains(p.known, m.At)
	if !resumed && (m.At.Number != 0 || m.At.Running != epoch.Hash{}) {
		e.down = func(error) {}
		e.close()
		p.post(primary.LinkDown{Err: fmt.Errorf("the backup stands at %v, which is not known here", m.At)})
		return
	}
	l := &link{e: e, at: m.At, sent: []epoch.Position{m.At}, expects: map[epoch.Number]memory{}}
	p.link, p.known = l, append(p.known[:0], m.At)
	e.down = func(err error) {
		if p.link == l {
			p.disconnect()
			p.post(primary.LinkDown{Err: err})
		}
	}
	e.recv = func(m any) {
		if p.link == l {
			p.receive(l, m)
		}
	}
	if p.w.at(p.d, stepLinked) || p.link != l {
		return
	}
	p.post(primary.LinkUp{Peer: p.d.h.peer.id, At: m.At, Resumed: resumed})
}

func (p *primaryShell) receive(l *link, m any) {
	if x, ok := m.(differs); ok {
		if err := p.d.set.Differ(x.d); err != nil {
			l.e.fail(err)
		}
		return
	}
	if bad, is := m.(damaged); is {
		var err error
		if m, err = bad.parse(p.w); err != nil {
			l.e.fail(err)
			return
		}
	}
	if x, ok := m.(promise); ok {
		wait, err := heard(x.wait)
		if err != nil {
			l.e.fail(err)
		} else if !p.w.at(p.d, stepPatient) && p.link == l {
			p.post(primary.Patient{For: wait})
		}
		return
	}
	a, ok := m.(ack)
	if !ok || len(l.sent) < 2 || l.sent[1] != a.at && p.w.breach != anyAckTaken {
		l.e.fail(fmt.Errorf("not the next acknowledgement: %s", show(m)))
		return
	}
	if p.w.at(p.d, stepAckReceived) || p.link != l {
		return
	}
	l.sent = l.sent[1:]
	n := a.at.Number
	p.d.set.Materialised(a.filled)
	want, asked := l.expects[n]
	delete(l.expects, n)
	if asked && want != a.image {
		p.w.images[a.at.Image].bad = true
		p.post(primary.Mismatch{Number: n})
		return
	}
	p.post(primary.Acked{Number: n})
}

// bid asks the backup for patience, in a goroutine of its own.
func (p *primaryShell) bid(wait time.Duration) {
	l, t := p.link, p.w.twisted
	switch {
	case l == nil:
		return
	case p.w.breach == bidMissing && wait > 0:
		p.later(primary.Patient{For: wait})
		return
	case p.w.faults.ownerLies && wait > 0:
		wait = protocol.MaxPatience
	}
	p.d.after(p.w.between(0, 200*time.Microsecond), func() {
		p.w.twisted = t
		l.e.send(bid{wait})
	})
}

func (p *primaryShell) disconnect() {
	p.dialing = 0
	l := p.link
	if l == nil {
		return
	}
	p.link = nil
	l.e.down = func(error) {}
	l.e.close()
	p.known = append(p.known[:0], l.sent...)
	p.d.h.known = p.known
	if p.core.Spoilt() {
		p.known = nil
	}
}
