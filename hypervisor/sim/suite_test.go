package sim

import (
	"context"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"understudy/hypervisor"
	"understudy/hypervisor/hypervisortest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) { hypervisortest.Run(t, harness(new(Faults))) }

// harness is two hosts with one small, quick guest between them.
func harness(faults *Faults) hypervisortest.Harness {
	var hosts []*Host
	cfg := DefaultConfig("guest")
	cfg.Pages, cfg.DirtyPages, cfg.Interval, cfg.Faults = 256, 12, 300*time.Microsecond, faults
	live := func(act func(*Guest) error) func(context.Context, hypervisor.Guest) error {
		return func(_ context.Context, g hypervisor.Guest) error { return act(g.(*Guest)) }
	}
	return hypervisortest.Harness{
		NewPair: func(t testing.TB) (a, b hypervisor.Driver) {
			hosts = []*Host{NewHost("anna"), NewHost("boris")}
			var drivers []hypervisor.Driver
			for _, h := range hosts {
				d, err := NewDriver(h, cfg)
				if err != nil {
					t.Fatal(err)
				}
				drivers = append(drivers, d)
				t.Cleanup(h.Kill)
			}
			return drivers[0], drivers[1]
		},
		WaitUp: func(ctx context.Context, g hypervisor.Guest) error {
			for {
				if b, err := ReadBoot(g); err != nil || b.Counter > 2 {
					return err
				}
				select {
				case <-ctx.Done():
					return ctx.Err()
				case <-time.After(time.Millisecond):
				}
			}
		},
		Counter: func(_ context.Context, image hypervisor.Image) (uint64, error) {
			b, err := ReadBoot(image)
			return b.Counter, err
		},
		Leftovers: func() (list []string) {
			for _, h := range hosts {
				for _, m := range h.Machines() {
					list = append(list, h.Name()+": "+m)
				}
			}
			return list
		},
		PowerOff: live((*Guest).PowerOff),
		Reboot:   live((*Guest).Reboot),
		Panic:    live((*Guest).Panic),
		Crash: func(context.Context, hypervisor.Guest) error {
			for _, h := range hosts {
				h.Crash("guest")
			}
			return nil
		},
		ForeignSpecs: func(spec hypervisor.Spec) (list []hypervisor.Spec) {
			for _, change := range [][2]string{
				{`"sim"`, `"qemu"`}, {`"version":1`, `"version":2`}, {`"name":"guest"`, `"name":"other"`},
				{`"mac":"`, `"mac":"0`}, {`}`, `,"more":1}`}, {`"disk_blocks":0`, `"disk_blocks":64`},
			} {
				s := strings.Replace(string(spec.Machine), change[0], change[1], 1)
				list = append(list, hypervisor.Spec{Pages: spec.Pages, Machine: []byte(s)})
			}
			return list
		},
		Deadline: 20 * time.Second,
	}
}

// TestSuiteHasTeeth lets the guest break one promise after the other; the suite
// must notice each.
func TestSuiteHasTeeth(t *testing.T) {
	for name, c := range map[string]struct {
		break_ func(*Faults)
		caught []string // parts of the names of stories that must fail
	}{
		"a dirty page is forgotten":       {func(f *Faults) { f.Lie(LieForgetDirty) }, []string{"every changed page", "takeover"}},
		"a device writes while paused":    {func(f *Faults) { f.Lie(LieLateWrite) }, []string{"stands still", "first collect"}},
		"saving the state writes a page":  {func(f *Faults) { f.Lie(LieStateWrites) }, []string{"device state can be taken"}},
		"a load changes the image":        {func(f *Faults) { f.Lie(LieLoadWrites) }, []string{"takeover", "garbled"}},
		"a reset changes the image":       {func(f *Faults) { f.Lie(LieResetWrites) }, []string{"reset standby", "garbled"}},
		"the dirty set cannot be read":    {func(f *Faults) { f.FailCollect(1) }, []string{"stands still"}},
		"the device state cannot be read": {func(f *Faults) { f.FailDeviceState(1) }, []string{"device state can be taken"}},
		"the state cannot be loaded":      {func(f *Faults) { f.FailLoad(99) }, []string{"takeover", "garbled", "reset standby"}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, story := range hypervisortest.Stories() {
				want := false
				for _, part := range c.caught {
					want = want || strings.Contains(story.Name, part)
				}
				if !want {
					continue
				}
				faults := new(Faults)
				c.break_(faults)
				r := &recorder{TB: t}
				r.tell(story, harness(faults))
				if !r.Failed() {
					t.Errorf("story %q did not notice that %s", story.Name, name)
				}
			}
		})
	}
}

// recorder is a testing.TB that keeps failures to itself.
type recorder struct {
	testing.TB
	mu       sync.Mutex
	failed   bool
	cleanups []func()
}

func (r *recorder) tell(s hypervisortest.Story, h hypervisortest.Harness) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Tell(r, h)
	}()
	<-done
	for i := len(r.cleanups) - 1; i >= 0; i-- {
		r.cleanups[i]()
	}
}

func (r *recorder) fail() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = true
}

func (r *recorder) Failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed
}

func (r *recorder) Helper()               {}
func (r *recorder) Cleanup(f func())      { r.cleanups = append(r.cleanups, f) }
func (r *recorder) Logf(string, ...any)   {}
func (r *recorder) Errorf(string, ...any) { r.fail() }
func (r *recorder) Fatal(...any)          { r.fail(); runtime.Goexit() }
func (r *recorder) Fatalf(string, ...any) { r.fail(); runtime.Goexit() }
