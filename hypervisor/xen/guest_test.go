package xen

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"understudy/epoch"
	"understudy/hypervisor"
	"understudy/hypervisor/xen/stream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a domain of 64 frames in two runs, and xenstore's part of its suspend.
type fake struct {
	mu      sync.Mutex
	info    Info
	gone    bool
	memory  []byte
	dirty   []uint64
	written []uint64
	fails   error // of the log
	silent  bool  // its device model does not log
	deaf    bool  // does not answer
	asked   bool
	late    bool // answers when the request is to be withdrawn
	resumed int
	limit   uint64
	moved   uint64
	looked  error // of a look at what has moved, or whether it answers
	boots   bool
	stilled int
	stirs   error // of its device model
	happens chan struct{}
	closed  bool
}

var fakeRuns = []Run{{0, 56}, {120, 8}}

func newFake() *fake {
	return &fake{
		info: Info{Domain: 3, HVM: true, Nested: true, Pages: 70, Paused: true}, memory: make([]byte, 64*epoch.PageSize),
		dirty: make([]uint64, 2), happens: make(chan struct{}, 8),
	}
}

func (f *fake) Info() (Info, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gone {
		return Info{}, syscall.ESRCH
	}
	return f.info, nil
}

// change lets something happen to the domain.
func (f *fake) change(how func(*Info)) {
	f.mu.Lock()
	how(&f.info)
	f.mu.Unlock()
	f.happens <- struct{}{}
}

func (f *fake) suspend() {
	f.change(func(i *Info) { i.Shutdown, i.Reason = true, ReasonSuspend })
}

func (f *fake) Memory() []byte { return f.memory }

func (f *fake) Plot() Plot { return Plot{Domain: f.info.Domain, Memory: f.memory} }

func (f *fake) Answers() (bool, error) { return !f.boots, f.looked }

func (f *fake) Still(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stilled++
	return f.stirs
}

func (f *fake) Moved() (uint64, error) { return f.moved, f.looked }

func (f *fake) Limit(pages uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.limit = pages
	return nil
}

func (f *fake) Clean() ([]uint64, bool, error) {
	if f.fails != nil {
		return nil, false, f.fails
	}
	words := slices.Clone(f.dirty)
	clear(f.dirty)
	return words, !f.silent, nil
}

func (f *fake) Written(yield func(uint64) bool) error {
	for _, frame := range f.written {
		if !yield(frame) {
			break
		}
	}
	return nil
}

func (f *fake) State(_ context.Context, s *State) error {
	*s = *state()
	return nil
}

func (f *fake) Resume(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.info.Shutdown, f.info.Paused = false, false
	f.resumed++
	return nil
}

