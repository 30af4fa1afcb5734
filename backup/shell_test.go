package backup

// The shell on a simulated standby: sessions that break the protocol are told
// why and end, the image stays at its last commit, and the next session goes
// on from there.

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"understudy/clock"
	"understudy/epoch"
	"understudy/hypervisor"
	"understudy/hypervisor/sim"
	"understudy/ownership"
	"understudy/protocol"
	"understudy/protocol/protocoltest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const imagePages = 512

// stillLog is an ownership log in which nothing happens.
type stillLog struct{ state ownership.Guest }

func (l stillLog) Propose(ctx context.Context, c ownership.Command) (ownership.Guest, error) {
	return ownership.Apply(l.state, c)
}

func (l stillLog) Watch(ctx context.Context, _ string) <-chan ownership.Guest {
	c := make(chan ownership.Guest, 1)
	c <- l.state
	go func() {
		<-ctx.Done()
		close(c)
	}()
	return c
}

// rig is a backup with an image, and a primary played by hand.
type rig struct {
	t        *testing.T
	ctx      context.Context
	b        *Backup
	sessions chan Opened
	spec     hypervisor.Spec
	standby  *spy
	end      func() // ends the backup's loop, and waits for it
}

// spy is the driver's standby, whose writes are seen.
type spy struct {
	hypervisor.Driver
	before func() // is called first, if not nil
	mu     sync.Mutex
	made   int
	last   hypervisor.Standby
	writes int
}

func (s *spy) Standby(ctx context.Context, spec hypervisor.Spec) (hypervisor.Standby, error) {
	if s.before != nil {
		s.before()
	}
	b, err := s.Driver.Standby(ctx, spec)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.made++
	s.last = b
	if err != nil {
		return nil, err
	}
	return seen{b, s}, nil
}

type seen struct {
	hypervisor.Standby
	s *spy
}

func (w seen) WritePages(first epoch.GFN, data []byte) error {
	w.s.mu.Lock()
	w.s.writes++
	w.s.mu.Unlock()
	return w.Standby.WritePages(first, data)
}

// image is the hash of the whole image, and how often it was written to.
func (r *rig) image() (epoch.Hash, int) {
	r.standby.mu.Lock()
	defer r.standby.mu.Unlock()
	if r.standby.last == nil {
		return epoch.Hash{}, 0
	}
	h, err := epoch.HashPages(r.standby.last.ReadPages, 0, imagePages)
	if err != nil {
		r.t.Fatal(err)
	}
	return h, r.standby.writes
}

func inBubble(t *testing.T, test func(r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		machine := sim.DefaultConfig("web")
		machine.Pages = imagePages
		source, err := sim.NewDriver(sim.NewHost("a"), machine)
		if err != nil {
			t.Fatal(err)
		}
		g, err := source.Start(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		spec := g.Spec()
		if err := g.Destroy(); err != nil {
			t.Fatal(err)
		}
		driver, err := sim.NewDriver(sim.NewHost("b"), machine)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		r := &rig{t: t, ctx: ctx, sessions: make(chan Opened), spec: spec, standby: &spy{Driver: driver}}
		state := ownership.Guest{Generation: 3, Revision: 5, Owner: "a", Phase: ownership.PhaseActive, Desired: ownership.Running}
		r.b = New(DefaultConfig("web", "b", time.Second, imagePages*epoch.PageSize), Deps{Driver: r.standby, Log: stillLog{state}, Sessions: r.sessions,
			Clock: clock.Go{Start: time.Now().Add(-time.Hour)}, Slog: slog.New(slog.DiscardHandler), State: state})
		var running sync.WaitGroup
		running.Go(func() {
			if _, err := r.b.Run(ctx); err != nil {
				t.Errorf("run: %v", err)
			}
		})
		r.end = func() { cancel(); running.Wait() }
		t.Cleanup(r.end)
		test(r)
	})
}

