package qemu

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"understudy/epoch"
	"understudy/hypervisor"
)

// pairOfHosts is one guest's configuration on two hosts.
type pairOfHosts struct {
	a, b               *Driver
	consoleA, consoleB string
}

func newPair(t testing.TB, c Config) pairOfHosts {
	t.Helper()
	c.Console = filepath.Join(openDir(t), "console")
	other := onAnotherHost(t, c)
	return pairOfHosts{newDriver(t, c), newDriver(t, other), c.Console, other.Console}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// drain reads a guest's events to their end, as its owner has to.
func drain(t testing.TB, g hypervisor.Guest) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for e := range g.Events() {
			if e.Kind != hypervisor.EventReset {
				t.Logf("guest event %v: %s", e.Kind, e.Detail)
			}
		}
	}()
	t.Cleanup(func() {
		must(t, g.Destroy())
		<-done
	})
}

// commit takes one checkpoint of a guest into a standby and returns the device
// state. The guest stays paused.
func commit(ctx context.Context, t testing.TB, g hypervisor.Guest, s hypervisor.Standby) []byte {
	t.Helper()
	must(t, g.Pause(ctx))
	state, err := g.AppendDeviceState(ctx, nil)
	must(t, err)
	copyDirty(t, g, s)
	return state
}

func copyDirty(t testing.TB, g hypervisor.Guest, s hypervisor.Standby) uint64 {
	t.Helper()
	set := epoch.NewPageSet(g.Pages())
	must(t, g.CollectDirty(set))
	copySet(t, g, s, set)
	return set.Count()
}

func copySet(t testing.TB, g hypervisor.Guest, s hypervisor.Standby, set *epoch.PageSet) {
	t.Helper()
	buf := make([]byte, 256*epoch.PageSize)
	for first, count := range set.Runs {
		for count > 0 {
			n := min(count, 256)
			must(t, g.ReadPages(first, buf[:n*epoch.PageSize]))
			must(t, s.WritePages(first, buf[:n*epoch.PageSize]))
			first, count = first+epoch.GFN(n), count-n
		}
	}
}

// differs returns the pages in which two images differ.
func differs(t testing.TB, a, b hypervisor.Image) (pages []uint64) {
	t.Helper()
	const chunk = 256
	x, y := make([]byte, chunk*epoch.PageSize), make([]byte, chunk*epoch.PageSize)
	for first := uint64(0); first < a.Pages(); first += chunk {
		n := min(chunk, a.Pages()-first) * epoch.PageSize
		must(t, a.ReadPages(epoch.GFN(first), x[:n]))
		must(t, b.ReadPages(epoch.GFN(first), y[:n]))
		for i := uint64(0); i < n; i += epoch.PageSize {
			if !bytes.Equal(x[i:i+epoch.PageSize], y[i:i+epoch.PageSize]) {
				pages = append(pages, first+i/epoch.PageSize)
			}
		}
	}
	return pages
}

// waitConsole waits until a console file holds a text count times.
func waitConsole(ctx context.Context, t testing.TB, path, text string, count int) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		said, err := os.ReadFile(path)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		if bytes.Count(said, []byte(text)) >= count {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("the console has not said %q %d times: %q", text, count, said)
		}
	}
}

func systemReset(ctx context.Context, t testing.TB, g hypervisor.Guest) {
	t.Helper()
	must(t, g.(*Guest).vm.client.Execute(ctx, "system_reset", nil, nil))
}

