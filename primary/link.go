package primary

// This file is the session to the backup.
//
//	connect: the guest can be paused → dial → Hello → Welcome → link
//	send:    job → encoder → Begin, Chunk…, End      (one goroutine a link)
//	receive: Ack → Acked | Mismatch                   (one goroutine a link)
//	compare: hashes of the disks, see outgoing.go     (one goroutine, for a while)
//
// The loop owns the link: it makes it in linkEvent and ends it, with both its
// goroutines, in disconnect. A link that fails says so once and from then on
// only gives slabs back.

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	"understudy/crashpoint"
	"understudy/epoch"
	"understudy/hypervisor"
	"understudy/ownership"
	"understudy/protocol"
)

// handshakeTime bounds dialing and the exchange of Hello and Welcome. The
// backup starts its waiting machine meanwhile.
const handshakeTime = 30 * time.Second

// helloPiece is how many bytes of a Hello one message carries.
const helloPiece = 256 << 10

// link is an open session with a backup whose image is known.
type link struct {
	p       *Primary
	session protocol.Session
	peer    ownership.HostID
	welcome protocol.Welcome
	jobs    chan *job
	asked   chan struct{} // one for each message with hashes that waits for its answer
	sources sources
	ctx     context.Context
	cancel  context.CancelFunc
	workers sync.WaitGroup
	failure sync.Once

	mu      sync.Mutex
	sent    []epoch.Position // the last acknowledged position, then those in flight
	expects map[epoch.Number]expect
}

// expect is the hash that the backup's image must have after an epoch.
type expect struct {
	verify protocol.Verify
	hash   epoch.Hash
}

// linkEvent is an event that belongs to one link, or a fresh link.
type linkEvent struct {
	from  *link
	fresh *link
	ev    Event
}

// connect opens a session in the background. It answers with one event, also
// when it is cancelled.
func (p *Primary) connect(ctx context.Context) {
	dialing, cancel := context.WithCancel(ctx)
	p.dialing = cancel
	hello := protocol.Hello{
		Version: protocol.Version, Guest: p.cfg.Guest, Host: p.cfg.Self,
		Generation: epoch.Generation(p.generation.Load()), Spec: p.Guest.Spec(), Known: slices.Clone(p.known),
		PrintKey: p.cfg.PrintKey, Disks: p.cfg.Disks,
	}
	p.start(ctx, func(ctx context.Context) {
		e := linkEvent{}
		l, err := p.handshake(dialing, hello)
		if err != nil {
			cancel()
			e.ev = LinkDown{Err: err, Refused: errors.Is(err, syscall.ECONNREFUSED)}
		} else {
			l.ctx, l.cancel = dialing, cancel
			e.fresh = l
		}
		select {
		case p.linked <- e:
		case <-ctx.Done():
			if l != nil {
				_ = l.session.Close()
			}
		}
	})
}

func (p *Primary) handshake(ctx context.Context, hello protocol.Hello) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	if g, boots := p.Guest.(hypervisor.Booting); boots {
		if err := g.Ready(); err != nil {
			return nil, err
		}
	}
	s, peer, err := p.Dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("dial the backup: %w", err)
	}
	// Touching the capture memory takes a while: here nobody waits for it. Without a
	// backup it is not done: after a failover the guest has a better use for the time.
	if err := p.memory.touch(); err != nil {
		_ = s.Close()
		return nil, err
	}
	w, err := greet(ctx, s, hello)
	if err != nil {
		_ = s.Close()
		return nil, fmt.Errorf("handshake with backup %s: %w", peer, err)
	}
	return &link{p: p, session: s, peer: peer, welcome: w, jobs: make(chan *job, maxWindow),
		asked: make(chan struct{}, comparing), expects: make(map[epoch.Number]expect)}, nil
}

func greet(ctx context.Context, s protocol.Session, hello protocol.Hello) (protocol.Welcome, error) {
	b, err := protocol.EncodeHello(hello)
	if err != nil {
		return protocol.Welcome{}, err
	}
	crashpoint.At(crashpoint.Hello)
	err = protocol.Pieces(b, helloPiece, func(piece []byte) error { return s.Send(ctx, protocol.KindHello, piece) })
	if err != nil {
		return protocol.Welcome{}, err
	}
	m, err := s.Receive(ctx)
	if err != nil {
		return protocol.Welcome{}, err
	}
	defer m.Release()
	switch m.Kind {
	case protocol.KindWelcome:
		return protocol.ParseWelcome(m.Payload)
	case protocol.KindRefuse:
		return protocol.Welcome{}, fmt.Errorf("refused: %s", protocol.ParseRefuse(m.Payload))
	}
	return protocol.Welcome{}, fmt.Errorf("message kind %d instead of a welcome", m.Kind)
}