// feed is a session with the backup, and an encoder that makes good epochs.
type feed struct {
	r       *rig
	end     *protocoltest.End
	at      epoch.Position
	welcome protocol.Welcome
	gen     epoch.Generation
	page    byte
}

// open opens a session; the backup's image may stand at any of known.
func (r *rig) open(known ...epoch.Position) *feed {
	r.t.Helper()
	here, there := protocoltest.Pair()
	h := protocol.Hello{Version: protocol.Version, Guest: "web", Host: "a", Generation: 3, Spec: r.spec, Known: known}
	r.sessions <- Opened{Session: there, Hello: h}
	m, err := here.Receive(r.ctx)
	if err != nil || m.Kind != protocol.KindWelcome {
		r.t.Fatalf("kind %d %s, %v", m.Kind, m.Payload, err)
	}
	w, err := protocol.ParseWelcome(m.Payload)
	if err != nil {
		r.t.Fatal(err)
	}
	return &feed{r: r, end: here, at: w.At, welcome: w, gen: 3}
}

func (f *feed) send(kind uint8, b []byte) { _ = f.end.Send(f.r.ctx, kind, b) }

// message is one message of an epoch.
type message struct {
	kind    uint8
	payload []byte
}

// epoch makes the next whole epoch on top of at, as messages.
func (f *feed) epoch(at epoch.Position, gen epoch.Generation, ask protocol.Verify) ([]message, epoch.Position) {
	f.r.t.Helper()
	var ms []message
	must := func(err error) {
		f.r.t.Helper()
		if err != nil {
			f.r.t.Fatal(err)
		}
	}
	enc := epoch.NewEncoder(imagePages, epoch.EncoderConfig{})
	h := epoch.Header{Kind: epoch.KindCheckpoint, Number: at.Number + 1, Parent: at, Generation: gen, Pages: imagePages}
	ms = append(ms, message{protocol.KindBegin, protocol.AppendBegin(nil, ask, h.AppendTo(nil))})
	must(enc.Begin(h, func(chunk []byte) error {
		ms = append(ms, message{protocol.KindChunk, bytes.Clone(chunk)})
		return nil
	}))
	f.page++
	must(enc.Pages(epoch.GFN(f.page)%imagePages, bytes.Repeat([]byte{f.page, 1, 2, 3}, epoch.PageSize/4)))
	must(enc.DeviceState([]byte("registers")))
	trailer, next, _, err := enc.End()
	must(err)
	return append(ms, message{protocol.KindEnd, trailer.AppendTo(nil)}), next
}

// good sends a good epoch and takes its acknowledgement.
func (f *feed) good(ask protocol.Verify) protocol.Ack {
	f.r.t.Helper()
	ms, next := f.epoch(f.at, f.gen, ask)
	for _, m := range ms {
		f.send(m.kind, m.payload)
	}
	m, err := f.end.Receive(f.r.ctx)
	if err != nil || m.Kind != protocol.KindAck {
		f.r.t.Fatalf("kind %d %s, %v", m.Kind, m.Payload, err)
	}
	a, err := protocol.ParseAck(m.Payload)
	if err != nil || a.At != next {
		f.r.t.Fatalf("%+v instead of %v: %v", a, next, err)
	}
	f.at = next
	return a
}

// reason waits for the end of the session and returns why.
func (f *feed) reason() string {
	said := ""
	for {
		m, err := f.end.Receive(f.r.ctx)
		if err != nil {
			return said
		}
		if m.Kind == protocol.KindAck {
			f.r.t.Error("it was acknowledged")
		}
		said = protocol.ParseRefuse(m.Payload)
	}
}

