package backup

// The core told as stories: each file under testdata is a script of events,
// one a line behind ">", with the actions that followed. `go test -update`
// writes the actions anew; a change of them is a change of the protocol and is
// to be read as one.

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"understudy/clock"
	"understudy/epoch"
	"understudy/ownership"
	"understudy/protocol"
)

var update = flag.Bool("update", false, "write the stories' actions anew")

func TestStories(t *testing.T) {
	files, err := filepath.Glob("testdata/*.story")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".story"), func(t *testing.T) {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			got := tell(t, string(text))
			if *update {
				if err := os.WriteFile(f, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != string(text) {
				t.Errorf("the story goes differently now:\n%s", got)
			}
		})
	}
}

// narrator plays the world around the core of host b, which stands by for a.
type narrator struct {
	t     *testing.T
	core  *Core
	now   time.Duration
	log   ownership.Guest
	image epoch.Incarnation // the one that Prepare made last
	asked *ownership.Command
	out   strings.Builder

	noStandby, noRun bool // what fails next
	slowDisks        bool // they are activated at a line of their own
}

func tell(t *testing.T, script string) string {
	n := &narrator{t: t}
	n.log = ownership.Guest{Generation: 1, Revision: 1, Owner: "a", Phase: ownership.PhaseActive, Desired: ownership.Running}
	n.core = NewCore(DefaultConfig("web", "b", time.Second, 1<<20), n.log)
	for _, line := range strings.Split(script, "\n") {
		switch {
		case strings.HasPrefix(line, "#"), line == "":
			n.out.WriteString(line + "\n")
		case strings.HasPrefix(line, "> "):
			n.out.WriteString(line + "\n")
			n.line(strings.Fields(line[2:]))
		}
	}
	return strings.TrimRight(n.out.String(), "\n") + "\n"
}

// at is a position in the newest image.
func (n *narrator) at(number epoch.Number) epoch.Position {
	if number == 0 {
		return epoch.Position{Image: n.image}
	}
	return epoch.Position{Image: n.image, Number: number, Running: epoch.Hash{byte(number)}}
}

