package simulation

import (
	"strings"
	"testing"
)

// breach is a way of breaking the rules, which the oracle must notice.
type breach int

const (
	honest breach = iota
	releaseOnSend
	holdLate
	passEarly
	acksWhileAsking
	forgetOnSend
	outOfSyncForgotten
	renewFromReply
	restoreMissing
	refillMissing
	takeoverWaitsNot
	newLeaderWaitsNot
	renewWhileTaken
	renewUnconfirmed
	shutMissing
	pauseMissing
	gateIgnoresLease
	passAtOnce
)

// TestTeeth breaks one rule at a time, outside the cores, and counts the seeds
// until the oracle notices. A breach that nobody notices means that the rule
// is not tested.
func TestTeeth(t *testing.T) {
	table := []struct {
		breach breach
		name   string
		rare   bool // needs hundreds of seeds
	}{
		{releaseOnSend, "output is released when its epoch is sent", false},
		{holdLate, "InSync is proposed before output is held", false},
		{passEarly, "output passes before OutOfSync is applied", false},
		{acksWhileAsking, "the backup acknowledges while it asks for a takeover", false},
		{forgetOnSend, "dirty pages are forgotten when they are sent", false},
		{outOfSyncForgotten, "a backup out of sync may take over", false},
		{renewFromReply, "a renewal counts from its reply", true},
		{restoreMissing, "no Restore when a session resumes", false},
		{refillMissing, "no Refill for a new image", false},
		{takeoverWaitsNot, "a takeover does not wait for the lease", false},
		{newLeaderWaitsNot, "a new leader does not wait for a full lease", true},
		{renewWhileTaken, "renewals are answered while a takeover is decided", true},
		{renewUnconfirmed, "a leader renews without asking whether it still leads", true},
		{shutMissing, "the gate is not shut for a surrender", false},
		{pauseMissing, "the guest runs on without a lease", false},
		{gateIgnoresLease, "the gate does not look at the lease", false},
		{passAtOnce, "output passes before the takeover is recorded as done", false},
	}
	for _, row := range table {
		t.Run(strings.ReplaceAll(row.name, " ", "-"), func(t *testing.T) {
			if row.rare && teethSeeds < 3000 {
				t.Log("left to the test without the race detector")
				return
			}
			t.Parallel()
			for seed := uint64(1); seed <= teethSeeds; seed++ {
				if r := play(seed, row.breach, false); r.failed != "" {
					t.Logf("%-60s seed %4d, %s", row.name, seed, r.failed)
					return
				}
			}
			t.Errorf("%s: nobody noticed within %d seeds", row.name, teethSeeds)
		})
	}
}
