package main

// A pause never waits for a slow disk: a real guest under protection, whose disk
// takes 200 ms for everything that is asked of it, beside the same guest while
// its disk is fast.

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"understudy/disk"
	"understudy/guest"
	"understudy/guest/client"
	"understudy/guest/diskspeed"
	"understudy/guest/image"
	"understudy/hypervisor/qemu/dirty"
	"understudy/lab"
	"understudy/primary"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == helperCommand {
		os.Exit(dirty.HelperMain(os.Args[2:]))
	}
	goleak.VerifyTestMain(m)
}

const slowness = 200 * time.Millisecond

// pace says how slow the disks are, and knows which requests are with them.
type pace struct {
	reads, writes atomic.Int64 // nanoseconds each takes; syncs are as slow as writes

	mu    sync.Mutex
	last  int
	begun map[int]time.Time // requests under way
}

func (p *pace) slow(store disk.Store) disk.Store { return slowStore{store, p} }

func (p *pace) during(delay *atomic.Int64, f func() error) error {
	p.mu.Lock()
	p.last++
	number := p.last
	p.begun[number] = time.Now()
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.begun, number)
		p.mu.Unlock()
	}()
	time.Sleep(time.Duration(delay.Load()))
	return f()
}

// since counts the requests under way that were begun before an instant.
func (p *pace) since(before time.Time) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, begun := range p.begun {
		if begun.Before(before) {
			n++
		}
	}
	return n
}

// slowStore is a store on such a disk.
type slowStore struct {
	disk.Store
	pace *pace
}

func (s slowStore) ReadAt(p []byte, sector uint64) error {
	return s.pace.during(&s.pace.reads, func() error { return s.Store.ReadAt(p, sector) })
}

func (s slowStore) WriteAt(p []byte, sector uint64) error {
	return s.pace.during(&s.pace.writes, func() error { return s.Store.WriteAt(p, sector) })
}

func (s slowStore) Sync() error {
	return s.pace.during(&s.pace.writes, s.Store.Sync)
}

// pauses are what the primary's checkpoints cost since the last take.
type pauses struct {
	pace *pace

	mu     sync.Mutex
	took   []float64 // milliseconds
	across int       // requests that were with the disk when a pause began and when it ended
}

func (p *pauses) observe(c primary.Cost) {
	across := p.pace.since(time.Now().Add(-c.Pause))
	p.mu.Lock()
	defer p.mu.Unlock()
	p.took = append(p.took, float64(c.Pause)/float64(time.Millisecond))
	p.across += across
}

func (p *pauses) take() (took []float64, across int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	took, across = p.took, p.across
	p.took, p.across = nil, 0
	return took, across
}

// slowGuest is a protected guest on such a disk.
type slowGuest struct {
	*pair
	t      *testing.T
	pace   *pace
	pauses *pauses
}

func newSlowGuest(t *testing.T) *slowGuest {
	t.Helper()
	images, err := filepath.Abs("../../build/guest")
	must(t, err)
	small, err := image.Small(t.Context(), images)
	must(t, err)
	file := filepath.Join(t.TempDir(), "disk.raw")
	must(t, image.Copy(file, small))
	g := &slowGuest{t: t, pace: &pace{begun: map[int]time.Time{}}}
	g.pauses = &pauses{pace: g.pace}
	g.pair, err = newPair(pairConfig{file: file, images: images, mount: true, wrap: g.pace.slow,
		log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))})
	must(t, err)
	t.Cleanup(func() {
		must(t, g.close())
		left, err := lab.Leftovers(labPrefix)
		must(t, err)
		for _, what := range left {
			t.Errorf("left behind: %s", what)
		}
	})
	must(t, g.start(t.Context()))
	must(t, g.protect(t.Context(), g.pauses.observe))
	return g
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// most is the longest that half of the pauses may take, in milliseconds. Pauses
// that wait for the disk take as long as it does; on a busy machine some take
// longer for other reasons, on a fast disk, too. The proof is in the requests that
// were with the disk when a pause began and still were when it ended.
const most = float64(slowness/2) / float64(time.Millisecond)

