package ownership

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"understudy/epoch"
)

var (
	imageB = epoch.Incarnation{0xb}
	imageC = epoch.Incarnation{0xc}
	onB    = Backup{Host: "b", Image: imageB, Epoch: 10}
)

// The states a guest passes through; A is the owner, B the backup.
var (
	alone       = Guest{Generation: 4, Revision: 20, Owner: "a", Phase: PhaseActive, Desired: Running, LastCommand: CommandID{20}}
	inSync      = Guest{Generation: 4, Revision: 21, Owner: "a", Phase: PhaseActive, Desired: Running, Backup: onB, InSync: true, LastCommand: CommandID{21}}
	surrendered = Guest{Generation: 4, Revision: 22, Owner: "a", Phase: PhaseSurrendered, Desired: Running, Backup: onB, InSync: true, LastCommand: CommandID{22}}
	activating  = Guest{Generation: 5, Revision: 23, Owner: "b", Phase: PhaseActivating, Desired: Running, Previous: "a", LastCommand: CommandID{23}}
	paused      = Guest{Generation: 4, Revision: 25, Owner: "a", Phase: PhaseActive, Desired: Running, Protection: ProtectionPaused, ProtectionSince: 77, LastCommand: CommandID{25}}
	off         = Guest{Generation: 4, Revision: 26, Owner: "a", Phase: PhaseActive, Desired: Running, Protection: ProtectionOff, ProtectionSince: 78, LastCommand: CommandID{26}}
	fenced      = Guest{Generation: 4, Revision: 27, Owner: "a", Phase: PhaseActive, Desired: Running, Backup: onB, InSync: true, Fenced: "a", LastCommand: CommandID{27}}
	stopped     = Guest{Generation: 4, Revision: 24, Owner: "a", Phase: PhaseActive, Desired: Stopped, LastCommand: CommandID{24}}
)

// at is a command by host at the revision of g.
func at(g Guest, k Kind, host HostID, b Backup) Command {
	return Command{ID: CommandID{0xff}, Guest: "web", Kind: k, Host: host, Generation: g.Generation, Revision: g.Revision, Backup: b}
}

