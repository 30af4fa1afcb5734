package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"understudy/backup"
	"understudy/config"
	"understudy/demo/world"
	"understudy/guest/client"
	"understudy/host"
	"understudy/lab"
	"understudy/ownership"
)

const (
	web         = "web"
	storyPrefix = "usstory"
)

// TestRealPair tells story after story on one running pair. Each begins with a
// protected guest and one client's connection to it, and leaves it so.
func TestRealPair(t *testing.T) {
	s := &stage{mode: config.Replicated}
	defer func() {
		if s.real != nil {
			s.t = t
			s.hangUp()
			s.end(storyPrefix)
		}
		t.Log("measured:\n" + s.measures())
	}()
	for _, story := range []struct {
		name string
		tell func(s *stage)
	}{
		{"a switchover and back loses nothing", switchoverAndBack},
		{"verify finds both hosts' memory identical", verifyIdentical},
		{"only QEMU dies: the guest is surrendered, no lease is waited for", onlyQEMUDies},
		{"only the daemon dies: the backup takes over, the old QEMU is ended", onlyTheDaemonDies},
		{"the daemon dies and is back at once", theDaemonIsBackAtOnce},
		{"the backup host dies: output waits until the log says so", theBackupHostDies},
		{"the witness dies and nobody notices", theWitnessDies},
		{"the primary host freezes and thaws", theHostFreezes},
		{"the primary host cannot send", func(s *stage) { s.cutOff(lab.FromHost) }},
		{"the primary host cannot hear", func(s *stage) { s.cutOff(lab.ToHost) }},
		{"the primary host is cut off", func(s *stage) { s.cutOff(lab.Both) }},
		{"the backup host is cut off", theBackupIsCutOff},
		{"a reboot under protection, a failover, and a reboot after it", rebootAndFailover},
		{"the guest powers itself off and is started again", powerOffAndStart},
	} {
		t.Run(story.name, func(t *testing.T) { s.play(t, story.tell) })
	}
}

// stage is a pair with one guest, on which story after story is played.
type stage struct {
	*real
	client        *world.Client
	disk          *world.DiskClient
	boot          string
	owner, backup string
	began         time.Time

	measured []measure
	mode     config.DiskMode // of the guest's disk
	prefix   string          // "": storyPrefix
	drills   []config.Drill  // that the hosts know by name
	unfenced bool            // a shared disk is used before the other host is known to have let go
}

// measure is one figure for people.
type measure struct {
	what string
	took time.Duration
}

func (s *stage) note(what string, took time.Duration) {
	s.t.Logf("%s: %v", what, took.Round(time.Millisecond))
	s.measured = append(s.measured, measure{what, took})
}

func (s *stage) measures() string {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	for _, m := range s.measured {
		_, _ = fmt.Fprintf(w, "%s\t%.0f ms\n", m.what, float64(m.took)/float64(time.Millisecond))
	}
	_ = w.Flush()
	return text.String()
}

// play tells one story. After one that failed the next gets a new pair.
func (s *stage) play(t *testing.T, tell func(*stage)) {
	if s.prefix == "" {
		s.prefix = storyPrefix
	}
	if s.real == nil {
		s.real = newRealWith(t, world.Options{Prefix: s.prefix, Drills: s.drills, Guests: []world.Guest{{Name: web, Home: world.HostA,
			Memory: 256 * config.MiB, Machine: "q35", Disk: s.mode, Unfenced: s.unfenced, BubbleAddress: bubbleAddress}}})
	}
	s.t, s.began = t, time.Now()
	defer func() {
		if t.Failed() {
			s.dump(s.began)
			s.hangUp()
			s.end(s.prefix)
			s.real, s.boot = nil, ""
		}
	}()
	s.settle()
	tell(s)
	s.settle()
	s.checkDisk()
}

// settle brings about how each story begins and ends: the guest is protected,
// the client's connection lives, lines come, memory is whole.
func (s *stage) settle() {
	s.t.Helper()
	s.owner = s.protected(web, "")
	s.backup = world.Other(s.owner)
	if s.boot == "" {
		s.connect()
	}
	s.goesOn()
}

