package primary

// A backup that breaks the rules, in every way that the protocol has words
// for. The primary says what was wrong, releases nothing for it, loses no
// buffer, and the guest runs on.

import (
	"context"
	"strings"
	"testing"
	"time"

	"understudy/epoch"
	"understudy/protocol"
	"understudy/protocol/protocoltest"
)

// peer plays a backup by hand: it follows the stream of epochs with a decoder
// over an image that nobody ever runs.
type peer struct {
	t     *testing.T
	ctx   context.Context
	end   *protocoltest.End
	image []byte
	dec   *epoch.Decoder
	at    epoch.Position
	gen   epoch.Generation
	ask   protocol.Verify
}

func newPeer(t *testing.T, ctx context.Context, end *protocoltest.End, h protocol.Hello) *peer {
	p := &peer{t: t, ctx: ctx, end: end, image: make([]byte, h.Spec.Pages*epoch.PageSize), gen: h.Generation}
	p.at.Image = epoch.NewIncarnation()
	p.dec = epoch.NewDecoder(h.Spec.Pages, epoch.DecoderConfig{}, func(first epoch.GFN, dst []byte) error {
		copy(dst, p.image[uint64(first)*epoch.PageSize:])
		return nil
	})
	return p
}

func (p *peer) send(kind uint8, b []byte) { _ = p.end.Send(p.ctx, kind, b) }

func (p *peer) welcome(at epoch.Position) {
	b, err := protocol.EncodeWelcome(protocol.Welcome{Version: protocol.Version, At: at})
	if err != nil {
		p.t.Error(err)
	}
	p.send(protocol.KindWelcome, b)
}

// commit takes one epoch and applies it; false when the session is over.
func (p *peer) commit() bool {
	for {
		m, err := p.end.Receive(p.ctx)
		if err != nil {
			return false
		}
		switch m.Kind {
		case protocol.KindBegin:
			v, header, err := protocol.ParseBegin(m.Payload, uint64(len(p.image))/epoch.PageSize)
			if err == nil {
				p.ask = v
				_, err = p.dec.Begin(header, p.at, p.gen)
			}
			if err != nil {
				p.t.Errorf("begin: %v", err)
				return false
			}
		case protocol.KindChunk:
			if err := p.dec.Chunk(m.Payload); err != nil {
				p.t.Errorf("chunk: %v", err)
				return false
			}
		case protocol.KindEnd:
			at, err := p.dec.End(m.Payload)
			if err == nil {
				err = p.dec.Stage().Apply(func(first epoch.GFN, data []byte) error {
					copy(p.image[uint64(first)*epoch.PageSize:], data)
					return nil
				})
			}
			if err != nil {
				p.t.Errorf("end: %v", err)
				return false
			}
			p.at = at
			return true
		}
	}
}

func (p *peer) ack(a protocol.Ack) { p.send(protocol.KindAck, protocol.AppendAck(nil, a)) }

// honest acknowledges n epochs as a good backup does.
func (p *peer) honest(n int) bool {
	for range n {
		if !p.commit() {
			return false
		}
		p.ack(protocol.Ack{At: p.at})
	}
	return true
}

