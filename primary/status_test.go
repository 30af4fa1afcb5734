package primary

// What a primary says of its lease and of its guest is so at the moment it is
// asked, and what it has counted is added up without loss.

import (
	"context"
	"errors"
	"reflect"
	"sync/atomic"
	"testing"
	"time"

	"understudy/clock"
	"understudy/epoch"
	"understudy/protocol"
)

// deafLog stops renewing when it is told to.
type deafLog struct {
	*rigLog
	deaf atomic.Bool
}

func (l *deafLog) Renew(ctx context.Context, guest string, g epoch.Generation) (clock.Instant, error) {
	if l.deaf.Load() {
		return 0, errors.New("no leader")
	}
	return l.rigLog.Renew(ctx, guest, g)
}

func TestALeaseThatRunsOutIsTold(t *testing.T) {
	inBubble(t, nil, func(r *rig) {
		log := &deafLog{rigLog: r.log}
		r.p.Log = log
		if st := r.p.Status(); st.LeaseLeft != 0 || st.Running || st.Generation != 1 {
			t.Errorf("before it runs: %+v", st)
		}
		r.start(false)
		r.wait("it runs", 5*time.Second, func() bool { return r.p.Status().Mode == ModeAlone })
		st := r.p.Status()
		if !st.Running || st.LeaseLeft <= rigLease/2 || st.LeaseLeft > rigLease || st.PeerAge != nil {
			t.Errorf("while it runs: %+v", st)
		}
		log.deaf.Store(true)
		first := r.p.Status().LeaseLeft
		time.Sleep(rigLease / 4)
		if now := r.p.Status().LeaseLeft; now > first-rigLease/5 {
			t.Errorf("the lease had %v left, a quarter of it later %v", first, now)
		}
		r.wait("the guest stands still", rigLease, func() bool { return !r.p.Status().Running })
		time.Sleep(rigLease)
		if st := r.p.Status(); st.LeaseLeft != 0 {
			t.Errorf("after its end the lease has %v left", st.LeaseLeft)
		}
		log.deaf.Store(false)
		r.wait("it runs again", 5*time.Second, func() bool { now := r.p.Status(); return now.Running && now.LeaseLeft > 0 })

		r.p.generation.Store(2) // the lease of generation 1 is none of this one
		r.p.stats.lease(1, r.log.clock.Now().Add(rigLease))
		if st := r.p.Status(); st.LeaseLeft != 0 {
			t.Errorf("a lease of another generation has %v left", st.LeaseLeft)
		}
		r.p.generation.Store(1)
	})
}

func TestPercentilesAreThoseOfTheNewestSamples(t *testing.T) {
	var w window
	if w.percentiles() != (Percentiles{}) {
		t.Error("percentiles of nothing")
	}
	for i := range 3 * windowSize {
		w.add(time.Duration(i))
		n := min(i+1, windowSize)
		want := Percentiles{Median: time.Duration(i - n + 1 + n/2), P99: time.Duration(i - n + 1 + min(n-1, n*99/100)), Max: time.Duration(i), Samples: n}
		if i%97 != 0 {
			continue
		}
		for range 2 { // sorted out, and known
			if got := w.percentiles(); got != want {
				t.Fatalf("after %d samples: %+v, want %+v", i+1, got, want)
			}
		}
	}
}

// heardAt is a session whose peer was heard at a time.
type heardAt struct {
	protocol.Session
	at time.Time
}

func (h heardAt) LastHeard() time.Time { return h.at }

func TestAPeersLastWordHasItsAge(t *testing.T) {
	inBubble(t, nil, func(r *rig) {
		r.p.stats.connected("b", epoch.Incarnation{1}, heardAt{at: time.Now()})
		time.Sleep(30 * time.Millisecond)
		if age := r.p.Status().PeerAge; age == nil || *age != 30*time.Millisecond {
			t.Errorf("the age is %v", age)
		}
		r.p.stats.linkError(errors.New("lost"))
		if age := r.p.Status().PeerAge; age != nil {
			t.Errorf("without a session the age is %v", *age)
		}
	})
}

func TestTotalsAddUpFieldByField(t *testing.T) {
	var a, b Totals
	for i := range reflect.TypeFor[Totals]().NumField() {
		for of, n := range map[*Totals]int{&a: i + 1, &b: 100 * (i + 1)} {
			f := reflect.ValueOf(of).Elem().Field(i)
			f.Set(reflect.ValueOf(n).Convert(f.Type()))
		}
	}
	sum := reflect.ValueOf(a.Plus(b))
	for i := range sum.NumField() {
		if got := sum.Field(i).Convert(reflect.TypeFor[uint64]()).Uint(); got != uint64(101*(i+1)) {
			t.Errorf("%s: %d", sum.Type().Field(i).Name, got)
		}
	}
}
