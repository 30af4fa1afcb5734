package egress

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"understudy/clock"
	"understudy/epoch"
)

// rig is a gate between the two far ends of in-memory links.
type rig struct {
	*Gate
	t              testing.TB
	guest, network *Pipe
	clock          clock.Clock
}

const rigDepth = 512

func newRig(t testing.TB, c Config) *rig {
	t.Helper()
	return newDeepRig(t, c, rigDepth)
}

// newDeepRig returns a rig whose links take depth frames that nobody collects.
func newDeepRig(t testing.TB, c Config, depth int) *rig {
	t.Helper()
	r := &rig{t: t, clock: clock.Go{Start: time.Now()}}
	c.Guest, r.guest = NewPipe(depth)
	c.Network, r.network = NewPipe(depth)
	if c.Clock == nil {
		c.Clock = r.clock
	}
	r.clock, c.Log = c.Clock, quietLog
	if c.HeldBytes == 0 {
		c.HeldBytes = MinHeldBytes
	}
	g, err := NewGate(c)
	if err != nil {
		t.Fatal(err)
	}
	r.Gate = g
	return r
}

func (r *rig) end() {
	r.t.Helper()
	if err := r.Close(); err != nil {
		r.t.Error(err)
	}
}

// do carries out one word of a story; see TestStories.
func (r *rig) do(word string) string {
	verb, arg, _ := strings.Cut(word, ":")
	switch verb {
	case "guest": // the guest sends frames, one per digit
		for _, c := range arg {
			if err := r.guest.WriteFrame(numbered(uint64(c-'0'), 0)); err != nil {
				return err.Error()
			}
		}
	case "net": // the network sends a frame
		for _, c := range arg {
			if err := r.network.WriteFrame(numbered(uint64(c-'0'), 0)); err != nil {
				return err.Error()
			}
		}
	case "seal":
		n, _ := strconv.Atoi(arg)
		if err := r.Seal(epoch.Number(n)); err != nil {
			return "refused"
		}
	case "release":
		n, _ := strconv.Atoi(arg)
		r.Release(epoch.Number(n))
	case "lease":
		d, err := time.ParseDuration(arg)
		if err != nil {
			return err.Error()
		}
		if err := r.Allow(r.clock.Now().Add(d)); err != nil {
			return err.Error()
		}
	case "wait":
		d, err := time.ParseDuration(arg)
		if err != nil {
			return err.Error()
		}
		time.Sleep(d)
	case "hold":
		r.Hold()
	case "pass":
		r.Pass()
	case "shut":
		r.Shut()
	case "discard":
		r.Discard()
	default:
		return "unknown word " + word
	}
	synctest.Wait()
	out := ""
	for _, n := range drain(r.t, r.network) {
		out += fmt.Sprint(n)
	}
	for _, n := range drain(r.t, r.guest) {
		out += fmt.Sprintf("<%d", n)
	}
	return out
}

