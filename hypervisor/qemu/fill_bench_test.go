package qemu

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"understudy/epoch"
	"understudy/guest"
	"understudy/hypervisor"
	"understudy/hypervisor/hypervisortest"
)

// stored is a Filler that reads each page from a file, no faster than delay.
type stored struct {
	*hypervisortest.Shelf
	file  *os.File
	delay time.Duration
}

func (s stored) Content(page epoch.GFN, dst []byte) error {
	begun := time.Now()
	if err := s.Shelf.Content(page, dst); err != nil {
		return err
	}
	_, err := s.file.ReadAt(dst, int64(page)*epoch.PageSize)
	if left := s.delay - time.Since(begun); left > 0 {
		time.Sleep(left) // the disk that there is not
	}
	return err
}

// A Linux guest of 512 MiB is taken over while nine of ten pages that it has
// touched are missing: how long until it answers, and until all is there.
func BenchmarkActivation(b *testing.B) {
	ctx, cancel := context.WithTimeout(b.Context(), 10*time.Minute)
	defer cancel()
	hosts := newPair(b, linuxConfig(b, "q35", 512*mib, 1))
	wireA, wireB := plug(b, hosts.a), plug(b, hosts.b)
	g, err := hosts.a.Start(ctx)
	must(b, err)
	drain(b, g)
	must(b, g.Resume(ctx))
	waitConsole(ctx, b, hosts.consoleA, guest.ReadyLine, 1)
	wireA.answers(ctx, b)
	must(b, g.Pause(ctx))
	state, err := g.AppendDeviceState(ctx, nil)
	must(b, err)
	content, err := hypervisortest.Copy(g)
	must(b, err)
	spec := g.Spec()
	must(b, g.Destroy())
	file, err := os.Create(filepath.Join(b.TempDir(), "content"))
	must(b, err)
	defer func() { _ = file.Close() }()
	if _, err := file.Write(content); err != nil {
		b.Fatal(err)
	}

	for _, delay := range []time.Duration{0, 200 * time.Microsecond} {
		for _, lazy := range []bool{false, true} {
			name := "eager"
			if lazy {
				name = "lazy"
			}
			b.Run(name+" "+delay.String(), func(b *testing.B) {
				var sum activation
				for b.Loop() {
					sb, shelf := standbyLacking(ctx, b, hosts.b, spec, content, &sum)
					sb.lazy = lazy
					sum.activate(ctx, b, sb, state, stored{shelf, file, delay}, wireB)
				}
				sum.report(b)
			})
		}
	}
}

// activation adds up what takeovers took.
type activation struct {
	load, run, answer, whole time.Duration
	faults, pages            uint64
}

// standbyLacking makes a standby that lacks nine of ten pages with content.
func standbyLacking(ctx context.Context, b *testing.B, d *Driver, spec hypervisor.Spec, content []byte, sum *activation) (*Standby, *hypervisortest.Shelf) {
	b.StopTimer()
	defer b.StartTimer()
	made, err := d.Standby(ctx, spec)
	must(b, err)
	sb := made.(*Standby)
	missing := epoch.NewPageSet(sb.Pages())
	for p := range sb.pages {
		page := content[p*epoch.PageSize:][:epoch.PageSize]
		if isZero(page) {
			continue
		}
		if p < sb.main && p%10 != 0 {
			missing.Add(epoch.GFN(p))
		} else {
			must(b, sb.WritePages(epoch.GFN(p), page))
		}
	}
	sum.pages += missing.Count()
	return sb, hypervisortest.NewShelf(content, missing)
}

func (a *activation) activate(ctx context.Context, b *testing.B, sb *Standby, state []byte, shelf stored, w *wire) {
	begun := time.Now()
	must(b, sb.Load(ctx, state, shelf))
	a.load += time.Since(begun)
	next, err := sb.Run(ctx)
	must(b, err)
	a.run += time.Since(begun)
	f := next.(*Guest).fill.Load()
	var heard sync.WaitGroup
	heard.Go(func() {
		for range next.Events() {
		}
	})
	w.answers(ctx, b)
	a.answer += time.Since(begun)
	if f != nil {
		select {
		case <-f.whole:
		case <-ctx.Done():
			b.Fatal("memory is still missing")
		}
		a.faults += f.faults.Load()
	}
	a.whole += time.Since(begun)
	b.StopTimer()
	must(b, next.Destroy())
	heard.Wait()
	b.StartTimer()
}

func (a *activation) report(b *testing.B) {
	each := func(d time.Duration, what string) {
		b.ReportMetric(float64(d.Microseconds())/1000/float64(b.N), what)
	}
	each(a.load, "load-ms")
	each(a.run, "running-ms")
	each(a.answer, "answer-ms")
	each(a.whole, "whole-ms")
	b.ReportMetric(float64(a.faults)/float64(b.N), "faults")
	b.ReportMetric(float64(a.pages)/float64(b.N), "pages")
}

var _ hypervisor.Filler = stored{}
