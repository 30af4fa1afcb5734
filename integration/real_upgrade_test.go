package integration

// The daemons of all three hosts are upgraded in place under a protected guest with
// a client's connection and a disk under load: nothing fails over, nothing is reset,
// nothing acknowledged is lost. Again and again with
//
//	go test ./integration -run TestRealUpgrade -upgrades 20 -v

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"understudy/config"
	"understudy/demo/world"
	"understudy/host"
	"understudy/ownership"
	"understudy/status"
)

var upgrades = flag.Int("upgrades", 1, "how often TestRealUpgrade upgrades each host's daemon")

const upgradePrefix = "usupgrade"

func TestRealUpgrade(t *testing.T) {
	s := &stage{mode: config.Replicated, prefix: upgradePrefix}
	took := map[string][]time.Duration{}
	defer func() {
		if s.real != nil {
			s.t = t
			s.hangUp()
			s.end(upgradePrefix)
		}
		for _, what := range []string{"owner", "backup", "witness"} {
			if all := took[what]; len(all) > 0 {
				slices.Sort(all)
				t.Logf("daemon of the %s upgraded %d times: the client's longest silence is %v in the median, %v at most",
					what, len(all), all[len(all)/2].Round(time.Millisecond), all[len(all)-1].Round(time.Millisecond))
			}
		}
	}()
	for range *upgrades {
		for _, what := range []string{"owner", "backup", "witness"} {
			t.Run(what, func(t *testing.T) {
				s.play(t, func(s *stage) { took[what] = append(took[what], s.upgrade(what)) })
			})
			if t.Failed() {
				return
			}
		}
	}
}

// upgrade puts a new daemon in the place of one, and returns the client's longest
// silence.
func (s *stage) upgrade(what string) time.Duration {
	name := map[string]string{"owner": s.owner, "backup": s.backup, "witness": world.Witness}[what]
	machines, before := s.machines(s.owner), s.log(web, s.owner)
	old, err := s.Report(s.ctx, name)
	s.must(err)
	since := time.Now()
	text, code := s.cli(name, "upgrade", "--output", "json")
	s.note("upgrade of the "+what+"'s daemon: the command", time.Since(since))
	var u status.Upgrade
	if err := json.Unmarshal([]byte(text), &u); err != nil || code != 0 || u.PID == old.PID {
		s.t.Fatalf("upgrade of %s: status %d, %v: %s", name, code, err, text)
	}
	silence := s.outage(since)
	s.note("upgrade of the "+what+"'s daemon: longest silence at the client", silence)
	if now, err := s.Report(s.ctx, name); err != nil || now.PID != u.PID {
		s.t.Errorf("process %d answers on host %s (%v), want %d", now.PID, name, err, u.PID)
	}
	s.protected(web, s.owner)
	s.note("upgrade of the "+what+"'s daemon: protected", time.Since(since))
	after := s.log(web, s.owner)
	if after.Owner != before.Owner || after.Generation != before.Generation {
		s.t.Errorf("host %s owns the guest in generation %d, was %s in %d", after.Owner, after.Generation, before.Owner, before.Generation)
	}
	if what != "backup" && after.Backup != before.Backup {
		s.t.Errorf("the backup in sync is %+v, was %+v", after.Backup, before.Backup)
	}
	if left := s.machines(s.owner); !slices.Equal(left, machines) {
		s.t.Errorf("QEMU processes %v were to go on, now there are %v", machines, left)
	}
	for _, f := range s.wire.since(s.t, s.MAC(web), since) {
		if f.Host != s.owner {
			s.t.Errorf("host %s, which does not own the guest, spoke for it", f.Host)
			break
		}
	}
	for _, h := range []string{world.HostA, world.HostB} {
		s.until(web, "on host "+h+" as before", func(_ string, g host.GuestStatus) bool {
			return g.Takeovers == 0 && g.Log.Owner == ownership.HostID(s.owner)
		})
	}
	verifyIdentical(s)
	return silence
}