// run has the guest use its disk, and says what the pauses came to.
func (g *slowGuest) run(name string, o diskspeed.Options, device string) (middle float64, across int) {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), stepTime)
	defer cancel()
	g.pauses.take()
	r, err := g.control.MeasureDisk(ctx, o, device)
	must(g.t, err)
	took, across := g.pauses.take()
	middle = median(took)
	g.t.Logf("%-24s %4d pauses: p50 %.1f ms, p90 %.1f ms, p99 %.1f ms, max %.1f ms; %d requests across pauses; the guest's: %d, p50 %v, p99 %v",
		name, len(took), middle, quantile(took, 0.9), quantile(took, 0.99), quantile(took, 1), across, r.Ops, r.P50, r.P99)
	if len(took) < 10 {
		g.t.Fatalf("%s: %d pauses, want 10", name, len(took))
	}
	return middle, across
}

// TestAPauseDoesNotWaitForASlowDisk has reads, then writes and syncs take 200 ms
// while the guest is checkpointed again and again; then the guest's host is lost
// with reads under way, and they end on the other host, with the right data.
func TestAPauseDoesNotWaitForASlowDisk(t *testing.T) {
	g := newSlowGuest(t)
	reads := diskspeed.Options{Mode: diskspeed.RandRead, Block: 4 << 10, Depth: 8, Time: 4 * time.Second}
	writes := diskspeed.Options{Mode: diskspeed.RandWrite, Block: 4 << 10, Depth: 4, Sync: true, Size: 1 << 20, Time: 4 * time.Second}

	g.run("reads, fast disk", reads, guest.FirstDisk)
	g.run("writes, fast disk", writes, "")

	g.pace.reads.Store(int64(slowness))
	if middle, across := g.run("reads of 200 ms", reads, guest.FirstDisk); middle >= most || across < 10 {
		t.Errorf("reads of 200 ms: half of the pauses took up to %.1f ms with %d reads across pauses: want less than %.0f and at least 10", middle, across, most)
	}
	g.pace.reads.Store(0)
	g.pace.writes.Store(int64(slowness))
	if middle, across := g.run("writes, syncs of 200 ms", writes, ""); middle >= most || across < 10 {
		t.Errorf("writes of 200 ms: half of the pauses took up to %.1f ms with %d requests across pauses: want less than %.0f and at least 10", middle, across, most)
	}
	g.pace.writes.Store(0)
	g.failover()
}

// failover loses host a with reads under way.
func (g *slowGuest) failover() {
	t := g.t
	ctx, cancel := context.WithTimeout(t.Context(), stepTime)
	defer cancel()
	var files []string
	for i := range 8 {
		files = append(files, fmt.Sprintf("library/%02d", i))
	}
	want, err := g.control.ReadDisk(ctx, files...)
	must(t, err)
	must(t, g.control.DropCaches(ctx))
	beside, err := g.connect(ctx)
	must(t, err)
	defer func() { must(t, beside.Close()) }()

	type outcome struct {
		read client.DiskRead
		err  error
	}
	g.pace.reads.Store(int64(slowness))
	read, direct := make(chan outcome, 1), make(chan error, 1)
	go func() {
		r, err := g.control.ReadDisk(ctx, files...)
		read <- outcome{r, err}
	}()
	go func() {
		_, err := beside.MeasureDisk(ctx, diskspeed.Options{Mode: diskspeed.RandRead, Block: 4 << 10, Depth: 8, Time: 3 * time.Second}, guest.FirstDisk)
		direct <- err
	}()
	// Under way for some epochs: the last commit has them in its state.
	for g.pace.since(time.Now().Add(-slowness/2)) < 4 {
		select {
		case <-ctx.Done():
			t.Fatal("the reads do not come to the disk")
		case <-time.After(time.Millisecond):
		}
	}
	began, underWay := time.Now(), g.pace.since(time.Now())
	must(t, g.takeOver(ctx))
	took := time.Since(began)
	got := <-read
	must(t, got.err)
	if got.read != want {
		t.Errorf("the guest read %+v across its failover, before it was %+v", got.read, want)
	}
	if err := <-direct; err != nil {
		t.Errorf("reads past the page cache, across the failover: %v", err)
	}
	t.Logf("failover with %d reads under way: the guest runs again after %v, and read what it should", underWay, took.Round(time.Millisecond))
}
