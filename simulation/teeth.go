package simulation

// This file breaks the rules one at a time, outside the cores, and counts the
// seeds until the oracle notices. A breach that nobody notices means that the
// rule is not tested.

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"

	"understudy/disk"
	"understudy/epoch"
	"understudy/ownership"
)

// breach is a way of breaking the rules. No daemon knows of it: it is in this
// package's world alone.
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
	syncLies
	lockIgnored
	ownWritesUnseen
	surrenderUndrained
	overwriteUnfilled
	replayMissing
	supersedeMissing
	ackUnfilled
	referenceHeld
	unverifiedUnseen
	acceptedUnseen
	indexKept
	stoppedTaken
	startKeepsGeneration
	lastEpochMissing
	stopUndrained
	offIsExit
	monotonicClock
	heldMissing
	adoptedClean
	scanUnfinished
	inFlightForgotten
	failureSwallowed
	flushedEarly
	limitIgnored
	tornTaken
	foreignTaken
	anyAckTaken
	printIgnored
	spoiltKept
	pausedTaken
	passBeforePaused
	pauseForgetsDirty
	forceWaitsNot
	forceKeepsGeneration
	fenceUnseen
	forceOverGuest
	promiseForgotten
	promiseEndless
	bidMissing
	leftUnacked
	leftClean
	leftTwice
	successorEarly
	formerGoesOn
	gateLeftOpen
	leaseAssumed

	breaches // their number
)

// breachTable says what each breaks: guarantees ("G1") and rules.
var breachTable = [breaches]struct{ rules, name string }{
	releaseOnSend:      {"G2", "output is released when its epoch is sent"},
	holdLate:           {"G2, 1", "InSync is proposed before output is held"},
	passEarly:          {"G6, 4", "output passes before OutOfSync is applied"},
	acksWhileAsking:    {"5", "the backup acknowledges while it asks for a takeover"},
	forgetOnSend:       {"G5", "dirty pages are forgotten when they are sent"},
	outOfSyncForgotten: {"G6, 2", "a backup out of sync may take over"},
	renewFromReply:     {"3", "a renewal counts from its reply"},
	restoreMissing:     {"G5", "no Restore when a session resumes"},
	refillMissing:      {"G3, 2", "no Refill for a new image"},
	takeoverWaitsNot:   {"G1, G6", "a takeover does not wait for the lease"},
	newLeaderWaitsNot:  {"3", "a new leader does not wait for a full lease"},
	renewWhileTaken:    {"3", "renewals are answered while a takeover is decided"},
	renewUnconfirmed:   {"3, 9", "a leader renews without asking whether it still leads"},
	shutMissing:        {"7", "the gate is not shut for a surrender"},
	pauseMissing:       {"G7", "the guest runs on without a lease"},
	gateIgnoresLease:   {"G1, 8", "the gate does not look at the lease"},
	passAtOnce:         {"10", "output passes before the takeover is recorded as done"},
	syncLies:           {"13", "a disk says durable, and it is not"},
	lockIgnored:        {"12", "a shared disk is taken from a host that may still write to it"},
	ownWritesUnseen:    {"G5, 15", "pages that the disk's back end wrote are not reported"},
	surrenderUndrained: {"7", "a surrender does not wait for the disks"},
	overwriteUnfilled:  {"17", "after a takeover blocks are overwritten that references name"},
	replayMissing:      {"12", "what the backup kept is not replayed"},
	supersedeMissing:   {"G4, 18", "newer content does not supersede a reference"},
	ackUnfilled:        {"G4, 17", "an epoch is acknowledged before what it overwrites is filled"},
	referenceHeld:      {"G4, 16", "a page is left out for a write that is held"},
	unverifiedUnseen:   {"19", "a page is left out for a block that the backup's own copy is not known to have"},
	acceptedUnseen:     {"16", "a write does not end what is known of its block"},
	indexKept:          {"G4, 16", "what was known of a disk outlives the time in which another host wrote to it"},

	stoppedTaken:         {"6", "a stopped guest may be taken over"},
	startKeepsGeneration: {"6", "a start does not raise the generation"},
	lastEpochMissing:     {"6", "a stop commits no last epoch"},
	stopUndrained:        {"6", "a stop is recorded before the disks have what was released"},
	offIsExit:            {"6", "a guest that powers itself off is gone before its stop is recorded"},
	monotonicClock:       {"8", "leases are measured by a clock that stands still in suspend"},
	heldMissing:          {"11", "a guest is adopted whose held writes are lost"},
	adoptedClean:         {"11", "an adoption goes on from the image that the backup had, without a full resynchronisation"},
	scanUnfinished:       {"G5, 11", "a scan that failed counts as one that found what it was to find"},
	inFlightForgotten:    {"15", "requests in flight are not in the checkpoint"},
	failureSwallowed:     {"14", "a flush that fails is dropped"},
	flushedEarly:         {"14", "a write is reported flushed, and the backup drops it, before it is durable"},
	limitIgnored:         {"14", "at the limit of held writes requests are taken on"},

	tornTaken:    {"G8, G3", "an epoch is taken whatever its checksum says"},
	foreignTaken: {"G8, G3, 5", "an epoch is taken whatever its parent and its generation are"},
	anyAckTaken:  {"G8, G2", "an acknowledgement counts whatever it names"},
	printIgnored: {"G4", "a page is filled whatever its fingerprint says"},
	spoiltKept:   {"G4, G6", "an image that cannot be made whole is not given up"},

	pausedTaken:       {"G6", "a guest may be taken over while its protection is paused or given up"},
	passBeforePaused:  {"G6, 4", "output passes as soon as the operator wants no protection, before the log says so"},
	pauseForgetsDirty: {"G3, G5", "what was dirtied during a pause is not sent after it"},

	forceWaitsNot:        {"G1, G7", "a forced failover does not wait for the lease"},
	forceKeepsGeneration: {"6", "a forced failover does not raise the generation"},
	fenceUnseen:          {"G1, 12", "an operator says of a host that lives that it is off"},

	forceOverGuest: {"6", "a host forces a failover to itself while it has a guest of an earlier generation"},

	promiseForgotten: {"H2", "a backup promises to wait for the next daemon, and takes its silence for a failure"},
	promiseEndless:   {"H2, G6", "patience keeps a takeover away for longer than was promised"},
	bidMissing:       {"H1", "a guest is left without its backup's promise"},
	leftUnacked:      {"H1, G2", "a guest is left before its last epoch is acknowledged"},
	leftClean:        {"H5, G5", "pages that are dirty when the guest is left count as clean for the next daemon"},
	leftTwice:        {"H5, 11", "what was left is gone on from once more"},
	successorEarly:   {"H3, G1", "a new daemon acts before the old one has left everything to it"},
	formerGoesOn:     {"H3, G1", "a daemon goes on beside the new one that it has given up and not ended"},
	gateLeftOpen:     {"H3, G1", "a daemon's gate stays open after it has handed over"},
	leaseAssumed:     {"H4, G7", "the next daemon takes it that its host's lease begins with it"},
}

