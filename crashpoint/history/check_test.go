package history_test

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy/clock"
	"understudy/crashpoint/history"
	"understudy/egress"
	"understudy/epoch"
	"understudy/ownership"
)

const ms = clock.Instant(time.Millisecond)

var image = epoch.Incarnation{1}

func line(at clock.Instant, host, what string) history.Line {
	return history.Line{At: at * ms, Host: host, Guest: "web", What: what}
}

// sound is a history in which nothing is wrong: a guest runs unprotected on a,
// becomes protected, and b takes it over when a's lease has run out.
func sound() []history.Line {
	log := func(at clock.Instant, host string, owner string, revision uint64, g epoch.Generation, inSync bool) history.Line {
		l := line(at, host, history.Log)
		l.Owner, l.Revision, l.Generation, l.InSync, l.Phase = ownership.HostID(owner), revision, g, inSync, ownership.PhaseActive
		return l
	}
	lease := func(at clock.Instant, host string, g epoch.Generation, until clock.Instant) []history.Line {
		r, a := line(at, host, history.Renewed), line(at, host, string(egress.NoteAllow))
		r.Generation, r.Until, a.Until = g, until*ms, until*ms
		return []history.Line{r, a}
	}
	at := func(at clock.Instant, what egress.What, n epoch.Number, position uint64, frames int) history.Line {
		l := line(at, "a", string(what))
		l.Epoch, l.Position, l.Frames = n, position, frames
		return l
	}
	ack := func(at clock.Instant, n epoch.Number, what string) history.Line {
		l := line(at, "a", what)
		l.Epoch, l.Image = n, image
		return l
	}
	h := []history.Line{line(0, "a", history.Born), log(1, "a", "a", 1, 1, false)}
	h = append(h, lease(2, "a", 1, 1002)...)
	h = append(h,
		at(3, egress.NotePass, 0, 0, 0), at(4, egress.NoteLeave, 0, 0, 3), ack(5, 0, history.Welcome),
		at(6, egress.NoteHold, 0, 5, 0), at(7, egress.NoteLeave, 0, 3, 2), // caught before the hold
		at(8, egress.NoteSeal, 1, 7, 0), ack(9, 1, history.Acked), at(10, egress.NoteRelease, 1, 9, 0), at(11, egress.NoteLeave, 0, 5, 2),
		log(12, "a", "a", 2, 1, true),
		at(13, egress.NoteSeal, 2, 9, 0), ack(14, 2, history.Acked), at(15, egress.NoteRelease, 2, 9, 0), at(16, egress.NoteLeave, 0, 7, 2),
		line(1, "b", history.Born), log(1003, "b", "b", 3, 2, false))
	h = append(h, lease(1004, "b", 2, 2004)...)
	b := line(1005, "b", string(egress.NoteAnnounce))
	b.Frames = 1
	late := line(1200, "a", string(egress.NoteAllow)) // a stood still on its way to the gate
	late.Until = 1002 * ms
	return append(h, b, late)
}

func frames() []history.Frame {
	return []history.Frame{{Host: "a", At: 4 * ms}, {Host: "a", At: 990 * ms}, {Host: "b", At: 1100 * ms}}
}

func check(lines []history.Line, frames []history.Frame) history.Result {
	c := history.NewChecker()
	c.Lines(lines)
	c.Frames(frames)
	return c.Result()
}

