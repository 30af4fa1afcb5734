package status

// The table of metrics, in the order of METRICS.md: the host's, then each
// guest's.

import (
	"maps"
	"runtime"
	"slices"

	"understudy/disk"
	"understudy/epoch"
	"understudy/exclusion"
	"understudy/host"
	"understudy/ownership"
	"understudy/primary"
)

// The values of states, by their codes.
var (
	roles     = []string{"starting", "waiting", "booting", "recovering", "stopped", "yielding", "backup", "primary", "released"}
	modes     = []string{"none", "alone", "syncing", "entering", "protected", "detaching", "leaving", "yielded", "ended", "starting"}
	phases    = []string{"none", string(ownership.PhaseActive), string(ownership.PhaseActivating), string(ownership.PhaseSurrendered)}
	protected = []string{host.ProtectedNo, host.ProtectedYes, host.ProtectedUnknown}
)

// state is a metric with a series for each value.
func state(name, help, label string, values []string, of func(g host.GuestStatus) string) metric {
	return metric{name: name, help: help, labels: []string{label}, ofGuest: func(g host.GuestStatus, _ scene, emit emit) {
		now := of(g)
		for _, v := range values {
			emit(truth(v == now), v)
		}
	}}
}

// code is the same metric as an integer.
func code(name, help string, values []string, of func(g host.GuestStatus) string) metric {
	return metric{name: name, help: help, ofGuest: func(g host.GuestStatus, _ scene, emit emit) {
		if i := slices.Index(values, of(g)); i >= 0 {
			emit(number(i))
		}
	}}
}

func modeOf(g host.GuestStatus) string {
	if g.Primary == nil {
		return "none"
	}
	return g.Primary.Mode.String()
}

func phaseOf(g host.GuestStatus) string {
	if g.Log.Phase == "" {
		return "none"
	}
	return string(g.Log.Phase)
}

func protectedOf(g host.GuestStatus) string { return g.Protected }

// ofPrimary is a gauge that only a guest's primary has.
func ofPrimary(name, help string, of func(p primary.Status) sample) metric {
	return metric{name: name, help: help, ofGuest: func(g host.GuestStatus, _ scene, emit emit) {
		if g.Primary != nil {
			emit(of(*g.Primary))
		}
	}}
}

// total counts what all primaries on this host did since the daemon began.
func total(name, help string, of func(t primary.Totals) sample) metric {
	return metric{name: name, help: help, kind: counter, ofGuest: func(g host.GuestStatus, _ scene, emit emit) {
		emit(of(totalsOf(g)))
	}}
}

func totalsOf(g host.GuestStatus) (t primary.Totals) {
	if g.Earlier != nil {
		t = *g.Earlier
	}
	if g.Primary != nil {
		t = t.Plus(g.Primary.Totals)
	}
	return t
}

func ofDisks(name, help string, k kind, of func(d disk.Status) sample) metric {
	return metric{name: name, help: help, kind: k, ofGuest: func(g host.GuestStatus, _ scene, emit emit) {
		if g.Disks != nil {
			emit(of(*g.Disks))
		}
	}}
}

func quantiles(p primary.Percentiles) map[float64]float64 {
	if p.Samples == 0 {
		return nil
	}
	return map[float64]float64{0.5: p.Median.Seconds(), 0.99: p.P99.Seconds(), 1: p.Max.Seconds()}
}

