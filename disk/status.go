package disk

import "understudy/epoch"

// This file shows operators how the disks are.

// counters count since the Set was made. The Set's lock protects them.
type counters struct {
	reads, direct, accepted, full, flushed, flushedBytes, errors uint64
}

// Status is a snapshot of a guest's disks.
type Status struct {
	Mode       string           `json:"mode"` // hold, pass, draining, shut, backup, none
	Generation epoch.Generation `json:"generation"`
	Writes     uint64           `json:"held_writes"` // accepted and not durable, barriers included
	Bytes      uint64           `json:"held_bytes"`  // counted against Limit
	Limit      uint64           `json:"held_limit_bytes"`
	Released   uint64           `json:"released_writes"` // of Writes: on their way to the disk
	Recovered  Recovered        `json:"recovered"`
	Problem    string           `json:"problem,omitempty"`

	Reads        uint64       `json:"reads"`
	Direct       uint64       `json:"direct_changes"` // straight to the store
	Accepted     uint64       `json:"accepted_changes"`
	Full         uint64       `json:"full"` // how often a change found no room
	Flushed      uint64       `json:"flushed_writes"`
	FlushedBytes uint64       `json:"flushed_bytes"`
	Errors       uint64       `json:"errors"`
	Disks        []DiskStatus `json:"disks"`
	Boot         []BootStatus `json:"boot,omitempty"` // files that pages are left out for as for a disk
}

// DiskStatus is one of them.
type DiskStatus struct {
	Serial   string `json:"serial"`
	Sectors  uint64 `json:"sectors"`
	Store    string `json:"store"` // shared, replicated
	ReadOnly bool   `json:"read_only,omitempty"`
	Writer   bool   `json:"writer"`                     // this host may write to the store
	Waiting  bool   `json:"waiting_for_lock,omitempty"` // … or another host still has it
	Writes   uint64 `json:"held_writes"`
	InFlight int    `json:"in_flight"`   // direct requests at the store
	Flushed  uint64 `json:"flushed_seq"` // last write that is durable
	Problem  string `json:"problem,omitempty"`
	// The replicated store: bytes of the backup's copy that are known to differ,
	// and that have not been compared.
	Differ  uint64 `json:"differ_bytes,omitempty"`
	Compare uint64 `json:"compare_bytes,omitempty"`
}

// Status returns a snapshot.
func (s *Set) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	h, c := s.held, &s.count
	st := Status{
		Mode: s.modeLocked(), Generation: s.core.generation, Writes: h.count, Bytes: h.used, Limit: h.limit, Recovered: s.recovered,
		Reads: c.reads, Direct: c.direct, Accepted: c.accepted, Full: c.full, Flushed: c.flushed, FlushedBytes: c.flushedBytes, Errors: c.errors,
	}
	for i := h.first; i < s.core.released && i < h.next; i++ {
		if !h.at(i).done {
			st.Released++
		}
	}
	if err := s.problemLocked(); err != nil {
		st.Problem = err.Error()
	}
	for _, d := range s.disks {
		one := DiskStatus{
			Serial: d.info.Serial, Sectors: d.info.Sectors, Store: "shared", ReadOnly: d.info.ReadOnly,
			Writer: d.lane.acquired, Waiting: d.lane.job == jobAcquire, Writes: d.lane.pending, InFlight: d.lane.direct, Flushed: d.lane.flushed,
		}
		if !d.shared {
			one.Store = "replicated"
		}
		if d.problem != nil {
			one.Problem = d.problem.Error()
		}
		if y := d.copies; y != nil {
			one.Differ, one.Compare = y.differs*epoch.HashChunk, (y.unknowns+y.askeds)*epoch.HashChunk
		}
		st.Disks = append(st.Disks, one)
	}
	st.Boot = s.bootLocked()
	return st
}

func (s *Set) modeLocked() string {
	switch {
	case s.core.role == roleNone:
		return "none"
	case s.core.role == roleStandBy:
		return "backup"
	case s.core.mode == ModePass && s.held.count > 0:
		return "draining"
	}
	return s.core.mode.String()
}
