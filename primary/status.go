package primary

import (
	"slices"
	"sync"
	"time"

	"understudy/clock"
	"understudy/epoch"
	"understudy/ownership"
)

// Status is what a primary knows of itself. Durations are in nanoseconds when
// encoded as JSON.
type Status struct {
	Mode      Mode             `json:"mode"`
	ModeFor   time.Duration    `json:"mode_for_ns"`
	Linked    bool             `json:"linked"` // a session to the backup is open
	Backup    ownership.HostID `json:"backup,omitempty"`
	Image     string           `json:"image,omitempty"`
	Epoch     epoch.Number     `json:"epoch"`        // last acknowledged
	EpochAge  time.Duration    `json:"epoch_age_ns"` // since it was sealed
	Remaining uint64           `json:"remaining"`    // pages of an initial synchronisation
	Pages     uint64           `json:"pages"`        // of the image
	Freed     uint64           `json:"freed_pages"`  // given back by the guest, since it came to this host
	LinkError string           `json:"last_error,omitempty"`
	Held      int              `json:"held_frames"`
	HeldBytes int64            `json:"held_bytes"`
	Pause     Percentiles      `json:"pause"`
	Lag       Percentiles      `json:"commit_lag"` // sealed → acknowledged
	Dirty     uint64           `json:"dirty_pages"`
	Cost      CostMedians      `json:"pause_steps"`
	Totals    Totals           `json:"totals"`
}

// Totals are sums since the primary began.
type Totals struct {
	Checkpoints uint64 `json:"checkpoints"`
	Commits     uint64 `json:"commits"`
	RawBytes    uint64 `json:"raw_bytes"`  // dirty pages as they are
	WireBytes   uint64 `json:"wire_bytes"` // what was sent for them
	ZeroPages   uint64 `json:"zero_pages"`
	SamePages   uint64 `json:"same_pages"` // written, but with what the backup holds
	DeltaPages  uint64 `json:"delta_pages"`
	PackedPages uint64 `json:"packed_pages"` // compressed
	RawPages    uint64 `json:"raw_pages"`
	// ReferencePages travelled as the name of a disk block, CopyPages as that of
	// an equal page. DiskWrites were sent with WriteBytes of data, of which
	// WritePageBytes travelled as the name of a page; SyncBytes brought a copy of
	// the disks up to date.
	ReferencePages uint64 `json:"reference_pages"`
	CopyPages      uint64 `json:"copy_pages"`
	DiskWrites     uint64 `json:"disk_writes"`
	WriteBytes     uint64 `json:"write_bytes"`
	WritePageBytes uint64 `json:"write_page_bytes"`
	SyncBytes      uint64 `json:"sync_bytes"`
}

// Percentiles summarise the last samples of a duration.
type Percentiles struct {
	Median  time.Duration `json:"p50_ns"`
	P99     time.Duration `json:"p99_ns"`
	Max     time.Duration `json:"max_ns"`
	Samples int           `json:"samples"`
}

// CostMedians are the medians of the steps of a pause.
type CostMedians struct {
	Stop   time.Duration `json:"stop_ns"`
	Seal   time.Duration `json:"seal_ns"`
	Device time.Duration `json:"device_ns"`
	Scan   time.Duration `json:"scan_ns"`
	Copy   time.Duration `json:"copy_ns"`
	Resume time.Duration `json:"resume_ns"`
}

// window is a ring of the newest samples.
type window struct {
	ring []time.Duration
	next int
}

// windowSize is how many samples percentiles are taken over.
const windowSize = 2048

func (w *window) add(d time.Duration) {
	if len(w.ring) < windowSize {
		w.ring = append(w.ring, d)
		return
	}
	w.ring[w.next] = d
	w.next = (w.next + 1) % windowSize
}

func (w *window) percentiles() Percentiles {
	n := len(w.ring)
	if n == 0 {
		return Percentiles{}
	}
	s := slices.Clone(w.ring)
	slices.Sort(s)
	return Percentiles{Median: s[n/2], P99: s[min(n-1, n*99/100)], Max: s[n-1], Samples: n}
}

// stats gathers what Status reports.
type stats struct {
	mu                                       sync.Mutex
	current                                  Mode
	since                                    clock.Instant
	linked                                   bool
	backup                                   ownership.HostID
	image                                    epoch.Incarnation
	epoch                                    epoch.Number
	sealedAt                                 clock.Instant
	remaining                                uint64
	lastError                                string
	dirty                                    uint64
	pause, lag                               window
	stop, seal, device, scan, copied, resume window
	totals                                   Totals
}

func (s *stats) mode(m Mode, now clock.Instant) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current, s.since = m, now
}

func (s *stats) captured(c Cost) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.totals.Checkpoints++
	s.dirty, s.remaining = c.Dirty, 0
	s.pause.add(c.Pause)
	s.stop.add(c.Stop)
	s.seal.add(c.Seal)
	s.device.add(c.Device)
	s.scan.add(c.Scan)
	s.copied.add(c.Copy)
	s.resume.add(c.Resume)
}

func (s *stats) synced(left uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remaining = left
}

func (s *stats) committed(f flight, now clock.Instant) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.totals.Commits++
	s.epoch, s.sealedAt = f.number, f.sealed
	s.lag.add(now.Sub(f.sealed))
}

func (s *stats) sent(e epoch.EpochStats) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := &s.totals
	t.RawBytes += e.RawBytes
	t.WireBytes += e.WireBytes
	t.ZeroPages += e.ZeroPages
	t.SamePages += e.SamePages
	t.DeltaPages += e.DeltaPages
	t.PackedPages += e.PackedPages
	t.RawPages += e.RawPages
	t.ReferencePages += e.ReferencePages
	t.CopyPages += e.CopyPages
	t.DiskWrites += e.Writes
	t.WriteBytes += e.WriteBytes
	t.WritePageBytes += e.WritePageBytes
	t.SyncBytes += e.SyncBytes
}

func (s *stats) connected(peer ownership.HostID, image epoch.Incarnation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.linked, s.backup, s.image, s.lastError = true, peer, image, ""
}

func (s *stats) linkError(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.linked, s.lastError = false, err.Error()
}

// Status returns what the primary knows of itself now.
func (p *Primary) Status() Status {
	s := &p.stats
	frames, bytes := p.Gate.Held()
	now := p.Clock.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Status{
		Mode: s.current, ModeFor: now.Sub(s.since),
		Linked: s.linked, Backup: s.backup, Epoch: s.epoch, Remaining: s.remaining, Pages: p.Guest.Pages(), LinkError: s.lastError,
		Held: frames, HeldBytes: bytes, Pause: s.pause.percentiles(), Lag: s.lag.percentiles(), Dirty: s.dirty,
		Cost: CostMedians{Stop: s.stop.percentiles().Median, Seal: s.seal.percentiles().Median,
			Device: s.device.percentiles().Median, Scan: s.scan.percentiles().Median,
			Copy: s.copied.percentiles().Median, Resume: s.resume.percentiles().Median},
		Totals: s.totals,
	}
	if g, ok := p.Guest.(interface{ Freed() uint64 }); ok {
		st.Freed = g.Freed()
	}
	if s.epoch > 0 {
		st.EpochAge = now.Sub(s.sealedAt)
	}
	if !s.image.IsZero() {
		st.Image = s.image.String()
	}
	return st
}
