package main

// This file is the lies that are told to a backup by who has the owner's
// certificate, generation and machine. Before each, a true epoch is told: it has
// to be acknowledged, and nothing of the lie before may have moved the image.
//
//	hello (continuing from the last true epoch) ── welcome: there it stands
//	a true epoch ── acknowledged
//	a lie ── refused

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"understudy/epoch"
	"understudy/protocol"
	"understudy/transport"
)

// told is an epoch as it travels.
type told struct {
	begin  []byte
	chunks [][]byte
	end    []byte
	at     epoch.Position
}

// tell makes a small epoch with the given header.
func tell(h epoch.Header) (t told, err error) {
	e := epoch.NewEncoder(h.Pages, epoch.EncoderConfig{})
	if err := e.Begin(h, func(chunk []byte) error {
		t.chunks = append(t.chunks, bytes.Clone(chunk))
		return nil
	}); err != nil {
		return t, err
	}
	page := make([]byte, epoch.PageSize)
	for i := range page {
		page[i] = byte(i*31) ^ byte(h.Number)
	}
	for f := range epoch.GFN(3) {
		if err := e.Pages(16+2*f, page); err != nil {
			return t, err
		}
	}
	trailer, at, _, err := e.End()
	t.begin, t.end, t.at = protocol.AppendBegin(nil, protocol.Verify{}, h.AppendTo(nil)), trailer.AppendTo(nil), at
	return t, err
}

// liar is one session of who pretends to be the owner.
type liar struct {
	session *transport.Session
	head    epoch.Header // of the epoch that would be the next
	last    told
}

func (l *liar) say(ctx context.Context, t told) error {
	// The backup may refuse at any time: then what is sent goes nowhere.
	_ = l.session.Send(ctx, protocol.KindBegin, t.begin)
	for _, c := range t.chunks {
		_ = l.session.Send(ctx, protocol.KindChunk, c)
	}
	_ = l.session.Send(ctx, protocol.KindEnd, t.end)
	return nil
}

// with tells an epoch whose header differs from the next one's.
func with(change func(h *epoch.Header)) func(ctx context.Context, l *liar) error {
	return func(ctx context.Context, l *liar) error {
		h := l.head
		change(&h)
		t, err := tell(h)
		if err != nil {
			return err
		}
		return l.say(ctx, t)
	}
}

// bent tells the next epoch, bent on its way.
func bent(bend func(t *told)) func(ctx context.Context, l *liar) error {
	return func(ctx context.Context, l *liar) error {
		t, err := tell(l.head)
		if err != nil {
			return err
		}
		bend(&t)
		return l.say(ctx, t)
	}
}

// message sends one out of turn.
func message(kind uint8, payload []byte) func(ctx context.Context, l *liar) error {
	return func(ctx context.Context, l *liar) error {
		_ = l.session.Send(ctx, kind, payload)
		return nil
	}
}

// record is a chunk of one record's head and little else (package epoch).
func record(kind byte, frame uint64, n uint16, body ...byte) func(t *told) {
	return func(t *told) {
		head := []byte{kind, byte(frame), byte(frame >> 8), byte(frame >> 16), byte(frame >> 24), byte(frame >> 32), byte(n), byte(n >> 8)}
		t.chunks = [][]byte{append(head, body...)}
	}
}

var lies = []struct {
	what string
	tell func(ctx context.Context, l *liar) error
}{
	{"the last epoch once more", func(ctx context.Context, l *liar) error { return l.say(ctx, l.last) }},
	{"an epoch too many", with(func(h *epoch.Header) { h.Number++; h.Parent.Number++ })},
	{"an epoch of another image", with(func(h *epoch.Header) { h.Parent.Image = epoch.NewIncarnation() })},
	{"an epoch of another history", with(func(h *epoch.Header) { h.Parent.Running[3] ^= 1 })},
	{"an epoch of the generation before", with(func(h *epoch.Header) { h.Generation-- })},
	{"an epoch of a generation to come", with(func(h *epoch.Header) { h.Generation++ })},
	{"an epoch of a larger image", with(func(h *epoch.Header) { h.Pages *= 2 })},
	{"an epoch that ends before its end", bent(func(t *told) { t.chunks[0] = t.chunks[0][:len(t.chunks[0])/2] })},
	{"an epoch without its chunks", bent(func(t *told) { t.chunks = nil })},
	{"an epoch with a bit turned", bent(func(t *told) { t.chunks[0][100] ^= 4 })},
	{"an epoch with a chunk twice", bent(func(t *told) { t.chunks = append(t.chunks, t.chunks[0]) })},
	{"an epoch with another's end", bent(func(t *told) { t.end = slices.Repeat([]byte{0x55}, len(t.end)) })},
	{"a header cut off", bent(func(t *told) { t.begin = t.begin[:40] })},
	{"zero pages behind the image", bent(record(1, 1<<40-1, 65535))},
	{"pages that are not there", bent(record(2, 0, 65535))},
	{"a packed page of 64 KiB", bent(record(3, 0, 65535, make([]byte, 65535)...))},
	{"a device state beyond all bounds", bent(record(6, 1<<39, 1, 0))},
	{"references to a disk that is not there", bent(record(16, 0, 1, append([]byte{0, 0, 0, 0, 0, 0, 0, 99}, make([]byte, 16)...)...))},
	{"a disk write of 4 Gi sectors", bent(record(32, 0, 1, append(make([]byte, 16), 0xff, 0xff, 0xff, 0xff)...))},
	{"a record that nobody knows", bent(record(99, 0, 1))},
	{"a hash of more than there is", bent(func(t *told) { copy(t.begin[8:], bytes.Repeat([]byte{0xff}, 8)) })},
	{"a chunk of no epoch", message(protocol.KindChunk, make([]byte, 64))},
	{"the end of no epoch", message(protocol.KindEnd, make([]byte, epoch.TrailerSize))},
	{"a second hello", message(protocol.KindHello, []byte{5, 0, 0, 0, 1})},
	{"a welcome", message(protocol.KindWelcome, []byte("{}"))},
	{"hashes of a disk that is not there", message(protocol.KindHashes, append(bytes.Repeat([]byte{0xff}, 9), make([]byte, 16)...))},
}