func (f *fake) Await(ctx context.Context) error {
	select {
	case <-f.happens:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *fake) Destroy() error { f.gone = true; return nil }
func (f *fake) Close() error   { f.closed = true; return nil }

func (f *fake) Ask(context.Context) error {
	f.asked = true
	if !f.deaf {
		f.suspend()
	}
	return nil
}

func (f *fake) Withdraw(context.Context) (bool, error) {
	if f.late {
		f.suspend()
		return false, nil
	}
	f.asked = false
	return true, nil
}

func (f *fake) Resumed(context.Context) error { return nil }

func newTestGuest(t *testing.T, f *fake) *Guest {
	return newGuestOf(t, GuestConfig{Domain: f, Ask: f})
}

func newGuestOf(t *testing.T, c GuestConfig) *Guest {
	c.Name, c.Spec, c.Rings = "web", Spec{Head: head(t), Memory: fakeRuns, Config: []byte("{}")}, []uint64{127}
	g, err := NewGuest(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Detach() })
	return g
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestADomainIsCaptured(t *testing.T) {
	f := newFake()
	g := newTestGuest(t, f)
	ctx := t.Context()
	must(t, g.Pause(ctx)) // it has yet to run
	set := epoch.NewPageSet(64)
	must(t, g.CollectDirty(set))
	if set.Count() != 64 {
		t.Errorf("the first time %d pages are dirty", set.Count())
	}
	for range 3 {
		must(t, g.Resume(ctx))
		if _, err := g.AppendDeviceState(ctx, nil); err == nil {
			t.Error("the state of a running domain is saved")
		}
		f.dirty[0] |= 1<<3 | 1<<60 // 60 is no frame
		f.written = []uint64{5, 90}
		f.memory[3*epoch.PageSize] = 'x'
		must(t, g.Pause(ctx))
		set.Clear()
		must(t, g.CollectDirty(set))
		if !set.Contains(3) || !set.Contains(5) || !set.Contains(63) || set.Count() != 3 {
			t.Errorf("%d pages are dirty", set.Count())
		}
		set.Clear()
		must(t, g.CollectDirty(set))
		if !set.Empty() {
			t.Errorf("a guest that stands still has dirtied %d pages", set.Count())
		}
		page := make([]byte, epoch.PageSize)
		must(t, g.ReadPages(3, page))
		if page[0] != 'x' {
			t.Error("page 3 is not what was written")
		}
		tail, err := g.AppendDeviceState(ctx, []byte("before"))
		must(t, err)
		if _, err := ParseTail(tail[6:], stream.Domain{Version: 3, Type: stream.HVM}); err != nil {
			t.Error(err)
		}
	}
	if f.resumed != 3 {
		t.Errorf("resumed %d times", f.resumed)
	}
	if g.ReadPages(60, make([]byte, 5*epoch.PageSize)) == nil || g.ReadPages(0, make([]byte, 5)) == nil || g.ReadPages(1<<63, make([]byte, 4096)) == nil {
		t.Error("memory is read that the guest does not have")
	}
}

// Zero pages need not be copied to be known, and what others than the guest write to
// while it stands still is what it was.
func TestZeroPagesOfADomain(t *testing.T) {
	f := newFake()
	g := newTestGuest(t, f)
	must(t, g.Resume(t.Context()))
	clear(f.memory)
	f.memory[7*epoch.PageSize-1] = 'x'
	must(t, g.Pause(t.Context()))
	f.memory[63*epoch.PageSize] = 'y' // its console
	for _, c := range []struct {
		first       epoch.GFN
		count, want uint64
	}{{0, 64, 6}, {0, 3, 3}, {6, 2, 0}, {7, 57, 57}, {7, 1 << 60, 57}, {64, 1, 0}, {1 << 62, 5, 0}} {
		if n := g.Hole(c.first, c.count); n != c.want {
			t.Errorf("of %d pages from %d on %d are zero, want %d", c.count, c.first, n, c.want)
		}
	}
	must(t, g.Destroy())
	if g.Hole(0, 1) != 0 {
		t.Error("a domain that is gone has zero pages")
	}
}

// A log that could not be read leaves every page dirty.
func TestALostLog(t *testing.T) {
	f := newFake()
	g := newTestGuest(t, f)
	set := epoch.NewPageSet(64)
	must(t, g.CollectDirty(set))
	f.fails = os.ErrInvalid
	if err := g.CollectDirty(set); !errors.Is(err, os.ErrInvalid) {
		t.Errorf("error %v", err)
	}
	f.fails = nil
	set.Clear()
	must(t, g.CollectDirty(set))
	if set.Count() != 64 {
		t.Errorf("after a failure %d pages are dirty", set.Count())
	}
	if g.CollectDirty(epoch.NewPageSet(1)) == nil {
		t.Error("a set of another image is taken")
	}
}

// A guest that does not answer is not left with a request that it may answer when
// nobody waits; one that has answered is waited for.
func TestAGuestThatDoesNotAnswer(t *testing.T) {
	f := newFake()
	g := newTestGuest(t, f)
	must(t, g.Resume(t.Context()))
	f.deaf = true
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := g.Pause(ctx); err == nil || !strings.Contains(err.Error(), "does not answer") || f.asked {
		t.Errorf("error %v, still asked: %v", err, f.asked)
	}
	f.late = true
	again, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	must(t, g.Pause(again))
	must(t, g.Resume(t.Context()))
}

// What a balloon has taken stays in the image as it was, and is not given back; a
// domain with more memory than its image is of no use any more.
func TestADomainThatWasBallooned(t *testing.T) {
	f := newFake()
	g := newTestGuest(t, f)
	if f.limit != f.info.Pages {
		t.Errorf("it may have %d pages", f.limit)
	}
	must(t, g.Resume(t.Context()))
	f.change(func(i *Info) { i.Pages -= 4 })
	must(t, g.Pause(t.Context()))
	if before := newFake().info.Pages; f.limit != before-4 {
		t.Errorf("it may have %d pages", f.limit)
	}
	must(t, g.Resume(t.Context()))
	f.change(func(i *Info) { i.Pages++ })
	if e := <-g.Events(); e.Kind != hypervisor.EventExited || !strings.Contains(e.Detail, "given memory") {
		t.Errorf("event %v %q", e.Kind, e.Detail)
	}
	if err := g.Pause(t.Context()); !errors.Is(err, ErrShape) || g.Alive() == nil {
		t.Errorf("error %v", err)
	}

	// It is seen only when it stands still.
	f = newFake()
	g = newTestGuest(t, f)
	must(t, g.Resume(t.Context()))
	f.mu.Lock()
	f.info.Pages++
	f.mu.Unlock()
	if err := g.Pause(t.Context()); !errors.Is(err, ErrShape) {
		t.Errorf("error %v", err)
	}
}

// A guest that has put other memory in the place of its own is of no use any more: it is
// seen at the very pause, before anything is read of what is mapped.
func TestAGuestThatMovesItsMemory(t *testing.T) {
	f := newFake()
	g := newTestGuest(t, f)
	must(t, g.Resume(t.Context()))
	must(t, g.Pause(t.Context()))
	must(t, g.Resume(t.Context()))
	f.looked = errors.New("cannot be mapped")
	if err := g.Pause(t.Context()); !errors.Is(err, f.looked) || g.Alive() != nil {
		t.Errorf("a look that fails: %v", err)
	}
	must(t, g.Resume(t.Context()))
	f.looked, f.moved = nil, 2
	if err := g.Pause(t.Context()); !errors.Is(err, ErrMoved) || !strings.Contains(err.Error(), "2 pages") {
		t.Errorf("error %v", err)
	}
	if e := <-g.Events(); e.Kind != hypervisor.EventExited || e.Detail != ErrMoved.Error() {
		t.Errorf("event %v %q", e.Kind, e.Detail)
	}
	if err := g.Alive(); !errors.Is(err, ErrMoved) {
		t.Errorf("it lives: %v", err)
	}
	must(t, g.Destroy())
}

// While a device model writes what the log does not have, a domain that has run may have
// any page changed; one that has not has none.
func TestADeviceModelThatDoesNotLog(t *testing.T) {
	f := newFake()
	g := newTestGuest(t, f)
	f.silent = true
	collected := func() uint64 {
		t.Helper()
		set := epoch.NewPageSet(g.Pages())
		must(t, g.CollectDirty(set))
		return set.Count()
	}
	for round := range 2 {
		if n := collected(); n != g.Pages() {
			t.Errorf("round %d: %d pages of %d are dirty", round, n, g.Pages())
		}
		f.dirty[0] = 1
		if n := collected(); n != 1 {
			t.Errorf("round %d: of a domain that stands still %d pages are dirty, want that of the log", round, n)
		}
		must(t, g.Resume(t.Context()))
		must(t, g.Pause(t.Context()))
	}
	f.silent = false // from when it logs
	if n := collected(); n != 1 {
		t.Errorf("%d pages are dirty, want the ring", n)
	}
}

// A device model that cannot be stopped would write to an image that stands still.
func TestADeviceModelThatIsGone(t *testing.T) {
	f := newFake()
	g := newTestGuest(t, f)
	must(t, g.Resume(t.Context()))
	must(t, g.Pause(t.Context()))
	if f.stilled != 1 {
		t.Errorf("it was stopped %d times", f.stilled)
	}
	must(t, g.Detach())
	g = newTestGuest(t, f)
	if f.stilled != 2 {
		t.Errorf("it was found suspended, and stopped %d times", f.stilled)
	}
	must(t, g.Resume(t.Context()))
	f.stirs = errors.New("no device model")
	if err := g.Pause(t.Context()); !errors.Is(err, f.stirs) || g.Alive() == nil {
		t.Errorf("error %v", err)
	}
	if e := <-g.Events(); e.Kind != hypervisor.EventExited {
		t.Errorf("event %v %q", e.Kind, e.Detail)
	}
	must(t, g.Destroy())
}

// What others write to a domain that stands still does not change its image.
func TestAnImageStandsStill(t *testing.T) {
	f := newFake()
	g := newTestGuest(t, f)
	must(t, g.Resume(t.Context()))
	f.memory[63*epoch.PageSize] = 'a'
	must(t, g.Pause(t.Context()))
	f.memory[63*epoch.PageSize] = 'b' // the console's back end
	two := make([]byte, 2*epoch.PageSize)
	must(t, g.ReadPages(62, two))
	if two[epoch.PageSize] != 'a' {
		t.Errorf("it reads %q", two[epoch.PageSize])
	}
	must(t, g.Resume(t.Context()))
	must(t, g.ReadPages(62, two))
	if two[epoch.PageSize] != 'b' {
		t.Errorf("of a guest that runs it reads %q", two[epoch.PageSize])
	}
}

// plug is devices that note what is asked of them.
type plug struct{ said []string }

func (p *plug) Plug(_ context.Context, plot Plot, restored bool) (Plugged, error) {
	p.say(fmt.Sprintf("plug %d %v", plot.Domain, restored))
	return p, nil
}
func (p *plug) say(what string)                       { p.said = append(p.said, what) }
func (p *plug) Start()                                { p.say("start") }
func (p *plug) Stop()                                 { p.say("stop") }
func (p *plug) Unplug() error                         { p.say("unplug"); return nil }
func (p *plug) Leave() error                          { p.say("leave"); return nil }
func (p *plug) CollectDirty(set *epoch.PageSet) error { set.Add(9); return nil }

// Devices serve only while the guest runs, and what they write is dirty.
func TestDevicesOfADomain(t *testing.T) {
	f, p := newFake(), &plug{}
	devices, err := Join(p, p).Plug(t.Context(), f.Plot(), false)
	must(t, err)
	g := newGuestOf(t, GuestConfig{Domain: f, Ask: f, Plugged: devices})
	set := epoch.NewPageSet(64)
	must(t, g.CollectDirty(set))
	must(t, g.Resume(t.Context()))
	must(t, g.Pause(t.Context()))
	set.Clear()
	must(t, g.CollectDirty(set))
	if !set.Contains(9) || set.Count() != 2 {
		t.Errorf("%d pages are dirty", set.Count())
	}
	must(t, g.Destroy())
	if want := []string{"plug 3 false", "plug 3 false", "start", "start", "stop", "stop", "unplug", "unplug"}; !slices.Equal(p.said, want) {
		t.Errorf("the devices are asked to %q, want %q", p.said, want)
	}
	left := newGuestOf(t, GuestConfig{Domain: newFake(), Ask: f, Plugged: p})
	must(t, left.Detach())
	if p.said[len(p.said)-1] != "leave" {
		t.Errorf("the devices are asked to %q", p.said)
	}
}

func shutdown(reason uint) func(*Info) {
	return func(i *Info) { i.Shutdown, i.Reason = true, reason }
}

// What ends a domain: by others, or a reboot that nobody can follow.
func TestWhatEndsADomain(t *testing.T) {
	for _, c := range []struct {
		name string
		how  func(*Info)
		kind hypervisor.EventKind
		says string
	}{
		{"reboot", shutdown(ReasonReboot), hypervisor.EventFault, "rebooted"},
		{"destroyed by others", func(i *Info) { i.Dying = true }, hypervisor.EventExited, "destroyed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake()
			g := newTestGuest(t, f)
			must(t, g.Resume(t.Context()))
			f.change(c.how)
			e := <-g.Events()
			if e.Kind != c.kind || !strings.Contains(e.Detail, c.says) {
				t.Errorf("event %v %q", e.Kind, e.Detail)
			}
			f.deaf = true
			if err := g.Pause(t.Context()); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("afterwards a pause says %v", err)
			}
			if f.asked {
				t.Error("a domain that is over is asked to suspend")
			}
			if c.kind == hypervisor.EventExited && g.CollectDirty(epoch.NewPageSet(64)) == nil {
				t.Error("its log is believed")
			}
			if g.Alive() == nil {
				t.Error("it is alive")
			}
			must(t, g.Destroy())
			must(t, g.Destroy())
			if !f.gone || !f.closed {
				t.Error("it is still there")
			}
			for range g.Events() { // it is closed
			}
		})
	}
}

