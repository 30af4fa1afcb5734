package dashboard_test

// Every state of a guest as its page tells it: what is so, and what to do.

import (
	"fmt"
	"testing"
	"time"

	"understudy/backup"
	"understudy/disk"
	"understudy/epoch"
	"understudy/exclusion"
	"understudy/host"
	"understudy/ownership"
	"understudy/primary"
	"understudy/status"
)

func ptr[T any](v T) *T { return &v }

func wellCluster() status.Cluster {
	return status.Cluster{Host: "alpha", Leader: "witness", Term: 4, Last: 31, Committed: 31, Applied: 31, Contact: ptr(40 * time.Millisecond),
		Voters: []status.Voter{{Host: "alpha", Address: "192.0.2.1:7400", Heard: ptr(time.Duration(0))}, {Host: "beta", Address: "192.0.2.2:7400", Heard: ptr(3 * time.Second)},
			{Host: "witness", Address: "192.0.2.3:7400", Witness: true, Leader: true, Heard: ptr(40 * time.Millisecond)}}}
}

// apart is what is known of a log whose leader does not hear one of the pair.
func apart() status.Cluster {
	c := wellCluster()
	c.Voters[1].Heard = ptr(9 * time.Second)
	return c
}

// lost is what a host knows of a log that has no leader any more.
func lost() status.Cluster {
	c := wellCluster()
	c.Leader, c.Contact = "", ptr(42*time.Second)
	c.Voters[1].Heard, c.Voters[2].Heard, c.Voters[2].Leader = ptr(42*time.Second), ptr(42*time.Second), false
	return c
}

var began = time.Now()

// busy is a guest that alpha runs and beta stands by for, and whose counts go on
// as time goes by.
func busy(name string) host.GuestStatus { return busyAt(name, time.Now()) }

// busyAt is what it was at a time, or will be.
func busyAt(name string, at time.Time) host.GuestStatus {
	n := 650000 + uint64(at.Sub(began.Add(-time.Hour))/(50*time.Millisecond)) // an epoch takes 50 ms
	wave := time.Duration(n%40) * 20 * time.Microsecond
	const kib = 1 << 10
	t := primary.Totals{Checkpoints: n, Commits: n - 1, PauseTime: time.Duration(n)*2100*time.Microsecond + wave, LagTime: time.Duration(n)*8*time.Millisecond + 4*wave,
		RawBytes: n * 2400 * kib, WireBytes: n * 210 * kib, ReferencePages: n * 220, CopyPages: n * 40, ZeroPages: n * 60, SamePages: n * 90, DeltaPages: n * 150, PackedPages: n * 40}
	return host.GuestStatus{Name: name, Host: "alpha", Role: "primary", Protected: host.ProtectedYes,
		Log: ownership.Guest{Generation: 3, Revision: 9, Owner: "alpha", Phase: ownership.PhaseActive, Desired: ownership.Running, InSync: true,
			Backup: ownership.Backup{Host: "beta", Image: epoch.Incarnation{1}, Epoch: 5}, Previous: "beta"},
		Primary: &primary.Status{Mode: primary.ModeProtected, ModeFor: 95 * time.Second, Linked: true, Backup: "beta", Epoch: epoch.Number(n), EpochAge: 12 * time.Millisecond,
			Pages: 1 << 18, Held: int(n % 7), HeldBytes: int64(n%7) * 1460, Dirty: 600, Generation: 3, LeaseLeft: 750 * time.Millisecond, Running: true, PeerAge: ptr(5 * time.Millisecond),
			Pause:  primary.Percentiles{Median: 2 * time.Millisecond, P99: 5 * time.Millisecond, Max: 9 * time.Millisecond, Samples: 1234},
			Lag:    primary.Percentiles{Median: 8 * time.Millisecond, P99: 20 * time.Millisecond, Max: 50 * time.Millisecond, Samples: 1234},
			Totals: t},
		Disks:    &disk.Status{Mode: "hold", Generation: 3, Writes: 4, Bytes: 16 << 10 * (n % 3), Limit: 64 << 20},
		Excluded: &exclusion.Stats{Mapped: 900, Indexed: 100}}
}

