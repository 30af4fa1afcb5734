package integration

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy/bubble"
	"understudy/bubble/isolate"
	"understudy/config"
	"understudy/demo/world"
	"understudy/guest"
	"understudy/guest/client"
	"understudy/host"
)

var bubbles = flag.Int("bubbles", 1, "how many bubbles TestRealBubble measures the throughput beside")

// TestRealBubble starts the backup's copy in isolation beside a guest under load,
// and shows that nobody outside of it notices. What it costs in throughput is less
// than what a busy machine makes of it from one moment to the next, so that takes
// many bubbles: go test ./integration -run TestRealBubble -bubbles 20 -v
// The copy uses the processors of the backup's host. Where all hosts are one machine
// the pair is set apart on it, each with processors of its own.
func TestRealBubble(t *testing.T) {
	for _, mode := range []config.DiskMode{config.Replicated, config.Shared} {
		t.Run(string(mode), func(t *testing.T) {
			s := &stage{mode: mode}
			defer func() {
				if s.real != nil {
					s.t = t
					s.hangUp()
					s.end(storyPrefix)
				}
				t.Log("measured:\n" + s.measures())
			}()
			s.play(t, aBubbleHarmsNobody)
			if !t.Failed() {
				s.play(t, aBubbleLeavesTheDiskAlone)
			}
			if mode == config.Replicated && !t.Failed() {
				s.play(t, theDaemonOfABubbleDies)
				s.play(t, aBubbleMakesRoom)
			}
		})
	}
}

// bubbleAddress is the host's own in the bubble's network.
const bubbleAddress = "10.77.0.250/24"

// lookInside asks the copy for its boot, whether its memory and its disk's files
// are whole, and makes it write to its disk, by the guest's own service.
const lookInside = `set -e
exec 3<>/dev/tcp/%s/%d
ask() { echo "$1" >&3; IFS= read -r -t 60 line <&3; echo "$line"; }
ask boot
ask "dirty stop"
ask check
ask "disk work stop"
ask "disk check"
ask "disk sync"
ip -brief link
timeout 2 bash -c 'exec 4<>/dev/tcp/%s/1' 2>&1 | grep refused || echo "no way out"
`

func aBubbleHarmsNobody(s *stage) {
	before := s.log(web, s.owner)
	address := s.Address(web).String()
	script := fmt.Sprintf(lookInside, address, guest.ControlPort, s.Lab.Host(world.ClientHost).Addr())

	// Throughput beside throughput: machines are shared, so it is measured before
	// and after each of several bubbles, over one connection.
	began := time.Now()
	s.apart()
	pull := s.pull()
	beside, during := [][2]float64{pull.quiet()}, []float64{}
	var r bubble.Result
	for ended := 0; len(during) < *bubbles; {
		said := make(chan answer, 1)
		go func() {
			text, status := s.cli(s.backup, "bubble", web, "--address", bubbleAddress, "--timeout", "90s", "--output", "json", "--", "/bin/bash", "-c", script)
			said <- answer{text, status}
		}()
		var a answer
		rate := pull.until(func() { a = <-said })
		if strings.Contains(a.text, "the primary's session has ended") && ended <= *bubbles/4 {
			// Rightly so: the machine stood still for as long as a host may be silent.
			ended++
			s.t.Logf("a bubble more: %s", a.text)
			beside[len(beside)-1] = pull.quiet()
			continue
		}
		r = bubble.Result{}
		if err := json.Unmarshal([]byte(a.text), &r); err != nil || a.status != 0 {
			s.t.Fatalf("bubble: status %d, %v: %s", a.status, err, a.text)
		}
		during, beside = append(during, rate), append(beside, pull.quiet())
		s.note("bubble: fork", r.ForkTime)
		s.note("bubble: the backup kept waiting, in all", r.HeldUp)
		s.note("bubble: the backup kept waiting, at most", r.HeldUpMost)
		s.note("bubble: whole copy", r.CopyTime)
		s.note("bubble: the copy runs", r.RunsAfter)
		s.note("bubble: check", r.Check.Took)
		s.note("bubble: the whole of it", r.Took)
		s.t.Logf("%+v", r)
	}
	pull.end()
	all, noise := losses(beside, during)
	loss, low, high := middle(all)
	without, from, to := middle(noise)
	s.t.Logf("throughput: %.0f B/s beside bubbles, during each of them lost %.3f of it, between two intervals without one %.3f", beside, all, noise)
	s.t.Logf("throughput lost to a bubble: median %.1f%% of %d (98%% sure: %.1f to %.1f); without one: median %.1f%% (%.1f to %.1f)",
		100*loss, len(all), 100*low, 100*high, 100*without, 100*from, 100*to)
	const most = 0.05
	if low > most {
		s.t.Errorf("bubbles take more than %.0f%% of the throughput", 100*most)
	}

	for _, want := range []string{"boot " + s.boot, "ok", "no way out"} {
		if !strings.Contains(r.Check.Output, want) {
			s.t.Errorf("the check did not find %q inside:\n%s", want, r.Check.Output)
		}
	}
	if strings.Contains(r.Check.Output, "error") {
		s.t.Errorf("something is wrong inside:\n%s", r.Check.Output)
	}
	if r.Commits == 0 || r.Written == 0 {
		s.t.Errorf("%d epochs were committed, and %d bytes written inside", r.Commits, r.Written)
	}
	silence, _ := s.client.Outage(began)
	s.note("bubble: longest silence at the client", silence)
	s.must(s.client.Err())
	spoke := map[string]int{}
	for _, f := range s.wire.since(s.t, s.MAC(web), began) {
		spoke[f.Host]++
	}
	if spoke[s.owner] == 0 || spoke[s.backup] != 0 {
		s.t.Errorf("frames of the guest left %v: want all from %s", spoke, s.owner)
	}
	if now := s.log(web, s.owner); now.Generation != before.Generation || !now.InSync || now.Backup.Image != before.Backup.Image {
		s.t.Errorf("the log says %+v, said %+v", now, before)
	}
	s.until(web, "protected", func(name string, g host.GuestStatus) bool { return name == s.owner && g.Protected == host.ProtectedYes })
	s.noBubbleLeft()
	verifyIdentical(s)
}

