package drill

// Each guarantee is one function of the evidence: what it found, and by what. A
// guarantee that could not be shown to hold has not held.

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"understudy/epoch"
	"understudy/events"
	"understudy/ownership"
)

func (e *evidence) guarantees() []Guarantee {
	all := []Guarantee{e.generations(), e.oneOwner()}
	if e.spec.Kind == Bubble {
		return append(all, e.unnoticed(), e.nothingLeft(), e.notRebooted(), e.protectedAgain(), e.identical(), e.heldLeft())
	}
	return append(all, e.wentOn(), e.freshImage(), e.nothingTakenBack(), e.notRebooted(), e.protectedAgain(), e.identical(), e.heldLeft())
}

func guarantee(name string, v Verdict, format string, a ...any) Guarantee {
	return Guarantee{name, v, clip(fmt.Sprintf(format, a...), maxText)}
}

// generations only rose, and by what the drill changed.
func (e *evidence) generations() Guarantee {
	const name = "generations only rose, by what the drill did"
	newest := map[ownership.HostID]epoch.Generation{}
	for _, r := range e.records {
		if r.Kind != events.KindOwnerChanged {
			continue
		}
		if r.Generation < newest[r.Host] {
			return guarantee(name, No, "%s recorded generation %d after %d", r.Host, r.Generation, newest[r.Host])
		}
		newest[r.Host] = r.Generation
	}
	want := e.before.Generation
	if e.moved {
		want++
	}
	if e.returned {
		want++
	}
	switch got := e.after.Generation; {
	case got < e.before.Generation:
		return guarantee(name, No, "it was %d, and is %d", e.before.Generation, got)
	case got != want:
		return guarantee(name, No, "it was %d, and is %d: this drill explains %d", e.before.Generation, got, want)
	default:
		return guarantee(name, Yes, "%d before, %d after; the records of %s agree", e.before.Generation, got, e.readers())
	}
}

// readers names the hosts whose records were read.
func (e *evidence) readers() string {
	read := map[ownership.HostID]bool{e.from: e.unread[e.from] == "", e.to: e.unread[e.to] == ""}
	for _, r := range e.records {
		read[r.Host] = true
	}
	var names []string
	for h, ok := range read {
		if ok && h != "" {
			names = append(names, string(h))
		}
	}
	slices.Sort(names)
	if len(names) == 0 {
		return "nobody"
	}
	return strings.Join(names, ", ")
}

// oneOwner: in no generation two hosts ran the guest, and none after it had a
// newer owner.
func (e *evidence) oneOwner() Guarantee {
	const name = "never two owners"
	owners := map[epoch.Generation]ownership.HostID{}
	claim := func(g epoch.Generation, h ownership.HostID) (ownership.HostID, bool) {
		if was, known := owners[g]; known && was != h {
			return was, false
		}
		owners[g] = h
		return "", true
	}
	owners[e.before.Generation] = e.before.Owner
	for _, r := range e.records {
		var who ownership.HostID
		switch r.Kind {
		case events.KindOwnerChanged:
			who = ownership.HostID(r.Change.To)
		case events.KindActivated, events.KindTakeoverRunning, events.KindFirstOutput, events.KindBooted, events.KindAdopted:
			who = r.Host
		default:
			continue
		}
		if r.Generation == 0 || who == "" {
			continue
		}
		if other, ok := claim(r.Generation, who); !ok {
			return guarantee(name, No, "generation %d is %s's, and the record of %s has %s as its owner (%s)", r.Generation, other, r.Host, who, r.Kind)
		}
	}
	for _, g := range slices.Sorted(maps.Keys(e.seen.runs)) {
		for h, s := range e.seen.runs[g] {
			if other, ok := claim(g, h); !ok {
				return guarantee(name, No, "generation %d is %s's, and %s was seen to run the guest in it", g, other, h)
			}
			for later, of := range e.seen.runs {
				for other, t := range of {
					if later > g && other != h && s.last > t.first {
						return guarantee(name, No, "%s ran the guest in generation %d under a lease %s after the drill began, when %s already did in generation %d (since %s)",
							h, g, about(s.last), other, later, about(t.first))
					}
				}
			}
		}
	}
	if len(e.unread) > 0 {
		return guarantee(name, Unknown, "not all records could be read: %v", e.unread)
	}
	return guarantee(name, Yes, "one host in each generation, by the records of %s and by %d answers of the hosts", e.readers(), e.seen.answers)
}

// wentOn: the guest ran on at its backup's host.
func (e *evidence) wentOn() Guarantee {
	const name = "the guest went on at its backup"
	if !e.moved {
		return guarantee(name, No, "it did not: the log names %s the owner in generation %d", e.after.Owner, e.after.Generation)
	}
	if got, ok := e.find(e.to, events.KindActivated, e.generation()); ok {
		return guarantee(name, Yes, "%s: %s", e.to, got.Text)
	}
	return guarantee(name, Unknown, "it ran on %s, whose record does not say so", e.to)
}