var metrics = []metric{
	{name: "understudy_build_info", help: "1, with the release and the Go version it was built with.", labels: []string{"version", "goversion"},
		ofHost: func(_ scene, emit emit) { emit(number(1), Version, runtime.Version()) }},
	{name: "understudy_host_info", help: "1, with the name of this host.", labels: []string{"host"},
		ofHost: func(s scene, emit emit) { emit(number(1), string(s.report.Host)) }},
	{name: "understudy_uptime_seconds", help: "Time since the daemon began.",
		ofHost: func(s scene, emit emit) { emit(secondsOf(s.uptime)) }},
	{name: "understudy_lease_length_seconds", help: "Length of a lease in the ownership log; missing while it is not known.",
		ofHost: func(s scene, emit emit) {
			if s.report.Lease > 0 {
				emit(secondsOf(s.report.Lease))
			}
		}},
	{name: "understudy_config_info", help: "1, with the hash of the configuration that this host runs.", labels: []string{"hash"},
		ofHost: func(s scene, emit emit) {
			if h := s.report.Config.Hash; h != "" {
				emit(number(1), h)
			}
		}},
	{name: "understudy_config_same", help: "1 if the other host runs the same configuration as this one, 0 if another; missing while it does not say.", labels: []string{"host"},
		ofHost: func(s scene, emit emit) {
			for _, h := range slices.Sorted(maps.Keys(s.report.Config.Others)) {
				emit(truth(s.report.Config.Others[h] == s.report.Config.Hash), string(h))
			}
		}},
	{name: "understudy_certificate_expiry_timestamp_seconds", help: "When a certificate runs out, since 1970: this host's and the authority's, between hosts, and the endpoint's, on the network.", labels: []string{"certificate"},
		ofHost: func(s scene, emit emit) {
			for _, c := range s.report.Certificates {
				emit(number(c.Until.Unix()), c.Of)
			}
		}},
	{name: "understudy_raft_leader", help: "1 for the host that leads the ownership log as far as this one knows.", labels: []string{"host"},
		ofHost: func(s scene, emit emit) {
			for _, v := range s.cluster.Voters {
				emit(truth(v.Leader), string(v.Host))
			}
		}},
	{name: "understudy_raft_leads", help: "1 if this host leads the ownership log.",
		ofHost: func(s scene, emit emit) { emit(truth(s.cluster.Leads)) }},
	{name: "understudy_raft_term", help: "Current term of the ownership log.",
		ofHost: func(s scene, emit emit) { emit(number(s.cluster.Term)) }},
	{name: "understudy_raft_last_index", help: "Newest entry of the ownership log here.",
		ofHost: func(s scene, emit emit) { emit(number(s.cluster.Last)) }},
	{name: "understudy_raft_committed_index", help: "Newest entry of the ownership log known to be on a majority.",
		ofHost: func(s scene, emit emit) { emit(number(s.cluster.Committed)) }},
	{name: "understudy_raft_applied_index", help: "Newest entry of the ownership log in what this host says of it.",
		ofHost: func(s scene, emit emit) { emit(number(s.cluster.Applied)) }},
	{name: "understudy_raft_contact_age_seconds", help: "Since the leader was last heard, or for the leader a majority; missing if not since the daemon began.",
		ofHost: func(s scene, emit emit) {
			if s.cluster.Contact != nil {
				emit(secondsOf(*s.cluster.Contact))
			}
		}},
	{name: "understudy_voter_heard_age_seconds", help: "Since the last word of each other voter to this host; missing if none since the daemon began.", labels: []string{"host"},
		ofHost: func(s scene, emit emit) {
			for _, v := range s.cluster.Voters {
				if v.Heard != nil && v.Host != s.cluster.Host {
					emit(secondsOf(*v.Heard), string(v.Host))
				}
			}
		}},

	state("understudy_guest_role", "1 for the part this host plays for the guest.", "role", roles, roleOf),
	code("understudy_guest_role_code", "The part this host plays: 0 starting, 1 waiting, 2 booting, 3 recovering, 4 stopped, 5 yielding, 6 backup, 7 primary, 8 released.", roles, roleOf),
	state("understudy_guest_mode", "1 for where the guest's protection stands; none where this host is not its primary.", "mode", modes, modeOf),
	code("understudy_guest_mode_code", "Where the protection stands: 0 none, 1 alone, 2 syncing, 3 entering, 4 protected, 5 detaching, 6 leaving, 7 yielded, 8 ended, 9 starting.", modes, modeOf),
	state("understudy_guest_protected", "1 for whether a backup in sync is fed; unknown where this host is not the primary.", "state", protected, protectedOf),
	code("understudy_guest_protected_code", "Whether a backup in sync is fed: 0 no, 1 yes, 2 unknown.", protected, protectedOf),
	state("understudy_guest_phase", "1 for how far the owner of the guest has come, in the log as it is known here.", "phase", phases, phaseOf),
	code("understudy_guest_phase_code", "How far the owner has come: 0 none, 1 active, 2 activating, 3 surrendered.", phases, phaseOf),
	{name: "understudy_guest_serves", help: "1 if this host runs the guest, holds its lease and may let its output out: what /primary says.",
		ofGuest: func(g host.GuestStatus, _ scene, emit emit) { emit(truth(serves(g).Answer == Yes)) }},
	{name: "understudy_guest_in_sync", help: "1 if the image here is in sync: what /backup says.",
		ofGuest: func(g host.GuestStatus, s scene, emit emit) {
			emit(truth(inSync(g, facts{s.report.Lease, s.cluster}, nil).Answer == Yes))
		}},
	{name: "understudy_guest_problem", help: "1 while something keeps this host from doing its part for the guest.",
		ofGuest: func(g host.GuestStatus, _ scene, emit emit) { emit(truth(g.Problem != "")) }},
	{name: "understudy_guest_generation", help: "Generation of the guest's owner, in the log as it is known here.",
		ofGuest: func(g host.GuestStatus, _ scene, emit emit) { emit(number(uint64(g.Log.Generation))) }},
	{name: "understudy_guest_epoch", help: "Last epoch that was committed: by the backup's word on the primary, here on the backup.",
		ofGuest: func(g host.GuestStatus, _ scene, emit emit) {
			switch {
			case g.Primary != nil:
				emit(number(uint64(g.Primary.Epoch)))
			case g.Backup != nil:
				emit(number(uint64(g.Backup.Epoch)))
			}
		}},
	{name: "understudy_guest_commit_age_seconds", help: "Since the last committed epoch was sealed (primary) or committed (backup); missing if none was.",
		ofGuest: func(g host.GuestStatus, _ scene, emit emit) {
			switch {
			case g.Primary != nil && g.Primary.Epoch > 0:
				emit(secondsOf(g.Primary.EpochAge))
			case g.Backup != nil && g.Backup.Epoch > 0:
				emit(secondsOf(g.Backup.EpochAge))
			}
		}},
	{name: "understudy_guest_peer_age_seconds", help: "Since the last word of the pair's other host on its session; missing without a session.",
		ofGuest: func(g host.GuestStatus, _ scene, emit emit) {
			switch {
			case g.Primary != nil && g.Primary.PeerAge != nil:
				emit(secondsOf(*g.Primary.PeerAge))
			case g.Backup != nil && g.Backup.PeerAge != nil:
				emit(secondsOf(*g.Backup.PeerAge))
			}
		}},
	{name: "understudy_guest_takeovers_total", help: "Takeovers of the guest by this host since the daemon began.", kind: counter,
		ofGuest: func(g host.GuestStatus, _ scene, emit emit) { emit(number(g.Takeovers)) }},
	{name: "understudy_guest_missing_bytes", help: "Memory of a lazy restore that is still only in the checkpoint file.",
		ofGuest: func(g host.GuestStatus, _ scene, emit emit) { emit(number(g.Missing * epoch.PageSize)) }},

	ofPrimary("understudy_guest_lease_left_seconds", "What is left of the lease that this host holds; 0: none.", func(p primary.Status) sample { return secondsOf(p.LeaseLeft) }),
	ofPrimary("understudy_guest_running", "1 if the guest runs, 0 if it stands still.", func(p primary.Status) sample { return truth(p.Running) }),
	ofPrimary("understudy_guest_linked", "1 if a session to the backup is open.", func(p primary.Status) sample { return truth(p.Linked) }),
	ofPrimary("understudy_guest_held_frames", "Frames of output that wait for their epoch's commit.", func(p primary.Status) sample { return number(p.Held) }),
	ofPrimary("understudy_guest_held_bytes", "Output that waits for its epoch's commit.", func(p primary.Status) sample { return number(p.HeldBytes) }),
	ofPrimary("understudy_guest_dirty_pages", "Pages that the last checkpoint found written.", func(p primary.Status) sample { return number(p.Dirty) }),
	ofPrimary("understudy_guest_remaining_pages", "Pages that an initial synchronisation has yet to send.", func(p primary.Status) sample { return number(p.Remaining) }),
	ofPrimary("understudy_guest_memory_bytes", "Memory of the guest.", func(p primary.Status) sample { return number(p.Pages * epoch.PageSize) }),
	{name: "understudy_guest_pause_seconds", help: "Pause of a checkpoint; quantiles of the last 2048, sum and count of all.", kind: summary,
		ofGuest: func(g host.GuestStatus, _ scene, emit emit) {
			t := totalsOf(g)
			v := sample{value: t.PauseTime.Seconds(), count: t.Checkpoints}
			if g.Primary != nil {
				v.quantiles = quantiles(g.Primary.Pause)
			}
			emit(v)
		}},
	{name: "understudy_guest_commit_lag_seconds", help: "From sealing an epoch to the backup's word that it is committed; as above.", kind: summary,
		ofGuest: func(g host.GuestStatus, _ scene, emit emit) {
			t := totalsOf(g)
			v := sample{value: t.LagTime.Seconds(), count: t.Commits}
			if g.Primary != nil {
				v.quantiles = quantiles(g.Primary.Lag)
			}
			emit(v)
		}},
	total("understudy_guest_checkpoints_total", "Checkpoints taken.", func(t primary.Totals) sample { return number(t.Checkpoints) }),
	total("understudy_guest_commits_total", "Epochs that the backup has committed.", func(t primary.Totals) sample { return number(t.Commits) }),
	total("understudy_guest_raw_bytes_total", "Written pages as they are.", func(t primary.Totals) sample { return number(t.RawBytes) }),
	total("understudy_guest_wire_bytes_total", "What was sent for them.", func(t primary.Totals) sample { return number(t.WireBytes) }),
	total("understudy_guest_write_bytes_total", "Disk writes that were sent.", func(t primary.Totals) sample { return number(t.WriteBytes) }),
	total("understudy_guest_sync_bytes_total", "What was sent to bring a copy of the disks up to date.", func(t primary.Totals) sample { return number(t.SyncBytes) }),
	{name: "understudy_guest_pages_total", help: "Written pages by how they travelled: as they are (raw), packed, as a delta, as the name of a disk block (reference) or of an equal page (copy), as zero, or not at all (same).", kind: counter, labels: []string{"as"},
		ofGuest: func(g host.GuestStatus, _ scene, emit emit) {
			t := totalsOf(g)
			for _, one := range []struct {
				as string
				n  uint64
			}{{"raw", t.RawPages}, {"packed", t.PackedPages}, {"delta", t.DeltaPages}, {"reference", t.ReferencePages}, {"copy", t.CopyPages}, {"zero", t.ZeroPages}, {"same", t.SamePages}} {
				emit(number(one.n), one.as)
			}
		}},
	{name: "understudy_guest_exclusion_pages_total", help: "Pages that exclusion looked at, by what came of it: left out (mapped, indexed, copied), or sent all the same, and why.", kind: counter, labels: []string{"reason"},
		ofGuest: func(g host.GuestStatus, _ scene, emit emit) {
			var x exclusion.Stats
			if g.Excluded == nil {
				return
			}
			x = *g.Excluded
			for _, one := range []struct {
				reason string
				n      uint64
			}{{"mapped", x.Mapped}, {"indexed", x.Indexed}, {"copied", x.Copied}, {"skipped", x.Skipped}, {"unknown", x.Unknown}, {"changed", x.Changed},
				{"overwritten", x.Overwritten}, {"unverified", x.Unverified}, {"full", x.Full}, {"lapsed", x.Lapsed}} {
				emit(number(one.n), one.reason)
			}
		}},
	{name: "understudy_guest_references_unfilled", help: "References that the backup has yet to fill from the disk.",
		ofGuest: func(g host.GuestStatus, _ scene, emit emit) {
			if g.Excluded != nil {
				emit(number(g.Excluded.Outstanding))
			}
		}},

	ofDisks("understudy_guest_held_writes", "Disk writes that wait for a commit, or for the disk after it.", gauge, func(d disk.Status) sample { return number(d.Writes) }),
	ofDisks("understudy_guest_held_write_bytes", "The same, in bytes.", gauge, func(d disk.Status) sample { return number(d.Bytes) }),
	ofDisks("understudy_guest_held_write_limit_bytes", "The bound on that.", gauge, func(d disk.Status) sample { return number(d.Limit) }),
	ofDisks("understudy_guest_disk_reads_total", "Reads by the guest.", counter, func(d disk.Status) sample { return number(d.Reads) }),
	ofDisks("understudy_guest_disk_flushed_writes_total", "Held writes that have reached the disk.", counter, func(d disk.Status) sample { return number(d.Flushed) }),
	ofDisks("understudy_guest_disk_flushed_bytes_total", "The same, in bytes.", counter, func(d disk.Status) sample { return number(d.FlushedBytes) }),
	ofDisks("understudy_guest_disk_errors_total", "Requests that failed at the disk.", counter, func(d disk.Status) sample { return number(d.Errors) }),
	ofDisks("understudy_guest_disk_full_total", "How often a write found no room among the held ones.", counter, func(d disk.Status) sample { return number(d.Full) }),
}