func TestApplyAccepts(t *testing.T) {
	for name, tc := range map[string]struct {
		from   Guest
		c      Command
		change func(*Guest) // what becomes of the state, besides revision and command
	}{
		"RULES 6: first start": {Guest{}, at(Guest{}, Start, "a", Backup{}), func(g *Guest) {
			g.Generation, g.Owner, g.Phase, g.Desired = 1, "a", PhaseActive, Running
		}},
		"RULES 6: every start bumps the generation, on the same host too": {alone, at(alone, Start, "a", Backup{}), func(g *Guest) { g.Generation++ }},
		"RULES 6: a stopped guest starts anywhere": {stopped, at(stopped, Start, "b", Backup{}), func(g *Guest) {
			g.Generation, g.Owner, g.Desired = 5, "b", Running
		}},
		"RULES 11: adoption is a new generation without a backup": {inSync, at(inSync, Adopt, "a", Backup{}), func(g *Guest) {
			g.Generation, g.Backup, g.InSync = 5, Backup{}, false
		}},
		"RULES 2: in sync names host, image and epoch": {alone, at(alone, InSync, "a", onB), func(g *Guest) { g.Backup, g.InSync = onB, true }},
		"RULES 2: a new image replaces the old one": {inSync, at(inSync, InSync, "a", Backup{Host: "b", Image: imageC, Epoch: 1}), func(g *Guest) {
			g.Backup = Backup{Host: "b", Image: imageC, Epoch: 1}
		}},
		"guarantee 6: out of sync":                          {inSync, at(inSync, OutOfSync, "a", onB), func(g *Guest) { g.Backup, g.InSync = Backup{}, false }},
		"RULES 2: the backup's image is gone":               {inSync, at(inSync, OutOfSync, "b", onB), func(g *Guest) { g.Backup, g.InSync = Backup{}, false }},
		"RULES 2: and was to take a surrendered guest over": {surrendered, at(surrendered, OutOfSync, "b", onB), func(g *Guest) { g.Backup, g.InSync = Backup{}, false }},
		"RULES 2: takeover by the image":                    {inSync, at(inSync, Takeover, "b", onB), takenByB},
		"RULES 2: with later epochs":                        {inSync, at(inSync, Takeover, "b", Backup{Host: "b", Image: imageB, Epoch: 99}), takenByB},
		"RULES 7: takeover of the surrender":                {surrendered, at(surrendered, Takeover, "b", onB), takenByB},
		"RULES 10: activated":                               {activating, at(activating, Activated, "b", Backup{}), func(g *Guest) { g.Phase, g.Previous = PhaseActive, "" }},
		"RULES 10: a failed takeover returns": {activating, at(activating, Return, "b", Backup{}), func(g *Guest) {
			g.Generation, g.Owner, g.Phase, g.Previous = 6, "a", PhaseActive, ""
		}},
		"RULES 10: the former owner takes back what was not activated": {activating, at(activating, Return, "a", Backup{}), func(g *Guest) {
			g.Generation, g.Owner, g.Phase, g.Previous = 6, "a", PhaseActive, ""
		}},
		"RULES 7: the owner surrenders, at its last epoch": {inSync, at(inSync, Surrender, "a", Backup{Host: "b", Image: imageB, Epoch: 12}), func(g *Guest) {
			g.Phase, g.Backup.Epoch = PhaseSurrendered, 12
		}},
		"RULES 4: reclaim before the backup took it": {surrendered, at(surrendered, Reclaim, "a", Backup{}), func(g *Guest) {
			g.Generation, g.Phase, g.Backup, g.InSync = 5, PhaseActive, Backup{}, false
		}},
		"guarantee 6: who pauses a guest is alone, and the log says so": {inSync, switchedAt(inSync, Pause, 99), func(g *Guest) {
			g.Protection, g.ProtectionSince, g.Backup, g.InSync = ProtectionPaused, 99, Backup{}, false
		}},
		"guarantee 6: and who gives its protection up": {inSync, switchedAt(inSync, Unprotect, 99), func(g *Guest) {
			g.Protection, g.ProtectionSince, g.Backup, g.InSync = ProtectionOff, 99, Backup{}, false
		}},
		"a paused one is given up": {paused, switchedAt(paused, Unprotect, 99), func(g *Guest) { g.Protection, g.ProtectionSince = ProtectionOff, 99 }},
		"resumed":                  {paused, switchedAt(paused, Protect, 99), func(g *Guest) { g.Protection, g.ProtectionSince = ProtectionOn, 99 }},
		"protected again":          {off, switchedAt(off, Protect, 99), func(g *Guest) { g.Protection, g.ProtectionSince = ProtectionOn, 99 }},
		"the switch is kept when it is booted anew": {off, at(off, Start, "a", Backup{}), func(g *Guest) { g.Generation++ }},
		"and when its daemon is started anew":       {paused, at(paused, Adopt, "a", Backup{}), func(g *Guest) { g.Generation++ }},
		"a stopped guest's can be set":              {stopped, switchedAt(stopped, Unprotect, 0), func(g *Guest) { g.Protection = ProtectionOff }},
		"forced, from an image that the log does not name": {paused, at(paused, Force, "b", onB), func(g *Guest) {
			g.Generation, g.Owner, g.Phase, g.Previous = 5, "b", PhaseActivating, "a"
		}},
		"forced, booted anew": {inSync, at(inSync, Force, "b", Backup{}), func(g *Guest) {
			g.Generation, g.Owner, g.Backup, g.InSync = 5, "b", Backup{}, false
		}},
		"forced away from a takeover that does not end": {activating, at(activating, Force, "a", Backup{}), func(g *Guest) {
			g.Generation, g.Owner, g.Phase, g.Previous = 6, "a", PhaseActive, ""
		}},
		"RULES 12: the owner is off":                   {inSync, fenceOf(inSync, "b", "a"), func(g *Guest) { g.Fenced = "a" }},
		"RULES 12: the former owner is off":            {activating, fenceOf(activating, "b", "a"), func(g *Guest) { g.Fenced = "a" }},
		"a fenced host that is back says so":           {fenced, at(fenced, Unfence, "a", Backup{}), func(g *Guest) { g.Fenced = "" }},
		"or does something":                            {fenced, at(fenced, Adopt, "a", Backup{}), func(g *Guest) { g.Generation, g.Backup, g.InSync, g.Fenced = 5, Backup{}, false, "" }},
		"its guest is taken over, and it stays fenced": {fenced, at(fenced, Takeover, "b", onB), func(g *Guest) { takenByB(g) }},
		"RULES 6: stop":                                {inSync, at(inSync, Stop, "a", Backup{}), func(g *Guest) { g.Desired, g.Backup, g.InSync = Stopped, Backup{}, false }},
	} {
		t.Run(name, func(t *testing.T) {
			want := tc.from
			tc.change(&want)
			want.Revision++
			want.LastCommand = tc.c.ID
			got, err := Apply(tc.from, tc.c)
			if err != nil || got != want {
				t.Fatalf("got %+v, %v\nwant %+v", got, err, want)
			}
			// RULES 4: the same command again has no effect.
			if again, err := Apply(got, tc.c); err != nil || again != got {
				t.Fatalf("again: %+v, %v", again, err)
			}
		})
	}
}

// fenceOf is a host's word that another one is off.
func fenceOf(g Guest, host, target HostID) Command {
	c := at(g, Fence, host, Backup{})
	c.Target = target
	return c
}