// TestStories tells what goes out (digits) and in (<digits) after each step.
func TestStories(t *testing.T) {
	for name, story := range map[string]string{
		"a new gate holds":                      `guest:12 release:9 lease:1s release:9`,
		"held until its epoch is released":      `lease:1s guest:12 seal:1 guest:3 release:1=12 seal:2 release:2=3`,
		"several epochs in flight":              `lease:1s guest:1 seal:1 guest:2 seal:2 guest:3 seal:3 release:1=1 release:3=23`,
		"an epoch not sealed is not released":   `lease:1s guest:1 release:5 seal:1 release:1=1`,
		"late acknowledgements change nothing":  `lease:1s guest:1 seal:1 seal:2 release:2=1 release:1 guest:2 release:1 release:2 seal:3 release:3=2`,
		"empty epochs":                          `lease:1s seal:1 seal:2 release:1 guest:1 seal:3 release:2 release:3=1`,
		"epochs only grow":                      `lease:1s seal:5 seal:5=refused seal:4=refused guest:1 seal:6 release:6=1`,
		"no lease, no output":                   `guest:1 seal:1 release:1 lease:1s=1`,
		"lease ends, held until renewed":        `lease:100ms guest:1 seal:1 wait:100ms release:1 wait:1s lease:1s=1`,
		"the guard ends before the lease":       `lease:100ms guest:1 seal:1 wait:90ms release:1 lease:1s=1`,
		"just before the guard":                 `lease:100ms guest:1 seal:1 wait:89ms release:1=1`,
		"a shorter lease counts":                `lease:1s lease:5ms guest:1 seal:1 release:1 lease:1s=1`,
		"unprotected passes":                    `lease:1s pass guest:12=12 guest:3=3`,
		"unprotected first sends what was held": `lease:1s guest:12 seal:1 guest:3 pass=123 guest:4=4`,
		"unprotected needs a lease":             `pass guest:12 lease:50ms=12 wait:1s guest:3 lease:1s=3`,
		"protected from now on":                 `lease:1s pass guest:1=1 hold guest:2 seal:1 release:1=2`,
		"passed without lease stays passed":     `pass guest:1 hold guest:2 lease:1s=1 seal:1 release:1=2`,
		"a new image counts from one":           `lease:1s guest:1 seal:7 hold guest:2 release:7 seal:1 release:1=12`,
		"shut both ways":                        `lease:1s guest:1 seal:1 shut net:5 release:1 guest:2 net:6 hold=1 net:7=<7 seal:2 release:2=2`,
		"shut stops an unprotected guest":       `lease:1s pass guest:1=1 shut guest:2 lease:1s pass=2`,
		"lease renewed while shut":              `shut lease:1s guest:1 seal:1 release:1 hold=1`,
		"network reaches the guest":             `net:12=<1<2 lease:1s net:3=<3 pass net:4=<4`,
		"discard":                               `lease:1s guest:1 seal:1 guest:2 discard release:1 guest:3 seal:1 release:1=3`,
		"discard what was due":                  `guest:1 seal:1 release:1 discard lease:1s guest:2 seal:2 release:2=2`,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, Config{Guard: 10 * time.Millisecond})
				defer r.end()
				for i, step := range strings.Fields(story) {
					word, want, _ := strings.Cut(step, "=")
					if got := r.do(word); got != want {
						t.Fatalf("step %d, %s: got %q, want %q", i+1, word, got, want)
					}
				}
			})
		})
	}
}

func TestFramesSentBeforeThePauseBelongToItsEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{})
		defer r.end()
		if err := r.Allow(forever); err != nil {
			t.Fatal(err)
		}
		// No time for the collecting goroutine between the sending and the seal.
		for n := range uint64(100) {
			if err := r.guest.WriteFrame(numbered(n, 0)); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.Seal(1); err != nil {
			t.Fatal(err)
		}
		if frames, bytes := r.Held(); frames != 100 || bytes != 100*(headerLen+8) {
			t.Errorf("held %d frames, %d bytes", frames, bytes)
		}
		r.Release(1)
		synctest.Wait()
		if got := drain(t, r.network); len(got) != 100 {
			t.Errorf("%d frames left with their epoch, want 100", len(got))
		}
	})
}

func TestAFullRingMakesTheGuestWaitAndAsksForACheckpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{})
		defer r.end()
		if err := r.Allow(forever); err != nil {
			t.Fatal(err)
		}
		var n, released uint64
		var got []uint64
		for e := epoch.Number(1); e <= 20; e++ {
			// As much as the guest can get rid of: ring and pipe are both full.
			for r.guest.WriteFrame(numbered(n, 3000)) == nil {
				n++
				synctest.Wait()
			}
			select {
			case <-r.Pressure():
			default:
				t.Fatal("a full ring did not ask for a checkpoint")
			}
			frames, bytes := r.Held()
			if bytes > MinHeldBytes || bytes < MinHeldBytes/2 {
				t.Fatalf("%d bytes in %d frames held, of %d", bytes, frames, MinHeldBytes)
			}
			if err := r.Seal(e); err != nil {
				t.Fatal(err)
			}
			released += uint64(frames)
			r.Release(e)
			for {
				synctest.Wait()
				more := drain(t, r.network)
				if len(more) == 0 {
					break
				}
				got = append(got, more...)
			}
			if lost := r.Stats().Lost; lost+uint64(len(got)) < released {
				t.Fatalf("%d frames came out and %d were lost, of %d released", len(got), lost, released)
			}
		}
		for i := 1; i < len(got); i++ {
			if got[i] <= got[i-1] {
				t.Fatalf("frame %d came after %d", got[i], got[i-1])
			}
		}
		if r.Stats().Full == 0 {
			t.Error("nobody noticed that the ring was full")
		}
	})
}