// with is a guest that is busy but for what change does.
func with(change func(g *host.GuestStatus)) func() []host.GuestStatus {
	return func() []host.GuestStatus {
		g := busy("web")
		change(&g)
		return []host.GuestStatus{g}
	}
}

func unprotected(mode primary.Mode, linked bool) func(g *host.GuestStatus) {
	return func(g *host.GuestStatus) {
		g.Protected, g.Log.InSync = host.ProtectedNo, false
		g.Primary.Mode, g.Primary.Linked, g.Primary.ModeFor, g.Primary.EpochAge = mode, linked, 9*time.Second, 9*time.Second
		g.Primary.Held, g.Primary.HeldBytes, g.Disks.Writes, g.Disks.Bytes = 0, 0, 0, 0 // nothing waits for a commit
		if !linked {
			g.Primary.PeerAge, g.Primary.LinkError = nil, "dial tcp 192.0.2.2:7400: connect: connection refused"
		}
	}
}

func standsBy(state string, inSync bool) func(g *host.GuestStatus) {
	return func(g *host.GuestStatus) {
		g.Role, g.Protected, g.Primary, g.Disks, g.Excluded = "backup", host.ProtectedUnknown, nil, nil, nil
		g.Log.Owner, g.Log.Backup.Host = "beta", "alpha"
		g.Backup = &backup.Status{State: state, Image: "02", Epoch: 99, EpochAge: 30 * time.Millisecond, Whole: true, InSync: inSync, Commits: 99}
	}
}

