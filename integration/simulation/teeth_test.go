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

// maxSeeds is how many seeds a breach may need.
const maxSeeds = 3000

// TestTeeth breaks one rule at a time, outside the cores, and counts the seeds
// until the oracle notices. A breach that nobody notices means that the rule
// is not tested.
func TestTeeth(t *testing.T) {
	table := []struct {
		breach breach
		name   string
	}{
		{releaseOnSend, "output is released when its epoch is sent"},
		{holdLate, "InSync is proposed before output is held"},
		{passEarly, "output passes before OutOfSync is applied"},
		{acksWhileAsking, "the backup acknowledges while it asks for a takeover"},
		{forgetOnSend, "dirty pages are forgotten when they are sent"},
		{outOfSyncForgotten, "a backup out of sync may take over"},
		{renewFromReply, "a renewal counts from its reply"},
		{restoreMissing, "no Restore when a session resumes"},
		{refillMissing, "no Refill for a new image"},
		{takeoverWaitsNot, "a takeover does not wait for the lease"},
		{newLeaderWaitsNot, "a new leader does not wait for a full lease"},
		{renewWhileTaken, "renewals are answered while a takeover is decided"},
		{renewUnconfirmed, "a leader renews without asking whether it still leads"},
		{shutMissing, "the gate is not shut for a surrender"},
		{pauseMissing, "the guest runs on without a lease"},
		{gateIgnoresLease, "the gate does not look at the lease"},
		{passAtOnce, "output passes before the takeover is recorded as done"},
	}
	for _, row := range table {
		t.Run(strings.ReplaceAll(row.name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			for seed := uint64(1); seed <= maxSeeds; seed++ {
				if r := play(seed, row.breach, false); r.failed != "" {
					t.Logf("%-60s seed %4d, %s", row.name, seed, r.failed)
					return
				}
			}
			t.Errorf("%s: nobody noticed within %d seeds", row.name, maxSeeds)
		})
	}
}