// hangUp ends the client's connection.
func (s *stage) hangUp() {
	if s.client != nil {
		s.client.Close()
		s.client = nil
	}
	if s.disk != nil {
		_ = s.disk.Close()
		s.disk = nil
	}
}

// connect opens the client's connection to a guest that has booted anew.
func (s *stage) connect() {
	s.t.Helper()
	s.hangUp()
	began, former := time.Now(), s.boot
	for {
		boot, err := s.Boot(s.ctx, web)
		if err == nil && boot != former {
			s.boot = boot
			break
		}
		if time.Since(began) > late {
			s.t.Fatalf("no new boot of the guest answers: %v", err)
		}
	}
	var err error
	s.client, err = s.Connect(s.ctx, web)
	s.must(err)
	s.must(s.Load(s.ctx, web))
	s.useDisk()
}

// useDisk makes the guest write, sync and read files all the time, and keeps
// what it acknowledges.
func (s *stage) useDisk() {
	s.t.Helper()
	if s.disk != nil {
		_ = s.disk.Close()
	}
	var err error
	s.disk, err = s.LoadDisk(s.ctx, web)
	s.must(err)
}

// checkDisk checks that the disk is as the guest left it: acknowledged writes
// are there, every checksum holds, the file system is clean, and the other host's
// copy, if there is one, is the same.
func (s *stage) checkDisk() {
	s.t.Helper()
	s.must(s.disk.Wait(s.ctx, s.disk.Last()+20, soon))
	s.must(s.disk.Verify(s.ctx))
	s.must(s.Fsck(s.ctx, web, s.owner))
	if s.mode == config.Replicated {
		s.copiesEqual()
	}
	s.useDisk()
}

// goesOn checks that the guest's lines come, none lost, repeated or taken back,
// on the same connection to the same boot of it, and that its memory is whole.
func (s *stage) goesOn() {
	s.t.Helper()
	s.must(s.client.More(s.ctx, 20, soon))
	boot, err := s.Boot(s.ctx, web)
	s.must(err)
	if boot != s.boot {
		s.t.Errorf("boot id %s, was %s", boot, s.boot)
	}
	s.must(s.Check(s.ctx, web))
	s.must(s.client.Err())
}

// outage waits for lines after t, and returns the longest silence since t.
func (s *stage) outage(since time.Time) time.Duration {
	s.t.Helper()
	// Whatever was under way at t has come through, or waits for the new owner.
	s.must(s.client.More(s.ctx, 100, soon))
	d, _ := s.client.Outage(since)
	return d
}

// takenOver waits until the other host runs the guest, and checks that it alone
// spoke for it from its first frame on.
func (s *stage) takenOver(what string, since time.Time) {
	s.t.Helper()
	old, now := s.owner, s.backup
	outage := s.outage(since)
	s.note(what+": outage at the client", outage)
	if outage > 3*s.Lease() {
		s.t.Errorf("%s: the outage of %v is more than a lease of %v and some explains", what, outage, s.Lease())
	}
	_, first := s.wire.handedOver(s.t, s.MAC(web), since, old, now)
	if !first.IsZero() {
		s.note(what+": first frame of the new host", first.Sub(since))
	}
	for _, step := range []string{backup.LogAsking, backup.LogGranted, backup.LogRunning} {
		if at, ok := s.Logged(now, step, since); ok {
			s.note(what+": "+step, at.Sub(since))
		}
	}
}

// again waits until the pair is whole the other way round.
func (s *stage) again(what string, since time.Time) {
	s.t.Helper()
	began := time.Now()
	old, now := s.owner, s.backup
	s.protected(web, now)
	s.note(what+": protected again", time.Since(began))
	s.wire.handedOver(s.t, s.MAC(web), since, old, now)
	s.until(web, "host "+old+" the backup", func(name string, g host.GuestStatus) bool {
		return name == old && g.Role == "backup" && g.Log.InSync &&
			g.Log.Owner == ownership.HostID(now) && g.Log.Backup.Host == ownership.HostID(old)
	})
}