// TestHostilePrimary sends, after two good epochs, one thing that is wrong.
func TestHostilePrimary(t *testing.T) {
	for _, row := range []struct {
		name string
		play func(f *feed)
		says string
	}{
		{"a kind that is none", func(f *feed) { f.send(99, nil) }, "message kind 99"},
		{"an acknowledgement", func(f *feed) { f.send(protocol.KindAck, make([]byte, protocol.AckSize)) }, "message kind 7"},
		{"a second hello", func(f *feed) { f.send(protocol.KindHello, []byte("{}")) }, "message kind 1"},
		{"a chunk of no epoch", func(f *feed) { f.send(protocol.KindChunk, []byte("x")) }, "epoch open: false"},
		{"the end of no epoch", func(f *feed) { f.send(protocol.KindEnd, make([]byte, 64)) }, "epoch open: false"},
		{"an epoch within an epoch", func(f *feed) {
			ms, _ := f.epoch(f.at, f.gen, protocol.Verify{})
			f.send(ms[0].kind, ms[0].payload)
			f.send(ms[0].kind, ms[0].payload)
		}, "epoch open: true"},
		{"a header of garbage", func(f *feed) {
			f.send(protocol.KindBegin, protocol.AppendBegin(nil, protocol.Verify{}, []byte("garbage")))
		}, "a header of 7 bytes"},
		{"a header cut short", func(f *feed) { f.send(protocol.KindBegin, make([]byte, 5)) }, "begin: 5 bytes"},
		{"a hash of pages outside", func(f *feed) {
			f.send(protocol.KindBegin, protocol.AppendBegin(nil, protocol.Verify{First: 1, Count: imagePages}, nil))
		}, "outside an image"},
		{"an epoch again", func(f *feed) {
			before := f.at
			before.Number--
			ms, _ := f.epoch(before, f.gen, protocol.Verify{})
			f.send(ms[0].kind, ms[0].payload)
		}, "epoch 2 is replayed"},
		{"an epoch too far", func(f *feed) {
			far := f.at
			far.Number += 3
			ms, _ := f.epoch(far, f.gen, protocol.Verify{})
			f.send(ms[0].kind, ms[0].payload)
		}, "needs the next one"},
		{"an epoch of another history", func(f *feed) {
			other := f.at
			other.Running[0] ^= 1
			ms, _ := f.epoch(other, f.gen, protocol.Verify{})
			f.send(ms[0].kind, ms[0].payload)
		}, "is foreign: its parent"},
		{"an epoch of another image", func(f *feed) {
			other := f.at
			other.Image = epoch.NewIncarnation()
			ms, _ := f.epoch(other, f.gen, protocol.Verify{})
			f.send(ms[0].kind, ms[0].payload)
		}, "is foreign: for image"},
		{"an epoch of an old generation", func(f *feed) {
			ms, _ := f.epoch(f.at, f.gen-1, protocol.Verify{})
			f.send(ms[0].kind, ms[0].payload)
		}, "made in generation 2"},
		{"a damaged chunk", func(f *feed) {
			ms, _ := f.epoch(f.at, f.gen, protocol.Verify{})
			ms[1].payload[len(ms[1].payload)/2] ^= 0x40
			for _, m := range ms {
				f.send(m.kind, m.payload)
			}
		}, "is corrupt"},
		{"an epoch with a chunk missing", func(f *feed) {
			ms, _ := f.epoch(f.at, f.gen, protocol.Verify{})
			f.send(ms[0].kind, ms[0].payload)
			f.send(ms[len(ms)-1].kind, ms[len(ms)-1].payload)
		}, "incomplete: 0 chunks"},
		{"a trailer that is not its own", func(f *feed) {
			ms, _ := f.epoch(f.at, f.gen, protocol.Verify{})
			ms[len(ms)-1].payload[9] ^= 1
			for _, m := range ms {
				f.send(m.kind, m.payload)
			}
		}, "incomplete"},
		{"half an epoch, then nothing", func(f *feed) {
			ms, _ := f.epoch(f.at, f.gen, protocol.Verify{})
			f.send(ms[0].kind, ms[0].payload)
			f.send(ms[1].kind, ms[1].payload)
			_ = f.end.Close()
		}, ""},
	} {
		t.Run(strings.ReplaceAll(row.name, " ", "-"), func(t *testing.T) {
			inBubble(t, func(r *rig) {
				f := r.open()
				f.good(protocol.Verify{})
				f.good(protocol.Verify{})
				synctest.Wait() // acknowledged comes before applied
				image, writes := r.image()
				row.play(f)
				said := f.reason()
				if !strings.Contains(said, row.says) || row.says != "" && said == "" {
					t.Errorf("it said %q, not %q", said, row.says)
				}
				synctest.Wait()
				if now, n := r.image(); now != image || n != writes {
					t.Error("something of it was applied")
				}
				if st := r.b.Status(); st.Epoch != f.at.Number || !st.Whole {
					t.Errorf("the backup stands at %+v", st)
				}
				next := r.open(f.at)
				if next.welcome.At != f.at || !next.welcome.Whole {
					t.Fatalf("the next session begins at %+v, not at %v", next.welcome, f.at)
				}
				next.good(protocol.Verify{})
			})
		})
	}
}

