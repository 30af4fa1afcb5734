package drill

import (
	"strings"
	"testing"
	"time"

	"understudy/backup"
	"understudy/disk"
	"understudy/epoch"
	"understudy/host"
	"understudy/ownership"
	"understudy/primary"
)

// well is a pair that is well.
func well() View {
	age := 20 * time.Millisecond
	log := ownership.Guest{Generation: 3, Revision: 9, Owner: home, Phase: ownership.PhaseActive, Desired: ownership.Running, InSync: true,
		Backup: ownership.Backup{Host: other, Image: epoch.Incarnation{1}, Epoch: 5}}
	p := host.GuestStatus{Name: guest, Host: home, Role: "primary", Log: log, Protected: host.ProtectedYes,
		Primary: &primary.Status{Mode: primary.ModeProtected, Linked: true, Backup: other, Epoch: 100, Generation: 3, LeaseLeft: 800 * time.Millisecond, Running: true, Pages: 1000,
			Lag: primary.Percentiles{P99: 20 * time.Millisecond}}}
	b := host.GuestStatus{Name: guest, Host: other, Role: "backup", Log: log, Backup: &backup.Status{State: "fed", Epoch: 100, EpochAge: age, Whole: true, InSync: true}}
	seen := func(h ownership.HostID, g ...host.GuestStatus) Seen {
		return Seen{Host: h, Leader: witness, Lease: time.Second, LogAge: &age, Guests: g}
	}
	return View{At: time.Unix(1_800_000_000, 0), Members: []Member{{Host: home}, {Host: other}, {Host: witness, Witness: true}},
		Seen:   map[ownership.HostID]Seen{home: seen(home, p), other: seen(other, b), witness: seen(witness)},
		Silent: map[ownership.HostID]string{}, Busy: map[ownership.HostID]string{}, Facts: map[string]Facts{guest: {Host: home, Backup: other, DetachAfter: time.Second}},
		Strikes: map[ownership.HostID]bool{home: true, other: true, witness: true}, Struck: map[ownership.HostID]bool{}}
}

// each changes what every host says of the guest.
func each(v *View, f func(*host.GuestStatus)) {
	for h, s := range v.Seen {
		for i := range s.Guests {
			f(&s.Guests[i])
		}
		v.Seen[h] = s
	}
}

func down(v *View, h ownership.HostID) {
	delete(v.Seen, h)
	v.Silent[h] = "connection refused"
	each(v, func(g *host.GuestStatus) {
		if g.Primary != nil && h == other {
			g.Protected, g.Primary.Linked = host.ProtectedNo, false
		}
	})
}

func leads(v *View, h ownership.HostID) {
	for name, s := range v.Seen {
		s.Leader = h
		v.Seen[name] = s
	}
}

func outOfSync(v *View, mode primary.Mode) {
	each(v, func(g *host.GuestStatus) {
		g.Log.InSync, g.Log.Backup = false, ownership.Backup{}
		if g.Primary != nil {
			g.Primary.Mode, g.Protected = mode, host.ProtectedNo
		}
		if g.Backup != nil {
			g.Backup.Whole, g.Backup.InSync = false, false
		}
	})
}

