package ownership

import (
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"understudy/epoch"
)

// oracle says which kinds of command may apply in a state, by who proposes
// it: a table beside the switch in Apply, written down the other way round.
// The images named by a command are judged in the test.
func oracle(g Guest, host HostID) []Kind {
	may := oracleOfRest(g, host)
	if host == g.Owner && g.Generation > 0 && g.Phase == PhaseActive {
		switch g.Protection {
		case ProtectionOn:
			may = append(may, Pause, Unprotect)
		case ProtectionPaused:
			may = append(may, Unprotect, Protect)
		case ProtectionOff:
			may = append(may, Pause, Protect)
		}
	}
	if g.Generation > 0 {
		may = append(may, Fence)
		if host != g.Owner && g.Desired == Running {
			may = append(may, Force)
		}
		if host == g.Fenced {
			may = append(may, Unfence)
		}
	}
	if g.Protection != ProtectionOn {
		may = slices.DeleteFunc(may, func(k Kind) bool { return k == InSync })
	}
	return may
}

// oracleOfRest leaves the operator's switch aside.
func oracleOfRest(g Guest, host HostID) []Kind {
	owner := host == g.Owner
	switch {
	case g.Generation == 0:
		return []Kind{Start}
	case g.Desired == Stopped && owner:
		return []Kind{Start, OutOfSync, Stop}
	case g.Desired == Stopped:
		return []Kind{Start}
	case g.Phase == PhaseActive && g.InSync && owner:
		return []Kind{Adopt, InSync, OutOfSync, Surrender, Stop}
	case g.Phase == PhaseActive && owner:
		return []Kind{Start, Adopt, InSync, OutOfSync, Stop}
	case g.Phase == PhaseSurrendered && owner:
		return []Kind{Reclaim}
	case g.Phase == PhaseActivating && owner:
		return []Kind{Activated, Return}
	case g.Phase == PhaseActivating && host == g.Previous:
		return []Kind{Return}
	case g.InSync && host == g.Backup.Host:
		return []Kind{Takeover, OutOfSync}
	}
	return nil
}

var kinds = []Kind{Start, Adopt, InSync, OutOfSync, Takeover, Activated, Return, Surrender, Reclaim, Stop, Pause, Unprotect, Protect, Force, Fence, Unfence, "nonsense"}

// bumps are the kinds that begin a new generation.
var bumps = map[Kind]bool{Start: true, Adopt: true, Takeover: true, Return: true, Reclaim: true, Force: true}

// Any hosts propose anything, on time, late, lost and doubled.
func TestApplyProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var g Guest
		var sent []Command // every command ever made: the network may repeat any
		make := func(t *rapid.T) Command {
			c := draw(t, g, len(sent))
			sent = append(sent, c)
			return c
		}
		t.Repeat(map[string]func(*rapid.T){
			"on time": func(t *rapid.T) { g = step(t, g, make(t)) },
			"lost":    func(t *rapid.T) { make(t) }, // it may arrive later
			"late": func(t *rapid.T) {
				if len(sent) == 0 {
					return
				}
				c := rapid.SampledFrom(sent).Draw(t, "again")
				next := step(t, g, c)
				if c.Revision != g.Revision && next != g {
					t.Fatalf("RULES 4: a command of revision %d applied at revision %d", c.Revision, g.Revision)
				}
				g = next
			},
			"": func(t *rapid.T) {
				everyCommand(t, g)
				if g.InSync && (g.Backup.Host == g.Owner || g.Backup.Image.IsZero() || g.Desired != Running || g.Phase == PhaseActivating) {
					t.Fatalf("RULES 2, 6: in sync in %+v", g)
				}
				if g.Protection != ProtectionOn && (g.InSync || g.Phase == PhaseSurrendered) {
					t.Fatalf("guarantee 6: protection is %s in %+v", g.Protection, g)
				}
				if (g.Phase == PhaseActivating) != (g.Previous != "") {
					t.Fatalf("RULES 10: phase and previous owner disagree in %+v", g)
				}
				if (g.Generation > 0) != (g.Owner != "") {
					t.Fatalf("guarantee 1: owner of %+v", g)
				}
			},
		})
	})
}

// draw makes a command at the state g: mostly one that may apply, with the
// right image, or it would take ages until a guest is taken over.
func draw(t *rapid.T, g Guest, serial int) Command {
	hosts := []HostID{"a", "b", "w"}
	c := Command{ID: CommandID{1, byte(serial), byte(serial >> 8)}, Guest: "web",
		Kind: rapid.SampledFrom(kinds).Draw(t, "kind"), Host: rapid.SampledFrom(hosts).Draw(t, "host"),
		Generation: g.Generation, Revision: g.Revision, Backup: g.Backup}
	if rapid.IntRange(0, 3).Draw(t, "who") > 0 && g.Owner != "" {
		c.Host = rapid.SampledFrom([]HostID{g.Owner, g.Owner, g.Backup.Host}).Draw(t, "party")
	}
	if may := oracle(g, c.Host); len(may) > 0 && rapid.IntRange(0, 3).Draw(t, "what") > 0 {
		c.Kind = rapid.SampledFrom(may).Draw(t, "allowed kind")
	}
	if c.Kind == InSync || rapid.IntRange(0, 2).Draw(t, "image") == 0 {
		c.Backup = Backup{Host: rapid.SampledFrom(hosts).Draw(t, "backup"),
			Image: epoch.Incarnation{rapid.ByteRange(0, 2).Draw(t, "incarnation")},
			Epoch: epoch.Number(rapid.IntRange(0, 3).Draw(t, "epoch"))}
		if rapid.Bool().Draw(t, "same image") {
			c.Backup.Image = g.Backup.Image
		}
	}
	c.Target = rapid.SampledFrom(append(hosts, g.Owner, g.Previous, "")).Draw(t, "target")
	return c
}

