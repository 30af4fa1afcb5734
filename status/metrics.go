package status

// /metrics, for Prometheus: one table of metrics (metriclist.go), filled from
// one snapshot of the host at each scrape. Units are seconds and bytes. A state
// is a series for each of its values, 1 for the one that holds, and a code.
// What is not known has no series. METRICS.md lists all.

import (
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"understudy/host"
)

// kind of a metric.
type kind uint8

const (
	gauge kind = iota
	counter
	summary // quantiles of the last samples, with the sum and the count of all
)

// metric is one line of the table. Exactly one of ofHost and ofGuest is set;
// they call emit for each series there is now.
type metric struct {
	name, help string
	kind       kind
	labels     []string // of one guest's metrics: after "guest"
	ofHost     func(s scene, emit emit)
	ofGuest    func(g host.GuestStatus, s scene, emit emit)
}

// emit takes a value with its labels' values.
type emit func(value sample, labels ...string)

// sample is a number, or a summary.
type sample struct {
	value     float64
	quantiles map[float64]float64
	count     uint64
}

func number[N int | int64 | uint64 | float64](n N) sample { return sample{value: float64(n)} }

func secondsOf(d time.Duration) sample { return sample{value: d.Seconds()} }

func truth(b bool) sample {
	if b {
		return sample{value: 1}
	}
	return sample{}
}

// scene is one moment of the host.
type scene struct {
	report  Report
	cluster Cluster
	uptime  time.Duration
}

// exporter returns what serves /metrics.
func (s *Server) exporter() http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(newCollector(func() scene {
		r, c := s.report()
		return scene{r, c, time.Since(s.began)}
	}), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	h := promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: answerTime})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hurry(w)
		h.ServeHTTP(w, r)
	})
}

// collector is the table as the library wants it.
type collector struct {
	look  func() scene
	descs []*prometheus.Desc // of metrics, by index

	mu     sync.Mutex
	counts map[string]*count // of each series that only grows
}

// count keeps a counter from going back when what it counts begins anew: a
// primary's counts end with it (GuestStatus.Earlier takes them over), those of
// a guest's disks when they are attached anew.
type count struct{ base, last float64 }

func (c *count) next(v float64) float64 {
	if v < c.last {
		c.base += c.last
	}
	c.last = v
	return c.base + v
}

func newCollector(look func() scene) *collector {
	c := &collector{look: look, counts: map[string]*count{}}
	for _, m := range metrics {
		labels := m.labels
		if m.ofGuest != nil {
			labels = append([]string{"guest"}, labels...)
		}
		c.descs = append(c.descs, prometheus.NewDesc(m.name, m.help, labels, nil))
	}
	return c
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		to <- d
	}
}

// Collect implements prometheus.Collector. One at a time, so that an older
// scene never comes after a newer one.
func (c *collector) Collect(to chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.look()
	for i, m := range metrics {
		if m.ofHost != nil {
			m.ofHost(now, c.emitter(i, m, to))
			continue
		}
		for _, g := range now.report.Guests {
			m.ofGuest(g, now, c.emitter(i, m, to, g.Name))
		}
	}
}

func (c *collector) emitter(i int, m metric, to chan<- prometheus.Metric, guest ...string) emit {
	return func(v sample, labels ...string) {
		labels = append(guest[:len(guest):len(guest)], labels...)
		switch m.kind {
		case counter:
			v.value = c.count(m.name, labels).next(v.value)
			to <- prometheus.MustNewConstMetric(c.descs[i], prometheus.CounterValue, v.value, labels...)
		case summary:
			sum := c.count(m.name, labels).next(v.value)
			n := c.count(m.name+" count", labels).next(float64(v.count))
			to <- prometheus.MustNewConstSummary(c.descs[i], uint64(n), sum, v.quantiles, labels...)
		default:
			to <- prometheus.MustNewConstMetric(c.descs[i], prometheus.GaugeValue, v.value, labels...)
		}
	}
}

func (c *collector) count(name string, labels []string) *count {
	key := fmt.Sprintf("%s%q", name, labels)
	n := c.counts[key]
	if n == nil {
		n = &count{}
		c.counts[key] = n
	}
	return n
}