func TestForecasts(t *testing.T) {
	for _, c := range []struct {
		name     string
		change   func(*View)
		fail     string
		outcome  Outcome
		after    time.Duration // 0: it does not end by itself, or there is none
		majority bool
		says     []string
	}{
		{"the owner", nil, "alpha", FailsOver, time.Second + loading, true, []string{"800ms of it is left now", "epoch 100 whole", "not protected until alpha is back", "20ms old now"}},
		{"the backup", nil, "beta", Unprotected, time.Second, true, []string{"output waits 1s (detach_after)"}},
		{"the witness", nil, "witness", Unaffected, 0, true, []string{"checkpoints flow as before", "one more failure stops everything", "elected"}},
		{"the pair's link", nil, "link:alpha-beta", Unprotected, time.Second, true, []string{"asks for nothing", "detach_after"}},
		{"the owner's link to the witness", nil, "link:alpha-witness", Unaffected, 0, true, []string{"renewed through beta, which relays"}},
		{"the backup's link to the witness", nil, "link:witness-beta", Unaffected, 0, true, []string{"checkpoints flow as before"}},
		{"the owner leads the log", func(v *View) { leads(v, home) }, "alpha", FailsOver, 2*time.Second + loading, true, []string{"waits out a lease of its own"}},
		{"unprotected, the owner", func(v *View) { outOfSync(v, primary.ModeAlone) }, "alpha", Lost, 0, true, []string{"nothing to go on from", "booted anew"}},
		{"unprotected, the backup", func(v *View) { outOfSync(v, primary.ModeAlone) }, "beta", Unaffected, 0, true, []string{"not protected now"}},
		{"synchronising", func(v *View) {
			outOfSync(v, primary.ModeSyncing)
			each(v, func(g *host.GuestStatus) {
				if g.Primary != nil {
					g.Primary.Remaining = 300
				}
			})
		}, "alpha", Lost, 0, true, []string{"300 of 1000 pages are left"}},
		{"paused", func(v *View) {
			outOfSync(v, primary.ModeAlone)
			each(v, func(g *host.GuestStatus) { g.Log.Protection = ownership.ProtectionPaused })
		}, "alpha", Lost, 0, true, []string{"its protection is paused", "understudy resume web"}},
		{"off", func(v *View) {
			outOfSync(v, primary.ModeAlone)
			each(v, func(g *host.GuestStatus) { g.Log.Protection = ownership.ProtectionOff })
		}, "alpha", Lost, 0, true, []string{"its protection is off"}},
		{"the witness is down, the owner", func(v *View) { down(v, witness) }, "alpha", Waits, 0, false, []string{"reaches no other voter"}},
		{"the witness is down, the backup", func(v *View) { down(v, witness) }, "beta", Waits, 0, false, []string{"paused before the lease ends", "800ms left now"}},
		{"the witness is down, the link", func(v *View) { down(v, witness) }, "link:alpha-beta", Waits, 0, false, []string{"reach no other voter"}},
		{"the backup is down, the owner", func(v *View) { down(v, other) }, "alpha", Waits, 0, false, []string{"does not answer"}},
		{"the backup is down, the witness", func(v *View) { down(v, other) }, "witness", Waits, 0, false, nil},
		{"the owner does not answer", func(v *View) { down(v, home) }, "beta", NotKnown, 0, false, []string{"does not say that it runs it"}},
		{"nobody answers", func(v *View) { down(v, home); down(v, other); down(v, witness) }, "alpha", NotKnown, 0, false, []string{"no host that answers"}},
		{"the image is not whole", func(v *View) {
			each(v, func(g *host.GuestStatus) {
				if g.Backup != nil {
					g.Backup.Whole = false
				}
			})
		}, "alpha", Waits, 0, true, []string{"no whole image"}},
		{"stopped", func(v *View) { each(v, func(g *host.GuestStatus) { g.Log.Desired = ownership.Stopped }) }, "alpha", NotRunning, 0, true, []string{"meant to be stopped"}},
		{"changing hosts", func(v *View) { each(v, func(g *host.GuestStatus) { g.Log.Phase = ownership.PhaseActivating }) }, "alpha", NotKnown, 0, true, []string{"ask again"}},
		{"a shared disk, locked", func(v *View) { v.Facts[guest] = Facts{Host: home, Backup: other, Shared: true} }, "alpha", FailsOver, time.Second + loading, true,
			[]string{"the lock is kept", "is fenced"}},
		{"a shared disk, unfenced", func(v *View) { v.Facts[guest] = Facts{Host: home, Backup: other, Shared: true, Unfenced: true} }, "alpha", FailsOver, time.Second + loading, true,
			[]string{"runs at once", "stays in memory"}},
		{"a lock kept from an earlier takeover", func(v *View) {
			each(v, func(g *host.GuestStatus) {
				g.Disks = &disk.Status{Disks: []disk.DiskStatus{{Store: "shared", Waiting: g.Backup != nil}}}
			})
		}, "alpha", FailsOver, time.Second + loading, true, []string{"disk 0 still waits for a lock", "the lock is kept"}},
		{"held output", func(v *View) {
			each(v, func(g *host.GuestStatus) {
				if g.Primary != nil {
					g.Primary.Held, g.Primary.HeldBytes = 12, 4500
				}
			})
		}, "alpha", FailsOver, time.Second + loading, true, []string{"12 frames (4500 bytes)"}},
		{"the owner knows before its log", func(v *View) {
			each(v, func(g *host.GuestStatus) { g.Log.InSync = false })
		}, "alpha", FailsOver, time.Second + loading, true, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := well()
			if c.change != nil {
				c.change(&v)
			}
			f, err := ParseFailure(c.fail, v.Members)
			if err != nil {
				t.Fatal(err)
			}
			got := Foretell(f, []string{guest}, v)
			fate := got.Guests[0]
			var after time.Duration
			if fate.After != nil {
				after = *fate.After
			}
			why := strings.Join(append(fate.Why, got.Leader, fate.Loses), "\n")
			if fate.Outcome != c.outcome || after != c.after || got.Majority != c.majority {
				t.Errorf("%s after %v, majority %v; want %s, %v, %v\n%s", fate.Outcome, after, got.Majority, c.outcome, c.after, c.majority, why)
			}
			for _, s := range c.says {
				if !strings.Contains(why, s) {
					t.Errorf("it does not say %q:\n%s", s, why)
				}
			}
			if len(fate.Why) == 0 || fate.Loses == "" || got.Fail != c.fail && c.fail != "link:witness-beta" {
				t.Errorf("it does not say why: %+v", got)
			}
		})
	}
}