func TestEveryStateIsToldInWords(t *testing.T) {
	s := newStage(t)
	s.exits = map[string][]status.Exit{"web": {{Device: "network 02:00:00:00:00:01", Held: true, Treatment: "held until its epoch is committed"}}}
	s.tell(3*time.Minute, map[string]any{"guest": "web", "kind": "booted", "text": "the guest was booted here"})
	s.tell(95*time.Second, map[string]any{"guest": "web", "kind": "protected", "peer": "beta", "text": "protected: host beta is in sync at epoch 5"})
	s.is(with(func(*host.GuestStatus) {}))
	p := open(t, s.url, s.operator)
	for _, c := range []struct {
		name    string
		guest   func(g *host.GuestStatus)
		cluster func() status.Cluster
		event   map[string]any
		head    string
		also    map[string]string // selector → text
		spoken  string
	}{
		{name: "protected", guest: func(*host.GuestStatus) {}, head: "web is protected: runs on alpha, beta stands by, 12 ms behind.",
			also: map[string]string{".picture": "checkpoints, epoch", ".lead": "leads the log", ".facts": "another 750 ms", ".asof": ""}},
		{name: "synchronising", guest: func(g *host.GuestStatus) {
			unprotected(primary.ModeSyncing, true)(g)
			g.Primary.Remaining = g.Primary.Pages * 57 / 100
		}, head: "web is not protected yet: runs on alpha, and beta is being synchronised, 43% done.",
			also: map[string]string{".todo": "Nothing to do", ".picture": "memory is copied"}, spoken: "web: synchronising, owned by alpha"},
		{name: "unprotected", guest: unprotected(primary.ModeAlone, false), cluster: apart,
			event: map[string]any{"guest": "web", "kind": "unprotected", "reason": "backup-silent", "text": "unprotected: nothing is heard of host beta"},
			head:  "web is NOT protected: runs on alpha alone, since beta fell silent.",
			also: map[string]string{".todo": "See that beta is up", ".notes": "connection refused", ".picture": "silent: no session",
				".events": "nothing is heard of host beta"}, spoken: "web: not protected, owned by alpha"},
		{name: "waiting", guest: func(g *host.GuestStatus) { g.Protected, g.Primary.Linked = host.ProtectedNo, false },
			head: "web waits: beta does not answer, and output is held until it does."},
		{name: "no-majority", guest: func(g *host.GuestStatus) { g.Primary.LeaseLeft, g.Primary.Running = 0, false }, cluster: lost,
			head: "web stands still: alpha holds no lease, so nothing may leave it.",
			also: map[string]string{".todo": "No majority: alpha knows no leader of the ownership log.", ".picture": "stands still here", ".link.log": "silent for 4"}, spoken: "stands still: no lease"},
		{name: "failing-over", guest: standsBy("asking", true), cluster: apart, head: "web is failing over: alpha does not hear from beta, and asks for the guest.",
			also: map[string]string{".todo": "once the lease of the old host has run out"}, spoken: "web: failing over, owned by beta"},
		{name: "activating", guest: func(g *host.GuestStatus) {
			unprotected(primary.ModeAlone, false)(g)
			g.Log.Phase, g.Log.Generation, g.Primary.Generation = ownership.PhaseActivating, 4, 4
		}, head: "web is failing over: alpha brings it up from the last commit."},
		{name: "paused", guest: func(g *host.GuestStatus) {
			unprotected(primary.ModeAlone, false)(g)
			g.Log.Protection, g.Primary.LinkError = ownership.ProtectionPaused, ""
		}, head: "web is NOT protected: an operator paused its protection; it runs on alpha alone.",
			also: map[string]string{".todo": "understudy resume web", ".picture": "nothing flows, as told"}, spoken: "web: protection paused"},
		{name: "off", guest: func(g *host.GuestStatus) {
			unprotected(primary.ModeAlone, false)(g)
			g.Log.Protection = ownership.ProtectionOff
		}, head: "web is NOT protected: an operator switched its protection off; it runs on alpha alone.", also: map[string]string{".todo": "understudy protect web"}},
		{name: "superseded", guest: func(g *host.GuestStatus) {
			unprotected(primary.ModeYielded, false)(g)
			g.Primary.Running, g.Primary.LeaseLeft = false, 0
		}, head: "web stands still on alpha: another host owns it, or is taking it over.", also: map[string]string{".picture": "superseded"}},
		{name: "elsewhere", guest: standsBy("fed", true), head: "web runs on beta, as far as alpha knows, whose image is in sync, 30 ms old.",
			also: map[string]string{".todo": "ask the endpoint of beta", "#alone": "the view of this host alone"}},
		{name: "stopped", guest: func(g *host.GuestStatus) {
			g.Role, g.Protected, g.Primary, g.Log.Desired, g.Log.InSync = "stopped", host.ProtectedUnknown, nil, ownership.Stopped, false
		}, head: "web is stopped, as it was told to.", also: map[string]string{".todo": "understudy start web"}, spoken: "web: stopped"},
		{name: "trouble", guest: func(g *host.GuestStatus) {
			g.Role, g.Protected, g.Primary = "booting", host.ProtectedUnknown, nil
			g.Problem = "start QEMU: qemu-system-x86_64: no such file"
		}, head: "web is being booted on alpha.", also: map[string]string{".notes": "qemu-system-x86_64: no such file"}},
		{name: "after-failback", guest: func(g *host.GuestStatus) { g.Log.Generation, g.Primary.Generation = 5, 5 },
			event: map[string]any{"guest": "web", "kind": "activated", "peer": "beta", "text": "the log has recorded that it runs here"},
			head:  "web is protected: runs on alpha, beta stands by, 12 ms behind.", also: map[string]string{".notes": "Taken over at"}, spoken: "web: protected, runs on alpha, beta stands by"},
	} {
		s.is(with(c.guest))
		if c.cluster == nil {
			c.cluster = wellCluster
		}
		s.knows(c.cluster)
		if c.event != nil {
			s.tell(0, c.event)
		}
		p.reads("h1", c.head)
		for selector, text := range c.also {
			if text != "" {
				p.reads(selector, text)
			}
		}
		if c.spoken != "" {
			p.hears(c.spoken)
		}
		p.portraits("state-" + c.name)
		p.clean(s.url, refused)
		if t.Failed() {
			t.Fatalf("in the state %s", c.name)
		}
	}
}

