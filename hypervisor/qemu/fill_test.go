package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy/epoch"
	"understudy/hypervisor"
	"understudy/hypervisor/hypervisortest"
)

// The counting guest never touches the pages from distant to distantEnd.
const (
	distant    = 2500
	distantEnd = 3500
)

// gated is a Shelf whose distant pages are had only once the gate is open.
type gated struct {
	*hypervisortest.Shelf
	gate chan struct{}
	open func()
}

func newGated(content []byte, missing *epoch.PageSet) *gated {
	g := &gated{Shelf: hypervisortest.NewShelf(content, missing), gate: make(chan struct{})}
	g.open = sync.OnceFunc(func() { close(g.gate) })
	return g
}

func (g *gated) Content(page epoch.GFN, dst []byte) error {
	if page >= distant && page < distantEnd {
		<-g.gate
	}
	return g.Shelf.Content(page, dst)
}

// lacking brings a guest to a checkpoint in a standby and lets the standby's
// main memory be missing. Distant pages hold something that can be told.
func lacking(ctx context.Context, t testing.TB, hosts pairOfHosts) (sb hypervisor.Standby, state []byte, shelf *gated) {
	t.Helper()
	g, err := hosts.a.Start(ctx)
	must(t, err)
	drain(t, g)
	must(t, g.Resume(ctx))
	must(t, waitCounting(ctx, g))
	sb, err = hosts.b.Standby(ctx, g.Spec())
	must(t, err)
	t.Cleanup(func() { must(t, sb.Destroy()) })
	state = commit(ctx, t, g, sb)
	content, err := hypervisortest.Copy(g)
	must(t, err)
	must(t, g.Destroy())
	missing := epoch.NewPageSet(sb.Pages())
	missing.AddRange(0, sb.(*Standby).main-64)
	for p := uint64(distant); p < distantEnd; p++ {
		copy(content[p*epoch.PageSize:], fmt.Sprintf("page %d", p))
	}
	shelf = newGated(content, missing)
	t.Cleanup(shelf.open) // before what waits for it is ended
	return sb, state, shelf
}

func (p place) fillState(t testing.TB) fillState {
	t.Helper()
	r, err := p.load()
	must(t, err)
	return r.Fill
}

// eventually waits for a condition of this process.
func eventually(ctx context.Context, t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: not within the time", what)
		}
	}
}

// A guest runs, is paused, saved and tracked while pages of it are missing.
// Who asks for one of those waits, and nobody else does.
func TestRunsWhilePagesAreMissing(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	hosts := newPair(t, testConfig(t, "q35"))
	sb, state, shelf := lacking(ctx, t, hosts)
	must(t, sb.Load(ctx, state, shelf))
	must(t, sb.Fill(counterPage, 1))
	next, err := sb.Run(ctx)
	must(t, err)
	drain(t, next)
	t.Cleanup(shelf.open) // before it is destroyed
	must(t, waitCounting(ctx, next))
	g := next.(*Guest)
	if got := g.vm.place.fillState(t); got != fillMissing {
		t.Fatalf("the record says %q", got)
	}
	if n := sb.Fill(counterPage, 1); n != nil {
		t.Fatal(n) // harmless after Run
	}
	page := make([]byte, epoch.PageSize)
	read := make(chan error, 1)
	go func() { read <- next.ReadPages(distant+7, page) }()

	// The first collect and the writes after it, while pages are missing.
	set := epoch.NewPageSet(next.Pages())
	must(t, next.CollectDirty(set))
	for range 5 {
		must(t, waitCounting(ctx, next))
		must(t, next.Pause(ctx))
		if _, err := next.AppendDeviceState(ctx, nil); err != nil {
			t.Fatal(err)
		}
		set.Clear()
		must(t, next.CollectDirty(set))
		if set.Empty() || set.Count() > 1200 {
			t.Fatalf("the guest is said to have written %d pages", set.Count())
		}
		for p := epoch.GFN(distant); p < distantEnd; p++ {
			if set.Contains(p) {
				t.Fatalf("page %d is said to be written", p)
			}
		}
		must(t, next.Resume(ctx))
	}
	select {
	case err := <-read:
		t.Fatalf("a page that cannot be had was read (%v)", err)
	default:
	}
	shelf.open()
	must(t, <-read)
	if want := fmt.Sprintf("page %d", distant+7); !strings.HasPrefix(string(page), want) {
		t.Fatalf("%q was read, want %q", page[:12], want)
	}
	must(t, next.Fill(0, next.Pages()))
	for p := epoch.GFN(distant); p < distantEnd; p++ {
		must(t, next.ReadPages(p, page))
		if want := fmt.Sprintf("page %d", p); !strings.HasPrefix(string(page), want) {
			t.Fatalf("page %d holds %q", p, page[:12])
		}
	}
	if wrong := shelf.Wrong(); len(wrong) != 0 {
		t.Fatal(wrong)
	}

	// Writes are tracked, so that the end comes with a collect in a pause, and
	// loses and invents nothing.
	eventually(ctx, t, "the record of the end", func() bool { return g.vm.place.fillState(t) == fillHoles })
	for i := range 3 {
		must(t, waitCounting(ctx, next))
		must(t, next.Pause(ctx))
		set.Clear()
		must(t, next.CollectDirty(set))
		if set.Empty() || set.Count() > 1200 {
			t.Fatalf("collect %d after the end: %d pages", i, set.Count())
		}
		set.Clear()
		must(t, next.CollectDirty(set))
		if !set.Empty() {
			t.Fatalf("collect %d after the end: %d pages written in a pause", i, set.Count())
		}
		if g.fill.Load() != nil || g.vm.place.fillState(t) != fillDone {
			t.Fatal("the filling has not ended")
		}
		must(t, next.Resume(ctx))
	}
}

