package integration

// The daemons of all three hosts are upgraded in place under a protected guest with
// a client's connection and a disk under load: nothing fails over, nothing is reset,
// nothing acknowledged is lost. Again and again with
//
//	go test ./integration -run TestRealUpgrade -upgrades 20 -v

import (
	"encoding/json"
	"flag"
	"slices"
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
