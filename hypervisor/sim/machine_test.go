package sim

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"understudy/epoch"
	"understudy/hypervisor"
)

// live is a guest with a goroutine of its own, for use in a bubble.
func live() Config {
	cfg := small()
	cfg.Interval = 2 * time.Millisecond
	return cfg
}

func TestGuestRunsOnTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := boot(t, live())
		counter := func() uint64 {
			synctest.Wait()
			b, err := ReadBoot(g)
			if err != nil {
				t.Fatal(err)
			}
			return b.Counter
		}
		time.Sleep(100 * time.Millisecond)
		if got := counter(); got != 50 {
			t.Errorf("after 100 ms of steps of 2 ms the counter is %d, want 50", got)
		}
		if err := g.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if got := counter(); got != 50 {
			t.Errorf("paused for an hour, the counter is %d, want 50", got)
		}
		resume(t, g)
		time.Sleep(10 * time.Millisecond)
		if got := counter(); got != 56 {
			t.Errorf("10 ms after the pause the counter is %d, want 56: the step that was due, and 5 more", got)
		}
	})
}

// A guest whose epochs are shorter than its steps still gets on.
func TestFrequentPausesDoNotStarveTheGuest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := boot(t, live())
		for range 100 {
			time.Sleep(time.Millisecond)
			if err := g.Pause(t.Context()); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			resume(t, g)
		}
		synctest.Wait()
		if b, err := ReadBoot(g); err != nil || b.Counter < 48 {
			t.Errorf("in 100 ms with a pause every ms the guest took %d steps of 2 ms (%v)", b.Counter, err)
		}
	})
}

// Nothing leaves the card after Pause has returned, whatever comes in.
func TestPausedGuestIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := live()
		card, outside := Cable()
		cfg.NIC = card
		g, _ := boot(t, cfg)
		c := mustClient(t, cfg, outside, nil)
		run(t, c)
		if err := c.WaitLine(t.Context(), 5); err != nil {
			t.Fatal(err)
		}
		if err := g.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // the client has read what was on the way
		at, image := c.Report().Lines, imageHash(t, g)
		time.Sleep(time.Second) // of probes
		synctest.Wait()
		if now := c.Report().Lines; now != at || imageHash(t, g) != image {
			t.Errorf("while paused the guest went from line %d to %d, or wrote to its image", at, now)
		}
		resume(t, g)
		if err := c.WaitLine(t.Context(), at+100); err != nil {
			t.Error(err)
		}
	})
}

func TestFaultsHappenWhenAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg, ctx := live(), t.Context()
		cfg.Faults = new(Faults)
		g, _ := boot(t, cfg)

		release := cfg.Faults.StallPause()
		soon, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if err := g.Pause(soon); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a stalled pause says %v", err)
		}
		go func() {
			time.Sleep(3 * time.Second)
			release()
		}()
		began := time.Now()
		if err := g.Pause(ctx); err != nil || time.Since(began) != 3*time.Second {
			t.Errorf("a pause released after 3 s took %v: %v", time.Since(began), err)
		}

		set := epoch.NewPageSet(g.Pages())
		cfg.Faults.FailCollect(1)
		if err := g.CollectDirty(set); err == nil {
			t.Error("CollectDirty did not fail")
		}
		if err := g.CollectDirty(set); err != nil || !set.Empty() {
			t.Errorf("after a failed CollectDirty the next says %v and %d pages: nothing should be known", err, set.Count())
		}
		cfg.Faults.FailDeviceState(2)
		for want := range 3 {
			if _, err := g.AppendDeviceState(ctx, nil); (err != nil) != (want < 2) {
				t.Errorf("AppendDeviceState %d says %v", want+1, err)
			}
		}
	})
}