// aBubbleLeavesTheDiskAlone: while the guest does so itself, it is seen on the disks
// whether anybody else does.
func aBubbleLeavesTheDiskAlone(s *stage) {
	s.restDisk()
	disks := []string{s.DiskPath(web, s.owner), s.DiskPath(web, s.backup)}
	before := s.hashes(disks)
	script := fmt.Sprintf(writeInside, s.Address(web), guest.ControlPort)
	text, status := s.cli(s.backup, "bubble", web, "--timeout", "90s", "--output", "json", "--", "/bin/bash", "-c", script)
	var r bubble.Result
	if err := json.Unmarshal([]byte(text), &r); err != nil || status != 0 || r.Written == 0 {
		s.t.Errorf("bubble: status %d, %v, %d bytes written inside: %s", status, err, r.Written, text)
	}
	if now := s.hashes(disks); !slices.Equal(now, before) {
		s.t.Errorf("disks %v are not what they were before the bubble", disks)
	}
	s.useDisk()
}

// writeInside makes the copy use its disk.
const writeInside = `set -e
exec 3<>/dev/tcp/%s/%d
for question in "disk work start files=8" "dirty stop" "disk work stop" "disk sync"; do
	echo "$question" >&3; IFS= read -r -t 60 line <&3; echo "$line"; [[ $line == ok* ]]
done
`

// copiesEqual checks that both hosts' copies of the disk, which the guest leaves
// alone, are equal: nobody but the guest has written to either.
func (s *stage) copiesEqual() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, soon)
	defer cancel()
	for {
		ours, err := hashOf(s.DiskPath(web, s.owner))
		s.must(err)
		theirs, err := hashOf(s.DiskPath(web, s.backup))
		s.must(err)
		if ours == theirs {
			break
		}
		if world.Sleep(ctx, 100*time.Millisecond) != nil {
			s.t.Fatalf("%v after the guest has left its disk alone the copies of hosts %s and %s differ", soon, s.owner, s.backup)
		}
	}
}

// restDisk has the guest leave its disk alone.
func (s *stage) restDisk() {
	s.t.Helper()
	s.must(s.disk.Close())
	s.disk = nil
	s.must(s.Control(s.ctx, web, func(ctx context.Context, c *client.Control) error {
		return errors.Join(c.StopDiskWork(ctx), c.SyncDisk(ctx))
	}))
	s.must(s.Written(s.ctx, web, s.owner))
}

// hashes hashes files.
func (s *stage) hashes(paths []string) (sums [][32]byte) {
	s.t.Helper()
	for _, p := range paths {
		sum, err := hashOf(p)
		s.must(err)
		sums = append(sums, sum)
	}
	return sums
}

// hashOf hashes a file.
func hashOf(path string) (sum [32]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sum, err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return sum, err
	}
	return [32]byte(h.Sum(nil)), nil
}

// held starts a bubble that is held, and returns when its copy runs.
func (s *stage) held() <-chan answer {
	s.t.Helper()
	said := make(chan answer, 1)
	go func() {
		text, status := s.cli(s.backup, "bubble", web, "--hold", "2m")
		said <- answer{text, status}
	}()
	ctx, cancel := context.WithTimeout(s.ctx, soon)
	defer cancel()
	for began := s.began; ; {
		if _, runs := s.Logged(s.backup, "the bubble's guest runs", began); runs {
			return said
		}
		select {
		case a := <-said:
			s.t.Fatalf("the bubble ended with status %d: %s", a.status, a.text)
		default:
		}
		if world.Sleep(ctx, 10*time.Millisecond) != nil {
			s.t.Fatal("the bubble's guest does not run")
		}
	}
}

