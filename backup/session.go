package backup

// This file receives one session: Begin, Chunk…, End are decoded into the
// stage as they arrive. A whole, verified epoch is offered to the loop; the
// next one is not touched before the loop has applied this one, because its
// deltas refer to it.

import (
	"context"
	"fmt"
	"sync"
	"time"

	"understudy/bubble"
	"understudy/crashpoint"
	"understudy/epoch"
	"understudy/protocol"
)

// session is the goroutine that receives from one primary.
type session struct {
	b          *Backup
	wire       protocol.Session
	generation epoch.Generation
	at         epoch.Position
	kind       epoch.Kind
	verify     protocol.Verify // of the epoch being staged
	resume     chan struct{}   // the loop has applied what was offered
	hashes     chan epoch.DiskHashes
	ctx        context.Context
	cancel     context.CancelFunc
	done       sync.WaitGroup
	spared     *bubble.Fork  // for which blocks were set aside, and
	sparing    time.Duration // for how long; of the epoch being offered
}

// sessionEvent is an event that belongs to one session.
type sessionEvent struct {
	from *session
	ev   Event
}

// feed starts to receive epochs on top of the position at.
func (b *Backup) feed(ctx context.Context, wire protocol.Session, g epoch.Generation, at epoch.Position) *session {
	s := &session{b: b, wire: wire, generation: g, at: at, resume: make(chan struct{}, 1), hashes: make(chan epoch.DiskHashes, maxCompare)}
	s.ctx, s.cancel = context.WithCancel(ctx)
	s.done.Go(s.compare)
	s.done.Add(1)
	go func() {
		defer s.done.Done()
		err := s.receive()
		s.offer(SessionLost{err})
	}()
	return s
}

// close ends the session and waits until its goroutine has let go of the stage.
func (s *session) close() {
	_ = s.wire.Close()
	s.cancel()
	s.done.Wait()
}

// offer hands an event to the loop, unless the session was closed.
func (s *session) offer(ev Event) {
	select {
	case s.b.fed <- sessionEvent{s, ev}:
	case <-s.ctx.Done():
	}
}

// receive stages epoch after epoch until the session breaks.
func (s *session) receive() error {
	open := false
	for {
		m, err := s.wire.Receive(s.ctx)
		if err != nil {
			return err
		}
		open, err = s.message(m, open)
		m.Release()
		if err != nil {
			s.complain(err)
			return err
		}
	}
}

// message takes one message; open says whether an epoch is being staged.
func (s *session) message(m protocol.Message, open bool) (bool, error) {
	d := s.b.decoder
	switch {
	case m.Kind == protocol.KindBegin && !open:
		v, header, err := protocol.ParseBegin(m.Payload, s.b.standby.Pages())
		if err != nil {
			return false, err
		}
		h, err := d.Begin(header, s.at, s.generation)
		if err != nil {
			return false, err
		}
		s.verify, s.kind = v, h.Kind
		return true, nil
	case m.Kind == protocol.KindChunk && open:
		return true, d.Chunk(m.Payload)
	case m.Kind == protocol.KindEnd && open:
		at, err := d.End(m.Payload)
		if err != nil {
			return false, err
		}
		s.at = at
		if s.kind == epoch.KindCheckpoint && len(s.b.cfg.Disks) > 0 && len(d.Stage().DiskState()) == 0 {
			return false, fmt.Errorf("epoch %d is a checkpoint without the state of the guest's disks", at.Number)
		}
		if err := s.makeRoom(d.Stage()); err != nil {
			return false, err
		}
		crashpoint.At(crashpoint.Staged)
		s.offer(Staged{At: at, Kind: s.kind})
		select {
		case <-s.resume:
			return false, nil
		case <-s.ctx.Done():
			return false, s.ctx.Err()
		}
	}
	if m.Kind == protocol.KindPatience {
		wait, err := protocol.ParsePatience(m.Payload)
		if err == nil {
			s.offer(Away{wait})
		}
		return open, err
	}
	if m.Kind == protocol.KindHashes {
		h, err := protocol.ParseDiskHashes(m.Payload)
		if err != nil {
			return open, err
		}
		select {
		case s.hashes <- h:
			return open, nil
		default:
			return open, fmt.Errorf("more than %d messages with hashes are waiting", maxCompare)
		}
	}
	return open, fmt.Errorf("message kind %d where none is expected (epoch open: %v)", m.Kind, open)
}

// makeRoom does, before an epoch may be acknowledged, what its writes demand of
// the ones before it: a block that a reference names is read before it is
// overwritten (RULES 17), and there is room for what has to be kept.
func (s *session) makeRoom(stage *epoch.Stage) error {
	var bytes uint64
	for _, w := range stage.Writes() {
		bytes += uint64(len(w.Data))
		switch w.Kind {
		case epoch.WriteData, epoch.WriteZeroes, epoch.WriteDiscard:
			if err := s.b.table.BeforeOverwrite(w.Disk, w.Sector, w.Sectors); err != nil {
				return err
			}
		}
	}
	began := time.Now()
	s.spared = s.b.setAside(stage)
	s.sparing = time.Since(began)
	crashpoint.At(crashpoint.Materialised)
	if err := s.b.table.Room(s.ctx); err != nil {
		return err
	}
	return s.b.Disks.Room(s.ctx, bytes)
}

// maxCompare is how many messages with hashes may wait.
const maxCompare = 16

// compare answers hashes beside the epochs: reading a disk takes its time.
func (s *session) compare() {
	for {
		select {
		case <-s.ctx.Done():
			return
		case h := <-s.hashes:
			d, err := s.b.Disks.Compare(h)
			if err != nil {
				s.complain(fmt.Errorf("compare disk %d: %w", h.Disk, err))
				_ = s.wire.Close()
				return
			}
			if err := s.wire.Send(s.ctx, protocol.KindDiffers, protocol.AppendDiskDiffers(nil, d)); err != nil {
				return // the receiver sees the session's end
			}
		}
	}
}

// complain tells the primary why its session ends.
func (s *session) complain(err error) {
	text := err.Error()
	_ = s.wire.Send(s.ctx, protocol.KindRefuse, []byte(text[:min(len(text), protocol.MaxReason)]))
}

// agree tells the primary that it is waited for. A failure shows as the loss of
// the session.
func (b *Backup) agree(ctx context.Context, wait time.Duration) {
	s := b.session
	if s == nil {
		return
	}
	b.Slog.Info("the primary will be silent: its daemon is started anew", "wait", wait)
	if err := s.wire.Send(ctx, protocol.KindPatient, protocol.AppendPatience(make([]byte, 0, protocol.PatienceSize), wait)); err != nil {
		b.Slog.Debug("patience not promised", "err", err)
	}
}

// ack acknowledges. A failure shows as the loss of the session.
func (s *session) ack(ctx context.Context, a protocol.Ack) {
	if err := s.wire.Send(ctx, protocol.KindAck, protocol.AppendAck(make([]byte, 0, protocol.AckSize), a)); err != nil {
		s.b.Slog.Debug("acknowledgement not sent", "at", a.At, "err", err)
	}
}