// switchoverAndBack asks the owner, and then the backup, which sends it on.
func switchoverAndBack(s *stage) {
	for _, elsewhere := range []bool{false, true} {
		from, to, since := s.owner, s.backup, time.Now()
		asked := from
		if elsewhere {
			asked = to
		}
		text, status := s.cli(asked, "switchover", web, "--output", "json")
		s.note("switchover: the command", time.Since(since))
		var g ownership.Guest
		if err := json.Unmarshal([]byte(text), &g); err != nil || status != 0 || g.Owner != ownership.HostID(to) {
			s.t.Fatalf("switchover from %s, asked of %s: status %d, %v: %s", from, asked, status, err, text)
		}
		s.takenOver("switchover", since)
		s.again("switchover", since)
		if text, status = s.cli(to, "status"); status != 0 || !strings.Contains(text, "yes, by host "+from) {
			s.t.Errorf("status of %s after the switchover is %d:\n%s", to, status, text)
		}
		s.settle()
	}
}

func verifyIdentical(s *stage) {
	began := time.Now()
	text, status := s.cli(s.owner, "verify", web, "--output", "json")
	s.note("verify of 256 MiB", time.Since(began))
	var v struct {
		Identical bool
		Pages     uint64
	}
	if err := json.Unmarshal([]byte(text), &v); err != nil || status != 0 || !v.Identical || v.Pages < 65536 {
		s.t.Fatalf("verify: status %d, %v: %s", status, err, text)
	}
}

func onlyQEMUDies(s *stage) {
	machines := s.machines(s.owner)
	if len(machines) != 1 {
		s.t.Fatalf("QEMU processes on host %s: %v, want one", s.owner, machines)
	}
	since := time.Now()
	s.must(syscall.Kill(machines[0], syscall.SIGKILL))
	s.takenOver("QEMU killed", since)
	asked, _ := s.Logged(s.backup, backup.LogAsking, since)
	granted, ok := s.Logged(s.backup, backup.LogGranted, since)
	if d := granted.Sub(asked); !ok || d > s.Lease()/4 {
		s.t.Errorf("granted %v after it was asked for: a lease of %v need not be waited for", d, s.Lease())
	}
	s.again("QEMU killed", since)
}

func onlyTheDaemonDies(s *stage) {
	machines := s.machines(s.owner)
	since := time.Now()
	s.must(s.KillDaemon(s.owner))
	s.takenOver("daemon killed", since)
	if now := s.machines(s.owner); !slices.Equal(now, machines) {
		s.t.Errorf("QEMU processes %v were to outlive their daemon, now there are %v", machines, now)
	}
	s.must(s.Start(s.ctx, s.owner))
	s.again("daemon killed", since)
	s.noMachine(s.owner, machines...)
}

// theDaemonIsBackAtOnce: either host may run the guest in the end.
func theDaemonIsBackAtOnce(s *stage) {
	machines := s.machines(s.owner)
	before := s.log(web, s.backup)
	since := time.Now()
	s.must(s.KillDaemon(s.owner))
	s.must(s.Start(s.ctx, s.owner))
	s.note("daemon restarted: it is up", time.Since(since))
	s.note("daemon restarted: outage at the client", s.outage(since))
	now := s.protected(web, "")
	s.note("daemon restarted: protected again", time.Since(since))
	if g := s.log(web, now); g.Generation != before.Generation+1 {
		s.t.Errorf("generation %d, was %d: want one new life", g.Generation, before.Generation)
	}
	if now != s.owner {
		s.t.Logf("host %s took over", now)
		s.noMachine(s.owner, machines...)
		s.wire.handedOver(s.t, s.MAC(web), since, s.owner, now)
		return
	}
	s.t.Logf("host %s adopted its guest", now)
	if left := s.machines(now); !slices.Equal(left, machines) {
		s.t.Errorf("QEMU processes %v were to be adopted, now there are %v", machines, left)
	}
	for _, f := range s.wire.since(s.t, s.MAC(web), since) {
		if f.Host != now {
			s.t.Errorf("host %s, which does not own the guest, spoke for it", f.Host)
			break
		}
	}
}

