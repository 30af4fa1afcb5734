package xen

import (
	"context"
	"errors"
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
	deaf    bool  // does not answer
	asked   bool
	late    bool // answers when the request is to be withdrawn
	resumed int
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

func (f *fake) Clean() ([]uint64, error) {
	if f.fails != nil {
		return nil, f.fails
	}
	words := slices.Clone(f.dirty)
	clear(f.dirty)
	return words, nil
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
	g, err := NewGuest(GuestConfig{Name: "web", Domain: f, Ask: f, Spec: Spec{Head: head(t), Memory: fakeRuns, Config: []byte("{}")}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Detach() })
	return g
}

func must(t *testing.T, err error) {
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
	g.Rings([]uint64{127})
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

func TestADomainThatWasBallooned(t *testing.T) {
	f := newFake()
	g := newTestGuest(t, f)
	must(t, g.Resume(t.Context()))
	f.change(func(i *Info) { i.Pages-- })
	if err := g.Pause(t.Context()); !errors.Is(err, ErrShape) {
		t.Errorf("error %v", err)
	}
	must(t, g.Resume(t.Context())) // it is not left suspended
}

// What happens to a domain by itself, or by others.
func TestWhatHappensToADomain(t *testing.T) {
	shutdown := func(reason uint) func(*Info) {
		return func(i *Info) { i.Shutdown, i.Reason = true, reason }
	}
	for _, c := range []struct {
		name string
		how  func(*Info)
		kind hypervisor.EventKind
		says string
	}{
		{"power off", shutdown(ReasonPowerOff), hypervisor.EventShutdown, "powered itself off"},
		{"reboot", shutdown(ReasonReboot), hypervisor.EventFault, "rebooted"},
		{"crash", shutdown(ReasonCrash), hypervisor.EventPanic, "crashed"},
		{"watchdog", shutdown(ReasonWatchdog), hypervisor.EventPanic, "crashed"},
		{"saved by others", shutdown(ReasonSuspend), hypervisor.EventFault, "another program"},
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
	packed, err := Spec{Head: head(t), Memory: fakeRuns, Config: []byte(`{"c_info":{}}`)}.Pack()
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
	} {
		var refusal *hypervisor.Refusal
		if _, _, err := ParseSpec(bad); !errors.As(err, &refusal) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func FuzzSpec(f *testing.F) {
	packed, err := Spec{Head: head(f), Memory: fakeRuns, Config: []byte(`{"c_info":{}}`)}.Pack()
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