// needsAim are the cells at which breaches show that show nowhere else: one seed
// in some thousand would come there.
var needsAim = map[breach]cell{
	lockIgnored:    {stepFlushWrite, faultFreeze},  // a write on its way when the host stood still
	fenceUnseen:    {stepAppliedFence, faultStall}, // of an owner that is alone, see lead
	forceOverGuest: {stepAppliedForce, faultStall}, // of one that is, and hears of it late
	promiseEndless: {stepClose, faultPower},
	leftTwice:      {stepUp, faultStall}, // and the next daemon dies, see goesOn
	leftClean:      {stepUp, faultStall},
	formerGoesOn:   {stepUp, faultFreeze},
	leaseAssumed:   {stepFound, faultTakeover},
}

// elsewhere are rules that say nothing to the cores: there is nothing of them in
// this world, and the tests that fail without them are named.
var elsewhere = []struct{ rules, about, tests string }{
	{"20", "checkpoint files: stamps and pins, which every write of a store obeys, whoever makes it",
		"store.TestPinKeepsWhatWas, store.TestPinBreaksLoudly, checkpoint.TestDisksMustBeAsTheyWere"},
	{"21-28", "QEMU: what it shows, hides and cannot do", "packages qemu, dirty, stream"},
	{"G8", "lengths, certificates, files: what is parsed before a core hears of it", "the fuzz targets, transport.TestHandshakeMatrix"},
}

// Bite is what became of a breach.
type Bite struct {
	Rules  string `json:"rules"`
	Breach string `json:"breach"`
	// Seeds is how many were played until it was noticed; 0: it was not.
	Seeds   int    `json:"seeds"`
	Noticed string `json:"noticed"`
}

