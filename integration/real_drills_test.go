package integration

// Drills of every kind in a row, on a guest under load, in an order that a seed
// gives. What a drill says of itself is not enough: after each it is looked from
// outside, by the client, on the wire, at the disks and at the processes.
//
//	go test ./integration -run TestMixedDrills -drills 100 -seed 7 -timeout 3h -v
//
// With -drills-record FILE what came of each is kept there, and those that are in
// it are not run again; -piece N runs N more at most.

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"understudy/config"
	"understudy/demo/world"
	"understudy/drill"
	"understudy/epoch"
	"understudy/guest"
	"understudy/host"
	"understudy/ownership"
	"understudy/status"
)

var (
	drillCount  = flag.Int("drills", 5, "how many drills TestMixedDrills runs")
	drillSeed   = flag.Uint64("seed", 0, "which drills TestMixedDrills runs in which order; 0: any")
	drillRecord = flag.String("drills-record", "", "the `file` in which TestMixedDrills keeps what came of each drill, and goes on")
	drillPiece  = flag.Int("piece", 0, "how many drills TestMixedDrills runs at most this time; 0: all")
)

const drillPrefix = "usdrill"

func TestMixedDrills(t *testing.T) {
	seed := *drillSeed
	if seed == 0 {
		seed = rand.Uint64N(1<<32) + 1
	}
	t.Logf("%d drills: again with -drills %[1]d -seed %d", *drillCount, seed)
	kept, err := openRecord(*drillRecord, *drillCount, seed)
	if err != nil {
		t.Fatal(err)
	}
	var s *stage
	end := func() {
		if s != nil && s.real != nil {
			s.t = t
			s.hangUp()
			s.end(drillPrefix)
		}
	}
	defer func() { end() }()
	ran := 0
	for _, a := range planDrills(*drillCount, seed) {
		if kept.has(a) || *drillPiece > 0 && ran == *drillPiece {
			continue
		}
		ran++
		if s == nil || s.mode != a.Mode {
			end()
			s = &stage{mode: a.Mode, unfenced: a.Mode == config.Shared, prefix: drillPrefix, drills: []config.Drill{inside}}
		}
		o := outcome{Seed: seed, Of: *drillCount, act: a, Why: "see the test's log"}
		o.Held = t.Run(strings.ReplaceAll(a.String(), "/", " "), func(t *testing.T) {
			s.play(t, func(s *stage) { s.drill(a, &o) })
		})
		if o.Held {
			o.Why = ""
		}
		if err := kept.add(o); err != nil {
			t.Fatal(err)
		}
	}
	var text strings.Builder
	if err := kept.table(&text); err != nil {
		t.Error(err)
	}
	t.Logf("%d of %d drills, seed %d:\n%s", len(kept.all), *drillCount, seed, text.String())
	for _, o := range kept.all {
		if !o.Held {
			t.Errorf("%v: did not hold", o.act)
		}
	}
}

// inside is the drill of a bubble: the copy's services are asked whether its
// memory and its files are whole, it writes to its disk, and there is no way out.
var inside = config.Drill{Name: "inside", Guest: web, Kind: config.DrillBubble, CheckTimeout: config.Duration(90 * time.Second), Check: []string{"/bin/bash", "-c",
	`exec 3<>/dev/tcp/` + insideGuest + `/` + strconv.Itoa(guest.ControlPort) + ` || exit 1
ask() {
	echo "$1" >&3; IFS= read -r -t 60 line <&3; echo "$1: $line"
	case $line in ok*|boot*|work*) ;; *) exit 1 ;; esac
}
ask boot
ask "disk work start"
ask "dirty stop"
ask check
ask "disk work status"
ask "disk work stop"
ask "disk check"
ask "disk sync"
! timeout 2 bash -c 'exec 4<>/dev/tcp/` + insideClient + `/1' 2>&1 | grep refused
`}}

// Addresses in a world's network: the guest's, and the client's.
const (
	insideGuest  = "10.77.0.50"
	insideClient = "10.77.0.4"
)

// drill runs one and looks at what it has left.
func (s *stage) drill(a act, o *outcome) {
	if at, cl := s.Address(web).String(), s.Lab.Host(world.ClientHost).Addr().String(); at != insideGuest || cl != insideClient {
		s.t.Fatalf("the guest is at %s, the client at %s", at, cl)
	}
	before := s.log(web, s.owner)
	disks := []string{s.DiskPath(web, s.owner), s.DiskPath(web, s.backup)}
	var sums [][32]byte
	if a.Still {
		s.restDisk()
		sums = s.hashes(disks)
	}
	s.wire.Forget()
	since := time.Now()
	text, code := s.cli(world.Witness, s.arguments(a)...)
	o.Took = time.Since(since)
	var r drill.Report
	if err := json.Unmarshal([]byte(text), &r); err != nil || code != 0 || r.State != drill.Held {
		s.t.Fatalf("%v: status %d, %v:\n%s", a, code, err, text)
	}
	o.Running, o.Output = tookOf(r.RTO.Running), tookOf(r.RTO.FirstOutput)
	if r.RPO != nil {
		o.Age = tookOf(r.RPO.Age)
	}
	o.Silence = s.outage(since)
	s.note(a.name()+": longest silence at the client", o.Silence)

	// Who spoke for the guest, and who owns it.
	old, now := s.owner, s.backup
	turns, generations := []string{old, now, old}, epoch.Generation(2)
	switch {
	case a.Kind == drill.Bubble:
		turns, generations = turns[:1], 0
	case a.Stay:
		turns, generations = turns[:2], 1
	}
	if got := s.wire.turns(s.t, s.MAC(web), since); !slices.Equal(got, turns) {
		s.t.Errorf("hosts %v spoke for the guest in turn, want %v", got, turns)
	}
	s.owner, s.backup = turns[len(turns)-1], world.Other(turns[len(turns)-1])
	for _, h := range []string{world.HostA, world.HostB} {
		s.until(web, "on host "+h+" as the drill leaves it", func(name string, g host.GuestStatus) bool {
			return name == h && g.Log.Owner == ownership.HostID(s.owner) && g.Log.Generation == before.Generation+generations && g.Log.InSync
		})
	}
	if a.Kind == drill.Bubble {
		s.bubbled(r)
	}

	// What it has left.
	s.must(s.client.Err())
	s.oneRuns()
	s.noStrikeLeft()
	verifyIdentical(s)
	if a.Still {
		if got := s.hashes(disks); !slices.Equal(got, sums) {
			s.t.Error("a disk that the guest left alone is not what it was before the bubble")
		}
		s.useDisk()
	}
}

