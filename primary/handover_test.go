package primary

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"understudy/epoch"
	"understudy/hypervisor/sim"
	"understudy/ownership"
	"understudy/protocol"
	"understudy/protocol/protocoltest"
)

// next runs the primary of the next daemon, on the same guest, until stop.
func (r *rig) next(left Left) (p *Primary, stop func()) {
	r.t.Helper()
	d := r.p.Deps
	d.State, d.Left = r.log.now(), &left
	p, err := New(r.cfg, d)
	r.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if _, err := p.Run(ctx); err != nil {
			r.t.Errorf("the next primary: %v", err)
		}
	})
	stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	r.t.Cleanup(stop)
	return p, stop
}

func TestTheNextDaemonGoesOnInSync(t *testing.T) {
	inBubble(t, func(c *Config, m *sim.Config) { c.VerifyAll = true }, func(r *rig) {
		r.start(true)
		r.wait("protected", 10*time.Second, r.protected)
		r.wait("some commits", 10*time.Second, func() bool { return r.commits() > 20 })
		before, sessions := r.log.now(), r.sessions()
		began := time.Now()
		r.must(r.p.HandOver(context.Background()))
		if d := time.Since(began); d > r.cfg.Ceiling+time.Second {
			t.Errorf("the handover took %v", d)
		}
		if r.runs() {
			t.Error("the guest runs, and nobody has it")
		}
		left := r.p.Left()
		if !left.Protected() || left.Generation != before.Generation || left.At.Image != before.Backup.Image || left.Backup != "b" {
			t.Fatalf("left: %+v, the log: %+v", left, before)
		}
		if released := r.gate.releasedTo(); released != left.At.Number {
			t.Errorf("epoch %d was released, %d acknowledged", released, left.At.Number)
		}
		if n := left.Dirty.Count(); n > 16 {
			t.Errorf("%d pages are said to be dirty, of a guest that stands still", n)
		}
		time.Sleep(3 * time.Second) // longer than a lease: the backup waits all the same
		p, stop := r.next(left)
		defer stop()
		r.wait("commits of the next daemon", 10*time.Second, func() bool { return p.Status().Totals.Commits > 20 })
		if now := r.log.now(); now != before {
			t.Errorf("the log says %+v, said %+v", now, before)
		}
		if st := p.Status(); st.Mode != ModeProtected || st.Epoch <= left.At.Number || r.sessions() != sessions+1 {
			t.Errorf("%+v, %d sessions, were %d", st, r.sessions(), sessions)
		}
		v, err := p.Verify(context.Background())
		if err != nil || !v.Identical {
			t.Errorf("verify: %+v, %v", v, err)
		}
	})
}

func TestABackupThatDoesNotPromiseToWait(t *testing.T) {
	inBubble(t, nil, func(r *rig) {
		r.script(func(ctx context.Context, there *protocoltest.End, h protocol.Hello) {
			p := newPeer(t, ctx, there, h)
			p.welcome(p.at)
			for p.honest(1) { // and to nothing else
			}
		})
		r.wait("protected", 10*time.Second, r.protected)
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if err := r.p.HandOver(ctx); !errors.Is(err, ErrNotHandedOver) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("handed over: %v", err)
		}
		if !r.runs() || !r.protected() {
			t.Error("the guest does not run on as before")
		}
	})
}

func TestAnUnprotectedGuestIsLeftToo(t *testing.T) {
	inBubble(t, nil, func(r *rig) {
		r.start(false)
		r.wait("the guest runs", 10*time.Second, func() bool { return r.p.Status().Mode == ModeAlone })
		time.Sleep(time.Second)
		r.must(r.p.HandOver(context.Background()))
		if r.runs() || r.p.Left().Protected() || r.p.Left().Continues(r.log.now(), "a") {
			t.Errorf("left: %+v", r.p.Left())
		}
	})
}

func TestWhatIsLeftContinuesOnlyWhatTheLogNames(t *testing.T) {
	at := epoch.Position{Image: epoch.Incarnation{1}, Number: 7}
	fits := ownership.Guest{Generation: 3, Revision: 9, Owner: "a", Phase: ownership.PhaseActive, Desired: ownership.Running, InSync: true,
		Backup: ownership.Backup{Host: "b", Image: at.Image, Epoch: 5}}
	left := Left{Generation: 3, Backup: "b", At: at}
	if !left.Continues(fits, "a") {
		t.Fatal("what fits does not continue")
	}
	for about, change := range map[string]func(g *ownership.Guest, l *Left){
		"another owner":        func(g *ownership.Guest, _ *Left) { g.Owner = "b" },
		"another generation":   func(g *ownership.Guest, _ *Left) { g.Generation++ },
		"no backup in sync":    func(g *ownership.Guest, _ *Left) { g.InSync = false },
		"another image":        func(g *ownership.Guest, _ *Left) { g.Backup.Image[0]++ },
		"a later image":        func(g *ownership.Guest, _ *Left) { g.Backup.Epoch = 8 },
		"meant to be stopped":  func(g *ownership.Guest, _ *Left) { g.Desired = ownership.Stopped },
		"surrendered":          func(g *ownership.Guest, _ *Left) { g.Phase = ownership.PhaseSurrendered },
		"nothing that is left": func(_ *ownership.Guest, l *Left) { *l = Left{Generation: 3} },
	} {
		g, l := fits, left
		change(&g, &l)
		if l.Continues(g, "a") {
			t.Errorf("%s: it continues", about)
		}
	}
}