// A guest that has ended by itself stands still and is all there, for a last
// checkpoint.
func TestAGuestThatStopsByItself(t *testing.T) {
	for _, c := range []struct {
		reason uint
		kind   hypervisor.EventKind
		says   string
	}{
		{ReasonPowerOff, hypervisor.EventShutdown, "powered itself off"}, {ReasonCrash, hypervisor.EventPanic, "crashed"}, {ReasonWatchdog, hypervisor.EventPanic, "crashed"},
	} {
		f := newFake()
		g := newTestGuest(t, f)
		must(t, g.Resume(t.Context()))
		f.change(shutdown(c.reason))
		if e := <-g.Events(); e.Kind != c.kind || !strings.Contains(e.Detail, c.says) {
			t.Errorf("event %v %q", e.Kind, e.Detail)
		}
		f.deaf = true
		must(t, g.Pause(t.Context()))
		must(t, g.CollectDirty(epoch.NewPageSet(64)))
		_, err := g.AppendDeviceState(t.Context(), nil)
		must(t, err)
		if err := g.Resume(t.Context()); err == nil || !strings.Contains(err.Error(), c.says) || f.resumed != 1 {
			t.Errorf("a resume says %v", err)
		}
		must(t, g.Destroy())
	}
}

// A reboot is a new domain in the place of the old one: the guest is the same, and
// all of its memory is dirty.
func TestAGuestThatReboots(t *testing.T) {
	first, second, p := newFake(), newFake(), &plug{}
	second.info.Domain = 4
	next := &Successor{Domain: second, Ask: second, Plugged: p, Rings: []uint64{126}}
	next.Frames, _ = NewFrames(fakeRuns)
	second.boots = true
	g := newGuestOf(t, GuestConfig{Domain: first, Ask: first, Again: func(context.Context) (*Successor, error) { return next, nil }})
	ctx, set := t.Context(), epoch.NewPageSet(64)
	must(t, g.Resume(ctx))
	must(t, g.Ready())
	must(t, g.CollectDirty(set))
	first.change(shutdown(ReasonReboot))
	if e := <-g.Events(); e.Kind != hypervisor.EventReset {
		t.Fatalf("event %v %q", e.Kind, e.Detail)
	}
	if err := g.Ready(); !errors.Is(err, ErrBooting) {
		t.Errorf("while it boots again: %v", err)
	}
	if !first.gone || !first.closed || second.resumed != 1 || !slices.Equal(p.said, []string{"start"}) {
		t.Errorf("the old domain is there, or the new one does not run (devices: %q)", p.said)
	}
	must(t, g.Pause(ctx))
	set.Clear()
	must(t, g.CollectDirty(set))
	if set.Count() != 64 {
		t.Errorf("after a reboot %d pages are dirty", set.Count())
	}

	// A crash waits until its owner lets it go on, which it does anew.
	third := newFake()
	next = &Successor{Domain: third, Ask: third, Plugged: p, Frames: next.Frames}
	must(t, g.Resume(ctx))
	second.change(shutdown(ReasonCrash))
	if e := <-g.Events(); e.Kind != hypervisor.EventPanic {
		t.Fatalf("event %v %q", e.Kind, e.Detail)
	}
	must(t, g.Resume(ctx))
	if e := <-g.Events(); e.Kind != hypervisor.EventReset || third.resumed != 1 || !second.gone {
		t.Errorf("event %v %q", e.Kind, e.Detail)
	}

	// The next one is of another shape.
	next = &Successor{Domain: newFake(), Plugged: p}
	next.Frames, _ = NewFrames([]Run{{0, 64}})
	third.change(shutdown(ReasonReboot))
	if e := <-g.Events(); e.Kind != hypervisor.EventFault || !strings.Contains(e.Detail, "another shape") {
		t.Errorf("event %v %q", e.Kind, e.Detail)
	}
	if g.Alive() == nil || g.Pause(ctx) == nil || g.ReadPages(0, make([]byte, epoch.PageSize)) == nil || g.CollectDirty(set) == nil {
		t.Error("a guest without a domain is of use")
	}
	must(t, g.Destroy())
}

