package failover

import (
	"slices"
	"testing"
	"time"

	"understudy/clock"
	"understudy/ownership"
)

// median reports the median and the 99th percentile of what was measured.
func report(b *testing.B, unit string, d []time.Duration) {
	slices.Sort(d)
	b.ReportMetric(float64(d[len(d)/2].Microseconds()), "µs-"+unit+"-median")
	b.ReportMetric(float64(d[len(d)*99/100].Microseconds()), "µs-"+unit+"-p99")
}

// BenchmarkRenew is one owner's renewal at a leader on another host.
func BenchmarkRenew(b *testing.B) {
	c := newCluster(b, time.Second)
	c.ctx = b.Context()
	st, _ := c.protected()
	var took []time.Duration
	b.ReportAllocs()
	for b.Loop() {
		start := now()
		c.renew(hostA, st.Generation)
		took = append(took, now().Sub(start))
	}
	report(b, "renewal", took)
}

// BenchmarkTakeover is the time from the end of a silent owner's lease, by the
// owner's clock, to the grant's arrival at the backup.
func BenchmarkTakeover(b *testing.B) {
	for _, lease := range []time.Duration{300 * time.Millisecond, time.Second} {
		b.Run(lease.String(), func(b *testing.B) {
			c := newCluster(b, lease)
			c.ctx = b.Context()
			st, image := c.protected()
			owner, other := hostA, hostB
			var took []time.Duration
			for b.Loop() {
				end := c.renew(owner, st.Generation).Until
				c.do(other, ownership.Takeover, image)
				took = append(took, now().Sub(end))
				owner, other = other, owner
				c.do(owner, ownership.Activated, ownership.Backup{})
				image.Host = other
				st = c.do(owner, ownership.InSync, image)
			}
			report(b, "after-lease", took)
		})
	}
}

// BenchmarkNewLeader is the time from the silence of the leader to the first
// renewal answered by the next one.
func BenchmarkNewLeader(b *testing.B) {
	for _, lease := range []time.Duration{300 * time.Millisecond, time.Second} {
		b.Run(lease.String(), func(b *testing.B) {
			c := newCluster(b, lease)
			c.ctx = b.Context()
			st, _ := c.protected()
			var took []time.Duration
			var lost int
			for b.Loop() {
				c.leads(witness)
				var before clock.Instant = c.renew(hostA, st.Generation).Until
				start := now()
				c.net.isolate(witness, hostA, hostB)
				c.renew(hostA, st.Generation)
				took = append(took, now().Sub(start))
				if before.Before(now()) {
					lost++
				}
				c.net.heal(true)
				c.until("the old leader has stepped down", func() bool {
					r := c.node[witness].reigns.now()
					return r == nil || r.holds() != nil
				})
			}
			report(b, "new-leader", took)
			b.ReportMetric(float64(lost)/float64(len(took)), "leases-lost/loss")
		})
	}
}
