package sim

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/zeebo/xxh3"
	"pgregory.net/rapid"

	"understudy/epoch"
	"understudy/hypervisor"
)

// small is a guest that moves only when it is stepped.
func small() Config {
	cfg := DefaultConfig("guest")
	cfg.Pages, cfg.DirtyPages, cfg.Interval, cfg.Seed = 64, 5, 0, 42
	return cfg
}

// boot starts a guest on a host of its own and lets it run.
func boot(t testing.TB, cfg Config) (*Guest, *Host) {
	t.Helper()
	host := NewHost("anna")
	g := bootOn(t, host, cfg)
	t.Cleanup(host.Kill)
	return g, host
}

func bootOn(t testing.TB, host *Host, cfg Config) *Guest {
	t.Helper()
	d, err := NewDriver(host, cfg)
	if err != nil {
		t.Fatal(err)
	}
	g, err := d.Start(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	resume(t, g)
	return g.(*Guest)
}

func resume(t testing.TB, g hypervisor.Guest) {
	t.Helper()
	if err := g.Resume(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func step(t testing.TB, g *Guest, n int) {
	t.Helper()
	for range n {
		if err := g.Step(); err != nil {
			t.Fatal(err)
		}
	}
}

func imageHash(t testing.TB, image hypervisor.Image) uint64 {
	t.Helper()
	b := make([]byte, image.Pages()*epoch.PageSize)
	if err := image.ReadPages(0, b); err != nil {
		t.Fatal(err)
	}
	return xxh3.Hash(b)
}

// snapshot is a whole checkpoint of a guest, which stays paused.
type snapshot struct {
	spec         hypervisor.Spec
	image, state []byte
}

func save(t testing.TB, g hypervisor.Guest) snapshot {
	t.Helper()
	ctx := context.Background()
	if err := g.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	s := snapshot{spec: g.Spec(), image: make([]byte, g.Pages()*epoch.PageSize)}
	if err := g.ReadPages(0, s.image); err != nil {
		t.Fatal(err)
	}
	var err error
	if s.state, err = g.AppendDeviceState(ctx, nil); err != nil {
		t.Fatal(err)
	}
	return s
}

// restore makes a running guest of a checkpoint on another host.
func restore(t testing.TB, host *Host, cfg Config, s snapshot) *Guest {
	t.Helper()
	ctx := context.Background()
	d, err := NewDriver(host, cfg)
	if err != nil {
		t.Fatal(err)
	}
	sb, err := d.Standby(ctx, s.spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := sb.WritePages(0, s.image); err != nil {
		t.Fatal(err)
	}
	if err := sb.Load(ctx, s.state, nil); err != nil {
		t.Fatal(err)
	}
	g, err := sb.Run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return g.(*Guest)
}

// deaf is a card on which a test puts frames, and which records what is sent.
type deaf struct {
	in   chan []byte
	sent [][]byte
}

func newDeaf() *deaf { return &deaf{in: make(chan []byte, 64)} }

func (d *deaf) Send(frame []byte)      { d.sent = append(d.sent, slices.Clone(frame)) }
func (d *deaf) Receive() <-chan []byte { return d.in }

// Same seed and same inputs: same life. A guest that is saved at any step and
// restored on another host lives the very same life from there, and says the
// same on the network.
func TestRestoredGuestHasTheSameFuture(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		cfg := small()
		cfg.Seed = rapid.Uint64Min(1).Draw(rt, "seed")
		cfg.Pattern = Pattern(rapid.IntRange(0, 2).Draw(rt, "pattern"))
		cfg.LineEvery = rapid.IntRange(1, 3).Draw(rt, "line every")
		cfg.DiskEvery = rapid.IntRange(1, 3).Draw(rt, "disk every")
		steps := rapid.IntRange(1, 40).Draw(rt, "steps")
		at := rapid.IntRange(0, steps).Draw(rt, "saved at")
		inputs := rapid.SliceOfN(rapid.IntRange(0, 3), steps, steps).Draw(rt, "inputs")
		blocks := rapid.Uint64Range(1, 8).Draw(rt, "blocks")

		feed := func(d *deaf, n int) {
			client := message{dst: [6]byte(cfg.MAC), src: [6]byte(MACFor("client")), conn: 7, stamp: uint64(n)}
			switch client.kind = kindOpen; inputs[n] {
			case 0:
				return
			case 1:
				client.kind, client.acked, client.seen = kindAck, uint64(n/3), uint64(n/2)
			case 2:
				client.kind, client.flags = kindAck, flagProbe
			}
			b := make([]byte, FrameSize)
			client.put(b)
			d.in <- b
		}
		live := func(saveAt int) (hash uint64, said [][]byte) {
			nic, disk := newDeaf(), NewMemDisk(blocks)
			cfg := cfg
			cfg.NIC, cfg.Disk = nic, disk
			anna, boris := NewHost("anna"), NewHost("boris")
			defer anna.Kill()
			defer boris.Kill()
			g := bootOn(t, anna, cfg)
			for n := range steps {
				if n == saveAt {
					s := save(t, g)
					anna.Kill()
					g = restore(t, boris, cfg, s)
				}
				feed(nic, n)
				step(t, g, 1)
			}
			return imageHash(t, g), nic.sent
		}
		want, wantSaid := live(-1)
		for _, saveAt := range []int{-1, at} {
			got, said := live(saveAt)
			if got != want {
				rt.Fatalf("saved at %d of %d: image %#x, want %#x", saveAt, steps, got, want)
			}
			if !slices.EqualFunc(said, wantSaid, slices.Equal) {
				rt.Fatalf("saved at %d of %d: the guest said %d frames, or others than the %d", saveAt, steps, len(said), len(wantSaid))
			}
		}
	})
}

func TestEachBootIsAnother(t *testing.T) {
	g, host := boot(t, small())
	first, err := ReadBoot(g)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Reboot(); err != nil {
		t.Fatal(err)
	}
	second, err := ReadBoot(g)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Destroy(); err != nil {
		t.Fatal(err)
	}
	third, err := ReadBoot(bootOn(t, host, small()))
	if err != nil {
		t.Fatal(err)
	}
	if first.ID == second.ID || first.ID == third.ID || second.ID == third.ID {
		t.Errorf("boot ids %x, %x, %x: want three different ones", first.ID, second.ID, third.ID)
	}
	if first.Boots != 1 || second.Boots != 2 || third.Boots != 1 {
		t.Errorf("booted %d, %d, %d times: want 1, 2 and, as another machine, 1", first.Boots, second.Boots, third.Boots)
	}
}

// A wrong page, wherever it is, is an error at Load and not a guest that runs
// on wrong memory.
func TestStateLoadsOnlyOverItsMemory(t *testing.T) {
	g, _ := boot(t, small())
	step(t, g, 10)
	s := save(t, g)
	for _, at := range []int{0, 4095, epoch.PageSize, systemPages * epoch.PageSize, len(s.image) - 1} {
		wrong := snapshot{s.spec, slices.Clone(s.image), s.state}
		wrong.image[at] ^= 1
		ctx := context.Background()
		d, err := NewDriver(NewHost("boris"), small())
		if err != nil {
			t.Fatal(err)
		}
		sb, err := d.Standby(ctx, wrong.spec)
		if err != nil {
			t.Fatal(err)
		}
		if err := sb.WritePages(0, wrong.image); err != nil {
			t.Fatal(err)
		}
		if err := sb.Load(ctx, wrong.state, nil); err == nil || !strings.Contains(err.Error(), "not the memory") {
			t.Errorf("one bit wrong at %d: Load says %v", at, err)
		}
		if err := sb.WritePages(0, s.image); err == nil {
			t.Error("pages can be written after a failed Load")
		}
		if err := sb.Load(ctx, wrong.state, nil); err == nil {
			t.Error("a state loads after a failed Load, without a Reset")
		}
		if err := sb.Reset(ctx); err != nil {
			t.Fatal(err)
		}
		if err := sb.WritePages(0, s.image); err != nil {
			t.Fatal(err)
		}
		if err := sb.Load(ctx, s.state, nil); err != nil {
			t.Error(err)
		}
	}
}

// The guest itself notices a disk that breaks output commit: a write that
// reached it although the guest was rolled back behind it, or one that was lost.
func TestGuestPanicsOnAWrongDisk(t *testing.T) {
	cfg := small()
	cfg.DiskEvery = 1
	takeover := func(t *testing.T, break_ func(disk *MemDisk, g *Guest)) *Guest {
		disk, boris := NewMemDisk(4), NewHost("boris")
		cfg := cfg
		cfg.Disk = disk
		g, anna := boot(t, cfg)
		step(t, g, 10)
		s := save(t, g)
		resume(t, g)
		break_(disk, g)
		anna.Kill()
		t.Cleanup(boris.Kill)
		return restore(t, boris, cfg, s)
	}
	for name, c := range map[string]struct {
		break_ func(disk *MemDisk, g *Guest)
		want   string
	}{
		"an uncommitted write reached it": {func(_ *MemDisk, g *Guest) { step(t, g, 1) }, "has yet to write"},
		"a committed write is lost":       {func(d *MemDisk, _ *Guest) { clear(d.bytes) }, "the guest wrote record 10"},
		"a block is torn":                 {func(d *MemDisk, _ *Guest) { clear(d.bytes[2*BlockSize+20 : 3*BlockSize]) }, "checksum"},
	} {
		t.Run(name, func(t *testing.T) {
			g := takeover(t, c.break_)
			step(t, g, 1)
			e := <-g.Events()
			if e.Kind != hypervisor.EventPanic || !strings.Contains(e.Detail, c.want) {
				t.Errorf("the guest says %v: %s; want a panic with %q", e.Kind, e.Detail, c.want)
			}
			if err := g.Resume(context.Background()); err == nil {
				t.Error("a panicked guest was resumed")
			}
		})
	}
	t.Run("nothing", func(t *testing.T) {
		g := takeover(t, func(*MemDisk, *Guest) {})
		step(t, g, 20)
		if err := g.Reboot(); err != nil { // and a reboot finds the end of the records
			t.Fatal(err)
		}
		step(t, g, 20)
		if len(g.Events()) != 1 {
			t.Errorf("events %v, want the reset only", <-g.Events())
		}
	})
}

func TestHotPathsAllocateNothing(t *testing.T) {
	cfg := small()
	cfg.NIC, cfg.Disk = silent{}, NewMemDisk(8)
	g, _ := boot(t, cfg)
	g.m.newConn([6]byte(MACFor("client")), 1)
	set, buf := epoch.NewPageSet(g.Pages()), make([]byte, 8*epoch.PageSize)
	state, ctx := make([]byte, 0, 2*stateSize), context.Background()
	d, err := NewDriver(NewHost("boris"), cfg)
	if err != nil {
		t.Fatal(err)
	}
	sb, err := d.Standby(ctx, g.Spec())
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func() error{
		"a step":            func() error { return g.Step() },
		"CollectDirty":      func() error { return g.CollectDirty(set) },
		"ReadPages":         func() error { return g.ReadPages(3, buf) },
		"WritePages":        func() error { return sb.WritePages(3, buf) },
		"AppendDeviceState": func() error { _, err := g.AppendDeviceState(ctx, state); return err },
	} {
		if name == "AppendDeviceState" {
			err = g.Pause(ctx)
		} else {
			err = g.Resume(ctx)
		}
		if err != nil {
			t.Fatal(err)
		}
		var failed error
		if n := testing.AllocsPerRun(200, func() {
			if err := f(); err != nil {
				failed = err
			}
		}); n != 0 || failed != nil {
			t.Errorf("%s: %v allocations, error %v", name, n, failed)
		}
	}
}

// silent is a card with no cable.
type silent struct{}

func (silent) Send([]byte)            {}
func (silent) Receive() <-chan []byte { return nil }

func BenchmarkStep(b *testing.B) {
	cfg := DefaultConfig("guest")
	cfg.Interval, cfg.NIC = 0, silent{}
	g, _ := boot(b, cfg)
	g.m.newConn([6]byte(MACFor("client")), 1)
	b.ReportAllocs()
	for b.Loop() {
		if err := g.Step(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkTakeover is Load and Run over an image of 16 MiB.
func BenchmarkTakeover(b *testing.B) {
	cfg := DefaultConfig("guest")
	g, _ := boot(b, cfg)
	s, ctx := save(b, g), context.Background()
	d, err := NewDriver(NewHost("boris"), cfg)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		b.StopTimer()
		sb, err := d.Standby(ctx, s.spec)
		if err != nil {
			b.Fatal(err)
		}
		if err := sb.WritePages(0, s.image); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := sb.Load(ctx, s.state, nil); err != nil {
			b.Fatal(err)
		}
		next, err := sb.Run(ctx)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := next.Destroy(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