// Another program that saves the domain lets it go on, or ends it; what it has read
// of the log is lost.
func TestAnotherProgramSavesTheDomain(t *testing.T) {
	f := newFake()
	g := newTestGuest(t, f)
	set := epoch.NewPageSet(64)
	must(t, g.CollectDirty(set))
	must(t, g.Resume(t.Context()))
	f.suspend()
	if e := <-g.Events(); e.Kind != hypervisor.EventFault || !strings.Contains(e.Detail, "another program") {
		t.Errorf("event %v %q", e.Kind, e.Detail)
	}
	must(t, g.Alive())
	f.change(func(i *Info) { i.Shutdown = false })
	must(t, g.Pause(t.Context()))
	set.Clear()
	must(t, g.CollectDirty(set))
	if set.Count() != 64 {
		t.Errorf("afterwards %d pages are dirty", set.Count())
	}
}

func TestADomainIsLetGoOf(t *testing.T) {
	f := newFake()
	g := newTestGuest(t, f)
	must(t, g.Detach())
	if f.gone || !f.closed {
		t.Error("it was ended")
	}
	ctx := t.Context()
	_, err := g.AppendDeviceState(ctx, nil)
	for _, err := range []error{err, g.Pause(ctx), g.Resume(ctx), g.CollectDirty(epoch.NewPageSet(64)), g.ReadPages(0, make([]byte, 4096)), g.Alive()} {
		if err == nil {
			t.Error("it is of use still")
		}
	}
	for name, change := range map[string]func(*fake, *Spec){
		"PV":       func(f *fake, _ *Spec) { f.info.HVM = false },
		"shadow":   func(f *fake, _ *Spec) { f.info.Nested = false },
		"gone":     func(f *fake, _ *Spec) { f.gone = true },
		"mapping":  func(f *fake, _ *Spec) { f.memory = f.memory[:4096] },
		"no head":  func(_ *fake, s *Spec) { s.Head = nil },
		"no shape": func(_ *fake, s *Spec) { s.Memory = nil },
	} {
		f := newFake()
		spec := Spec{Head: head(t), Memory: fakeRuns, Config: []byte("{}")}
		change(f, &spec)
		if _, err := NewGuest(GuestConfig{Name: "web", Domain: f, Ask: f, Spec: spec}); err == nil {
			t.Errorf("%s: it is a guest", name)
		}
	}
}