// theDaemonOfABubbleDies: what it leaves is removed by the next.
func theDaemonOfABubbleDies(s *stage) {
	said := s.held()
	machines := s.machines(s.backup)
	if len(machines) != 2 {
		s.t.Errorf("QEMU processes on host %s: %v, want the waiting one and the bubble's", s.backup, machines)
	}
	s.must(s.KillDaemon(s.backup))
	if a := <-said; a.status == 0 {
		s.t.Errorf("a bubble whose daemon dies: %s", a.text)
	}
	s.must(s.client.More(s.ctx, 20, soon))
	s.must(s.Start(s.ctx, s.backup))
	s.noMachine(s.backup, machines...)
	s.protected(web, s.owner)
	s.noBubbleLeft()
}

// aBubbleMakesRoom: the backup is needed.
func aBubbleMakesRoom(s *stage) {
	said := s.held()
	since := time.Now()
	for _, pid := range s.machines(s.owner) {
		s.must(syscall.Kill(pid, syscall.SIGKILL))
	}
	s.takenOver("QEMU killed beside a bubble", since)
	if a := <-said; a.status == 0 || !strings.Contains(a.text, "comes first") {
		s.t.Errorf("a bubble beside a takeover: status %d: %s", a.status, a.text)
	}
	s.again("QEMU killed beside a bubble", since)
	s.noBubbleLeft()
	s.owner, s.backup = s.backup, s.owner
}

// answer is what a command said.
type answer struct {
	text   string
	status int
}

// apart gives each host of the pair one half of the processors, and what it starts
// from now on, too.
func (s *stage) apart() {
	s.t.Helper()
	half := runtime.NumCPU() / 2
	if half == 0 {
		s.t.Log("one processor: the hosts share it")
		return
	}
	for i, name := range []string{s.owner, s.backup} {
		var set unix.CPUSet
		for cpu := range half {
			set.Set(i*half + cpu)
		}
		report, err := s.Report(s.ctx, name)
		s.must(err)
		for _, pid := range append(s.machines(name), report.PID) {
			threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
			s.must(err)
			for _, t := range threads {
				tid, err := strconv.Atoi(t.Name())
				s.must(err)
				if err := unix.SchedSetaffinity(tid, &set); err != nil && !errors.Is(err, unix.ESRCH) {
					s.t.Fatalf("processors of thread %d of host %s: %v", tid, name, err)
				}
			}
		}
	}
}

// pulling takes bytes from the guest over one connection.
type pulling struct {
	s     *stage
	conn  net.Conn
	total atomic.Int64
	over  chan error
}

// pull begins to.
func (s *stage) pull() *pulling {
	s.t.Helper()
	conn, err := s.Dial(s.ctx, web, guest.ThroughputPort)
	s.must(err)
	p := &pulling{s: s, conn: conn, over: make(chan error, 1)}
	s.t.Cleanup(func() { _ = conn.Close() })
	go func() {
		_, err := client.Source(s.ctx, counted{conn, &p.total}, 1<<40)
		p.over <- err
	}()
	p.until(func() { s.must(world.Sleep(s.ctx, 2*time.Second)) }) // its window has opened
	return p
}

// counted counts what is read.
type counted struct {
	net.Conn
	total *atomic.Int64
}

func (c counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.total.Add(int64(n))
	return n, err
}

// until is how many bytes a second came while something happened.
func (p *pulling) until(happens func()) float64 {
	p.s.t.Helper()
	began, before := time.Now(), p.total.Load()
	happens()
	rate := float64(p.total.Load()-before) / time.Since(began).Seconds()
	select {
	case err := <-p.over:
		p.s.t.Fatalf("the connection has ended: %v", err) // a reset would show here
	default:
	}
	return rate
}

// quiet is the throughput twice in a row while there is no bubble.
func (p *pulling) quiet() [2]float64 {
	p.s.t.Helper()
	once := func() float64 { return p.until(func() { p.s.must(world.Sleep(p.s.ctx, 4*time.Second)) }) }
	return [2]float64{once(), once()}
}

// end ends the connection.
func (p *pulling) end() {
	p.s.t.Helper()
	_ = p.conn.Close()
	if err := <-p.over; !errors.Is(err, net.ErrClosed) {
		p.s.t.Errorf("the connection ended with %v", err)
	}
}

// noBubbleLeft checks that nothing of a bubble is left on the backup's host.
func (s *stage) noBubbleLeft() {
	s.t.Helper()
	if machines := s.machines(s.backup); len(machines) != 1 {
		s.t.Errorf("QEMU processes on host %s: %v, want the waiting one", s.backup, machines)
	}
	h, _ := s.Config.Host(s.backup)
	dir := filepath.Join(s.Config.DirsOf(h).Run, "guests", web)
	if _, err := os.Stat(filepath.Join(dir, "bubble")); !os.IsNotExist(err) {
		s.t.Errorf("%s/bubble is left (%v)", dir, err)
	}
	left, err := isolate.Left()
	s.must(err)
	for _, name := range left {
		if name == isolate.Name(web, dir) {
			s.t.Errorf("network %s is left", name)
		}
	}
}