// freshImage: the takeover was of an image in sync, at its epoch or later.
func (e *evidence) freshImage() Guarantee {
	const name = "no stale image took over"
	if !e.moved {
		return guarantee(name, Unknown, "nothing took over")
	}
	need := e.before.Backup.Epoch
	if given, ok := e.find(e.from, events.KindSurrendered, 0); ok && e.spec.Kind == Switchover {
		need = max(need, given.Epoch)
	}
	got, ok := e.find(e.to, events.KindTakeoverRunning, e.generation())
	switch {
	case !ok:
		return guarantee(name, Unknown, "the record of %s does not say from which epoch it went on", e.to)
	case got.Epoch < need:
		return guarantee(name, No, "it went on from epoch %d; the log asks for %d or later", got.Epoch, need)
	}
	return guarantee(name, Yes, "it went on from epoch %d; the log asked for %d or later", got.Epoch, need)
}

// nothingTakenBack: what was acknowledged is in what the guest went on from.
func (e *evidence) nothingTakenBack() Guarantee {
	const name = "every epoch seen acknowledged was kept"
	if !e.moved {
		return guarantee(name, Unknown, "nothing took over")
	}
	rpo := e.rpo()
	switch {
	case rpo.Resumed == 0 || rpo.Committed == 0:
		return guarantee(name, Unknown, "%s", rpo.OutputLost)
	case rpo.Committed > rpo.Resumed:
		return guarantee(name, No, "%s", rpo.OutputLost)
	}
	return guarantee(name, Yes, "epoch %d was acknowledged, the guest went on from %d; output lost: %s", rpo.Committed, rpo.Resumed, rpo.OutputLost)
}

// notRebooted: its life is the one it had.
func (e *evidence) notRebooted() Guarantee {
	const name = "the guest was not rebooted"
	for _, r := range e.records {
		switch r.Kind {
		case events.KindBooted, events.KindRestored, events.KindStarted, events.KindStopped, events.KindGuestEvent:
			return guarantee(name, No, "%s recorded %s: %s", r.Host, r.Kind, r.Text)
		}
	}
	if len(e.unread) > 0 {
		return guarantee(name, Unknown, "not all records could be read: %v", e.unread)
	}
	return guarantee(name, Yes, "no boot, start, stop, restore or reset of it is in the records of %s", e.readers())
}

func (e *evidence) protectedAgain() Guarantee {
	const name = "the guest is protected"
	if !e.protected {
		return guarantee(name, No, "the log names %s the owner in generation %d, in sync: %v", e.after.Owner, e.after.Generation, e.after.InSync)
	}
	return guarantee(name, Yes, "owner %s, backup %s in sync since epoch %d", e.after.Owner, e.after.Backup.Host, e.after.Backup.Epoch)
}

func (e *evidence) identical() Guarantee {
	const name = "all memory is the same on both hosts"
	switch v := e.verified; {
	case v == nil:
		return guarantee(name, Unknown, "it was not compared")
	case !v.Identical:
		return guarantee(name, No, "%d pages were compared over epochs %d to %d, and they differ", v.Pages, v.First, v.Last)
	default:
		return guarantee(name, Yes, "%d pages were compared over epochs %d to %d", v.Pages, v.First, v.Last)
	}
}

func (e *evidence) heldLeft() Guarantee {
	const name = "held output left"
	switch {
	case e.drainedOK:
		return guarantee(name, Yes, "%s", e.drained)
	case e.drained == "":
		return guarantee(name, Unknown, "it was not looked for")
	}
	return guarantee(name, No, "%s", e.drained)
}

// unnoticed: the owner was protected all the time, with its lease.
func (e *evidence) unnoticed() Guarantee {
	const name = "the primary did not notice"
	for _, r := range e.records {
		switch r.Kind {
		case events.KindUnprotected, events.KindLeaseLost, events.KindImageGivenUp, events.KindMismatch:
			return guarantee(name, No, "%s recorded %s: %s", r.Host, r.Kind, r.Text)
		}
	}
	if when := e.seen.unprotected; when != nil {
		return guarantee(name, No, "the guest was not protected %s after the drill began", about(*when))
	}
	if len(e.unread) > 0 {
		return guarantee(name, Unknown, "not all records could be read: %v", e.unread)
	}
	return guarantee(name, Yes, "it was protected and had its lease all the time; the last commit was %s old before, and %s while the bubble ran (median)",
		about(e.lagBefore), about(e.lagIn))
}

// nothingLeft: the bubble is gone.
func (e *evidence) nothingLeft() Guarantee {
	const name = "nothing of the bubble is left"
	switch b := e.bubble; {
	case b == nil:
		return guarantee(name, Unknown, "the bubble did not come to its end")
	case !b.Ended:
		return guarantee(name, No, "%s has not ended it", e.to)
	default:
		return guarantee(name, Yes, "%s has ended it", e.to)
	}
}