// deceiveBackup tells them all.
func (s *stage) deceiveBackup(ctx context.Context, hello protocol.Hello) error {
	ctx, cancel := context.WithTimeout(ctx, late)
	defer cancel()
	hello.Known = nil
	for _, lie := range lies {
		at, err := s.lie(ctx, hello, lie.tell)
		if err != nil {
			return fmt.Errorf("%s: %w", lie.what, err)
		}
		hello.Known = []epoch.Position{at}
	}
	return nil
}

// lie holds one session. It returns where the image stands after its true epoch.
func (s *stage) lie(ctx context.Context, hello protocol.Hello, tellIt func(ctx context.Context, l *liar) error) (at epoch.Position, err error) {
	session, err := transport.Connect(ctx, s.dial, transport.DefaultConfig(), slog.New(slog.DiscardHandler))
	if err != nil {
		return at, err
	}
	defer func() { err = errors.Join(err, session.Close()) }()
	w, err := welcomed(ctx, session, hello)
	if err != nil {
		return at, err
	}
	if len(hello.Known) > 0 && w.At != hello.Known[0] {
		return at, fmt.Errorf("after the lie before it the image stands at %v, not at %v", w.At, hello.Known[0])
	}
	l := liar{session: session}
	l.head = epoch.Header{Kind: epoch.KindSync, Number: w.At.Number + 1, Parent: w.At, Generation: hello.Generation, Pages: hello.Spec.Pages}
	if l.last, err = tell(l.head); err != nil {
		return at, err
	}
	if err := errors.Join(l.say(ctx, l.last), acknowledged(ctx, session, l.last.at)); err != nil {
		return at, fmt.Errorf("a true epoch ahead of it: %w", err)
	}
	l.head.Number, l.head.Parent = l.head.Number+1, l.last.at
	return l.last.at, errors.Join(tellIt(ctx, &l), refused(ctx, session))
}

// welcomed says hello, and expects a welcome.
func welcomed(ctx context.Context, session *transport.Session, hello protocol.Hello) (protocol.Welcome, error) {
	b, err := protocol.EncodeHello(hello)
	if err != nil {
		return protocol.Welcome{}, err
	}
	if err := protocol.Pieces(b, transport.DefaultConfig().MaxMessage, func(piece []byte) error {
		return session.Send(ctx, protocol.KindHello, piece)
	}); err != nil {
		return protocol.Welcome{}, err
	}
	m, err := session.Receive(ctx)
	if err != nil {
		return protocol.Welcome{}, fmt.Errorf("no welcome: %w", err)
	}
	defer m.Release()
	if m.Kind == protocol.KindRefuse {
		return protocol.Welcome{}, fmt.Errorf("not welcome: %s", protocol.ParseRefuse(m.Payload))
	}
	return protocol.ParseWelcome(m.Payload)
}

func acknowledged(ctx context.Context, session *transport.Session, at epoch.Position) error {
	m, err := session.Receive(ctx)
	if err != nil {
		return err
	}
	defer m.Release()
	if m.Kind != protocol.KindAck {
		return fmt.Errorf("answered with a message of kind %d: %s", m.Kind, protocol.ParseRefuse(m.Payload))
	}
	a, err := protocol.ParseAck(m.Payload)
	if err == nil && a.At != at {
		err = fmt.Errorf("acknowledged is %v, not %v", a.At, at)
	}
	return err
}