func TestHostileBackup(t *testing.T) {
	for _, row := range []struct {
		name string
		play func(p *peer)
		says string
	}{
		{"answers a hello with an acknowledgement", func(p *peer) { p.ack(protocol.Ack{At: p.at}) }, "instead of a welcome"},
		{"answers a hello with garbage", func(p *peer) { p.send(protocol.KindWelcome, []byte("\x00{")) }, "welcome: invalid character"},
		{"answers a hello with an unknown kind", func(p *peer) { p.send(200, nil) }, "message kind 200"},
		{"speaks another version", func(p *peer) {
			p.send(protocol.KindWelcome, []byte(`{"version":99}`))
		}, "protocol version 99"},
		{"refuses, with control characters", func(p *peer) { p.send(protocol.KindRefuse, []byte("no\n\x1b[2J")) }, `refused: no\n\x1b[2J`},
		{"stands where the primary never was", func(p *peer) {
			p.at.Number, p.at.Running = 77, epoch.Hash{1}
			p.welcome(p.at)
		}, "which this primary does not know"},
		{"hangs up on a hello", func(p *peer) { _ = p.end.Close() }, "handshake with backup b"},
		{"acknowledges what was not sent", func(p *peer) {
			p.welcome(p.at)
			p.honest(1)
			p.at.Number += 5
			p.ack(protocol.Ack{At: p.at})
		}, "not the next epoch in flight"},
		{"acknowledges twice", func(p *peer) {
			p.welcome(p.at)
			p.honest(2)
			p.ack(protocol.Ack{At: p.at})
		}, "not the next epoch in flight"},
		{"acknowledges another history", func(p *peer) {
			p.welcome(p.at)
			p.commit()
			p.at.Running[3] ^= 1
			p.ack(protocol.Ack{At: p.at})
		}, "not the next epoch in flight"},
		{"acknowledges another image", func(p *peer) {
			p.welcome(p.at)
			p.commit()
			p.at.Image = epoch.NewIncarnation()
			p.ack(protocol.Ack{At: p.at})
		}, "not the next epoch in flight"},
		{"acknowledges epochs out of order", func(p *peer) {
			p.welcome(p.at)
			p.commit()
			p.commit()
			p.ack(protocol.Ack{At: p.at})
		}, "not the next epoch in flight"},
		{"sends a hash that was not asked for", func(p *peer) {
			p.welcome(p.at)
			p.commit()
			p.ack(protocol.Ack{At: p.at, HasHash: true})
		}, "was verified: true, asked: false"},
		{"sends a short acknowledgement", func(p *peer) {
			p.welcome(p.at)
			p.send(protocol.KindAck, make([]byte, 3))
		}, "ack: 3 bytes"},
		{"sends an epoch itself", func(p *peer) {
			p.welcome(p.at)
			p.send(protocol.KindBegin, nil)
		}, "sent message kind 4"},
		{"gives up in the middle", func(p *peer) {
			p.welcome(p.at)
			p.honest(2)
			p.send(protocol.KindRefuse, []byte("the disk is full"))
		}, "refused: the disk is full"},
	} {
		t.Run(strings.ReplaceAll(row.name, " ", "-"), func(t *testing.T) {
			inBubble(t, nil, func(r *rig) {
				first := true
				r.script(func(ctx context.Context, there *protocoltest.End, h protocol.Hello) {
					p := newPeer(t, ctx, there, h)
					if first {
						first = false
						row.play(p)
						return
					}
					// Whatever it did, its successor is welcome.
					p.welcome(p.at)
					for p.honest(1) {
					}
				})
				r.wait("the error is told", 5*time.Second, func() bool { return strings.Contains(r.p.Status().LinkError, row.says) })
				if n := r.gate.releasedTo(); n != 0 {
					t.Errorf("epoch %d was released for a backup like that", n)
				}
				if !r.runs() {
					t.Error("the guest stands still")
				}
				r.wait("protected by the next one", 10*time.Second, r.protected)
			})
		})
	}
}

// TestBackupThatNeverAcknowledges: it takes everything and says nothing. It is
// given up after a while, and what was held leaves once that is recorded.
func TestBackupThatNeverAcknowledges(t *testing.T) {
	inBubble(t, nil, func(r *rig) {
		silent := 0
		r.script(func(ctx context.Context, there *protocoltest.End, h protocol.Hello) {
			p := newPeer(t, ctx, there, h)
			p.welcome(p.at)
			if silent == 0 {
				p.honest(10)
			}
			silent++
			for p.commit() {
			}
		})
		r.wait("protected", 5*time.Second, r.protected)
		released := r.gate.releasedTo()
		r.wait("given up", 3*r.cfg.AckTimeout, func() bool { return !r.log.now().InSync })
		r.wait("unprotected", time.Second, func() bool { return !r.protected() })
		if n := r.gate.releasedTo(); n != released && n > 10 {
			t.Errorf("epoch %d was released, and never acknowledged", n)
		}
		if !r.runs() {
			t.Error("the guest stands still")
		}
	})
}

// TestVerifySlices: a verification walks the image slice by slice, survives a
// lost session, and ends at the first difference.
func TestVerifySlices(t *testing.T) {
	const pages = 2*VerifySlice + 100
	var v verifier
	if ask := v.next(pages); ask.Count != 0 {
		t.Fatalf("nobody asked, and %+v is hashed", ask)
	}
	run, err := v.begin(pages)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.begin(pages); err == nil {
		t.Fatal("two verifications at a time")
	}
	same, other := epoch.Hash{1}, epoch.Hash{2}
	first, second := v.next(pages), v.next(pages)
	if first != (protocol.Verify{Count: VerifySlice}) || second != (protocol.Verify{First: VerifySlice, Count: VerifySlice}) {
		t.Fatalf("%+v, %+v", first, second)
	}
	if !v.compare(7, expect{first, same}, same) {
		t.Error("equal hashes differ")
	}
	v.rewind() // the session was lost before the second answer
	if again := v.next(pages); again != second {
		t.Fatalf("asked again: %+v", again)
	}
	if !v.compare(9, expect{second, same}, same) {
		t.Error("equal hashes differ")
	}
	last := v.next(pages)
	if last != (protocol.Verify{First: 2 * VerifySlice, Count: 100}) || v.next(pages).Count != 0 {
		t.Fatalf("the last slice is %+v", last)
	}
	if v.compare(10, expect{last, same}, other) {
		t.Error("different hashes are equal")
	}
	<-run.ended
	if want := (VerifyResult{Pages: pages, Epochs: 3, First: 7, Last: 10}); run.result != want {
		t.Errorf("%+v, want %+v", run.result, want)
	}
	if _, err := v.begin(pages); err != nil {
		t.Error("the next verification:", err)
	}
}
