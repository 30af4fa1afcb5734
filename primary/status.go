package primary

import (
	"slices"
	"sync"
	"time"

	"understudy/clock"
	"understudy/epoch"
	"understudy/ownership"
	"understudy/protocol"
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
	// Generation is that under which the lease is renewed, LeaseLeft what is left
	// of the lease that was granted in it: 0 when it is over, or was not granted.
	Generation epoch.Generation `json:"generation"`
	LeaseLeft  time.Duration    `json:"lease_left_ns"`
	// Running: the guest runs; else it stands still, for a pause or for good.
	Running bool `json:"running"`
	// PeerAge is since the last byte from the backup, nil without a session or
	// where the session does not tell.
	PeerAge *time.Duration `json:"peer_age_ns,omitempty"`
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
	// PauseTime is the sum of all checkpoints' pauses, LagTime that of all
	// commits' lags.
	PauseTime time.Duration `json:"pause_time_ns"`
	LagTime   time.Duration `json:"commit_lag_time_ns"`
}

// Plus returns the sum of both.
func (t Totals) Plus(u Totals) Totals {
	return Totals{
		Checkpoints: t.Checkpoints + u.Checkpoints, Commits: t.Commits + u.Commits,
		RawBytes: t.RawBytes + u.RawBytes, WireBytes: t.WireBytes + u.WireBytes,
		ZeroPages: t.ZeroPages + u.ZeroPages, SamePages: t.SamePages + u.SamePages,
		DeltaPages: t.DeltaPages + u.DeltaPages, PackedPages: t.PackedPages + u.PackedPages, RawPages: t.RawPages + u.RawPages,
		ReferencePages: t.ReferencePages + u.ReferencePages, CopyPages: t.CopyPages + u.CopyPages,
		DiskWrites: t.DiskWrites + u.DiskWrites, WriteBytes: t.WriteBytes + u.WriteBytes, WritePageBytes: t.WritePageBytes + u.WritePageBytes,
		SyncBytes: t.SyncBytes + u.SyncBytes, PauseTime: t.PauseTime + u.PauseTime, LagTime: t.LagTime + u.LagTime,
	}
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
	// known are the percentiles, nil since the newest sample: however often they
	// are asked for, they are sorted out once for each.
	known *Percentiles
}

// windowSize is how many samples percentiles are taken over.
const windowSize = 2048

func (w *window) add(d time.Duration) {
	w.known = nil
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
	if w.known == nil {
		s := slices.Clone(w.ring)
		slices.Sort(s)
		w.known = &Percentiles{Median: s[n/2], P99: s[min(n-1, n*99/100)], Max: s[n-1], Samples: n}
	}
	return *w.known
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
	running                                  bool
	leased                                   epoch.Generation // of leaseUntil
	leaseUntil                               clock.Instant
	session                                  protocol.Session // the open one, nil if none
}

// heard is a session that knows when it heard of its peer.
type heard interface{ LastHeard() time.Time }

func (s *stats) lease(g epoch.Generation, until clock.Instant) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leased, s.leaseUntil = g, until
}

func (s *stats) runs(running bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = running
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
	s.totals.PauseTime += c.Pause
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
	s.totals.LagTime += now.Sub(f.sealed)
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

func (s *stats) connected(peer ownership.HostID, image epoch.Incarnation, session protocol.Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.linked, s.backup, s.image, s.lastError, s.session = true, peer, image, "", session
}

func (s *stats) linkError(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.linked, s.lastError, s.session = false, err.Error(), nil
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
		Totals: s.totals, Running: s.running, Generation: epoch.Generation(p.generation.Load()),
	}
	if s.leased == st.Generation {
		st.LeaseLeft = max(0, s.leaseUntil.Sub(now))
	}
	if h, ok := s.session.(heard); ok {
		age := time.Since(h.LastHeard())
		st.PeerAge = &age
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