func TestFailuresAreRead(t *testing.T) {
	members := []Member{{Host: "a"}, {Host: "a-b"}, {Host: "c"}}
	for text, want := range map[string]Failure{"a-b": {Host: "a-b"}, "link:a-b-c": {A: "a-b", B: "c"}, "link:a-c": {A: "a", B: "c"}, "link:a-a-b": {A: "a", B: "a-b"}} {
		if got, err := ParseFailure(text, members); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "d", "link:", "link:a", "link:a-a", "link:a-d", "host a", "link:c"} {
		if got, err := ParseFailure(text, members); err == nil || !strings.Contains(err.Error(), "a, a-b, c") {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

// TestConditions: what is missing before a drill is said, one by one.
func TestConditions(t *testing.T) {
	for _, c := range []struct {
		name    string
		change  func(*View)
		spec    Spec
		missing string
		says    string
	}{
		{"all well", nil, spec(Failover), "", ""},
		{"no such guest", func(v *View) { v.Facts = nil }, spec(Switchover), "the guest is configured", "named"},
		{"the witness is down", func(v *View) { down(v, witness) }, spec(Switchover), "all voters are well", "witness does not answer"},
		{"no leader", func(v *View) { leads(v, "") }, spec(Switchover), "all voters are well", "knows no leader"},
		{"an old log", func(v *View) {
			s, old := v.Seen[other], time.Minute
			s.LogAge = &old
			v.Seen[other] = s
		}, spec(Switchover), "all voters are well", "not heard of the ownership log"},
		{"another drill", func(v *View) { v.Busy[other] = "a-drill" }, spec(Bubble), "no other drill runs", "beta runs a-drill"},
		{"being struck", func(v *View) { v.Struck[other] = true }, spec(Bubble), "no host is being struck", "beta is"},
		{"stopped", func(v *View) { each(v, func(g *host.GuestStatus) { g.Log.Desired = ownership.Stopped }) }, spec(Bubble), "the guest runs", "understudy start web"},
		{"unprotected", func(v *View) { outOfSync(v, primary.ModeAlone) }, spec(Bubble), "the guest is protected", "no backup is in sync"},
		{"synchronising", func(v *View) { outOfSync(v, primary.ModeSyncing) }, spec(Bubble), "the guest is protected", "being synchronised"},
		{"paused", func(v *View) { each(v, func(g *host.GuestStatus) { g.Log.Protection = ownership.ProtectionPaused }) }, spec(Bubble), "the guest is protected", "understudy resume"},
		{"the backup is silent", func(v *View) {
			each(v, func(g *host.GuestStatus) {
				if g.Primary != nil {
					g.Protected = host.ProtectedNo
				}
			})
		}, spec(Bubble), "the guest is protected", "does not answer its owner"},
		{"no strikes", func(v *View) { v.Strikes[home] = false }, spec(Failover), "the owner lets itself be struck", "strikes = false"},
		{"no strikes, and none is needed", func(v *View) { v.Strikes[home] = false }, spec(Switchover), "", ""},
		{"a frozen host keeps its lock", func(v *View) { v.Facts[guest] = Facts{Host: home, Backup: other, Shared: true} },
			with(spec(Failover), func(s *Spec) { s.Fault = Freeze }), "the disk is let go of", "stays locked"},
		{"a dead one does not", func(v *View) { v.Facts[guest] = Facts{Host: home, Backup: other, Shared: true} }, spec(Failover), "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := well()
			if c.change != nil {
				c.change(&v)
			}
			got, wrong := missing(Conditions(c.spec, v))
			if wrong != (c.missing != "") || got.Name != c.missing || !strings.Contains(got.Text, c.says) {
				t.Errorf("missing is %+v, want %q: %s", got, c.missing, c.says)
			}
			p := MakePlan(c.spec, witness, v)
			if p.Possible == wrong || len(p.Steps) < 3 || p.Outage.Why == "" {
				t.Errorf("the plan: %+v", p)
			}
		})
	}
}

func TestWhatAPlanExpects(t *testing.T) {
	for _, c := range []struct {
		name   string
		spec   Spec
		change func(*View)
		want   time.Duration
	}{
		{"a bubble", spec(Bubble), nil, 0},
		{"a switchover", spec(Switchover), nil, 20*time.Millisecond + loading},
		{"a kill", spec(Failover), nil, time.Second + 20*time.Millisecond + loading},
		{"a kill of the leader", spec(Failover), func(v *View) { leads(v, home) }, 2*time.Second + 20*time.Millisecond + loading},
	} {
		v := well()
		if c.change != nil {
			c.change(&v)
		}
		if p := MakePlan(c.spec, witness, v); p.Outage.Time != c.want || !p.Possible {
			t.Errorf("%s: %+v, want %v", c.name, p.Outage, c.want)
		}
	}
	if p := MakePlan(spec(Switchover), home, well()); p.Possible {
		t.Error("a drill on the owner itself is not possible")
	}
}