// TestRealRestart ends the owner's daemon by a signal, as a plain restart of the
// service does, and starts it again: the backup waits for it.
func TestRealRestart(t *testing.T) {
	s := &stage{mode: config.Replicated, prefix: upgradePrefix}
	defer func() {
		if s.real != nil {
			s.t = t
			s.hangUp()
			s.end(upgradePrefix)
		}
		t.Log("measured:\n" + s.measures())
	}()
	for range *upgrades {
		t.Run("owner", func(t *testing.T) { s.play(t, restart) })
	}
}

func restart(s *stage) {
	machines, before := s.machines(s.owner), s.log(web, s.owner)
	old, err := s.Report(s.ctx, s.owner)
	s.must(err)
	since := time.Now()
	s.must(syscall.Kill(old.PID, syscall.SIGTERM))
	for s.Up(s.owner) {
		s.must(world.Sleep(s.ctx, time.Millisecond))
		if time.Since(since) > soon {
			s.t.Fatalf("the daemon is there %v after SIGTERM", soon)
		}
	}
	s.note("restart: the daemon has ended", time.Since(since))
	s.must(s.Start(s.ctx, s.owner))
	s.note("restart: the next one is up", time.Since(since))
	s.note("restart: longest silence at the client", s.outage(since))
	s.protected(web, s.owner)
	if after := s.log(web, s.owner); after != before {
		s.t.Errorf("the log says %+v, said %+v", after, before)
	}
	if left := s.machines(s.owner); !slices.Equal(left, machines) {
		s.t.Errorf("QEMU processes %v were to go on, now there are %v", machines, left)
	}
	verifyIdentical(s)
}

// TestRealUpgradeFails puts daemons that cannot work in the place of the owner's:
// the old one goes on, at whatever point the new one ends.
func TestRealUpgradeFails(t *testing.T) {
	s := &stage{mode: config.Replicated, prefix: upgradePrefix}
	defer func() {
		if s.real != nil {
			s.t = t
			s.hangUp()
			s.end(upgradePrefix)
		}
		t.Log("measured:\n" + s.measures())
	}()
	for _, c := range []struct{ name, script string }{
		{"it ends at once", "exit 1"},
		{"it refuses its command line", `exec "$DAEMON" --no-such-flag "$@"`},
		{"it hangs", "exec sleep 600"},
		// With too few descriptors it ends before it is ready, or, with some more,
		// when everything has been left to it already.
		{"it has 8 descriptors", `ulimit -n 8; exec "$DAEMON" "$@"`},
		{"it has 14 descriptors", `ulimit -n 14; exec "$DAEMON" "$@"`},
	} {
		t.Run(c.name, func(t *testing.T) { s.play(t, func(s *stage) { s.upgradeInVain(c.name, c.script) }) })
	}
}

// upgradeInVain has a script take the place of the owner's daemon.
func (s *stage) upgradeInVain(what, script string) {
	path := filepath.Join(s.Dir, "successor")
	text := "#!/bin/sh\nDAEMON='" + filepath.Join(programs, "understudyd") + "'\n" + script + "\n"
	s.must(os.WriteFile(path, []byte(text), 0o755))
	machines, before := s.machines(s.owner), s.log(web, s.owner)
	old, err := s.Report(s.ctx, s.owner)
	s.must(err)
	since := time.Now()
	answer, code := s.cli(s.owner, "upgrade", "--binary", path)
	if code != 1 {
		s.t.Fatalf("upgrade: status %d: %s", code, answer)
	}
	s.t.Logf("it says: %s", answer)
	s.note(what+": longest silence at the client", s.outage(since))
	s.protected(web, s.owner)
	s.note(what+": protected", time.Since(since))
	if now, err := s.Report(s.ctx, s.owner); err != nil || now.PID != old.PID {
		s.t.Errorf("process %d answers (%v), was %d", now.PID, err, old.PID)
	}
	after := s.log(web, s.owner)
	if after.Owner != before.Owner || after.Generation > before.Generation+1 {
		s.t.Errorf("host %s owns the guest in generation %d, was %s in %d", after.Owner, after.Generation, before.Owner, before.Generation)
	}
	s.t.Logf("generation %d, was %d; the backup in sync is the same: %v", after.Generation, before.Generation, after.Backup == before.Backup)
	if left := s.machines(s.owner); !slices.Equal(left, machines) {
		s.t.Errorf("QEMU processes %v were to go on, now there are %v", machines, left)
	}
	verifyIdentical(s)
}