// switchedAt is the owner's switch of protection, at a time.
func switchedAt(g Guest, k Kind, when int64) Command {
	c := at(g, k, "a", Backup{})
	c.At = when
	return c
}

func takenByB(g *Guest) {
	g.Generation, g.Owner, g.Phase, g.Previous, g.Backup, g.InSync = 5, "b", PhaseActivating, "a", Backup{}, false
}

func TestApplyRefuses(t *testing.T) {
	stale := at(inSync, Takeover, "b", onB)
	stale.Revision--
	nameless := at(inSync, OutOfSync, "a", onB)
	nameless.ID = CommandID{}
	future := at(inSync, Takeover, "b", onB)
	future.Generation++
	for name, tc := range map[string]struct {
		from Guest
		c    Command
		want string
	}{
		"RULES 4: an older revision":              {inSync, stale, "the log is at generation 4 revision 21"},
		"RULES 4: another generation":             {inSync, future, "meant for generation 5"},
		"RULES 6: start of another's guest":       {alone, at(alone, Start, "b", Backup{}), "a owns the guest"},
		"RULES 6: start over a backup in sync":    {inSync, at(inSync, Start, "a", Backup{}), "surrender it instead"},
		"RULES 4: start after a surrender":        {surrendered, at(surrendered, Start, "a", Backup{}), "in sync"},
		"RULES 10: start in mid-takeover":         {activating, at(activating, Start, "a", Backup{}), "b owns the guest"},
		"RULES 11: adoption by another":           {alone, at(alone, Adopt, "b", Backup{}), "owner is a"},
		"RULES 11: adoption of a stopped guest":   {stopped, at(stopped, Adopt, "a", Backup{}), "meant to be stopped"},
		"RULES 4: adoption after a surrender":     {surrendered, at(surrendered, Adopt, "a", Backup{}), "surrendered"},
		"RULES 2: in sync without an image":       {alone, at(alone, InSync, "a", Backup{Host: "b", Epoch: 1}), "names no image"},
		"RULES 2: in sync without an epoch":       {alone, at(alone, InSync, "a", Backup{Host: "b", Image: imageB}), "names no image"},
		"RULES 2: in sync without a host":         {alone, at(alone, InSync, "a", Backup{Image: imageB, Epoch: 1}), "names no image"},
		"RULES 2: in sync with itself":            {alone, at(alone, InSync, "a", Backup{Host: "a", Image: imageB, Epoch: 1}), "names no image"},
		"RULES 1: in sync said by the backup":     {alone, at(alone, InSync, "b", onB), "owner is a"},
		"RULES 6: in sync of a stopped guest":     {stopped, at(stopped, InSync, "a", onB), "meant to be stopped"},
		"guarantee 6: out of sync said by B":      {inSync, at(inSync, OutOfSync, "b", Backup{}), "owner is a"},
		"RULES 2: another image of B is gone":     {inSync, at(inSync, OutOfSync, "b", Backup{Host: "b", Image: imageC}), "owner is a"},
		"RULES 2: B's image, said by a third":     {inSync, at(inSync, OutOfSync, "w", onB), "owner is a"},
		"RULES 4: out of sync after a surrender":  {surrendered, at(surrendered, OutOfSync, "a", Backup{}), "surrendered"},
		"guarantee 6: takeover by a stale backup": {alone, at(alone, Takeover, "b", onB), "no backup is in sync"},
		"RULES 2: takeover by another image":      {inSync, at(inSync, Takeover, "b", Backup{Host: "b", Image: imageC, Epoch: 10}), "not image"},
		"RULES 2: takeover by another host":       {inSync, at(inSync, Takeover, "w", onB), "of w"},
		"RULES 2: takeover with an older epoch":   {inSync, at(inSync, Takeover, "b", Backup{Host: "b", Image: imageB, Epoch: 9}), "asks for 10 or later"},
		"RULES 10: a second takeover":             {activating, at(activating, Takeover, "b", onB), "no backup is in sync"},
		"RULES 6: takeover of a stopped guest":    {stopped, at(stopped, Takeover, "b", onB), "no backup is in sync"},
		"RULES 10: activated by the old owner":    {activating, at(activating, Activated, "a", Backup{}), "owner is b"},
		"RULES 10: activated without a takeover":  {alone, at(alone, Activated, "a", Backup{}), "the guest is active"},
		"RULES 10: returned by a third host":      {activating, at(activating, Return, "w", Backup{}), "owner is b"},
		"RULES 10: returned when it is active":    {alone, at(alone, Return, "a", Backup{}), "the guest is active"},
		"RULES 7: surrender by the backup":        {inSync, at(inSync, Surrender, "b", onB), "owner is a"},
		"RULES 7: surrender to nobody":            {alone, at(alone, Surrender, "a", onB), "is not in sync"},
		"RULES 2: surrender to another image":     {inSync, at(inSync, Surrender, "a", Backup{Host: "b", Image: imageC, Epoch: 10}), "is not in sync"},
		"RULES 2: surrender of an older epoch":    {inSync, at(inSync, Surrender, "a", Backup{Host: "b", Image: imageB, Epoch: 9}), "older"},
		"RULES 4: reclaim by the backup":          {surrendered, at(surrendered, Reclaim, "b", Backup{}), "owner is a"},
		"RULES 4: reclaim of what was not given":  {inSync, at(inSync, Reclaim, "a", Backup{}), "the guest is active"},
		"RULES 6: stop by another":                {inSync, at(inSync, Stop, "b", Backup{}), "owner is a"},
		"RULES 6: stop in mid-takeover":           {activating, at(activating, Stop, "b", Backup{}), "activating"},
		"guarantee 6: in sync of a paused guest":  {paused, at(paused, InSync, "a", onB), "protection is paused"},
		"guarantee 6: takeover of a paused guest": {paused, at(paused, Takeover, "b", onB), "no backup is in sync"},
		"guarantee 6: takeover of one given up":   {off, at(off, Takeover, "b", onB), "no backup is in sync"},
		"guarantee 6: paused by the backup":       {inSync, at(inSync, Pause, "b", Backup{}), "owner is a"},
		"RULES 10: given up in mid-takeover":      {activating, at(activating, Unprotect, "b", Backup{}), "activating"},
		"RULES 7: paused when it is surrendered":  {surrendered, at(surrendered, Pause, "a", Backup{}), "surrendered"},
		"forced by its owner":                     {paused, at(paused, Force, "a", Backup{}), "a owns the guest already"},
		"forced while it is stopped":              {stopped, at(stopped, Force, "b", Backup{}), "meant to be stopped"},
		"forced from another's image":             {paused, at(paused, Force, "b", Backup{Host: "w", Image: imageB, Epoch: 1}), "no image of b"},
		"forced from no epoch":                    {paused, at(paused, Force, "b", Backup{Host: "b", Image: imageB}), "no image of b"},
		"forced before it was ever started":       {Guest{}, at(Guest{}, Force, "b", Backup{}), "never started"},
		"RULES 12: fenced by itself":              {inSync, fenceOf(inSync, "a", "a"), "no host fences itself"},
		"RULES 12: a host that has no part":       {inSync, fenceOf(inSync, "b", "w"), `not "w"`},
		"RULES 12: the backup is fenced":          {inSync, fenceOf(inSync, "a", "b"), `not "b"`},
		"RULES 12: fenced twice":                  {fenced, fenceOf(fenced, "b", "a"), "fenced already"},
		"back, said by another":                   {fenced, at(fenced, Unfence, "b", Backup{}), `fenced is "a"`},
		"back, and never away":                    {inSync, at(inSync, Unfence, "a", Backup{}), `fenced is ""`},
		"fenced, of a guest that never was":       {Guest{}, fenceOf(Guest{}, "b", "a"), "never started"},
		"paused twice":                            {paused, at(paused, Pause, "a", Backup{}), "paused already"},
		"protected twice":                         {inSync, at(inSync, Protect, "a", Backup{}), "on already"},
		"RULES 6: pause of nothing":               {Guest{}, at(Guest{}, Pause, "a", Backup{}), "owner is "},
		"RULES 6: stop of nothing":                {Guest{}, at(Guest{}, Stop, "a", Backup{}), "never started"},
		"RULES 4: a command without an ID":        {inSync, nameless, "has no ID"},
		"guarantee 1: an owner without a name":    {Guest{}, at(Guest{}, Start, "", Backup{}), "no proposer"},
		"guarantee 8: an unknown command":         {alone, at(alone, "explode", "a", Backup{}), "unknown command"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Apply(tc.from, tc.c)
			var refused *Refused
			if !errors.As(err, &refused) || !strings.Contains(refused.Reason, tc.want) {
				t.Fatalf("got %+v, %v, want a refusal with %q", got, err, tc.want)
			}
			if got != tc.from || refused.State != tc.from || refused.Command != tc.c {
				t.Fatalf("a refusal changed the state or misquotes it: %+v", refused)
			}
		})
	}
}

// The log and the wire carry these as JSON.
func TestJSONRoundTrip(t *testing.T) {
	c := at(inSync, Takeover, "b", onB)
	c.ID = NewCommandID()
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	var back Command
	if err := json.Unmarshal(b, &back); err != nil || back != c {
		t.Fatalf("%s became %+v, %v", b, back, err)
	}
	for _, bad := range []string{`"00"`, `"zz000000000000000000000000000000"`, `7`} {
		var id CommandID
		if err := json.Unmarshal([]byte(bad), &id); err == nil {
			t.Errorf("%s was taken as a command id", bad)
		}
	}
}