// A host that loses power takes everything with it, and its owner sees the end.
func TestKilledHostIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := live()
		card, outside := Cable()
		cfg.NIC = card
		g, host := boot(t, cfg)
		d, err := NewDriver(host, cfg)
		if err != nil {
			t.Fatal(err)
		}
		sb, err := d.Standby(t.Context(), g.Spec())
		if err != nil {
			t.Fatal(err)
		}
		if got := host.Machines(); !slices.Equal(got, []string{"guest guest", "standby guest"}) {
			t.Errorf("the host holds %q", got)
		}
		c := mustClient(t, cfg, outside, nil)
		run(t, c)
		if err := c.WaitLine(t.Context(), 3); err != nil {
			t.Fatal(err)
		}

		host.Kill()
		synctest.Wait()
		lines := c.Report().Lines
		time.Sleep(time.Second)
		synctest.Wait()
		if now := c.Report().Lines; now != lines {
			t.Errorf("a guest on a dead host said %d more lines", now-lines)
		}
		if _, ok := <-g.Events(); ok {
			t.Error("the guest's events go on")
		}
		_, startErr := d.Start(t.Context())
		_, adoptErr := d.Adopt(t.Context())
		for what, err := range map[string]error{
			"pause": g.Pause(t.Context()), "read": g.ReadPages(0, make([]byte, epoch.PageSize)),
			"collect": g.CollectDirty(epoch.NewPageSet(g.Pages())),
			"load":    sb.Load(t.Context(), nil, nil), "start": startErr, "adopt": adoptErr,
		} {
			if !errors.Is(err, ErrHostDown) {
				t.Errorf("%s on a dead host: %v, want %v", what, err, ErrHostDown)
			}
		}
		if err := errors.Join(g.Destroy(), sb.Destroy()); err != nil {
			t.Errorf("destroying what is dead: %v", err)
		}
		host.PowerOn()
		if got := host.Machines(); len(got) != 0 {
			t.Errorf("back again, the host holds %q", got)
		}
		if _, err := d.Adopt(t.Context()); !errors.Is(err, hypervisor.ErrNoGuest) {
			t.Errorf("back again, adopt says %v", err)
		}
		bootOn(t, host, cfg)
	})
}

// A daemon that died without a word is followed by another one; its own handle
// is worth nothing from then on. What happened in between is not lost.
func TestAdoptedGuestHasOneOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, host := boot(t, live())
		d, err := NewDriver(host, live())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Start(t.Context()); err == nil {
			t.Error("a second guest of the same name was started")
		}
		if err := g.PowerOff(); err != nil {
			t.Fatal(err)
		}
		next, err := d.Adopt(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if e := <-next.Events(); e.Kind != hypervisor.EventShutdown {
			t.Errorf("the new owner hears of %v first, want the power-off", e.Kind)
		}
		if err := g.Pause(t.Context()); !errors.Is(err, errLetGo) {
			t.Errorf("the former owner's pause says %v", err)
		}
		if err := g.Destroy(); !errors.Is(err, errLetGo) {
			t.Errorf("the former owner's destroy says %v", err)
		}
		if err := next.Resume(t.Context()); !errors.Is(err, ErrHalted) {
			t.Errorf("resuming a guest that is off says %v", err)
		}
		if err := next.Destroy(); err != nil {
			t.Error(err)
		}
		if left := host.Machines(); len(left) != 0 {
			t.Errorf("left on the host: %q", left)
		}
	})
}

func TestConfigIsChecked(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"no name":           func(c *Config) { c.Name = "" },
		"a multicast MAC":   func(c *Config) { c.MAC = []byte{1, 0, 0, 0, 0, 0} },
		"a short MAC":       func(c *Config) { c.MAC = c.MAC[:5] },
		"too few pages":     func(c *Config) { c.Pages = MinPages - 1 },
		"too many pages":    func(c *Config) { c.Pages = MaxPages + 1 },
		"too many dirty":    func(c *Config) { c.DirtyPages = int(c.Pages) + 1 },
		"unknown pattern":   func(c *Config) { c.Pattern = 9 },
		"no line interval":  func(c *Config) { c.LineEvery = 0 },
		"negative interval": func(c *Config) { c.Interval = -1 },
		"an empty disk":     func(c *Config) { c.Disk = NewMemDisk(0) },
	} {
		cfg := DefaultConfig("guest")
		change(&cfg)
		if _, err := NewDriver(NewHost("anna"), cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
