package backup

import (
	"sync"
	"time"

	"understudy/clock"
	"understudy/epoch"
	"understudy/protocol"
)

// Status is what a backup knows of itself. Durations are in nanoseconds when
// encoded as JSON.
type Status struct {
	State     string        `json:"state"` // waiting, fed, asking
	Image     string        `json:"image,omitempty"`
	Epoch     epoch.Number  `json:"epoch"`
	EpochAge  time.Duration `json:"epoch_age_ns"` // since it was committed
	Whole     bool          `json:"whole"`        // could be activated
	InSync    bool          `json:"in_sync"`      // as far as the log here knows
	Commits   uint64        `json:"commits"`
	LastPages uint64        `json:"last_pages"`
	// PeerAge is since the last byte from the primary, nil without a session or
	// where the session does not tell.
	PeerAge *time.Duration `json:"peer_age_ns,omitempty"`
}

type stats struct {
	mu       sync.Mutex
	status   Status
	commitAt clock.Instant
	session  protocol.Session // the open one, nil if none
}

// heard is a session that knows when it heard of its peer.
type heard interface{ LastHeard() time.Time }

// age is since the last commit.
func (s *stats) age(now clock.Instant) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return now.Sub(s.commitAt)
}

func (s *stats) update(c *Core, open *session, now clock.Instant) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.session = nil
	if open != nil {
		s.session = open.wire
	}
	st := &s.status
	switch {
	case c.asking:
		st.State = "asking"
	case c.session != 0:
		st.State = "fed"
	default:
		st.State = "waiting"
	}
	if c.at.Number != st.Epoch {
		s.commitAt = now
	}
	st.Epoch, st.Whole, st.InSync = c.at.Number, c.whole, c.InSync()
	st.Image = ""
	if !c.at.Image.IsZero() {
		st.Image = c.at.Image.String()
	}
}

func (s *stats) commit(pages uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.Commits++
	s.status.LastPages = pages
}

// committedAt is when the image came to where it stands.
func (s *stats) committedAt() clock.Instant {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.commitAt
}

// Status returns what the backup knows of itself now.
func (b *Backup) Status() Status {
	b.stats.mu.Lock()
	defer b.stats.mu.Unlock()
	st := b.stats.status
	if st.Epoch > 0 {
		st.EpochAge = b.Clock.Now().Sub(b.stats.commitAt)
	}
	if h, ok := b.stats.session.(heard); ok {
		age := time.Since(h.LastHeard())
		st.PeerAge = &age
	}
	return st
}