// A page that cannot be had is told of, and had when it can be.
func TestFillThatFailsIsTold(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	hosts := newPair(t, testConfig(t, "microvm"))
	sb, state, shelf := lacking(ctx, t, hosts)
	shelf.open()
	const bad = distant + 3
	shelf.Fail(bad, 10_000)
	must(t, sb.Load(ctx, state, shelf))
	next, err := sb.Run(ctx)
	must(t, err)
	t.Cleanup(func() { must(t, next.Destroy()) })
	for e := range next.Events() {
		if e.Kind == hypervisor.EventFault {
			if !strings.Contains(e.Detail, fmt.Sprintf("page %d ", bad)) || !strings.Contains(e.Detail, "cannot be had now") {
				t.Fatalf("the event says %q", e.Detail)
			}
			break
		}
	}
	if err := next.Fill(bad, 1); err == nil {
		t.Fatal("a page that cannot be had was filled")
	}
	must(t, waitCounting(ctx, next)) // it does not need the page
	shelf.Fail(bad, 0)
	eventually(ctx, t, "the page is filled", func() bool { return next.Fill(bad, 1) == nil })
	g := next.(*Guest)
	eventually(ctx, t, "the filling ends", func() bool { return g.fill.Load() == nil })
	if got := g.vm.place.fillState(t); got != fillDone {
		t.Fatalf("the record says %q", got)
	}
}

// A machine that needs a page which cannot be had is not loaded; the next
// attempt works.
func TestLoadThatCannotFill(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	hosts := newPair(t, testConfig(t, "q35"))
	sb, state, shelf := lacking(ctx, t, hosts)
	shelf.open()
	for p := range epoch.GFN(distant) {
		shelf.Fail(p, 10_000)
	}
	err := sb.Load(ctx, state, shelf)
	if err == nil {
		// Nothing of it is needed to load this machine.
		if _, err = hypervisortest.Copy(sb); err == nil {
			t.Fatal("an image that cannot be had was read")
		}
	}
	t.Log(err)
	must(t, sb.Reset(ctx))
	for p := range epoch.GFN(distant) {
		shelf.Fail(p, 0)
	}
	must(t, sb.Load(ctx, state, shelf))
	next, err := sb.Run(ctx)
	must(t, err)
	drain(t, next)
	must(t, waitCounting(ctx, next))
}

// Where QEMU cannot be supplied with pages while it runs, all are there before.
func TestFetchesAllWhereItMust(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	hosts := newPair(t, testConfig(t, "microvm"))
	sb, state, shelf := lacking(ctx, t, hosts)
	shelf.open()
	sb.(*Standby).lazy = false
	must(t, sb.Load(ctx, state, shelf))
	if left, _ := shelf.Left(); left != 0 {
		t.Fatalf("%d pages are missing after the load", left)
	}
	page := make([]byte, epoch.PageSize)
	must(t, sb.ReadPages(distant+1, page))
	if !bytes.HasPrefix(page, []byte(fmt.Sprintf("page %d", distant+1))) {
		t.Fatalf("the page holds %q", page[:12])
	}
	next, err := sb.Run(ctx)
	must(t, err)
	drain(t, next)
	must(t, waitCounting(ctx, next))
}