func TestSpec(t *testing.T) {
	packed, err := Spec{Head: head(t), Memory: fakeRuns, Config: []byte(`{"c_info":{}}`), Tail: tailOf(t, 127)}.Pack()
	must(t, err)
	s, frames, err := ParseSpec(packed)
	must(t, err)
	if packed.Pages != 64 || frames.Pages() != 64 || string(s.Config) != `{"c_info":{}}` {
		t.Errorf("%+v of %d pages", s, frames.Pages())
	}
	replace := func(old, with string) hypervisor.Spec {
		return hypervisor.Spec{Pages: packed.Pages, Machine: []byte(strings.Replace(string(packed.Machine), old, with, 1))}
	}
	for name, bad := range map[string]hypervisor.Spec{
		"empty": {}, "large": {Machine: make([]byte, hypervisor.MaxSpec+1)}, "pages": {Pages: 65, Machine: packed.Machine},
		"format": replace(`"format":1`, `"format":2`), "foreign": replace(`"format"`, `"x":1,"format"`), "more": replace("}}", "}}}"),
		"memory": replace(`"count":56`, `"count":0`), "configuration": replace(`{"c_info":{}}`, "[]"), "head": replace(`"head":"`, `"head":"AAAA`),
		"tail": replace(`"tail":"`, `"tail":"AAAA`), "a tail of another type": replace(`{"c_info":{}}`, `{"type":"hvm"}`),
	} {
		var refusal *hypervisor.Refusal
		if _, _, err := ParseSpec(bad); !errors.As(err, &refusal) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func FuzzSpec(f *testing.F) {
	packed, err := Spec{Head: head(f), Memory: fakeRuns, Config: []byte(`{"c_info":{}}`), Tail: tailOf(f, 127)}.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(packed.Machine, packed.Pages)
	f.Fuzz(func(t *testing.T, machine []byte, pages uint64) {
		s, frames, err := ParseSpec(hypervisor.Spec{Pages: pages, Machine: machine})
		if err == nil && (frames.Pages() != pages || len(s.Head) == 0) {
			t.Fatalf("%d pages, want %d", frames.Pages(), pages)
		}
	})
}
