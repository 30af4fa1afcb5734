package simulation

// What comes over a session and was never sent like that: bytes that are damaged
// or missing, and messages of another session, image or generation.
//
//	damaged ── encoded, damaged, parsed by the real parsers ─┬─ refused: the session ends
//	                                                         └─ an acknowledgement of something else
//	forged  ── a whole message ahead of the true one ── checked as any other
//
// An epoch goes through package epoch's encoder and decoder; if the decoder takes
// it, guarantee 8 is broken.

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"understudy/epoch"
	"understudy/ownership"
	"understudy/protocol"
)

// damaged is a message some of whose bytes are not what was sent.
type damaged struct{ m any }

var errChecksum = errors.New("a frame whose checksum does not hold")

// parse makes of the damaged bytes what the receiver makes of them. What the
// parsers take is refused with its frame, but for acknowledgements, which name
// what they acknowledge.
func (x damaged) parse(w *world) (any, error) {
	var err error
	switch m := x.m.(type) {
	case hello:
		m.Spec.Pages = pages
		var b []byte
		if b, err = protocol.EncodeHello(m); err == nil {
			_, err = protocol.ParseHello(w.damage(b))
		}
	case protocol.Welcome:
		var b []byte
		if b, err = protocol.EncodeWelcome(m); err == nil {
			_, err = protocol.ParseWelcome(w.damage(b))
		}
	case refusal:
		protocol.ParseRefuse(w.damage([]byte(m.reason)))
	case bid:
		_, err = protocol.ParsePatience(w.damage(protocol.AppendPatience(nil, m.wait)))
	case promise:
		_, err = protocol.ParsePatience(w.damage(protocol.AppendPatience(nil, m.wait)))
	case ack:
		a, bad := protocol.ParseAck(w.damage(protocol.AppendAck(nil, protocol.Ack{At: m.at, Materialised: m.filled})))
		if bad == nil && a.At != m.at {
			m.at, m.filled = a.At, a.Materialised
			return m, nil
		}
		err = bad
	}
	if err == nil {
		err = errChecksum
	}
	return nil, err
}

// damage flips a bit of b, or takes away its end.
func (w *world) damage(b []byte) []byte {
	b = slices.Clone(b)
	if len(b) == 0 || w.chance(0.3) {
		return b[:w.dice.IntN(len(b)+1)*9/10]
	}
	b[w.dice.IntN(len(b))] ^= 1 << w.dice.IntN(8)
	return b
}

// damagedEpoch is what a backup makes of an epoch that comes damaged: nothing.
func (b *backupShell) damagedEpoch(s *fed, x sent) error {
	w := b.w
	head := epoch.Header{Kind: x.kind, Number: x.at.Number, Parent: x.parent, Generation: x.generation, Pages: pages}
	var chunks [][]byte
	e := epoch.NewEncoder(pages, epoch.EncoderConfig{ChunkBytes: epoch.MinChunkBytes})
	err := e.Begin(head, func(chunk []byte) error {
		chunks = append(chunks, slices.Clone(chunk))
		return nil
	})
	var page [epoch.PageSize]byte
	for i := 0; i < pages && err == nil; i++ {
		if x.set&(1<<i) != 0 {
			pageOf(page[:], x.values[i])
			err = e.Pages(epoch.GFN(i), page[:])
		}
	}
	if err == nil {
		err = e.Writes(x.writes, nil)
	}
	if err == nil && x.kind == epoch.KindCheckpoint {
		if err = e.DeviceState(fmt.Appendf(nil, "%d", x.device)); err == nil {
			err = e.DiskState(x.disks)
		}
	}
	trailer, _, _, endErr := e.End()
	if err != nil || endErr != nil {
		w.violated("epoch %v cannot be encoded: %v, %v", x.at, err, endErr)
	}
	header, end := head.AppendTo(nil), trailer.AppendTo(nil)
	switch k := w.dice.IntN(len(chunks)); w.dice.IntN(6) {
	case 0:
		header = w.damage(header)
	case 1:
		end = w.damage(end)
	case 2: // lost
		chunks = slices.Delete(chunks, k, k+1)
	case 3: // twice
		chunks = slices.Insert(chunks, k, chunks[k])
	default:
		chunks[k] = w.damage(chunks[k])
	}
	return b.decode(s, header, chunks, end)
}

// decode demands that the decoder refuses an epoch.
func (b *backupShell) decode(s *fed, header []byte, chunks [][]byte, end []byte) error {
	d := epoch.NewDecoder(pages, epoch.DecoderConfig{MaxStageBytes: 8 << 20}, func(_ epoch.GFN, dst []byte) error { clear(dst); return nil })
	_, err := d.Begin(header, s.at, s.generation)
	for _, chunk := range chunks {
		if err == nil {
			err = d.Chunk(chunk)
		}
	}
	if err == nil {
		_, err = d.End(end)
	}
	if err == nil {
		b.w.violated("guarantee 8: %s takes a damaged epoch on top of %v", b.d.h.name, s.at)
	}
	return err
}

// admits asks the decoder what it makes of the header of an epoch that does not
// belong here.
func (b *backupShell) admits(s *fed, x *sent) error {
	return b.decode(s, epoch.Header{Kind: x.kind, Number: x.at.Number, Parent: x.parent, Generation: x.generation, Pages: pages}.AppendTo(nil), nil, nil)
}

// forged makes a message that looks like m, and is of another session.
func (w *world) forged(m any) any {
	strange := epoch.Position{Image: epoch.Incarnation{0: 1, 15: byte(w.dice.IntN(256))}, Number: 1}
	n := w.dice.IntN(4)
	switch m := m.(type) {
	case hello:
		switch n {
		case 0:
			m.Guest = "mail"
		case 1:
			m.Host = ownership.HostID("c")
		default:
			m.Generation -= min(m.Generation, 1) // a generation that is over
		}
		return m
	case protocol.Welcome:
		strange.Number += m.At.Number
		if n > 0 { // of this image, and from the future
			strange.Image, strange.Running = m.At.Image, epoch.Hash{15: 1}
		}
		m.At = strange
		return m
	case sent:
		if n > 1 && len(w.past) > 0 { // an old one
			return w.past[w.dice.IntN(len(w.past))]
		}
		switch w.dice.IntN(4) {
		case 0:
			m.generation--
		case 1:
			m.parent.Image, m.at.Image = strange.Image, strange.Image
		case 2:
			m.parent.Number, m.at.Number = m.parent.Number+1, m.at.Number+1
		default:
			m.parent.Running[15]++
		}
		m.values[w.dice.IntN(pages)]++
		return m
	case bid:
		return bid{[]time.Duration{0, time.Millisecond, protocol.MaxPatience, 2 * protocol.MaxPatience}[n]}
	case promise:
		return promise{[]time.Duration{0, time.Millisecond, protocol.MaxPatience, 2 * protocol.MaxPatience}[n]}
	case ack:
		m.at.Number += epoch.Number(n) / 2
		m.at.Running[15]++
		return m
	}
	return m
}

// remember keeps an epoch that was sent, for who plays it again.
func (w *world) remember(m sent) {
	const most = 8
	if len(w.past) < most {
		w.past = append(w.past, m)
		return
	}
	w.past[w.dice.IntN(most)] = m
}