// TestEachRuleCanFail doctors the sound history, one lie at a time.
func TestEachRuleCanFail(t *testing.T) {
	if r := check(sound(), frames()); len(r.Breaches) > 0 || r.Acked != 2 || r.Batches != 4 || r.Frames != 3 {
		t.Fatalf("the sound history: %+v", r)
	}
	change := func(host, what string, nth int, f func(*history.Line)) func(h []history.Line) []history.Line {
		return func(h []history.Line) []history.Line {
			for i := range h {
				if h[i].Host == host && h[i].What == what {
					if nth--; nth == 0 {
						f(&h[i])
						return h
					}
				}
			}
			t.Fatalf("no such line %s of %s", what, host)
			return nil
		}
	}
	leave := string(egress.NoteLeave)
	for _, c := range []struct {
		name, rule string
		doctor     func(h []history.Line) []history.Line
		frames     []history.Frame
	}{
		{name: "b's gate opens before a's lease is over", rule: "one-gate", doctor: change("b", "allow", 1, func(l *history.Line) { l.At = 1001 * ms })},
		{name: "a frame of an epoch that is not released", rule: "acknowledged", doctor: change("a", leave, 3, func(l *history.Line) { l.Frames = 3 })},
		{name: "a release without an acknowledgement", rule: "acknowledged", doctor: change("a", "release", 1, func(l *history.Line) { l.Epoch = 2 })},
		{name: "an acknowledgement is left out", rule: "acknowledged", doctor: change("a", history.Acked, 1, func(l *history.Line) { l.Epoch = 2 })},
		{name: "acknowledged was another image", rule: "acknowledged", doctor: change("a", history.Acked, 1, func(l *history.Line) { l.Image = epoch.Incarnation{2} })},
		{name: "an acknowledgement out of turn", rule: history.RuleAnswer, doctor: change("a", history.Acked, 2, func(l *history.Line) { l.Epoch = 7 })},
		{name: "an acknowledgement of another image", rule: history.RuleAnswer, doctor: change("a", history.Acked, 2, func(l *history.Line) { l.Image = epoch.Incarnation{2} })},
		{name: "everything leaves, and a backup is in sync", rule: "acknowledged", doctor: change("a", history.Log, 1, func(l *history.Line) { l.InSync = true })},
		{name: "everything leaves, and another is the owner", rule: "acknowledged", doctor: change("a", history.Log, 1, func(l *history.Line) { l.Owner = "b" })},
		{name: "everything leaves of a guest that is being activated", rule: "acknowledged", doctor: change("a", history.Log, 1, func(l *history.Line) { l.Phase = ownership.PhaseActivating })},
		{name: "everything leaves, and the log is not known", rule: "acknowledged", doctor: change("a", history.Log, 1, func(l *history.Line) { l.At = 17 * ms })},
		{name: "out after the lease", rule: "lease", doctor: change("a", leave, 4, func(l *history.Line) { l.At = 1003 * ms })},
		{name: "out of a gate that is shut", rule: "lease", doctor: change("a", "hold", 1, func(l *history.Line) { l.What = "shut" })},
		{name: "open without a lease", rule: "lease", doctor: change("b", history.Renewed, 1, func(l *history.Line) { l.At = 1006 * ms })},
		{name: "announced before the lease", rule: "lease", doctor: change("b", "announce", 1, func(l *history.Line) { l.At = 1003 * ms })},
		{name: "two hosts in one generation", rule: "lease", doctor: change("b", history.Renewed, 1, func(l *history.Line) { l.Generation = 1 })},
		{name: "an older generation", rule: "rising", doctor: change("a", history.Renewed, 1, func(l *history.Line) { l.Generation = 3 })},
		{name: "a frame from a after its lease", rule: "wire", frames: []history.Frame{{Host: "a", At: 1050 * ms}}},
		{name: "a frame from b before its lease", rule: "wire", frames: []history.Frame{{Host: "b", At: 900 * ms}}},
		{name: "a line of an unknown kind", rule: "history", doctor: change("a", leave, 1, func(l *history.Line) { l.What = "levae" })},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := sound()
			if c.doctor != nil {
				h = c.doctor(h)
			}
			r := check(h, c.frames)
			for _, b := range r.Breaches {
				if b.Rule == c.rule {
					return
				}
			}
			t.Errorf("breaches: %v, want one of rule %s", r.Breaches, c.rule)
		})
	}
}

// TestForgettingKeepsWhatIsStillAskedAbout: a gate's times are dropped once no
// frame of theirs can come any more, and no rule is.
func TestForgettingKeepsWhatIsStillAskedAbout(t *testing.T) {
	c := history.NewChecker()
	c.Lines(sound())
	c.Forget(1003 * ms) // a's lease is over, but not for as long as a frame may take
	c.Frames([]history.Frame{{Host: "a", At: 990 * ms}, {Host: "b", At: 1100 * ms}})
	if r := c.Result(); len(r.Breaches) > 0 {
		t.Errorf("forgotten too soon: %v", r.Breaches)
	}
	c.Forget(1500 * ms)
	c.Frames([]history.Frame{{Host: "b", At: 1600 * ms}})
	if r := c.Result(); len(r.Breaches) > 0 {
		t.Errorf("the gate that is open was forgotten: %v", r.Breaches)
	}
	c.Frames([]history.Frame{{Host: "a", At: 1600 * ms}})
	if r := c.Result(); len(r.Breaches) != 1 {
		t.Errorf("a frame through a gate that is shut: %v", r.Breaches)
	}
}

// TestWhatIsWrittenIsRead goes through a file, of two processes.
func TestWhatIsWrittenIsRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "h")
	for range 2 {
		w, err := history.Create(path, "a", "web", clock.Boot{})
		if err != nil {
			t.Fatal(err)
		}
		w.Gate(1).Record(egress.Note{What: egress.NoteSeal, Epoch: 3, Position: 4})
	}
	lines, err := history.Read(path)
	if err != nil || len(lines) != 4 {
		t.Fatalf("%d lines, %v", len(lines), err)
	}
	if l := lines[3]; l.What != "seal" || l.Gate != 1 || l.Epoch != 3 || l.Position != 4 || l.Host != "a" || l.At < lines[0].At {
		t.Errorf("read %+v", l)
	}
	if text := (history.Breach{Rule: "wire", At: ms, Text: "x"}).String(); !strings.Contains(text, "wire at 1ms") {
		t.Error(text)
	}
}