func (n *narrator) line(words []string) {
	num := func(i int) uint64 {
		if i >= len(words) {
			return 0
		}
		v, err := strconv.Atoi(words[i])
		if err != nil {
			n.t.Fatalf("%v: %v", words, err)
		}
		return uint64(v)
	}
	switch words[0] {
	case "hello": // of generation g, knowing epoch n of our image
		h := protocol.Hello{Version: protocol.Version, Guest: "web", Host: "a", Generation: epoch.Generation(num(1))}
		if len(words) > 2 {
			h.Known = []epoch.Position{n.at(epoch.Number(num(2)))}
		}
		n.step(Greeted{h})
	case "hello-of": // another host, or for another guest
		n.step(Greeted{protocol.Hello{Version: protocol.Version, Guest: words[2], Host: ownership.HostID(words[1]), Generation: n.log.Generation}})
	case "no-standby":
		n.noStandby = true
	case "no-run":
		n.noRun = true
	case "sync":
		n.step(Staged{At: n.at(epoch.Number(num(1))), Kind: epoch.KindSync})
	case "checkpoint":
		n.step(Staged{At: n.at(epoch.Number(num(1))), Kind: epoch.KindCheckpoint})
	case "away": // the primary, for so long
		d, err := time.ParseDuration(words[1])
		if err != nil {
			n.t.Fatal(err)
		}
		n.step(Away{d})
	case "leaves": // this process
		n.step(Leaving{})
	case "lost":
		n.step(SessionLost{errors.New("connection reset")})
	case "wait":
		d, err := time.ParseDuration(words[1])
		if err != nil {
			n.t.Fatal(err)
		}
		n.now += d
		n.step(Tick{})
	case "forced":
		n.step(Forced{n.log})
	case "in-vain": // the owner's lease did not run out
		n.step(Proposed{Command: *n.asked, Err: fmt.Errorf("%w: the owner's lease may live for another 1s", ownership.ErrNotProposed)})
	case "fenced": // the other host says that the owner is off
		next, err := ownership.Apply(n.log, ownership.Command{ID: ownership.NewCommandID(), Guest: "web", Kind: ownership.Fence,
			Host: "w", Target: n.log.Owner, Generation: n.log.Generation, Revision: n.log.Revision})
		if err != nil {
			n.t.Fatal(err)
		}
		n.log = next
		n.step(LogApplied{n.log})
	case "commit-fails":
		n.step(CommitFailed{errors.New("a page cannot be rebuilt")})
	case "spoilt":
		n.step(Spoilt{errors.New("a page cannot be rebuilt")})
	case "taken-back": // by the former owner
		next, err := ownership.Apply(n.log, ownership.Command{ID: ownership.NewCommandID(), Guest: "web", Kind: ownership.Return,
			Host: n.log.Previous, Generation: n.log.Generation, Revision: n.log.Revision})
		if err != nil {
			n.t.Fatal(err)
		}
		n.log = next
		n.step(LogApplied{n.log})
	case "force": // the operator makes a host the owner, to boot the guest there
		next, err := ownership.Apply(n.log, ownership.Command{ID: ownership.NewCommandID(), Guest: "web", Kind: ownership.Force,
			Host: ownership.HostID(words[1]), Generation: n.log.Generation, Revision: n.log.Revision})
		if err != nil {
			n.t.Fatal(err)
		}
		if n.log = next; len(words) == 2 { // else not heard of here
			n.step(LogApplied{n.log})
		}
	case "slow-disks":
		n.slowDisks = true
	case "activated":
		n.step(Activated{})
	case "not-activated":
		n.step(Activated{errors.New("activate the disks: the other host has the lock")})
	case "loaded":
		n.step(Loaded{})
	case "load-fails":
		n.step(Loaded{errors.New("bad device state")})
	case "applied": // our last proposal; the answer arrives
		next, err := ownership.Apply(n.log, *n.asked)
		if err == nil {
			n.log = next
		}
		n.step(Proposed{Command: *n.asked, State: n.log, Err: err})
	case "applied-silently": // the answer is lost
		next, err := ownership.Apply(n.log, *n.asked)
		if err != nil {
			n.t.Fatal(err)
		}
		n.log = next
		n.step(Proposed{Command: *n.asked, Err: errors.New("no answer")})
	case "applied-seen": // the log tells of it before the answer does
		next, err := ownership.Apply(n.log, *n.asked)
		if err != nil {
			n.t.Fatal(err)
		}
		n.log = next
		n.step(LogApplied{n.log})
	case "answer": // and here is the answer
		n.step(Proposed{Command: *n.asked, State: n.log})
	case "unknown":
		n.step(Proposed{Command: *n.asked, Err: errors.New("no answer")})
	case "log-seen":
		n.step(LogApplied{n.log})
	case "log": // what the owner does: its kind, and the epoch it names; or that it is not heard of here
		unseen := words[len(words)-1] == "unseen"
		if unseen {
			words = words[:len(words)-1]
		}
		c := ownership.Command{ID: ownership.NewCommandID(), Guest: "web", Kind: ownership.Kind(words[1]), Host: n.log.Owner,
			Generation: n.log.Generation, Revision: n.log.Revision,
			Backup: ownership.Backup{Host: "b", Image: n.image, Epoch: epoch.Number(num(2))}}
		next, err := ownership.Apply(n.log, c)
		if err != nil {
			n.t.Fatal(err)
		}
		if n.log = next; !unseen {
			n.step(LogApplied{n.log})
		}
	default:
		n.t.Fatalf("unknown line %v", words)
	}
}

// step feeds one event and writes the actions down.
func (n *narrator) step(ev Event) {
	for queue := []Event{ev}; len(queue) > 0; queue = queue[1:] {
		for _, a := range n.core.Step(clock.Instant(n.now), queue[0]) {
			switch a := a.(type) {
			case Prepare:
				at, whole := n.core.At()
				if a.Fresh {
					n.say("prepare a new image")
					n.image[0]++
					at, whole = n.at(0), false
				} else {
					n.say("welcome at epoch %d", at.Number)
				}
				p := Prepared{At: at, Whole: whole}
				if n.noStandby {
					n.noStandby, p = false, Prepared{Err: errors.New("no machine")}
				}
				queue = append(queue, p)
			case Agree:
				n.say("agree to wait %v", a.For)
			case Refuse:
				n.say("refuse: %s", a.Reason)
			case Drop:
				n.say("drop: %s", a.Why)
			case Propose:
				c := a.Command
				n.asked = &c
				n.say("propose %s (generation %d, revision %d, epoch %d)", c.Kind, c.Generation, c.Revision, c.Backup.Epoch)
			case Activate:
				off := ""
				if a.PeerOff {
					off = ", the other host is off"
				}
				n.say("activate the disks in generation %d%s", a.Generation, off)
				if !n.slowDisks {
					queue = append(queue, Activated{})
				}
			case Answer:
				n.say("answer: %v", a.Err)
			case Run:
				n.say("run")
				r := Ran{}
				if n.noRun {
					n.noRun, r = false, Ran{Err: errors.New("it did not run")}
				}
				queue = append(queue, r)
			case Warn:
				n.say("warn: %s", a.Text)
			case End:
				n.say("end: %v", a.Outcome)
			default:
				n.say("%s", strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%T", a), "backup."), "{}")))
			}
		}
	}
}

func (n *narrator) say(format string, a ...any) { fmt.Fprintf(&n.out, "    "+format+"\n", a...) }