// arguments are the command's.
func (s *stage) arguments(a act) []string {
	if a.Kind == drill.Bubble {
		return []string{"drill", "run", inside.Name, "--yes", "--output", "json"}
	}
	args := []string{"drill", "run", "--yes", "--output", "json", "--guest", web, "--kind", string(a.Kind)}
	if a.Kind == drill.Failover {
		args = append(args, "--fault", string(a.Fault), "--fault-for", a.For.String())
	}
	if a.Stay {
		args = append(args, "--stay")
	}
	if a.Probe {
		args = append(args, "--probe", fmt.Sprintf("%s:%d", s.Address(web), guest.EchoPort))
	}
	return args
}

func tookOf(m *drill.Measured) *time.Duration {
	if m == nil {
		return nil
	}
	return &m.Took
}

// bubbled checks that the copy was of this guest, and that it is gone.
func (s *stage) bubbled(r drill.Report) {
	s.t.Helper()
	if len(r.Checks) != 1 || !strings.Contains(r.Checks[0].Output, "boot "+s.boot) {
		s.t.Errorf("the check did not find boot %s inside: %+v", s.boot, r.Checks)
	}
	if r.Bubble == nil || r.Bubble.Epoch == 0 {
		s.t.Errorf("the report says of the bubble: %+v", r.Bubble)
	}
	s.noBubbleLeft()
}

// oneRuns checks that one machine runs, on the owner's host, and that the other,
// which waits, stands still.
func (s *stage) oneRuns() {
	s.t.Helper()
	running, waiting := s.machines(s.owner), s.machines(s.backup)
	if len(running) != 1 || len(waiting) != 1 {
		s.t.Errorf("QEMU processes %v on host %s, %v on host %s: want one each", running, s.owner, waiting, s.backup)
		return
	}
	before, beside := s.ran(running[0]), s.ran(waiting[0])
	s.must(s.client.More(s.ctx, 100, soon))
	const some = 5 * time.Millisecond // a processor that runs needs more, others of QEMU's threads less
	if d := s.ran(running[0]) - before; d < some {
		s.t.Errorf("the guest (process %d) is not seen to run: for %v while 100 lines came", running[0], d)
	}
	if d := s.ran(waiting[0]) - beside; d > some {
		s.t.Errorf("the machine that waits on host %s (process %d) has run, for %v", s.backup, waiting[0], d)
	}
}

// ran is for how long all threads of a QEMU have run but the first, which answers
// its sockets: the first field of schedstat (Documentation/scheduler/sched-stats.rst).
func (s *stage) ran(pid int) (total time.Duration) {
	s.t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	s.must(err)
	for _, file := range threads {
		text, err := os.ReadFile(file)
		if err != nil || strings.HasSuffix(filepath.Dir(file), fmt.Sprintf("/task/%d", pid)) {
			continue // it has ended, or is the first
		}
		ran, err := strconv.ParseInt(strings.Fields(string(text))[0], 10, 64)
		s.must(err)
		total += time.Duration(ran)
	}
	return total
}

// noStrikeLeft checks that nothing of a strike is left on any host: no record, no
// process that stands still or would strike, no rule in the network.
func (s *stage) noStrikeLeft() {
	s.t.Helper()
	for _, name := range world.Hosts() {
		var list status.StrikeList
		s.must(status.NewClient(s.Socket(name)).Get(s.ctx, "/api/v1/strikes", &list))
		h, _ := s.Config.Host(name)
		records, err := filepath.Glob(filepath.Join(s.Config.DirsOf(h).State, "strikes", "*.json"))
		s.must(err)
		if len(list.Strikes)+len(records) > 0 {
			s.t.Errorf("strikes on host %s: %+v, records %v", name, list.Strikes, records)
		}
		tables, err := s.Lab.Host(name).Command(s.ctx, "nft", "list", "tables").CombinedOutput()
		if err != nil || strings.Contains(string(tables), "strike") {
			s.t.Errorf("tables of nftables on host %s: %v: %s", name, err, tables)
		}
		pids, err := s.Lab.Host(name).Processes()
		s.must(err)
		daemons := 0
		for _, pid := range pids {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			if err != nil {
				continue // it has ended
			}
			switch state := text[strings.LastIndexByte(string(text), ')')+2]; state {
			case 'T', 't':
				s.t.Errorf("process %d on host %s stands still: %s", pid, name, text)
			}
			words, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			program, _, _ := strings.Cut(string(words), "\x00")
			if err == nil && filepath.Base(program) == "understudyd" {
				daemons++
			}
		}
		if daemons != 1 {
			s.t.Errorf("%d processes of understudyd on host %s", daemons, name)
		}
	}
}
