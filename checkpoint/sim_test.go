package checkpoint

import (
	"path/filepath"
	"testing"
	"time"

	"understudy/epoch"
	"understudy/hypervisor"
	"understudy/hypervisor/sim"
)

// A guest is saved while it runs, dies later, and lives on from the file on
// another host, exactly where it was.
func TestRunningGuestIsSavedAndLivesOn(t *testing.T) {
	for _, lazy := range []bool{false, true} {
		anna, boris := sim.NewHost("anna"), sim.NewHost("boris")
		t.Cleanup(anna.Kill)
		t.Cleanup(boris.Kill)
		cfg := sim.DefaultConfig("web")
		cfg.Interval, cfg.Pages = 200*time.Microsecond, 1024
		on := func(h *sim.Host) hypervisor.Driver {
			d, err := sim.NewDriver(h, cfg)
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
		ctx := t.Context()
		guest, err := on(anna).Start(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := guest.Resume(ctx); err != nil {
			t.Fatal(err)
		}
		waitFor(t, guest, 50)

		spec := guest.Spec()
		path := filepath.Join(t.TempDir(), "web")
		head := testHead(spec.Pages)
		head.Machine = spec.Machine
		w, err := Create(path, head, Options{})
		if err != nil {
			t.Fatal(err)
		}
		dirty := epoch.NewPageSet(spec.Pages)
		for range 3 { // while it runs
			if err := guest.CollectDirty(dirty); err != nil {
				t.Fatal(err)
			}
			if err := w.Image(ctx, guest, dirty, nil); err != nil {
				t.Fatal(err)
			}
			dirty.Clear()
			waitFor(t, guest, counter(t, guest)+5)
		}
		if err := guest.Pause(ctx); err != nil {
			t.Fatal(err)
		}
		if err := guest.CollectDirty(dirty); err != nil {
			t.Fatal(err)
		}
		if dirty.Empty() {
			t.Error("the guest wrote nothing while it was saved")
		}
		if err := w.Image(ctx, guest, dirty, nil); err != nil {
			t.Fatal(err)
		}
		device, err := guest.AppendDeviceState(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Final(Final{DeviceState: device}); err != nil {
			t.Fatal(err)
		}
		saved := counter(t, guest)
		if err := guest.Resume(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Commit(nil); err != nil {
			t.Fatal(err)
		}
		waitFor(t, guest, saved+20)
		if err := guest.Destroy(); err != nil {
			t.Fatal(err)
		}

		standby, _, err := Restore(ctx, mustOpen(t, path), on(boris), nil, RestoreOptions{Lazy: lazy})
		if err != nil {
			t.Fatal(err)
		}
		if got := counter(t, standby); got != saved {
			t.Errorf("lazy %t: the guest comes back at step %d, it was saved at %d", lazy, got, saved)
		}
		again, err := standby.Run(ctx)
		if err != nil {
			t.Fatal(err)
		}
		waitFor(t, again, saved+20)
		if err := again.Destroy(); err != nil {
			t.Fatal(err)
		}
	}
}

func counter(t *testing.T, image hypervisor.Image) uint64 {
	t.Helper()
	b, err := sim.ReadBoot(image)
	if err != nil {
		t.Fatal(err)
	}
	return b.Counter
}

// waitFor waits until the guest has taken so many steps.
func waitFor(t *testing.T, image hypervisor.Image, steps uint64) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for counter(t, image) < steps {
		select {
		case <-deadline:
			t.Fatalf("the guest does not come to step %d", steps)
		case <-time.After(200 * time.Microsecond):
		}
	}
}
