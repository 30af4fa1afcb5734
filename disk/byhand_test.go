package disk

import (
	"bytes"
	"context"
	"testing"

	"understudy/clock"
	"understudy/disk/disktest"
	"understudy/epoch"
)

type stillClock struct{}

func (stillClock) Now() clock.Instant { return 1 }

// byHand opens a Set whose flusher works when the test says so.
func byHand(t *testing.T, store Store, memory []byte) *Set {
	t.Helper()
	s, err := NewByHand(SetConfig{Pages: 8, Clock: stillClock{}, Disks: []DiskConfig{{Store: store}}}, memory)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// workAll lets the flushers do all there is to do.
func workAll(t *testing.T, s *Set) {
	t.Helper()
	for range 100 {
		if !s.Work().Did {
			return
		}
	}
	t.Fatal("the flushers do not come to an end")
}

func handMemory(t *testing.T) []byte {
	t.Helper()
	memory, err := ByHandMemory()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := FreeByHand(memory); err != nil {
			t.Error(err)
		}
	})
	return memory
}

// TestABackupReadsWhatItsPrimaryWroteAlone: a backup keeps a write of a shared
// disk; its session is lost, the primary goes on alone and overwrites the block
// itself. When the session resumes with a synchronisation, whose references name
// the block as it is now, the backup must not find there what it had kept.
func TestABackupReadsWhatItsPrimaryWroteAlone(t *testing.T) {
	m := disktest.NewMedia(64, true)
	s := byHand(t, m.Open(), handMemory(t))
	if err := s.StandBy(t.Context()); err != nil {
		t.Fatal(err)
	}
	kept, now := bytes.Repeat([]byte{1}, epoch.PageSize), bytes.Repeat([]byte{2}, epoch.PageSize)
	state := appendStateHead(nil, 1)
	state, err := appendInFlight(state, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	write := epoch.DiskWrite{Seq: 1, Kind: epoch.WriteData, Sectors: epoch.PageSectors, Data: kept}
	if err := s.Commit(1, []epoch.DiskWrite{write}, state); err != nil {
		t.Fatal(err)
	}
	m.Set(append(bytes.Clone(now), make([]byte, 56*512)...))
	if err := s.Commit(2, nil, nil); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, epoch.PageSize)
	if err := s.ReadSectors(0, 0, got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, now) {
		t.Errorf("the backup reads %d, its primary has written %d", got[0], now[0])
	}
}

// TestByHandJournalOutlivesItsSet: what one Set held, the next finds.
func TestByHandJournalOutlivesItsSet(t *testing.T) {
	m, memory := disktest.NewMedia(64, false), handMemory(t)
	store := m.Open()
	s := byHand(t, store, memory)
	s.Own(1)
	if err := s.Allow(clock.Instant(1) + 1<<40); err != nil {
		t.Fatal(err)
	}
	s.Hold()
	workAll(t, s)
	data := bytes.Repeat([]byte{7}, epoch.PageSize)
	taken, err := s.Disk(0).Accept(&Request{Op: OpWrite, Sectors: epoch.PageSectors, Segments: []Segment{{Data: data, Page: 1}}})
	if err != nil || !taken {
		t.Fatalf("taken %v, %v", taken, err)
	}
	store.Kill() // and its lock with it
	s = byHand(t, m.Open(), memory)
	if r := s.Recovered(); r.Writes != 1 || r.Generation != 1 {
		t.Fatalf("recovered %+v", r)
	}
	s.Own(1)
	if err := s.Allow(clock.Instant(1) + 1<<40); err != nil {
		t.Fatal(err)
	}
	s.Pass()
	workAll(t, s)
	if err := s.DrainByHand(); err != nil {
		t.Fatal(err)
	}
	if got := m.Durable()[:epoch.PageSize]; !bytes.Equal(got, data) {
		t.Error("what was held has not reached the disk")
	}
}

// TestTheNextSetKnowsWhatIsDurable: a backup that goes on with the next daemon keeps
// every write until it is reported durable. What an earlier Set has flushed is not
// in the journal any more, and is reported all the same; what is still held is not.
func TestTheNextSetKnowsWhatIsDurable(t *testing.T) {
	m, memory := disktest.NewMedia(64, true), handMemory(t)
	store := m.Open()
	s := byHand(t, store, memory)
	write := func(block uint64) {
		data := bytes.Repeat([]byte{7}, epoch.PageSize)
		taken, err := s.Disk(0).Accept(&Request{Op: OpWrite, Sector: block * epoch.PageSectors, Sectors: epoch.PageSectors, Segments: []Segment{{Data: data, Page: 1}}})
		if err != nil || !taken {
			t.Fatalf("taken %v, %v", taken, err)
		}
	}
	own := func() {
		s.Own(1)
		if err := s.Allow(clock.Instant(1) + 1<<40); err != nil {
			t.Fatal(err)
		}
		s.Hold()
		workAll(t, s)
	}
	reported := func() uint64 { return s.Status().Disks[0].Flushed }
	own()
	write(0)
	write(1)
	if err := s.Seal(1); err != nil {
		t.Fatal(err)
	}
	s.Release(1)
	workAll(t, s)
	if got := reported(); got != 2 {
		t.Fatalf("write %d is reported durable, want 2", got)
	}
	store.Kill()
	store = m.Open()
	s = byHand(t, store, memory)
	own()
	if got := reported(); got != 2 {
		t.Errorf("the next Set reports write %d as durable, want 2", got)
	}
	write(2)
	store.Kill()
	s = byHand(t, m.Open(), memory)
	own()
	if got := reported(); got != 2 {
		t.Errorf("with a write held, write %d is reported as durable, want 2", got)
	}
}

// TestAFlushBehindADirectWriteIsABarrier: a flush that is held, and nothing
// between it and the last barrier was, has a write before it all the same that went
// straight to the disk and is not durable. When the guest is unprotected again, the
// flush of which it was told has to be one.
func TestAFlushBehindADirectWriteIsABarrier(t *testing.T) {
	m := disktest.NewMedia(64, false)
	s := byHand(t, m.Open(), handMemory(t))
	s.Own(1)
	if err := s.Allow(clock.Instant(1) + 1<<40); err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	flush := func() {
		t.Helper()
		if taken, err := s.Disk(0).Accept(&Request{Op: OpFlush}); err != nil || !taken {
			t.Fatalf("the flush is taken: %v, %v", taken, err)
		}
	}
	s.Hold()
	flush()
	s.Pass()
	workAll(t, s)
	data := bytes.Repeat([]byte{7}, epoch.PageSize)
	if err := s.Disk(0).Do(ended, &Request{Op: OpWrite, Sectors: epoch.PageSectors, Segments: []Segment{{Data: data, Page: 1}}}); err != nil {
		t.Fatal(err)
	}
	s.Hold()
	flush()
	s.Pass() // before the flusher came to anything
	workAll(t, s)
	if got := m.Durable()[:epoch.PageSize]; !bytes.Equal(got, data) {
		t.Error("the guest was told of a flush, and what it had written before is not durable")
	}
}