// Whatever ends a guest in the middle of its filling ends it cleanly.
func TestEndsInTheMiddleOfAFill(t *testing.T) {
	for _, way := range []string{"reset", "destroy the standby", "destroy", "detach"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			hosts := newPair(t, testConfig(t, "microvm"))
			sb, state, shelf := lacking(ctx, t, hosts)
			must(t, sb.Load(ctx, state, shelf))
			waits := make(chan error, 1)
			// The gate must not hold up the end: a fetch under way is waited for.
			release := func() { shelf.open() }
			switch way {
			case "reset":
				go func() { waits <- sb.ReadPages(distant, make([]byte, epoch.PageSize)) }()
				release()
				must(t, sb.Reset(ctx))
				t.Logf("the read beside it: %v", <-waits)
				must(t, sb.Load(ctx, state, shelf))
				return
			case "destroy the standby":
				release()
				must(t, sb.Destroy())
				return
			}
			next, err := sb.Run(ctx)
			must(t, err)
			drained(t, next)
			must(t, waitCounting(ctx, next))
			go func() { waits <- next.Fill(distant, 500) }()
			release()
			if way == "destroy" {
				must(t, next.Destroy())
				t.Logf("the fill under way: %v", <-waits)
				return
			}
			// Detach brings the filling to its end, and the guest can be adopted.
			must(t, next.Detach())
			must(t, <-waits)
			again, err := hosts.b.Adopt(ctx)
			must(t, err)
			drain(t, again)
			page := make([]byte, epoch.PageSize)
			must(t, again.ReadPages(distant+9, page))
			if !bytes.HasPrefix(page, []byte(fmt.Sprintf("page %d", distant+9))) {
				t.Fatalf("the page holds %q", page[:12])
			}
			must(t, again.Resume(ctx))
			must(t, waitCounting(ctx, again))
		})
	}
}

// unfilled is another process of this program: it takes a guest over without
// all of its memory, lets it run and dies without a word, in the middle of the
// filling or at its end.
func unfilled(configs string, end bool) error {
	var c [2]Config
	if err := json.Unmarshal([]byte(configs), &c); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var d [2]*Driver
	for i := range d {
		var err error
		if d[i], err = NewDriver(c[i], discardLog()); err != nil {
			return err
		}
	}
	g, err := d[0].Start(ctx)
	if err != nil {
		return err
	}
	sb, err := d[1].Standby(ctx, g.Spec())
	if err != nil {
		return err
	}
	if err := g.Resume(ctx); err != nil {
		return err
	}
	if err := errors.Join(waitCounting(ctx, g), g.Pause(ctx)); err != nil {
		return err
	}
	content, err := hypervisortest.Copy(g)
	if err != nil {
		return err
	}
	state, err := g.AppendDeviceState(ctx, nil)
	if err != nil {
		return err
	}
	if err := g.Destroy(); err != nil {
		return err
	}
	missing := epoch.NewPageSet(sb.Pages())
	missing.Fill()
	shelf := newGated(content, missing)
	if end {
		shelf.open()
	}
	if err := sb.Load(ctx, state, shelf); err != nil {
		return err
	}
	next, err := sb.Run(ctx)
	if err != nil {
		return err
	}
	set := epoch.NewPageSet(next.Pages())
	if err := errors.Join(next.CollectDirty(set), waitCounting(ctx, next)); err != nil {
		return err
	}
	for end && ctx.Err() == nil {
		if r, err := next.(*Guest).vm.place.load(); err != nil || r.Fill != fillMissing {
			break
		}
	}
	return unix.Kill(os.Getpid(), unix.SIGKILL)
}

// A guest whose daemon died before its memory was there is not adopted: it
// would find zeros. Once all is there it is.
func TestAdoptAfterALazyActivation(t *testing.T) {
	for _, when := range []string{"middle", "end"} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			hosts := newPair(t, testConfig(t, "microvm"))
			text, err := json.Marshal([]Config{hosts.a.cfg, hosts.b.cfg})
			must(t, err)
			cmd := exec.CommandContext(ctx, os.Args[0], "unfilled-"+when, string(text))
			cmd.Stderr = os.Stderr
			var exit *exec.ExitError
			if err = cmd.Run(); !errors.As(err, &exit) || exit.Exited() {
				t.Fatalf("the other daemon was not killed: %v", err)
			}
			g, err := hosts.b.Adopt(ctx)
			if when == "middle" {
				var refusal *hypervisor.Refusal
				if !errors.As(err, &refusal) || !strings.Contains(refusal.What, "before all of its memory was there") {
					t.Fatalf("adopt gave %v", err)
				}
				must(t, hosts.b.Clean(ctx))
				return
			}
			must(t, err)
			drain(t, g)
			must(t, g.Resume(ctx))
			must(t, waitCounting(ctx, g))
			if got := g.(*Guest).vm.place.fillState(t); got != fillDone {
				t.Fatalf("the record says %q", got)
			}
		})
	}
}

// sweeping is a Shelf that brings pages by itself, too: all but some.
type sweeping struct {
	*hypervisortest.Shelf
	content []byte
	pages   *epoch.PageSet
	alone   atomic.Int64 // calls of Content
}