// linkEvent turns what the link says into an event of the core.
func (p *Primary) linkEvent(l linkEvent) Event {
	switch {
	case l.fresh != nil:
		if p.dialing == nil { // given up meanwhile
			_ = l.fresh.session.Close()
			return LinkDown{Err: errors.New("no session is wanted any more")}
		}
		return p.adopt(l.fresh)
	case l.from != nil:
		if down, ok := l.ev.(LinkDown); ok {
			p.disconnect(down.Err)
		}
	default:
		p.dialing = nil
		p.stats.linkError(l.ev.(LinkDown).Err)
	}
	return l.ev
}

// adopt makes a fresh link the current one.
func (p *Primary) adopt(l *link) Event {
	p.dialing = nil
	at := l.welcome.At
	resumed := slices.Contains(p.known, at)
	if !resumed && (at.Number != 0 || at.Running != epoch.Hash{}) {
		_ = l.session.Close()
		l.cancel()
		err := fmt.Errorf("the backup stands at %v, which this primary does not know", at)
		p.stats.linkError(err)
		return LinkDown{Err: err}
	}
	p.link = l
	p.known = append(p.known[:0], at)
	l.sent = append(l.sent, at)
	p.encoder.Forget() // the backup's pages are what it says, not what we sent
	p.Disks.BackupHas(l.welcome.Boot)
	l.workers.Add(2)
	go l.sendLoop()
	go l.receiveLoop()
	p.stats.connected(l.peer, at.Image, l.session)
	return LinkUp{Peer: l.peer, At: at, Resumed: resumed}
}

// disconnect ends the link, if there is one, and waits for its goroutines.
func (p *Primary) disconnect(why error) {
	if p.dialing != nil {
		p.dialing()
		p.dialing = nil
	}
	l := p.link
	if l == nil {
		return
	}
	p.Slog.Info("session to the backup closed", "backup", l.peer, "why", why)
	p.stats.linkError(why)
	p.link = nil
	_ = l.session.Close()
	l.cancel()
	close(l.jobs)
	l.workers.Wait()
	p.known = append(p.known[:0], l.sent...)
	if len(p.known) > protocol.MaxKnown {
		p.known = p.known[len(p.known)-protocol.MaxKnown:]
	}
	if p.core.Spoilt() {
		p.known = p.known[:0] // never to be continued from
	}
	p.verifies.rewind()
}

// take queues an epoch for sending. There is always room: fewer epochs are in
// flight than jobs can hold.
func (l *link) take(j *job) { l.jobs <- j }

// device returns a buffer for a device state.
func (l *link) device() []byte {
	select {
	case b := <-l.p.devices:
		return b
	default:
		return make([]byte, 0, 128<<10)
	}
}

// fail tells the loop, once, that the link is broken.
func (l *link) fail(err error) {
	l.failure.Do(func() {
		_ = l.session.Close() // so that the other goroutine fails as well
		select {
		case l.p.linked <- linkEvent{from: l, ev: LinkDown{Err: err}}:
		case <-l.ctx.Done():
		}
	})
}

// sendLoop encodes and sends each job. After a failure it goes on to give the
// slabs back, for a capture may be waiting for them.
func (l *link) sendLoop() {
	defer l.workers.Done()
	at := l.welcome.At
	var failed error
	for j := range l.jobs {
		if failed == nil {
			if at, failed = l.sendEpoch(j, at); failed != nil {
				l.p.encoder.Abort()
				// The loop may be inside a capture: it must not be waited for
				// before the slabs are back.
				l.workers.Add(1)
				go func(err error) { defer l.workers.Done(); l.fail(err) }(failed)
			}
		}
		for b := range j.slabs {
			l.p.memory.put(b)
		}
		select {
		case l.p.devices <- j.device:
		default:
		}
	}
}

