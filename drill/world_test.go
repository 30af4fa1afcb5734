package drill

// A cluster that is made up, for synctest: two hosts and a witness with clocks of
// their own, a guest, leases, takeovers, synchronisation, strikes and bubbles,
// and whatever shall go wrong.

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"understudy/backup"
	"understudy/clock"
	"understudy/epoch"
	"understudy/events"
	"understudy/host"
	"understudy/ownership"
	"understudy/primary"
)

const (
	home    = ownership.HostID("alpha")
	other   = ownership.HostID("beta")
	witness = ownership.HostID("witness")
	guest   = "web"
	aLease  = time.Second
)

// script is what goes wrong.
type script struct {
	neverTakesOver bool          // the backup does not take the guest over
	takesBack      bool          // … it does, cannot run it, and gives it back
	reboots        bool          // the guest is booted anew at the backup
	secondOwner    bool          // the former owner goes on under a lease
	loses          bool          // the takeover is of an older epoch than was acknowledged
	differs        bool          // memory is not the same
	mute           bool          // the guest says nothing
	held           bool          // held output does not leave
	noStrikes      bool          // strikes are refused
	lostAnswer     bool          // the strike is done, and its answer is lost
	staysStruck    bool          // the strike is never undone
	badCheck       bool          // the check fails
	disturbs       bool          // the bubble costs the primary its protection
	syncTakes      time.Duration // 0: 2s
	refusals       int           // of switchovers
	bubbleFails    bool
	bubbleStays    int // how often EndBubble fails
	lostAt         map[ownership.HostID][]outage
}

// outage is a time in which a host does not answer.
type outage struct{ from, to time.Duration }

type world struct {
	began time.Time
	s     script

	mu       sync.Mutex
	log      ownership.Guest
	runs     map[ownership.HostID]bool // the guest runs there
	struck   map[ownership.HostID]time.Time
	strikes  map[ownership.HostID]Struck
	records  map[ownership.HostID][]events.Event
	changed  time.Time // when the owner or the backup last changed: epochs are counted from there
	frozenAt epoch.Number
	frozen   time.Time // when
	bubble   bool
	ended    bool // EndBubble was asked for
	busy     map[ownership.HostID]string
	moves    int
	commands [][]string
}

func newWorld(s script) *world {
	w := &world{began: time.Now(), s: s, runs: map[ownership.HostID]bool{home: true}, struck: map[ownership.HostID]time.Time{},
		strikes: map[ownership.HostID]Struck{}, records: map[ownership.HostID][]events.Event{}, changed: time.Now().Add(-time.Minute), busy: map[ownership.HostID]string{}}
	w.log = ownership.Guest{Generation: 3, Revision: 20, Owner: home, Phase: ownership.PhaseActive, Desired: ownership.Running, InSync: true,
		Backup: ownership.Backup{Host: other, Image: epoch.Incarnation{1}, Epoch: 5}}
	for _, h := range []ownership.HostID{home, other, witness} {
		w.tell(h, events.Event{Kind: events.KindHostUp, Text: "up"})
	}
	if w.s.syncTakes == 0 {
		w.s.syncTakes = 2 * time.Second
	}
	return w
}

// skew is how wrong each host's clock is.
func skew(h ownership.HostID) time.Duration {
	return map[ownership.HostID]time.Duration{home: 3 * time.Second, other: -2 * time.Second, witness: 0}[h]
}

func bootOf(h ownership.HostID) time.Duration {
	return map[ownership.HostID]time.Duration{home: time.Hour, other: 50 * time.Hour, witness: 9 * time.Hour}[h]
}

func (w *world) tell(h ownership.HostID, e events.Event) {
	e.Host, e.Seq = h, uint64(len(w.records[h])+1)
	e.At = time.Now().Add(skew(h)).UTC()
	e.Boot, e.BootID = clock.Instant(bootOf(h)+time.Since(w.began)), "boot-of-"+string(h)
	if e.Kind != events.KindHostUp && e.Kind != events.KindHostDown {
		e.Guest = guest
	}
	w.records[h] = append(w.records[h], e)
}

func (w *world) Self() ownership.HostID { return witness }
func (w *world) Members() []Member {
	return []Member{{Host: home}, {Host: other}, {Host: witness, Witness: true}}
}
func (w *world) Facts(name string) (Facts, bool) {
	return Facts{Host: home, Backup: other, DetachAfter: aLease}, name == guest
}

