package simulation

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"understudy/backup"
	"understudy/primary"
)

// quiet is a world of two hosts in which nothing goes wrong.
func quiet(t *testing.T) *world {
	t.Helper()
	w := &world{dice: rand.New(rand.NewPCG(1, 1)), images: map[[16]byte]*image{}, twisted: noTwist}
	w.oracle.visits = map[string]int{}
	w.ledger = newLedger(w)
	for i, name := range []string{"a", "b"} {
		w.hosts[i] = newHost(w, i, name)
		t.Cleanup(w.hosts[i].free)
	}
	w.hosts[0].peer, w.hosts[1].peer = w.hosts[1], w.hosts[0]
	w.ledger.elect(0)
	for _, h := range w.hosts {
		h.boot()
	}
	return w
}

// TestAWorldThatStandsStillFails: whoever has something to do again and again at
// one instant ends the seed.
func TestAWorldThatStandsStillFails(t *testing.T) {
	for _, row := range []struct {
		what  string
		spins func(w *world)
	}{
		{"an event that follows itself", func(w *world) {
			var again func()
			again = func() { w.after(0, again) }
			again()
			for {
				w.next()
			}
		}},
		{"a primary's core", func(w *world) {
			p := w.hosts[0].daemon.primary
			for {
				p.post(primary.Tick{})
			}
		}},
		{"a backup's core", func(w *world) {
			b := w.hosts[1].daemon.backup
			for {
				b.post(backup.Tick{})
			}
		}},
	} {
		t.Run(strings.ReplaceAll(row.what, " ", "-"), func(t *testing.T) {
			w := quiet(t)
			for w.hosts[0].daemon.primary == nil || w.hosts[1].daemon.backup == nil {
				if w.now > 10*time.Second {
					t.Fatalf("nobody is there: %s", w.standing())
				}
				w.next()
			}
			defer func() {
				if v, ok := recover().(violation); !ok || !strings.Contains(fmt.Sprint(v), "stands still") {
					t.Errorf("it ended with %v", v)
				}
			}()
			row.spins(w)
		})
	}
}