func theBackupHostDies(s *stage) {
	since := time.Now()
	s.must(s.Kill(s.backup))
	stall := s.outage(since)
	s.note("backup host killed: stall of the output", stall)
	s.unprotectedUntilRecorded(since)
	text, status := s.cli(s.owner, "status", "--output", "json")
	if status != 3 || !strings.Contains(text, `"protected": "no"`) {
		s.t.Errorf("status of an unprotected guest is %d:\n%s", status, text)
	}
	if text, status = s.cli(s.owner, "switchover", web); status != 1 || !strings.Contains(text, "not protected") {
		s.t.Errorf("a switchover without a backup ends with status %d: %s", status, text)
	}
	began := time.Now()
	s.must(s.Start(s.ctx, s.backup))
	s.protected(web, s.owner)
	s.note("backup host killed: protected again after its return", time.Since(began))
}

// unprotectedUntilRecorded checks that after the stall nothing left the host
// before the log had recorded the backup as out of sync.
func (s *stage) unprotectedUntilRecorded(since time.Time) {
	s.t.Helper()
	var recorded time.Time
	for _, e := range s.Log(s.owner, since) {
		var fields struct{ Command, Err string }
		if e.Msg == "ownership" && json.Unmarshal([]byte(e.Text), &fields) == nil && fields.Command == string(ownership.OutOfSync) && fields.Err == "" {
			recorded = e.Time
		}
	}
	if recorded.IsZero() {
		s.t.Error("the backup was not recorded as out of sync")
		return
	}
	frames := s.wire.since(s.t, s.MAC(web), since)
	longest, end := time.Duration(0), time.Time{}
	for i := 1; i < len(frames); i++ {
		if d := frames[i].At.Sub(frames[i-1].At); d > longest {
			longest, end = d, frames[i].At
		}
	}
	// The log's line is written just after the fact, beside the release.
	if early := recorded.Sub(end); early > 20*time.Millisecond {
		s.t.Errorf("output left the host %v before the backup was recorded as out of sync", early)
	}
	s.note("backup lost: recorded as out of sync", recorded.Sub(since))
}

