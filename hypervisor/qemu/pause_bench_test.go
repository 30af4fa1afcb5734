package qemu

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"time"

	"understudy/epoch"
)

// BenchmarkPause takes checkpoints of a guest that dirties memory as fast as it
// can and reports the median of each step of the pause in microseconds.
func BenchmarkPause(b *testing.B) {
	for _, pages := range []int{0, 4096} {
		b.Run(fmt.Sprintf("512MiB/%dpages", pages), func(b *testing.B) { benchmarkPause(b, pages) })
	}
}

func benchmarkPause(b *testing.B, pages int) {
	ctx := context.Background()
	c := testConfig(b, "q35")
	c.Memory = 512 * mib
	c.Kernel = kernelFile(b, func(code []byte) {
		mask := []byte{0x81, 0xe1, 0xff, 0x03, 0, 0} // and $1023, %ecx
		at := bytes.Index(code, mask)
		if pages > 0 {
			binary.LittleEndian.PutUint32(code[at+2:], uint32(pages-1))
			return
		}
		copy(code[at:], []byte{0xeb, 0xfe}) // jmp to itself: busy, but writes nothing
	})
	d := newDriver(b, c)
	g, err := d.Start(ctx)
	must(b, err)
	drain(b, g)
	must(b, g.Resume(ctx))
	set := epoch.NewPageSet(g.Pages())
	buf := make([]byte, 64<<20)
	var state []byte
	readAll := func() (n uint64) {
		at := buf
		for first, count := range set.Runs {
			must(b, g.ReadPages(first, at[:count*epoch.PageSize]))
			at, n = at[count*epoch.PageSize:], n+count
		}
		return n
	}
	must(b, g.CollectDirty(set))
	set.Clear()
	names := []string{"stop", "state", "scan", "copy", "cont", "sum"}
	took := make([][]time.Duration, len(names))
	var dirtied uint64
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	const warm = 10
	for i := range b.N + warm {
		<-tick.C
		at := []time.Time{time.Now()}
		step := func() { at = append(at, time.Now()) }
		must(b, g.Pause(ctx))
		step()
		state, err = g.AppendDeviceState(ctx, state[:0])
		must(b, err)
		step()
		set.Clear()
		must(b, g.CollectDirty(set))
		step()
		n := readAll()
		step()
		must(b, g.Resume(ctx))
		step()
		if i < warm {
			continue
		}
		dirtied += n
		for k := range at[1:] {
			took[k] = append(took[k], at[k+1].Sub(at[k]))
		}
		took[5] = append(took[5], at[5].Sub(at[0]))
	}
	for k, name := range names {
		slices.Sort(took[k])
		b.ReportMetric(float64(took[k][len(took[k])/2].Microseconds()), name+"-µs")
	}
	b.ReportMetric(float64(dirtied)/float64(b.N), "pages")
	b.ReportMetric(float64(len(state)), "state-bytes")
}

// BenchmarkTakeover reports the medians of loading the last device state and of
// letting the standby run, in microseconds.
func BenchmarkTakeover(b *testing.B) {
	ctx := context.Background()
	c := testConfig(b, "q35")
	c.Memory, c.CPUs = 512*mib, 2
	hosts := newPair(b, c)
	g, err := hosts.a.Start(ctx)
	must(b, err)
	drain(b, g)
	must(b, g.Resume(ctx))
	must(b, waitCounting(ctx, g))
	var load, run []time.Duration
	for range b.N {
		sb, err := hosts.b.Standby(ctx, g.Spec())
		must(b, err)
		must(b, g.Pause(ctx))
		state, err := g.AppendDeviceState(ctx, nil)
		must(b, err)
		full := epoch.NewPageSet(g.Pages())
		full.Fill()
		copySet(b, g, sb, full)
		start := time.Now()
		must(b, sb.Load(ctx, state, nil))
		loaded := time.Now()
		next, err := sb.Run(ctx)
		must(b, err)
		load, run = append(load, loaded.Sub(start)), append(run, time.Since(loaded))
		must(b, next.Destroy())
	}
	slices.Sort(load)
	slices.Sort(run)
	b.ReportMetric(float64(load[len(load)/2].Microseconds()), "load-µs")
	b.ReportMetric(float64(run[len(run)/2].Microseconds()), "run-µs")
}
