package primary

import (
	"context"
	"log/slog"
	"testing"

	"understudy/clock"
	"understudy/epoch"
	"understudy/hypervisor/sim"
	"understudy/ownership"
)

// TestCaptureAllocatesNothingPerPage: a capture of a thousand pages allocates
// as often as one of a hundred.
func TestCaptureAllocatesNothingPerPage(t *testing.T) {
	few, many := captureAllocs(t, 100), captureAllocs(t, 1000)
	t.Logf("%v allocations for 100 pages, %v for 1000", few, many)
	if many > few+1 { // one for luck: a pool may grow meanwhile
		t.Errorf("%v allocations for 100 pages, %v for 1000", few, many)
	}
}

// captureAllocs is how often the capture of so many scattered pages allocates.
func captureAllocs(tb testing.TB, pages int) float64 {
	p := capturer(tb)
	n := epoch.Number(0)
	once := func() {
		n++
		for i := range pages { // each a run of its own
			p.pending.Add(epoch.GFN(2 * i))
		}
		if _, failed := p.capture(context.Background(), Capture{Number: n}).(CaptureFailed); failed {
			tb.Fatal("the capture failed")
		}
		j := <-p.link.jobs
		for b := range j.slabs {
			p.memory.put(b)
		}
		p.devices <- j.device
		p.forget(n)
	}
	once()
	return testing.AllocsPerRun(50, once)
}

// capturer is a primary with a link that nobody empties but the test.
func capturer(tb testing.TB) *Primary {
	machine := sim.DefaultConfig("web")
	machine.Interval, machine.Pages = 0, 4096
	driver, err := sim.NewDriver(sim.NewHost("a"), machine)
	if err != nil {
		tb.Fatal(err)
	}
	g, err := driver.Start(context.Background())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = g.Destroy() })
	set := epoch.NewPageSet(g.Pages())
	if err := g.CollectDirty(set); err != nil { // the first reports everything
		tb.Fatal(err)
	}
	p, err := New(DefaultConfig("web", "a", rigLease), Deps{Guest: g, Gate: &rigGate{}, Clock: clock.Boot{}, Slog: slog.New(slog.DiscardHandler),
		State: ownership.Guest{Generation: 1}})
	if err != nil {
		tb.Fatal(err)
	}
	if err := p.memory.touch(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(p.memory.free)
	p.pending.Clear()
	p.link = &link{p: p, jobs: make(chan *job, maxWindow)}
	return p
}

// BenchmarkCapture is the processor's part of a pause: scan and copy.
func BenchmarkCapture(b *testing.B) {
	p := capturer(b)
	b.ReportAllocs()
	b.SetBytes(1000 * epoch.PageSize)
	n := epoch.Number(0)
	for b.Loop() {
		n++
		for i := range 1000 {
			p.pending.Add(epoch.GFN(2 * i))
		}
		p.capture(context.Background(), Capture{Number: n})
		j := <-p.link.jobs
		for s := range j.slabs {
			p.memory.put(s)
		}
		p.devices <- j.device
		p.forget(n)
	}
}