// everyCommand tries each kind by each host in the state g, with the image the
// log names, with a later and an older epoch of it, and with another image.
func everyCommand(t *rapid.T, g Guest) {
	later, older, other := g.Backup, g.Backup, Backup{Host: "w", Image: epoch.Incarnation{9}, Epoch: 9}
	later.Epoch++
	older.Epoch--
	for _, k := range kinds {
		for _, h := range []HostID{"a", "b", "w", ""} {
			for _, b := range []Backup{g.Backup, later, older, other, {}} {
				for _, target := range []HostID{"a", "b"} {
					step(t, g, Command{ID: CommandID{2}, Guest: "web", Kind: k, Host: h, Target: target,
						Generation: g.Generation, Revision: g.Revision, Backup: b})
				}
			}
		}
	}
}

// step applies c and checks all that holds for any command.
func step(t *rapid.T, g Guest, c Command) Guest {
	next, err := Apply(g, c)
	repeat := g.Revision > 0 && c.ID == g.LastCommand
	if err != nil {
		var refused *Refused
		if !errors.As(err, &refused) || next != g {
			t.Fatalf("a refusal changed the state: %v, %+v to %+v", err, g, next)
		}
		if repeat {
			t.Fatalf("RULES 4: the last command, repeated, was refused: %v", err)
		}
	}
	if repeat {
		if next != g {
			t.Fatalf("RULES 4: the last command, repeated, had an effect: %+v to %+v", g, next)
		}
		return next
	}
	if want := allowed(g, c); want != (err == nil) {
		t.Fatalf("%s by %s in %+v with %+v: applied %v, the oracle says %v (%v)", c.Kind, c.Host, g, c.Backup, err == nil, want, err)
	}
	if err != nil {
		return next
	}
	if next.Revision != g.Revision+1 || next.LastCommand != c.ID {
		t.Fatalf("RULES 4: revision %d to %d by %s, last command %s", g.Revision, next.Revision, c.ID, next.LastCommand)
	}
	wantGen := g.Generation
	if bumps[c.Kind] {
		wantGen++
	}
	if next.Generation != wantGen {
		t.Fatalf("guarantee 1: %s led from generation %d to %d", c.Kind, g.Generation, next.Generation)
	}
	if next.Owner != g.Owner && next.Generation == g.Generation {
		t.Fatalf("guarantee 1: two owners, %s and %s, in generation %d", g.Owner, next.Owner, g.Generation)
	}
	if next.Fenced == c.Host || next.InSync && next.Fenced == next.Backup.Host {
		t.Fatalf("RULES 12: %s lives, and is fenced in %+v", next.Fenced, next)
	}
	if next.Fenced != "" && next.Fenced != g.Fenced && c.Kind != Fence {
		t.Fatalf("RULES 12: %s is fenced by %s", next.Fenced, c.Kind)
	}
	if _, is := switches[c.Kind]; !is && next.Protection != g.Protection {
		t.Fatalf("%s led from protection %s to %s", c.Kind, g.Protection, next.Protection)
	}
	if again, err := Apply(next, c); err != nil || again != next {
		t.Fatalf("RULES 4: %s applied twice: %+v, %v", c.Kind, again, err)
	}
	return next
}

func allowed(g Guest, c Command) bool {
	if c.Host == "" || c.Generation != g.Generation || c.Revision != g.Revision {
		return false
	}
	ok := false
	for _, k := range oracle(g, c.Host) {
		ok = ok || k == c.Kind
	}
	b := c.Backup
	switch c.Kind {
	case InSync:
		ok = ok && b.Host != "" && b.Host != g.Owner && !b.Image.IsZero() && b.Epoch > 0
	case OutOfSync:
		ok = ok && (c.Host == g.Owner || b.Image == g.Backup.Image)
	case Force:
		ok = ok && (b == Backup{} || b.Host == c.Host && !b.Image.IsZero() && b.Epoch > 0)
	case Fence:
		ok = ok && c.Target != "" && c.Target != c.Host && c.Target != g.Fenced && (c.Target == g.Owner || c.Target == g.Previous)
	case Takeover, Surrender:
		ok = ok && b.Image == g.Backup.Image && b.Epoch >= g.Backup.Epoch
	}
	return ok
}
