package egress

import (
	"understudy/clock"
	"understudy/epoch"
)

// Recorder is told all that decides what leaves, in the order in which it
// happens, before it has an effect if it opens the gate and after if it shuts
// it. Tests of the whole system make a history of it; nobody else has one. It is
// called under the gate's locks and must not call the gate.
type Recorder interface {
	Record(Note)
}

// Note is one entry for a Recorder.
type Note struct {
	What What
	// Epoch of NoteSeal and NoteRelease.
	Epoch epoch.Number
	// Position counts the guest's frames from the gate's beginning: how many
	// there were at the time, or, with NoteLeave, the first of those that leave.
	Position uint64
	Frames   int           // of NoteLeave
	Until    clock.Instant // of NoteAllow
}

// What names a Note.
type What string

const (
	NoteAllow    What = "allow"    // the lease ends at Until
	NoteSeal     What = "seal"     // frames before Position belong to epochs up to Epoch
	NoteRelease  What = "release"  // those of epochs up to Epoch may leave
	NoteHold     What = "hold"     // what was not released waits for the next epoch
	NotePass     What = "pass"     // frames leave as they come
	NoteShut     What = "shut"     // nothing leaves any more
	NoteDiscard  What = "discard"  // frames before Position are forgotten
	NoteLeave    What = "leave"    // these frames are about to leave
	NoteAnnounce What = "announce" // frames of our own are about to leave
)

func (g *Gate) note(n Note) {
	if g.recorder != nil {
		g.recorder.Record(n)
	}
}