// On each kind of machine the guest goes on from its last commit, every page of
// every RAM block as it was, and can be reset afterwards: the firmware has come
// along.
func TestTakeoverOnEachMachine(t *testing.T) {
	tests := []struct {
		machine string
		cpus    int
		extra   []string
	}{
		{"pc", 1, nil},
		{"pc", 2, []string{"-device", "VGA"}},
		{"pc", 4, []string{"-device", "qemu-xhci", "-device", "usb-tablet"}},
		{"q35", 1, []string{"-device", "virtio-rng-pci"}},
		{"q35", 2, nil},
		{"q35", 4, []string{"-device", "VGA,vgamem_mb=8"}},
		{"microvm", 1, nil},
		{"microvm", 2, []string{"-device", "virtio-rng-device"}},
	}
	for _, test := range tests {
		t.Run(fmt.Sprintf("%s with %d processors", test.machine, test.cpus), func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			c := testConfig(t, test.machine)
			c.CPUs, c.ExtraArgs = test.cpus, test.extra
			hosts := newPair(t, c)

			g, err := hosts.a.Start(ctx)
			must(t, err)
			drain(t, g)
			must(t, g.Resume(ctx))
			must(t, waitCounting(ctx, g))
			sb, err := hosts.b.Standby(ctx, g.Spec())
			must(t, err)
			t.Cleanup(func() { must(t, sb.Destroy()) })
			copyDirty(t, g, sb)

			state := commit(ctx, t, g, sb)
			if d := differs(t, g, sb); len(d) != 0 {
				t.Fatalf("after the commit %d pages differ, the first is %d", len(d), d[0])
			}
			must(t, sb.Load(ctx, state, nil))
			// The loaded machine holds the same: what it will read is what was
			// committed, in main memory and in every other block.
			if d := differs(t, g, sb.(*Standby).ready); len(d) != 0 {
				t.Fatalf("after the load %d pages differ, the first is %d of %d in main memory", len(d), d[0], sb.(*Standby).main)
			}
			at, err := readCounter(ctx, g)
			must(t, err)
			must(t, g.Destroy())

			next, err := sb.Run(ctx)
			must(t, err)
			drain(t, next)
			if now, err := readCounter(ctx, next); err != nil || now < at {
				t.Fatalf("the guest went on at %d (%v), the commit was at %d", now, err, at)
			}
			must(t, waitCounting(ctx, next))

			systemReset(ctx, t, next)
			waitConsole(ctx, t, hosts.consoleB, "boot", 1)
			must(t, waitCounting(ctx, next))
		})
	}
}

// A machine that fails to load leaves the image as it was, and a later one on
// the same image works. The states here pass our own checks, QEMU refuses them.
func TestLoadThatQEMURefuses(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	hosts := newPair(t, testConfig(t, "q35"))
	g, err := hosts.a.Start(ctx)
	must(t, err)
	drain(t, g)
	must(t, g.Resume(ctx))
	must(t, waitCounting(ctx, g))
	sb, err := hosts.b.Standby(ctx, g.Spec())
	must(t, err)
	t.Cleanup(func() { must(t, sb.Destroy()) })
	state := commit(ctx, t, g, sb)

	// Every byte of a device's data may be anything; make it nonsense.
	spoiled := bytes.Clone(state)
	i := bytes.Index(spoiled, []byte("0000:00:00.0/mch"))
	for j := range 200 {
		spoiled[i+24+j] ^= 0x55
	}
	if err := sb.Load(ctx, spoiled, nil); err == nil {
		t.Fatal("QEMU took a device full of nonsense")
	} else {
		t.Logf("refused: %v", err)
	}
	if d := differs(t, g, sb); len(d) != 0 {
		t.Fatalf("the failed load changed %d pages", len(d))
	}
	must(t, sb.Reset(ctx))
	if d := differs(t, g, sb); len(d) != 0 {
		t.Fatalf("the reset changed %d pages", len(d))
	}
	must(t, sb.Load(ctx, state, nil))
	if d := differs(t, g, sb.(*Standby).ready); len(d) != 0 {
		t.Fatalf("after the load %d pages differ", len(d))
	}
}

// ReadPages and WritePages run for every page of every epoch.
func TestHotPathsAllocateNothing(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	hosts := newPair(t, testConfig(t, "q35"))
	g, err := hosts.a.Start(ctx)
	must(t, err)
	drain(t, g)
	sb, err := hosts.b.Standby(ctx, g.Spec())
	must(t, err)
	t.Cleanup(func() { must(t, sb.Destroy()) })
	buf := make([]byte, 16*epoch.PageSize)
	buf[0] = 1
	set := epoch.NewPageSet(g.Pages())
	must(t, g.CollectDirty(set))
	side := epoch.GFN(g.(*Guest).main)
	calls := map[string]func() error{
		"read main memory":    func() error { return g.ReadPages(0, buf) },
		"read across blocks":  func() error { return g.ReadPages(side-8, buf) },
		"write main memory":   func() error { return sb.WritePages(0, buf) },
		"write across blocks": func() error { return sb.WritePages(side-8, buf) },
		"read the standby":    func() error { return sb.ReadPages(side-8, buf) },
		"collect":             func() error { return g.CollectDirty(set) },
	}
	for name, call := range calls {
		if n := testing.AllocsPerRun(20, func() {
			if err := call(); err != nil {
				t.Error(err)
			}
		}); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}