func (s *sweeping) Content(page epoch.GFN, dst []byte) error {
	s.alone.Add(1)
	return s.Shelf.Content(page, dst)
}

func (s *sweeping) Sweep(ctx context.Context, put func(epoch.GFN, []byte) error) error {
	const piece = 100
	for first := uint64(0); first+piece <= s.pages.Pages() && ctx.Err() == nil; first += piece {
		if first/piece%10 == 9 {
			continue // cannot be had by the way
		}
		if err := put(epoch.GFN(first), s.content[first*epoch.PageSize:][:piece*epoch.PageSize]); err != nil {
			return err
		}
	}
	return nil
}

// What nobody waits for comes in large pieces, and what does not, page by page; no
// page that the guest has is touched.
func TestSweepFillsTheRest(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	hosts := newPair(t, testConfig(t, "q35"))
	sb, state, shelf := lacking(ctx, t, hosts)
	missing := epoch.NewPageSet(sb.Pages())
	shelf.Missing(missing)
	content := make([]byte, sb.Pages()*epoch.PageSize)
	shelf.open()
	for page := range sb.(*Standby).main {
		if missing.Contains(epoch.GFN(page)) {
			must(t, shelf.Content(epoch.GFN(page), content[page*epoch.PageSize:][:epoch.PageSize]))
		}
	}
	s := &sweeping{Shelf: shelf.Shelf, content: content, pages: missing}
	must(t, sb.Load(ctx, state, s))
	next, err := sb.Run(ctx)
	must(t, err)
	drain(t, next)
	must(t, waitCounting(ctx, next))
	// Who asks for all of them now takes them from the sweep, one by one.
	for left, _ := shelf.Left(); left > 0; left, _ = shelf.Left() {
		if ctx.Err() != nil {
			t.Fatalf("%d pages are missing still", left)
		}
		time.Sleep(time.Millisecond)
	}
	must(t, next.Fill(0, next.Pages()))
	page := make([]byte, epoch.PageSize)
	for p := epoch.GFN(distant); p < distantEnd; p++ {
		must(t, next.ReadPages(p, page))
		if want := fmt.Sprintf("page %d", p); !strings.HasPrefix(string(page), want) {
			t.Fatalf("page %d holds %q", p, page[:12])
		}
	}
	if wrong := shelf.Wrong(); len(wrong) != 0 {
		t.Fatal(wrong)
	}
	if left, filled := shelf.Left(); left != 0 || filled != int(missing.Count()) {
		t.Fatalf("%d pages are missing, %d of %d were filled", left, filled, missing.Count())
	}
	if n := uint64(s.alone.Load()); n > missing.Count()/2 {
		t.Errorf("%d of %d pages came alone", n, missing.Count())
	}
	must(t, waitCounting(ctx, next))
}

// An image can be written while its machine is made, and a machine that cannot be
// made leaves nothing behind.
func TestAnImageAheadOfItsMachine(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	hosts := newPair(t, testConfig(t, "q35"))
	g, err := hosts.a.Start(ctx)
	must(t, err)
	drain(t, g)
	must(t, g.Resume(ctx))
	must(t, waitCounting(ctx, g))
	sb, made, err := hosts.b.BeginStandby(ctx, g.Spec())
	must(t, err)
	state := commit(ctx, t, g, sb)
	must(t, sb.Load(ctx, state, nil)) // waits for it
	must(t, made())
	if d := differs(t, g, sb.(*Standby).ready); len(d) != 0 {
		t.Fatalf("%d pages differ", len(d))
	}
	must(t, sb.Destroy())

	// Its kernel is another than when it was looked at last.
	must(t, os.WriteFile(hosts.b.cfg.Kernel, append(trialKernel(), 0), 0o644))
	sb, made, err = hosts.b.BeginStandby(ctx, g.Spec())
	must(t, err)
	var refused *hypervisor.Refusal
	if err := made(); !errors.As(err, &refused) || !strings.Contains(err.Error(), "kernel") {
		t.Fatalf("a machine with another kernel: %v", err)
	}
	if err := sb.Load(ctx, state, nil); !errors.As(err, &refused) {
		t.Fatalf("a load into no machine: %v", err)
	}
	must(t, sb.Destroy())
	// Given up before it is there.
	must(t, os.WriteFile(hosts.b.cfg.Kernel, trialKernel(), 0o644))
	sb, _, err = hosts.b.BeginStandby(ctx, g.Spec())
	must(t, err)
	must(t, sb.Destroy())
	if left, err := hosts.b.cfg.places(); err != nil || len(left) != 0 {
		t.Fatalf("left behind: %v (%v)", left, err)
	}
}