func TestFramesTheOtherSideDoesNotTakeAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{HeldBytes: 4 << 20})
		defer r.end()
		if err := r.Allow(forever); err != nil {
			t.Fatal(err)
		}
		for e := epoch.Number(1); e <= 3; e++ {
			for n := range uint64(300) {
				if err := errors.Join(r.guest.WriteFrame(numbered(n, 0)), r.network.WriteFrame(numbered(n, 0))); err != nil {
					t.Fatal(err)
				}
			}
			if err := r.Seal(e); err != nil {
				t.Fatal(err)
			}
			r.Release(e)
			synctest.Wait()
		}
		s := r.Stats()
		if s.Sent != rigDepth || s.Lost != 900-rigDepth || s.Received != rigDepth || s.ReceivedLost != 900-rigDepth {
			t.Errorf("%+v", s)
		}
	})
}

// handClock is moved by hand: time of a synctest bubble stands still while a
// goroutine waits for a lock, as one does here.
type handClock struct{ now atomic.Int64 }

func (c *handClock) Now() clock.Instant { return clock.Instant(c.now.Load()) }

// fakeLimit is a kernel gate by the test's clock.
type fakeLimit struct {
	clock  clock.Clock
	end    clock.Instant
	before func() // called as Open begins
	fail   error
	closed bool
	opened int
}

func (f *fakeLimit) Open(d time.Duration) error {
	f.opened++
	if f.before != nil {
		f.before()
	}
	if f.fail != nil {
		return f.fail
	}
	f.end = f.clock.Now().Add(d)
	return nil
}
func (f *fakeLimit) Shut() error  { f.end = 0; return nil }
func (f *fakeLimit) Close() error { f.closed = true; return nil }

func TestTheKernelsGateEndsBeforeTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := new(handClock)
		limit := &fakeLimit{clock: c}
		r := newRig(t, Config{Clock: c, Limit: limit, Guard: 10 * time.Millisecond})
		lease := c.Now().Add(time.Second)
		if err := r.Allow(lease); err != nil {
			t.Fatal(err)
		}
		if limit.end != lease.Add(-5*time.Millisecond) {
			t.Errorf("the kernel's gate ends at %v, the lease at %v", limit.end, lease)
		}
		// The process is stopped between reading the clock and setting the limit.
		limit.before = func() { c.now.Add(int64(2 * time.Second)) }
		if err := r.Allow(c.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		if limit.end != 0 {
			t.Errorf("a limit set too late stands until %v, now is %v", limit.end, c.Now())
		}
		// It is stopped there for a part of the lease only: the limit would outlast
		// it by that part, and a process stopped again, between its look at the
		// clock and its write, would find it open.
		stops := 2
		limit.before = func() {
			if stops--; stops >= 0 {
				c.now.Add(int64(400 * time.Millisecond))
			}
		}
		lease = c.Now().Add(time.Second)
		if err := r.Allow(lease); err != nil {
			t.Fatal(err)
		}
		if limit.end == 0 || limit.end.Add(5*time.Millisecond) > lease {
			t.Errorf("the kernel's gate ends at %v, the lease at %v", limit.end, lease)
		}
		c.now.Add(int64(time.Second))
		limit.before = nil
		// A kernel that refuses leaves the former end.
		limit.fail = errors.New("no")
		if err := r.Allow(c.Now().Add(time.Hour)); !errors.Is(err, limit.fail) {
			t.Errorf("a refusing kernel was not reported: %v", err)
		}
		limit.fail = nil
		if err := r.guest.WriteFrame(numbered(1, 0)); err != nil {
			t.Fatal(err)
		}
		r.Pass()
		synctest.Wait()
		if got := drain(t, r.network); len(got) != 0 {
			t.Errorf("%v left without the kernel's consent", got)
		}
		r.Shut()
		opened := limit.opened
		if err := r.Allow(c.Now().Add(time.Hour)); err != nil || limit.opened != opened {
			t.Errorf("a renewal opened the kernel's gate of a shut gate (%v)", err)
		}
		r.Pass()
		synctest.Wait()
		if got := drain(t, r.network); len(got) != 1 || limit.end == 0 {
			t.Errorf("%v left after the gate was opened again, the kernel's until %v", got, limit.end)
		}
		r.end()
		if !limit.closed {
			t.Error("the limit was not closed")
		}
	})
}