// sendEpoch sends one epoch on top of the position at and returns the new one.
func (l *link) sendEpoch(j *job, at epoch.Position) (epoch.Position, error) {
	h := epoch.Header{Kind: j.kind, Number: j.number, Parent: at,
		Generation: epoch.Generation(l.p.generation.Load()), Pages: l.p.Guest.Pages()}
	if j.number != at.Number+1 {
		return at, fmt.Errorf("epoch %d on top of %v", j.number, at)
	}
	meter := l.p.effort.start(l.p.Clock)
	send := func(kind uint8, b []byte) error {
		meter.pause()
		err := l.session.Send(l.ctx, kind, b)
		meter.resume()
		return err
	}
	if err := send(protocol.KindBegin, protocol.AppendBegin(nil, j.verify, h.AppendTo(nil))); err != nil {
		return at, err
	}
	enc := l.p.encoder
	enc.SetEffort(meter.effort(*l.p.compression.Load()))
	if err := enc.Begin(h, func(chunk []byte) error { return send(protocol.KindChunk, chunk) }); err != nil {
		return at, err
	}
	sealed, diskState, err := l.sealed(j)
	if err != nil {
		return at, err
	}
	l.sources.begin(l.p.Disks.Encoding(j.number), j.pages, sealed)
	enc.SetExcluder(&l.sources)
	for b := range j.slabs {
		data := b.data
		for _, r := range b.runs {
			size := int(r.pages) * epoch.PageSize
			// Pages that need not travel send nothing that could fail: the loop,
			// which waits for us at the end of a session, would wait for them all.
			err := l.ctx.Err()
			if err == nil {
				l.sources.keep(r.first, data[:size])
				err = enc.Pages(r.first, data[:size])
			}
			if err != nil {
				l.p.memory.put(b)
				return at, err
			}
			data = data[size:]
		}
		l.p.memory.put(b)
	}
	if j.failed {
		return at, errors.New("the capture of the epoch failed half-way")
	}
	writes, err := l.writes(j, sealed)
	if err != nil {
		return at, err
	}
	if err := enc.Writes(writes, l.sources.equal); err != nil {
		return at, err
	}
	if j.kind == epoch.KindCheckpoint {
		if err := enc.DeviceState(j.device); err != nil {
			return at, err
		}
	}
	if len(diskState) > 0 {
		if err := enc.DiskState(diskState); err != nil {
			return at, err
		}
	}
	trailer, next, stats, err := enc.End()
	if err != nil {
		return at, err
	}
	l.mu.Lock()
	l.sent = append(l.sent, next)
	if j.verify.Count > 0 {
		l.expects[j.number] = expect{j.verify, j.hash}
	}
	l.mu.Unlock()
	if err := send(protocol.KindEnd, trailer.AppendTo(nil)); err != nil {
		return at, err
	}
	crashpoint.At(crashpoint.Sent)
	l.p.stats.sent(stats)
	meter.done(stats)
	return next, nil
}

// receiveLoop reads the backup's acknowledgements.
func (l *link) receiveLoop() {
	defer l.workers.Done()
	for {
		ev, err := l.receive()
		if err != nil {
			l.fail(err)
			return
		}
		for _, e := range ev {
			select {
			case l.p.linked <- linkEvent{from: l, ev: e}:
			case <-l.ctx.Done():
				return
			}
		}
	}
}

func (l *link) receive() ([]Event, error) {
	m, err := l.session.Receive(l.ctx)
	if err != nil {
		return nil, err
	}
	defer m.Release()
	switch m.Kind {
	case protocol.KindRefuse:
		return nil, fmt.Errorf("backup %s refused: %s", l.peer, protocol.ParseRefuse(m.Payload))
	case protocol.KindAck:
	case protocol.KindPatient:
		wait, err := protocol.ParsePatience(m.Payload)
		if err != nil {
			return nil, fmt.Errorf("backup %s: %w", l.peer, err)
		}
		return []Event{Patient{wait}}, nil
	case protocol.KindDiffers:
		if err := l.differ(m.Payload); err != nil {
			return nil, fmt.Errorf("backup %s: %w", l.peer, err)
		}
		return nil, nil
	default:
		return nil, fmt.Errorf("backup %s sent message kind %d", l.peer, m.Kind)
	}
	ack, err := protocol.ParseAck(m.Payload)
	if err != nil {
		return nil, fmt.Errorf("backup %s: %w", l.peer, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	// Acknowledgements come in order, one for each epoch.
	if len(l.sent) < 2 || l.sent[1] != ack.At {
		return nil, fmt.Errorf("backup %s acknowledged %v, which is not the next epoch in flight", l.peer, ack.At)
	}
	l.sent = append(l.sent[:0], l.sent[1:]...)
	n := ack.At.Number
	crashpoint.At(crashpoint.AckReceived)
	l.p.Disks.Materialised(ack.Materialised)
	want, asked := l.expects[n]
	if asked != ack.HasHash {
		return nil, fmt.Errorf("backup %s: epoch %d was verified: %v, asked: %v", l.peer, n, ack.HasHash, asked)
	}
	if !asked {
		return []Event{Acked{n}}, nil
	}
	delete(l.expects, n)
	if !l.p.verifies.compare(n, want, ack.Verified) {
		return []Event{Mismatch{n}}, nil // and no acknowledgement of it
	}
	return []Event{Acked{n}}, nil
}