// gone reports whether a host does not answer now.
func (w *world) gone(h ownership.HostID) bool {
	if w.struck[h].After(time.Now()) {
		return true
	}
	for _, o := range w.s.lostAt[h] {
		if t := time.Since(w.began); t >= o.from && t < o.to {
			return true
		}
	}
	return false
}

// call is a round trip; it fails when the host does not answer.
func (w *world) call(ctx context.Context, h ownership.HostID) error {
	trip := time.NewTimer(2 * time.Millisecond)
	defer trip.Stop()
	select {
	case <-trip.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	w.mu.Lock()
	gone := w.gone(h)
	w.mu.Unlock()
	if gone {
		<-ctx.Done() // silence
		return fmt.Errorf("%s: %w", h, ctx.Err())
	}
	return nil
}

// commitAge is how old the image's last commit is.
const commitAge = 15 * time.Millisecond

// acked is the epoch that the owner has acknowledged: one each 25 ms.
func (w *world) acked() epoch.Number {
	if w.frozenAt != 0 {
		return w.frozenAt
	}
	return 5 + epoch.Number(time.Since(w.changed)/(25*time.Millisecond))
}

func (w *world) Status(ctx context.Context, h ownership.HostID) (Seen, error) {
	if err := w.call(ctx, h); err != nil {
		return Seen{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	age := 10 * time.Millisecond
	s := Seen{Host: h, Leader: witness, Lease: aLease, LogAge: &age}
	if h == witness {
		return s, nil
	}
	g := host.GuestStatus{Name: guest, Host: h, Role: "backup", Log: w.log, Protected: host.ProtectedUnknown}
	linked := w.log.InSync && !w.gone(w.log.Backup.Host) && !w.gone(w.log.Owner)
	switch {
	case w.runs[h]:
		g.Role, g.Protected = "primary", host.ProtectedNo
		if linked && h == w.log.Owner {
			g.Protected = host.ProtectedYes
		}
		p := &primary.Status{Mode: primary.ModeProtected, Linked: linked, Backup: w.log.Backup.Host, Epoch: w.acked(), EpochAge: 20 * time.Millisecond,
			Generation: w.log.Generation, LeaseLeft: 800 * time.Millisecond, Running: true, Lag: primary.Percentiles{Median: 8 * time.Millisecond, P99: 20 * time.Millisecond}}
		if h != w.log.Owner { // a second owner
			p.Generation = w.log.Generation - 1
		}
		if !linked {
			p.Mode = primary.ModeAlone
		}
		if w.s.held {
			p.Held, p.Epoch = 7, 100
		}
		if w.bubble && w.s.disturbs {
			g.Protected = host.ProtectedNo
		}
		g.Primary = p
	case w.log.Owner != h:
		g.Backup = &backup.Status{State: "fed", Epoch: w.acked(), EpochAge: commitAge, Whole: w.log.InSync, InSync: w.log.InSync}
		if w.frozenAt != 0 {
			g.Backup.EpochAge += time.Since(w.frozen)
		}
	}
	s.Guests = []host.GuestStatus{g}
	return s, nil
}

func (w *world) Clock(ctx context.Context, h ownership.HostID) (Reading, error) {
	if err := w.call(ctx, h); err != nil {
		return Reading{}, err
	}
	return Reading{Time: time.Now().Add(skew(h)), Boot: clock.Instant(bootOf(h) + time.Since(w.began)), BootID: "boot-of-" + string(h)}, nil
}

func (w *world) Last(ctx context.Context, h ownership.HostID) (uint64, error) {
	if err := w.call(ctx, h); err != nil {
		return 0, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return uint64(len(w.records[h])), nil
}

func (w *world) Events(ctx context.Context, h ownership.HostID, after uint64) ([]events.Event, error) {
	if err := w.call(ctx, h); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]events.Event(nil), w.records[h][after:]...), nil
}

func (w *world) Busy(ctx context.Context, h ownership.HostID) (string, error) {
	if err := w.call(ctx, h); err != nil {
		return "", err
	}
	return w.busy[h], nil
}

func (w *world) Operate(ctx context.Context, h ownership.HostID, name, operation string, result any) error {
	if err := w.call(ctx, h); err != nil {
		return err
	}
	w.mu.Lock()
	if w.log.Owner != h || !w.runs[h] {
		defer w.mu.Unlock()
		return fmt.Errorf("guest %q is not run by host %s", name, h)
	}
	if operation == "verify" {
		w.mu.Unlock()
		if err := pass(ctx, 300*time.Millisecond); err != nil {
			return err
		}
		*result.(*primary.VerifyResult) = primary.VerifyResult{Pages: 4096, Epochs: 8, First: 100, Last: 108, Identical: !w.s.differs}
		return nil
	}
	if w.s.refusals > 0 {
		w.s.refusals--
		defer w.mu.Unlock()
		return errors.New("the backup does not answer")
	}
	if !w.log.InSync || w.gone(w.log.Backup.Host) {
		defer w.mu.Unlock()
		return errors.New("it is not protected")
	}
	to := w.log.Backup.Host
	w.frozenAt, w.frozen = w.acked(), time.Now()
	w.tell(h, events.Event{Kind: events.KindSwitchoverAsked, Text: "asked"})
	w.tell(h, events.Event{Kind: events.KindSurrendered, Epoch: w.frozenAt, Text: "handed over"})
	w.runs[h] = false
	w.mu.Unlock()
	moved := make(chan struct{})
	go func() { // whoever asked may be gone by then
		time.Sleep(40 * time.Millisecond)
		w.takeOver(h, to)
		close(moved)
	}()
	select {
	case <-moved:
		w.mu.Lock()
		defer w.mu.Unlock()
		*result.(*ownership.Guest) = w.log
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// takeOver makes to the owner, and later from its backup.
func (w *world) takeOver(from, to ownership.HostID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.log.Owner != from {
		return
	}
	at := w.frozenAt
	if w.s.loses {
		at -= 20
	}
	w.moves++
	w.log.Generation++
	w.log.Revision += 2
	w.log.Previous, w.log.Owner, w.log.InSync = from, to, false
	g := w.log.Generation
	for _, h := range []ownership.HostID{from, to, witness} {
		if h == witness || !w.gone(h) {
			w.tell(h, events.Event{Kind: events.KindOwnerChanged, Generation: g, Change: events.Change{From: string(from), To: string(to)}, Text: "owner changed"})
		}
	}
	if w.s.takesBack && w.moves == 1 {
		w.log.Generation++
		w.log.Revision++
		w.log.Owner = from
		w.tell(to, events.Event{Kind: events.KindReturned, Generation: w.log.Generation, Text: "returned"})
		w.runs[from] = true
		w.resync(from, to)
		return
	}
	w.runs[to] = true
	w.tell(to, events.Event{Kind: events.KindTakeoverRunning, Generation: g, Epoch: at, Text: "runs"})
	w.tell(to, events.Event{Kind: events.KindActivated, Generation: g, Text: "it is recorded that the guest runs here"})
	if w.s.reboots && w.moves == 1 {
		w.tell(to, events.Event{Kind: events.KindBooted, Generation: g, Text: "booted"})
	}
	if w.s.secondOwner && w.moves == 1 {
		w.runs[from] = true
	}
	w.frozenAt, w.changed = 0, time.Now()
	if !w.s.mute {
		time.AfterFunc(30*time.Millisecond, func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.tell(to, events.Event{Kind: events.KindFirstOutput, Generation: g, Text: "heard"})
		})
	}
	w.resync(to, from)
}

// resync makes a host the backup again, once it is there.
func (w *world) resync(owner, from ownership.HostID) {
	g := w.log.Generation
	var again func()
	again = func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		switch {
		case w.log.Generation != g:
		case w.gone(from) || w.gone(owner):
			time.AfterFunc(w.s.syncTakes, again)
		default:
			w.log.InSync, w.log.Backup = true, ownership.Backup{Host: from, Image: epoch.Incarnation{byte(g)}, Epoch: w.acked()}
			w.log.Revision++
			w.tell(owner, events.Event{Kind: events.KindProtected, Epoch: w.log.Backup.Epoch, Generation: g, Text: "protected"})
		}
	}
	time.AfterFunc(w.s.syncTakes, again)
}

func (w *world) Strike(ctx context.Context, h ownership.HostID, _ string, o StrikeOrder) (Struck, error) {
	if err := w.call(ctx, h); err != nil {
		return Struck{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.s.noStrikes {
		return Struck{}, fmt.Errorf("%w: strikes = false", ErrRefused)
	}
	now := time.Now()
	s := Struck{ID: o.ID, At: now.Add(skew(h)), Undo: now.Add(o.For).Add(skew(h))}
	w.struck[h], w.strikes[h] = now.Add(o.For), s
	w.frozenAt, w.frozen = w.acked(), now
	if o.Kind == Kill {
		w.runs[h] = false
	}
	time.AfterFunc(o.For, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if !w.s.staysStruck {
			delete(w.strikes, h)
		}
		if w.log.Owner == h && !w.runs[h] && w.s.neverTakesOver { // it finds its guest dead, and nobody took it
			w.log.Generation++
			w.log.Revision++
			w.log.InSync = false
			w.runs[h], w.frozenAt = true, 0
			w.tell(h, events.Event{Kind: events.KindBooted, Generation: w.log.Generation, Text: "booted anew"})
			w.resync(h, w.log.Backup.Host)
		}
		if w.log.Owner != h && !w.s.secondOwner {
			w.runs[h] = false // superseded
		}
	})
	owner, to := w.log.Owner, w.log.Backup.Host
	if !w.s.neverTakesOver {
		var take func()
		take = func() {
			w.mu.Lock()
			waits := w.gone(to) || w.gone(witness) && w.gone(h)
			w.mu.Unlock()
			if waits {
				time.AfterFunc(200*time.Millisecond, take)
				return
			}
			w.takeOver(owner, to)
		}
		time.AfterFunc(aLease+20*time.Millisecond, take)
	}
	if w.s.lostAnswer {
		return Struck{}, errors.New("the connection was reset")
	}
	return s, nil
}

func (w *world) Strikes(ctx context.Context, h ownership.HostID) (bool, []Struck, error) {
	if err := w.call(ctx, h); err != nil {
		return false, nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if s, ok := w.strikes[h]; ok {
		return true, []Struck{s}, nil
	}
	return true, nil, nil
}

func (w *world) Bubble(ctx context.Context, h ownership.HostID, _ string, o BubbleOrder, progress func(string)) (Bubbled, error) {
	if err := w.call(ctx, h); err != nil {
		return Bubbled{}, err
	}
	w.mu.Lock()
	w.bubble = true
	at := w.acked()
	w.mu.Unlock()
	progress("the copy runs")
	if err := pass(ctx, 2*time.Second); err != nil {
		return Bubbled{}, err
	}
	if w.s.bubbleFails {
		return Bubbled{}, errors.New("the copy did not start")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bubble = false
	b := Bubbled{Epoch: at, Started: 120 * time.Millisecond, Ended: true}
	if len(o.Check) > 0 {
		ran := w.check(o.Check)
		b.Check = &ran
	}
	return b, nil
}

func (w *world) EndBubble(ctx context.Context, h ownership.HostID, _ string) error {
	if err := w.call(ctx, h); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.s.bubbleStays > 0 {
		w.s.bubbleStays--
		return errors.New("it is being started")
	}
	w.bubble, w.ended = false, true
	return nil
}

func (w *world) check(argv []string) Ran {
	w.commands = append(w.commands, argv)
	if w.s.badCheck {
		return Ran{Status: 3, Output: "no route to web\n", Took: 10 * time.Millisecond}
	}
	return Ran{Output: "well\n", Took: 10 * time.Millisecond}
}

func (w *world) Check(_ context.Context, argv []string) Ran {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.check(argv)
}

func (w *world) Connect(ctx context.Context, _ string) error {
	if err := pass(ctx, 5*time.Millisecond); err != nil {
		return err
	}
	w.mu.Lock()
	up := w.runs[w.log.Owner] && !w.gone(w.log.Owner)
	w.mu.Unlock()
	if up {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

func pass(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// leftOver says what is left of a drill, "" if nothing is.
func (w *world) leftOver() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.bubble:
		return "the bubble is there"
	case len(w.strikes) > 0:
		return fmt.Sprintf("strikes are not undone: %v", w.strikes)
	case w.log.Owner != home:
		return fmt.Sprintf("%s owns the guest", w.log.Owner)
	case !w.runs[home]:
		return "the guest does not run"
	case !w.log.InSync:
		return "the guest is not protected"
	}
	return ""
}
