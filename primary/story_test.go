package primary

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
	"understudy/hypervisor"
	"understudy/ownership"
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

// narrator plays the world around the core: it answers captures and keeps the
// log, as the shell and the ownership log would.
type narrator struct {
	t         *testing.T
	core      *Core
	now       time.Duration
	log       ownership.Guest
	image     epoch.Incarnation
	asked     *ownership.Command // the last proposal
	broken    bool               // no capture succeeds
	comparing bool               // the copies of the disks
	bulky     bool               // sync step 1 sends much
	unsettled bool               // writes are on their way to a disk

	failing bool // the next capture fails
	out     strings.Builder
}

// tell runs a script and returns it with the actions that happened.
func tell(t *testing.T, script string) string {
	n := &narrator{t: t, image: epoch.Incarnation{1}}
	n.log = ownership.Guest{Generation: 1, Revision: 1, Owner: "a", Phase: ownership.PhaseActive, Desired: ownership.Running}
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

// line plays one line: an event, or the passing of time.
func (n *narrator) line(words []string) {
	if n.core == nil {
		cfg := DefaultConfig("web", "a", time.Second)
		cfg.SyncEnough, cfg.Floor, cfg.Target, cfg.Ceiling = 100, 25*time.Millisecond, 25*time.Millisecond, 25*time.Millisecond
		running := false
		if words[0] == "start-in-sync" || words[0] == "continue" {
			n.log.InSync, n.log.Backup = true, ownership.Backup{Host: "b", Image: n.image, Epoch: 3}
		}
		if words[0] == "takeover" {
			running = true
			n.log.Generation, n.log.Revision, n.log.Phase, n.log.Previous = 2, 7, ownership.PhaseActivating, "b"
		}
		n.core = NewCore(cfg, n.log, running)
		if words[0] == "continue" {
			if !n.core.Continue(Left{Generation: n.log.Generation, At: epoch.Position{Image: n.image, Number: 7}}) {
				n.say("not continued")
			}
			words[0] = "start"
		}
		if words[0] == "start" || words[0] == "start-in-sync" || words[0] == "takeover" {
			n.step(Tick{})
			return
		}
	}
	arg := func(i int) string {
		if i < len(words) {
			return words[i]
		}
		return ""
	}
	num := func(i int) epoch.Number {
		v, err := strconv.Atoi(arg(i))
		if err != nil {
			n.t.Fatalf("%v: %v", words, err)
		}
		return epoch.Number(v)
	}
	switch words[0] {
	case "wait":
		d, err := time.ParseDuration(arg(1))
		if err != nil {
			n.t.Fatal(err)
		}
		n.now += d
		n.step(Tick{})
	case "lease":
		n.step(LeaseRenewed{Generation: n.log.Generation, Until: clock.Instant(n.now + time.Second)})
	case "link-fresh":
		n.image[0]++
		n.step(LinkUp{Peer: "b", At: epoch.Position{Image: n.image}})
	case "link-resumed":
		n.step(LinkUp{Peer: "b", At: epoch.Position{Image: n.image, Number: num(1)}, Resumed: true})
	case "link-refused":
		n.step(LinkDown{Err: errors.New("connection refused"), Refused: true})
	case "link-down":
		n.step(LinkDown{Err: errors.New("connection reset")})
	case "ack":
		n.step(Acked{num(1)})
	case "mismatch":
		n.step(Mismatch{num(1)})
	case "held-full":
		n.step(HeldFull{})
	case "guest":
		kinds := map[string]hypervisor.EventKind{"off": hypervisor.EventShutdown, "gone": hypervisor.EventExited,
			"reset": hypervisor.EventReset, "panic": hypervisor.EventPanic}
		n.step(GuestDid{hypervisor.Event{Kind: kinds[arg(1)], Detail: "said so"}})
	case "switchover":
		n.step(Asked{Request: RequestSwitchover})
	case "stop":
		n.step(Asked{Request: RequestStop})
	case "handover":
		n.step(Asked{Request: RequestHandover})
	case "patient":
		n.step(Patient{For: n.core.cfg.Patience})
	case "remain":
		n.step(Remain{Why: "it took too long"})
	case "applied": // the last proposal was applied, and we hear of it
		next, err := ownership.Apply(n.log, *n.asked)
		if err == nil {
			n.log = next
		}
		n.step(Proposed{Command: *n.asked, State: n.log, Err: err})
	case "applied-silently": // it was applied, but the answer was lost
		next, err := ownership.Apply(n.log, *n.asked)
		if err != nil {
			n.t.Fatal(err)
		}
		n.log = next
		n.step(Proposed{Command: *n.asked, Err: errors.New("no answer")})
	case "unknown": // neither applied nor answered
		n.step(Proposed{Command: *n.asked, Err: errors.New("no answer")})
	case "log", "log-unseen": // what the others do
		c := ownership.Command{ID: ownership.NewCommandID(), Guest: "web", Kind: ownership.Kind(arg(1)), Host: "b",
			Generation: n.log.Generation, Revision: n.log.Revision, Backup: n.log.Backup}
		c.Backup.Host = "b"
		next, err := ownership.Apply(n.log, c)
		if err != nil {
			n.t.Fatal(err)
		}
		n.log = next
		if words[0] == "log" {
			n.step(LogApplied{n.log})
		}
	case "log-seen":
		n.step(LogApplied{n.log})
	case "pause", "unprotect", "protect", "pause-unseen": // the operator's switch, proposed beside us
		c := ownership.Command{ID: ownership.NewCommandID(), Guest: "web", Kind: ownership.Kind(strings.TrimSuffix(words[0], "-unseen")), Host: "a",
			Generation: n.log.Generation, Revision: n.log.Revision}
		next, err := ownership.Apply(n.log, c)
		if err != nil {
			n.t.Fatal(err)
		}
		n.log = next
		if words[0] != "pause-unseen" {
			n.step(LogApplied{n.log})
		}
	case "fenced": // an operator believes that this host is off
		next, err := ownership.Apply(n.log, ownership.Command{ID: ownership.NewCommandID(), Guest: "web", Kind: ownership.Fence, Host: "b", Target: "a",
			Generation: n.log.Generation, Revision: n.log.Revision})
		if err != nil {
			n.t.Fatal(err)
		}
		n.log = next
		n.step(LogApplied{n.log})
	case "captures": // fail | work
		n.broken = arg(1) == "fail"
	case "bulky": // the first sync step sends more than is enough
		n.bulky = true
	case "comparing": // the backup's copies of the disks; until "compared"
		n.comparing = true
	case "compared":
		n.comparing = false
	case "unsettled": // writes are still on their way to a disk, until "settled"
		n.unsettled = true
	case "settled":
		n.unsettled = false
	case "capture-will-fail": // the next one, after its frames were sealed
		n.failing = true
	default:
		n.t.Fatalf("unknown line %v", words)
	}
}

// step feeds one event and writes the actions down; captures succeed at once.
func (n *narrator) step(ev Event) {
	for queue := []Event{ev}; len(queue) > 0; queue = queue[1:] {
		for _, a := range n.core.Step(clock.Instant(n.now), queue[0]) {
			switch a := a.(type) {
			case SyncStep:
				n.say("sync %d", a.Number)
				left, sends := uint64(50), uint64(0)
				if a.Number == 1 {
					left = 150
					if n.bulky {
						sends = 1000
					}
				}
				queue = append(queue, Captured{Number: a.Number, Kind: epoch.KindSync, Sent: sends, Remaining: left, Comparing: n.comparing})
			case Capture:
				final := ""
				if a.Final {
					final = ", the guest stays paused"
				}
				n.say("capture %d%s", a.Number, final)
				if n.unsettled {
					queue = append(queue, Postponed{a.Number})
					continue
				}
				if n.failing || n.broken {
					n.failing = false
					queue = append(queue, CaptureFailed{a.Number, errors.New("no device state")})
					continue
				}
				queue = append(queue, Captured{Number: a.Number, Kind: epoch.KindCheckpoint, Cost: Cost{Pause: 2 * time.Millisecond}})
			case Propose:
				c := a.Command
				n.asked = &c
				n.say("propose %s (generation %d, revision %d, epoch %d)", c.Kind, c.Generation, c.Revision, c.Backup.Epoch)
			case End:
				n.say("end: %v", a.Outcome)
			case Forget:
				n.say("forget through %d", a.Through)
			case Release:
				n.say("release through %d", a.Through)
			case Warn:
				n.say("warn: %s", a.Text)
			case Bid:
				n.say("bid for patience: %v", a.For)
			case PauseGuest:
				n.say("pause: %s", a.Why)
			case Disconnect:
				n.say("disconnect: %s", a.Why)
			case UseGeneration:
				n.say("renew generation %d", a.Generation)
			default:
				n.say("%s", strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%T", a), "primary."), "{}")))
			}
		}
	}
	n.say("= %v", n.core.Mode())
}

func (n *narrator) say(format string, a ...any) { fmt.Fprintf(&n.out, "    "+format+"\n", a...) }