// Teeth breaks one rule after the other, in up to seeds seeds each.
func Teeth(ctx context.Context, seeds, workers int) ([]Bite, error) {
	if workers < 1 {
		workers = runtime.GOMAXPROCS(0)
	}
	teeth := make([]Bite, breaches-1)
	var next atomic.Int64
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			for n := next.Add(1); n < int64(breaches); n = next.Add(1) {
				teeth[n-1] = bite(ctx, breach(n), seeds)
			}
		})
	}
	group.Wait()
	return teeth, ctx.Err()
}

func bite(ctx context.Context, b breach, seeds int) Bite {
	out := Bite{Rules: breachTable[b].rules, Breach: breachTable[b].name}
	for n := 1; n <= seeds && ctx.Err() == nil; n++ {
		if r := play(uint64(n), b, false); r.failed != "" {
			out.Seeds, out.Noticed = n, r.failed
			return out
		}
	}
	return out
}

// PrintTeeth prints the table breach → seeds needed → what noticed.
func PrintTeeth(w io.Writer, teeth []Bite) error {
	p := printer{w: w}
	p.f("%-12s%-90s%6s  %s\n", "kept", "broken", "seeds", "noticed")
	for _, b := range teeth {
		seeds, noticed := fmt.Sprint(b.Seeds), []rune(b.Noticed)
		if b.Seeds == 0 {
			seeds, noticed = "-", []rune("NOT NOTICED")
		}
		p.f("%-12s%-90s%6s  %s\n", b.Rules, b.Breach, seeds, string(noticed[:min(len(noticed), 100)]))
	}
	for _, e := range elsewhere {
		p.f("%-12s%-90s%6s  %s\n", e.rules, e.about, "", e.tests)
	}
	return p.err
}

// brokenIndex is an index that is not told everything.
type brokenIndex struct {
	disk.Index
	breach breach
}

func breakIndex(b breach, x disk.Index) disk.Index {
	if b == unverifiedUnseen || b == acceptedUnseen || b == indexKept {
		return brokenIndex{x, b}
	}
	return x
}

func (x brokenIndex) SetVerified(id epoch.DiskID, from, to uint64, verified bool) {
	x.Index.SetVerified(id, from, to, verified || x.breach == unverifiedUnseen)
}

func (x brokenIndex) Accepted(id epoch.DiskID, sector uint64, sectors uint32, passing bool) uint64 {
	if x.breach == acceptedUnseen {
		sector, sectors = 0, 0
	}
	return x.Index.Accepted(id, sector, sectors, passing)
}

func (x brokenIndex) Forget() {
	if x.breach != indexKept {
		x.Index.Forget()
	}
}

// decide is ownership.Apply, unless that is what is broken.
func (b breach) decide(g ownership.Guest, c ownership.Command) (ownership.Guest, error) {
	next, err := ownership.Apply(g, c)
	switch {
	case b == pausedTaken && err == nil && (c.Kind == ownership.Pause || c.Kind == ownership.Unprotect || c.Kind == ownership.OutOfSync && g.Protection != ownership.ProtectionOn),
		b == outOfSyncForgotten && c.Kind == ownership.OutOfSync && err == nil,
		b == stoppedTaken && c.Kind == ownership.Stop && err == nil:
		next.InSync, next.Backup = g.InSync, g.Backup
	case b == stoppedTaken && c.Kind == ownership.Takeover && err != nil && g.Desired == ownership.Stopped && g.Backup.Image == c.Backup.Image:
		g.Desired, c.Generation, c.Revision = ownership.Running, g.Generation, g.Revision
		return ownership.Apply(g, c)
	case b == forceKeepsGeneration && c.Kind == ownership.Force && err == nil:
		next.Generation = g.Generation
	case b == startKeepsGeneration && c.Kind == ownership.Start && err == nil && g.Generation > 0:
		next.Generation = g.Generation
	}
	return next, err
}

// shows is what a backup sees of the log.
func (b breach) shows(g ownership.Guest) ownership.Guest {
	if b == stoppedTaken && g.InSync {
		g.Desired = ownership.Running
	}
	return g
}

// flushedUpTo makes a state of the disks say that writes up to seq are durable.
func flushedUpTo(state []byte, seq uint64) {
	flushed := state[2:] // of the first disk; see package disk
	if binary.LittleEndian.Uint64(flushed) < seq {
		binary.LittleEndian.PutUint64(flushed, seq)
	}
}
