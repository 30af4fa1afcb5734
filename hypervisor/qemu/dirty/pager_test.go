package dirty

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"understudy/epoch"
)

// supply answers every missing page of the target with content, until the
// returned function is called, which returns the pages asked for.
func supply(t *testing.T, p *Pager, content func(page epoch.GFN) []byte) (stop func() []epoch.GFN) {
	t.Helper()
	var asked []epoch.GFN
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			pages, more, err := p.Faults(nil)
			if err != nil {
				t.Errorf("wait for faults: %v", err)
			}
			if !more {
				return
			}
			asked = append(asked, pages...)
			for _, page := range pages {
				if err := p.Copy(page, content(page)); err != nil && !errors.Is(err, ErrPresent) {
					t.Errorf("supply: %v", err)
				}
			}
		}
	})
	stop = sync.OnceValue(func() []epoch.GFN {
		p.Halt()
		wg.Wait()
		slices.Sort(asked)
		return slices.Compact(asked)
	})
	t.Cleanup(func() { stop() })
	return stop
}

func pageOf(b byte) []byte { return bytes.Repeat([]byte{b}, epoch.PageSize) }

func newPager(t *testing.T, tg *target) *Pager {
	t.Helper()
	cfg := tg.config()
	cfg.Regions = cfg.Regions[:1]
	p, err := Page(t.Context(), cfg)
	must(t, err)
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func (tg *target) read(p uint64) []byte {
	tg.t.Helper()
	b := make([]byte, epoch.PageSize)
	_, err := tg.file.ReadAt(b, int64(p*epoch.PageSize))
	must(tg.t, err)
	return b
}

// What is supplied is what the target finds. It counts as clean; what the
// target writes, to supplied pages too, as written.
func TestPagerSuppliesAndTracksExactly(t *testing.T) {
	tg := startTarget(t, 2048, 0)
	tg.do(order{Do: "write", Stripe: 2, Count: 8}) // the others are missing
	p := newPager(t, tg)
	stop := supply(t, p, func(page epoch.GFN) []byte { return pageOf(byte(page)) })
	tr := attach(t, tg.config())
	collect(t, tr, tg.image())

	tg.do(order{Do: "look", Pages: []uint64{1, 3, 2, 900}})
	want(t, collect(t, tr, tg.image()))
	tg.do(order{Do: "write", Pages: []uint64{3, 5, 2}, Threads: 3})
	want(t, collect(t, tr, tg.image()), 2, 3, 5)
	must(t, p.Copy(7, pageOf(7)))
	want(t, collect(t, tr, tg.image()))
	tg.do(order{Do: "write", Pages: []uint64{7}})
	want(t, collect(t, tr, tg.image()), 7)
	if err := p.Copy(7, pageOf(0)); !errors.Is(err, ErrPresent) {
		t.Fatalf("a page that is there was supplied: %v", err)
	}
	for _, f := range []uint64{1, 3, 5, 7, 900} {
		expect := pageOf(byte(f))
		if f != 1 && f != 900 {
			expect[f%epoch.PageSize]++
		}
		if !bytes.Equal(tg.read(f), expect) {
			t.Errorf("page %d is not what was supplied and written", f)
		}
	}

	// Released, it is as if nothing had been: holes are zeros, and the tracker
	// has missed nothing and invents nothing.
	tg.do(order{Do: "write", Pages: []uint64{9}})
	set := epoch.NewPageSet(tg.image())
	must(t, tr.Release(p, set))
	want(t, frames(set), 9)
	want(t, collect(t, tr, tg.image()))
	if got := stop(); !slices.Equal(got, []epoch.GFN{1, 3, 5, 9, 900}) {
		t.Errorf("the target asked for %v", got)
	}
	tg.do(order{Do: "look", Pages: []uint64{1, 9, 11}})
	want(t, collect(t, tr, tg.image()))
	tg.do(order{Do: "write", Pages: []uint64{1, 13, 2000}})
	want(t, collect(t, tr, tg.image()), 1, 13, 2000)
}

// A system call that writes to a missing page waits for it like any other
// access, if the target was started with /dev/userfaultfd; and then it has it
// no more.
func TestPagerSuppliesTheKernel(t *testing.T) {
	device, err := os.OpenFile("/dev/userfaultfd", os.O_RDWR, 0)
	must(t, err)
	defer func() { _ = device.Close() }()
	const nobody = 65534
	tg := startTarget(t, 64, nobody, device)
	tr := attach(t, tg.config())
	if !tr.CanPage() {
		t.Fatal("the descriptor is for user code only")
	}
	if n, err := findDevice(tg.cmd.Process.Pid); err != nil || n >= 0 {
		t.Fatalf("the target still holds the device as %d (%v)", n, err)
	}
	p := newPager(t, tg)
	supply(t, p, func(page epoch.GFN) []byte { return pageOf(0x77) })
	tg.do(order{Do: "sysread", Pages: []uint64{5}})
	if got := tg.read(5); bytes.Equal(got[:64], pageOf(0x77)[:64]) || !bytes.Equal(got[64:], pageOf(0x77)[64:]) {
		t.Fatal("the system call has not written to the page that was supplied")
	}

	if attach(t, startTarget(t, 64, nobody).config()).CanPage() && !unprivileged(t) {
		t.Fatal("without the device all faults can be handled")
	}
}

func unprivileged(t *testing.T) bool {
	t.Helper()
	text, err := os.ReadFile("/proc/sys/vm/unprivileged_userfaultfd")
	must(t, err)
	return text[0] == '1'
}

// A target whose pager died waits, until another process releases it.
func TestReleaseTarget(t *testing.T) {
	tg := startTarget(t, 64, 0)
	must(t, newPager(t, tg).Close())
	must(t, tg.in.Encode(order{Do: "write", Pages: []uint64{3}}))
	regions, err := FileRegions(tg.cmd.Process.Pid, tg.file, 0)
	must(t, err)
	must(t, ReleaseTarget(tg.cmd.Process.Pid, regions))
	if got := tg.line(); got != "\"done\"\n" {
		t.Fatalf("target answered %s", got)
	}
	tr := attach(t, tg.config())
	collect(t, tr, tg.image())
	tg.do(order{Do: "write", Pages: []uint64{3}})
	want(t, collect(t, tr, tg.image()), 3)
}

func BenchmarkPagerCopy(b *testing.B) {
	tg := startTarget(b, 64, 0)
	cfg := tg.config()
	cfg.Regions = cfg.Regions[:1]
	p, err := Page(b.Context(), cfg)
	must(b, err)
	defer func() { _ = p.Close() }()
	content := pageOf(1)
	b.ReportAllocs()
	for b.Loop() {
		must(b, p.Copy(3, content))
		b.StopTimer()
		must(b, unix.Fallocate(int(tg.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 3*epoch.PageSize, epoch.PageSize))
		b.StartTimer()
	}
}