func theWitnessDies(s *stage) {
	report, err := s.Report(s.ctx, s.owner)
	s.must(err)
	since := time.Now()
	s.must(s.Kill(world.Witness))
	s.must(world.Sleep(s.ctx, 2*s.Lease())) // whatever would run out, has
	if d := s.outage(since); d > s.Lease()/2 {
		s.t.Errorf("the client saw an outage of %v", d)
	} else {
		s.note(fmt.Sprintf("witness killed (leader was %s): longest silence at the client", report.Leader), d)
	}
	if _, status := s.cli(s.owner, "status"); status != 0 {
		s.t.Errorf("status without the witness is %d", status)
	}
	s.must(s.Start(s.ctx, world.Witness))
	if g := s.log(web, s.owner); g.Owner != ownership.HostID(s.owner) {
		s.t.Errorf("host %s owns the guest, was %s", g.Owner, s.owner)
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(s.ctx, soon)
	defer cancel()
	for {
		if r, err := s.Report(ctx, s.owner); err == nil && r.Leader == world.Witness {
			break
		}
		if world.Sleep(ctx, 20*time.Millisecond) != nil {
			s.t.Fatal("the witness, back, does not lead the ownership log again")
		}
	}
	s.note("witness back: it leads again", time.Since(began))
}

func theHostFreezes(s *stage) {
	machines := s.machines(s.owner)
	frozen := s.Lab.Host(s.owner)
	since := time.Now()
	s.must(frozen.Signal(syscall.SIGSTOP))
	thawed := false
	defer func() {
		if !thawed {
			_ = frozen.Signal(syscall.SIGCONT)
		}
	}()
	s.takenOver("host frozen", since)
	s.must(frozen.Signal(syscall.SIGCONT))
	thawed = true
	s.again("host frozen", since)
	s.noMachine(s.owner, machines...)
}

// cutOff cuts the primary's cable in the given directions, until the backup has
// taken over.
func (s *stage) cutOff(d lab.Direction) {
	what := map[lab.Direction]string{lab.FromHost: "cannot send", lab.ToHost: "cannot hear", lab.Both: "cut off"}[d]
	machines := s.machines(s.owner)
	cable := s.Lab.Host(s.owner)
	since := time.Now()
	s.must(cable.Cut(d))
	defer func() { s.must(cable.Restore()) }()
	s.takenOver(what, since)
	s.must(cable.Restore())
	s.again(what, since)
	s.noMachine(s.owner, machines...)
}

func theBackupIsCutOff(s *stage) {
	cable := s.Lab.Host(s.backup)
	since := time.Now()
	s.must(cable.Cut(lab.Both))
	defer func() { s.must(cable.Restore()) }()
	s.note("backup cut off: stall of the output", s.outage(since))
	s.unprotectedUntilRecorded(since)
	began := time.Now()
	s.must(cable.Restore())
	s.protected(web, s.owner)
	s.note("backup cut off: protected again after healing", time.Since(began))
}

func rebootAndFailover(s *stage) {
	s.reboot("reboot under protection")
	s.owner = s.protected(web, "")
	since := time.Now()
	s.must(s.Kill(s.owner))
	s.takenOver("host killed after a reboot", since)
	s.goesOn()
	s.must(s.Start(s.ctx, s.owner))
	s.again("host killed after a reboot", since)
	s.owner, s.backup = s.backup, s.owner
	s.reboot("reboot after the failover")
}

// reboot has the guest reboot itself, and sees it run again on the same host in
// the same generation.
func (s *stage) reboot(what string) {
	s.t.Helper()
	before, began := s.log(web, s.owner), time.Now()
	s.must(s.Control(s.ctx, web, func(ctx context.Context, c *client.Control) error { return c.Reboot(ctx) }))
	s.connect()
	s.note(what+": until it answers", time.Since(began))
	s.goesOn()
	if after := s.log(web, s.owner); after.Owner != before.Owner {
		s.t.Errorf("host %s owns the guest after its reboot, was %s", after.Owner, before.Owner)
	}
}

func powerOffAndStart(s *stage) {
	machines := append(s.machines(s.owner), s.machines(s.backup)...)
	began := time.Now()
	s.must(s.Control(s.ctx, web, func(ctx context.Context, c *client.Control) error { return c.Poweroff(ctx) }))
	for _, h := range []string{s.owner, s.backup} {
		s.until(web, "stopped on host "+h, func(name string, g host.GuestStatus) bool {
			return name == h && g.Log.Desired == ownership.Stopped && g.Role == "stopped"
		})
		s.noMachine(h, machines...)
		if left := s.machines(h); len(left) > 0 {
			s.t.Errorf("host %s, where the guest is stopped, has QEMU processes %v", h, left)
		}
	}
	s.note("power-off: stopped and quiet on both hosts", time.Since(began))
	quiet := time.Now()
	s.must(world.Sleep(s.ctx, s.Lease())) // nobody takes over what was meant to end
	if f := s.wire.since(s.t, s.MAC(web), quiet); len(f) > 0 {
		s.t.Errorf("%d frames of a guest that is off, the first from host %s", len(f), f[0].Host)
	}
	// Each host has a copy of the disk; the last owner's is the one to go on from.
	text, status := s.cli(s.backup, "start", web)
	if status != 1 || !strings.Contains(text, "start it there") {
		s.t.Errorf("start with a copy of the disk that may be behind: status %d: %s", status, text)
	}
	began = time.Now()
	text, status = s.cli(s.owner, "start", web)
	if status != 0 || !strings.Contains(text, "starting on host "+s.owner) {
		s.t.Fatalf("start: status %d: %s", status, text)
	}
	s.connect()
	s.note("start: until the guest answers", time.Since(began))
	s.protected(web, s.owner)
	s.note("start: protected", time.Since(began))
	if text, status = s.cli(s.owner, "start", web); status != 1 || !strings.Contains(text, "is not stopped") {
		s.t.Errorf("starting a guest that runs ends with status %d: %s", status, text)
	}
}