// brokenLink fails as a TAP does that was deleted by hand.
type brokenLink struct {
	*Pipe
	err error
}

func (b brokenLink) Wait() error { return b.err }

func TestABrokenLinkIsReported(t *testing.T) {
	a, far := NewPipe(4)
	n, _ := NewPipe(4)
	broken := errors.New("interface gone")
	g, err := NewGate(Config{Guest: a, Network: brokenLink{n, broken}, Clock: clock.Boot{}, Log: quietLog})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-g.Failed(); !errors.Is(err, broken) {
		t.Errorf("reported %v", err)
	}
	if err := errors.Join(g.Close(), g.Close(), far.Close()); err != nil {
		t.Error(err)
	}
}

func TestAnnounce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mac := net.HardwareAddr{2, 3, 4, 5, 6, 7}
		r := newRig(t, Config{MAC: mac})
		defer r.end()
		// The gate has seen the guest's address in an ARP request of its own.
		asked := arpFrame(typeARP, 1, mac, [4]byte{192, 0, 2, 7}, make(net.HardwareAddr, 6), [4]byte{192, 0, 2, 1})
		if err := r.guest.WriteFrame(asked); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := r.Addresses(); !reflect.DeepEqual(got, []netip.Addr{netip.MustParseAddr("192.0.2.7")}) {
			t.Fatalf("learned %v", got)
		}
		if err := r.Announce(); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, MaxFrame+1)
		if _, err := r.network.ReadFrame(buf); err != ErrEmpty {
			t.Error("announced without a lease")
		}
		if err := r.Allow(forever); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		kinds := map[uint16]int{}
		for {
			n, err := r.network.ReadFrame(buf)
			if err != nil {
				break
			}
			f := buf[:n]
			if source(f) != [6]byte(mac) || destination(f) != [6]byte(broadcast) || n != minFrame {
				t.Errorf("announcement % x", f)
			}
			kinds[uint16(f[12])<<8|uint16(f[13])]++
		}
		if kinds[typeRARP] != announceRounds-1 || kinds[typeARP] != announceRounds-1 {
			t.Errorf("announcements by type: %v, want %d of each", kinds, announceRounds-1)
		}
		// Ended by Close in the middle of its rounds.
		if err := r.Announce(netip.MustParseAddr("192.0.2.9")); err != nil {
			t.Fatal(err)
		}
	})
}

func TestConfigIsChecked(t *testing.T) {
	a, b := NewPipe(1)
	good := Config{Guest: a, Network: b, Clock: clock.Boot{}}
	for name, spoil := range map[string]func(*Config){
		"no guest":   func(c *Config) { c.Guest = nil },
		"no network": func(c *Config) { c.Network = nil },
		"no clock":   func(c *Config) { c.Clock = nil },
		"no room":    func(c *Config) { c.HeldBytes = MinHeldBytes - 1 },
		"guard":      func(c *Config) { c.Guard = -1 },
		"address":    func(c *Config) { c.MAC = net.HardwareAddr{1} },
	} {
		c := good
		spoil(&c)
		if _, err := NewGate(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