func TestADaemonThatDoesNotAnswerIsSaidToBeOld(t *testing.T) {
	s := newStage(t)
	s.is(with(func(*host.GuestStatus) {}))
	p := open(t, s.url, s.reader)
	p.reads("h1", "web is protected")
	p.reads("#link", "live")
	s.stop()
	p.reads("#link", "does not answer, last heard")
	p.reads("h1", "web is in an unknown state: alpha has not answered for")
	p.reads(".asof", "may be over")
	p.hears("alpha does not answer")
	p.portraits("state-daemon-silent")
	s.up()
	p.reads("#link", "live")
	p.reads("h1", "web is protected")
	p.hears("web: protected")
	s.tell(0, map[string]any{"guest": "web", "kind": "problem", "text": "heard after the daemon came back"})
	p.reads(".events", "heard after the daemon came back")
	p.clean(s.url, refused, "net::ERR")
}

func TestManyGuestsHaveAnOverview(t *testing.T) {
	s := newStage(t)
	s.is(func() []host.GuestStatus {
		db := busy("db")
		unprotected(primary.ModeAlone, false)(&db)
		mail := busy("mail")
		unprotected(primary.ModeSyncing, true)(&mail)
		mail.Primary.Remaining = mail.Primary.Pages / 4
		return []host.GuestStatus{db, mail, busy("web")}
	})
	p := open(t, s.url, s.reader)
	p.reads("h1", "2 of 3 guests are not protected.")
	p.reads(".card:first-child", "db is NOT protected")
	p.picture("overview")
	p.clean(s.url, refused)
	p.must(p.Eval(p.ctx, "document.querySelector('.card:last-child a').click()", nil))
	p.reads("h1", "web is protected")
	p.reads("#crumbs", "web")
	var at string
	p.must(p.Eval(p.ctx, "location.hash", &at))
	if at != "#/guest/web" {
		t.Errorf("the page of web is at %s", at)
	}
	p.must(p.Eval(p.ctx, "history.back()", nil))
	p.reads("h1", "2 of 3 guests")
}

func TestWhatAHostileGuestSaysIsText(t *testing.T) {
	s := newStage(t)
	evil := `<img src=x onerror="document.title='owned'"><script>document.title='owned'</script>`
	s.is(func() []host.GuestStatus {
		one, two := busy(evil), busy("../../%2e%2e/#/x")
		unprotected(primary.ModeAlone, false)(&one)
		one.Primary.LinkError, one.Problem = evil, evil
		return []host.GuestStatus{one, two}
	})
	s.exits = map[string][]status.Exit{evil: {{Device: evil, Treatment: evil}}}
	s.tell(time.Minute, map[string]any{"guest": evil, "kind": evil, "reason": evil, "text": evil, "host": evil})
	for i, broken := range []any{nil, 7, map[string]any{"a": 1}, "\u202e\u0000", []string{evil}} {
		s.tell(time.Duration(i)*time.Second, map[string]any{"kind": broken, "text": broken, "guest": broken})
	}
	p := open(t, s.url, s.reader)
	p.reads(".cardname", evil)
	p.reads(".events .text", evil)
	for i := range 2 {
		p.must(p.Eval(p.ctx, fmt.Sprintf("document.querySelectorAll('.card a')[%d].click()", i), nil))
		p.within(10*time.Second, "at a guest's page", "document.querySelector('.guestpage').checkVisibility()")
		if i == 0 {
			p.reads(".notes", evil)
		}
		p.clean(s.url, refused)
		p.must(p.Eval(p.ctx, "location.hash = '#/'", nil))
		p.reads("h1", "guests")
	}
	var bad bool
	p.must(p.Eval(p.ctx, "document.title === 'owned' || document.querySelectorAll('main img, main script, main iframe').length > 0", &bad))
	if bad {
		t.Error("a guest's name has become markup")
	}
}