// TestStrangersHarmNobody: a session that is refused leaves the open one alone.
func TestStrangersHarmNobody(t *testing.T) {
	inBubble(t, func(r *rig) {
		f := r.open()
		f.good(protocol.Verify{})
		for what, h := range map[string]protocol.Hello{
			"of another host":      {Version: 1, Guest: "web", Host: "c", Generation: 3, Spec: r.spec},
			"of another guest":     {Version: 1, Guest: "db", Host: "a", Generation: 3, Spec: r.spec},
			"of an old generation": {Version: 1, Guest: "web", Host: "a", Generation: 2, Spec: r.spec},
			"of a later one":       {Version: 1, Guest: "web", Host: "a", Generation: 4, Spec: r.spec},
		} {
			here, there := protocoltest.Pair()
			r.sessions <- Opened{Session: there, Hello: h}
			m, err := here.Receive(r.ctx)
			if err != nil || m.Kind != protocol.KindRefuse || len(m.Payload) == 0 {
				t.Errorf("%s: kind %d, %v", what, m.Kind, err)
			}
			f.good(protocol.Verify{})
		}
		if r.standby.made != 1 {
			t.Errorf("%d images were made", r.standby.made)
		}
	})
}

// TestNewSessionReplacesTheOld: the old one ends, and its half epoch is gone.
func TestNewSessionReplacesTheOld(t *testing.T) {
	inBubble(t, func(r *rig) {
		old := r.open()
		old.good(protocol.Verify{})
		ms, _ := old.epoch(old.at, old.gen, protocol.Verify{})
		old.send(ms[0].kind, ms[0].payload)
		old.send(ms[1].kind, ms[1].payload)
		synctest.Wait()
		next := r.open(old.at)
		if _, err := old.end.Receive(r.ctx); err == nil {
			t.Error("the old session goes on")
		}
		if next.welcome.At != old.at {
			t.Fatalf("the new session begins at %v", next.welcome.At)
		}
		next.good(protocol.Verify{})
		// A session that knows nothing of the image begins with a new one.
		if fresh := r.open(); fresh.welcome.At.Number != 0 || fresh.welcome.At.Image == next.at.Image {
			t.Errorf("a stranger goes on from %v", fresh.welcome.At)
		}
	})
}

// TestVerifyAnswersWithTheImage: the hash is that of the image after the epoch.
func TestVerifyAnswersWithTheImage(t *testing.T) {
	inBubble(t, func(r *rig) {
		f := r.open()
		for _, ask := range []protocol.Verify{{Count: imagePages}, {First: 3, Count: 5}, {}} {
			a := f.good(ask)
			synctest.Wait()
			if a.HasHash != (ask.Count > 0) {
				t.Fatalf("asked for %+v: %+v", ask, a)
			}
			if !a.HasHash {
				continue
			}
			want, err := epoch.HashPages(r.standby.last.ReadPages, ask.First, ask.Count)
			if err != nil || a.Verified != want {
				t.Errorf("asked for %+v: %v, the image is %v (%v)", ask, a.Verified, want, err)
			}
		}
	})
}
