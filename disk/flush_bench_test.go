package disk

import (
	"context"
	"syscall"
	"testing"

	"understudy/disk/disktest"
	"understudy/epoch"
)

// BenchmarkHeldWrite4K is a held write's whole way: accepted, sealed, released,
// flushed to a disk that costs nothing, and out of the log. cpu-ns/op is what all
// threads took.
func BenchmarkHeldWrite4K(b *testing.B) {
	s := newSet(b, SetConfig{HeldBytes: 64 << 20}, nullStore{disktest.NewMedia(1<<16, true).Open()})
	own(s, 1)
	s.Hold()
	d, r := s.Disk(0), request(OpWrite, 0, 8, 'x')
	n := epoch.Number(0)
	b.ReportAllocs()
	var from, to syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &from)
	for i := 0; b.Loop(); i++ {
		r.Sector = uint64(i*37%8000) * 8
		if taken, err := d.Accept(r); err != nil || !taken {
			b.Fatal(taken, err)
		}
		if i%200 == 199 {
			n++
			must(b, s.Seal(n))
			s.Release(n)
			must(b, s.Drain(context.Background()))
		}
	}
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &to)
	cpu := to.Utime.Nano() - from.Utime.Nano() + to.Stime.Nano() - from.Stime.Nano()
	b.ReportMetric(float64(cpu)/float64(b.N), "cpu-ns/op")
}
