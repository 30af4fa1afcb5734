// Command model checks ownership.pml, the model of who may let a guest's output
// out, with spin:
//
//	model: spin -a -> gcc -> pan: every state within the bounds of each
//	                              check; all must be clean
//	       once more for each rule left out: pan must find what it breaks
//	       what each transition did, over all checks: none may be dead
//
// README.md says what the model stands for. The flag -quick is the part of it
// that tests run.
package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

//go:embed ownership.pml
var source string

// bounds are the limits of one check; see the top of ownership.pml.
type bounds struct {
	lease, generations, images, epochs               int
	elections, crashes, unknowns, switches, failures int
	turns, forces, fences                            int  // commands of an operator
	away                                             int  // what he turns protection to: 1 paused, 2 off, 0 either
	live                                             bool // begins in sync, and what is checked is that it goes on
}

func (b bounds) flags() []string {
	var f []string
	for name, n := range map[string]int{"LEASE": b.lease, "GENERATIONS": b.generations, "IMAGES": b.images, "EPOCHS": b.epochs,
		"ELECTIONS": b.elections, "CRASHES": b.crashes, "UNKNOWNS": b.unknowns, "SWITCHES": b.switches, "FAILURES": b.failures,
		"TURNS": b.turns, "FORCES": b.forces, "FENCES": b.fences} {
		f = append(f, fmt.Sprintf("-D%s=%d", name, n))
	}
	if b.away > 0 {
		f = append(f, fmt.Sprintf("-DAWAY=%d", b.away))
	}
	if b.live {
		f = append(f, "-DLIVE")
	}
	slices.Sort(f)
	return f
}

// check is one exhaustive search, and what has to come of it.
type check struct {
	name   string
	within bounds
	broken string // the rule that is left out; the search must find what that breaks
}

func (c check) String() string {
	if c.broken != "" {
		return "without: " + c.broken
	}
	return c.name
}

// sound are searches with every rule in force.
var sound = []check{
	{name: "no faults", within: bounds{lease: 2, generations: 2, images: 1, epochs: 1}},
	{name: "no faults, longer lease", within: bounds{lease: 3, generations: 2, images: 1, epochs: 1}},
	{name: "failback", within: bounds{lease: 2, generations: 3, images: 2, epochs: 1}},
	{name: "crash", within: bounds{lease: 2, generations: 2, images: 1, epochs: 1, crashes: 1}},
	{name: "crash, third generation", within: bounds{lease: 2, generations: 3, images: 1, epochs: 1, crashes: 1}},
	{name: "new leader", within: bounds{lease: 2, generations: 3, images: 1, epochs: 1, elections: 1}},
	{name: "lost answer", within: bounds{lease: 2, generations: 3, images: 1, epochs: 1, unknowns: 1}},
	{name: "switchover, dead guest", within: bounds{lease: 2, generations: 3, images: 1, epochs: 2, switches: 1}},
	{name: "failed takeover, lost commits", within: bounds{lease: 2, generations: 3, images: 1, epochs: 2, failures: 1}},
	{name: "taken back, another image", within: bounds{lease: 2, generations: 3, images: 2, epochs: 1, failures: 1}},
	{name: "surrendered, lost image", within: bounds{lease: 2, generations: 2, images: 1, epochs: 2, switches: 1, failures: 1}},
	{name: "paused", within: bounds{lease: 2, generations: 2, images: 1, epochs: 1, turns: 1}},
	{name: "paused, protected again", within: bounds{lease: 1, generations: 2, images: 1, epochs: 2, turns: 2, away: 1}},
	{name: "given up, protected again", within: bounds{lease: 1, generations: 2, images: 2, epochs: 1, turns: 2, away: 2}},
	{name: "paused, new leader", within: bounds{lease: 1, generations: 2, images: 1, epochs: 1, turns: 1, elections: 1}},
	{name: "paused, lost answer", within: bounds{lease: 1, generations: 2, images: 1, epochs: 1, turns: 1, unknowns: 1}},
	{name: "paused, crash", within: bounds{lease: 1, generations: 2, images: 1, epochs: 1, turns: 1, crashes: 1}},
	{name: "paused, switchover, dead guest", within: bounds{lease: 1, generations: 2, images: 1, epochs: 2, turns: 1, away: 1, switches: 1}},
	{name: "forced", within: bounds{lease: 2, generations: 3, images: 1, epochs: 1, forces: 1}},
	{name: "forced, fourth generation", within: bounds{lease: 1, generations: 4, images: 1, epochs: 1, forces: 1}},
	{name: "forced, failed", within: bounds{lease: 1, generations: 4, images: 1, epochs: 1, forces: 1, failures: 1}},
	{name: "forced, new leader", within: bounds{lease: 1, generations: 3, images: 1, epochs: 1, forces: 1, elections: 1}},
	{name: "forced, lost answer", within: bounds{lease: 1, generations: 3, images: 1, epochs: 1, forces: 1, unknowns: 1}},
	{name: "forced, crash", within: bounds{lease: 1, generations: 3, images: 1, epochs: 1, forces: 1, crashes: 1}},
	{name: "paused, forced", within: bounds{lease: 1, generations: 3, images: 1, epochs: 1, turns: 1, forces: 1}},
	{name: "fenced", within: bounds{lease: 2, generations: 3, images: 1, epochs: 1, fences: 1, crashes: 1}},
	{name: "fenced, new leader", within: bounds{lease: 1, generations: 3, images: 1, epochs: 1, fences: 1, crashes: 1, elections: 1}},
	{name: "fenced, forced", within: bounds{lease: 1, generations: 3, images: 1, epochs: 1, fences: 1, crashes: 1, forces: 1}},
	{name: "fenced by mistake", within: bounds{lease: 1, generations: 3, images: 1, epochs: 1, fences: 1, failures: 1}},
	{name: "goes on", within: bounds{lease: 1, generations: 3, images: 1, epochs: 1, crashes: 1, live: true}},
}

// breaches are searches with one rule left out each.
var breaches = []check{
	{broken: "RENEW_WHILE_DECIDED", within: bounds{lease: 2, generations: 2, images: 1, epochs: 1}},
	{broken: "NEW_LEADER_HASTY", within: bounds{lease: 2, generations: 2, images: 1, epochs: 1, elections: 1}},
	{broken: "NO_BARRIER", within: bounds{lease: 2, generations: 2, images: 1, epochs: 1, elections: 1}},
	{broken: "STALE_CONFIRMATION", within: bounds{lease: 2, generations: 2, images: 1, epochs: 1, elections: 1}},
	{broken: "ANY_INCARNATION", within: bounds{lease: 2, generations: 2, images: 1, epochs: 1, failures: 1}},
	{broken: "ANY_EPOCH", within: bounds{lease: 2, generations: 2, images: 1, epochs: 2, failures: 1}},
	{broken: "GATE_WITHOUT_LEASE", within: bounds{lease: 2, generations: 2, images: 1, epochs: 1}},
	{broken: "NO_KERNEL_GATE", within: bounds{lease: 2, generations: 2, images: 1, epochs: 1}},
	{broken: "INSYNC_BEFORE_HOLD", within: bounds{lease: 2, generations: 2, images: 1, epochs: 1}},
	{broken: "UNKNOWN_INSYNC_FAILED", within: bounds{lease: 2, generations: 2, images: 1, epochs: 1, unknowns: 1}},
	{broken: "UNKNOWN_SURRENDER_FAILED", within: bounds{lease: 2, generations: 2, images: 1, epochs: 2, unknowns: 1, switches: 1}},
	{broken: "SURRENDER_BEFORE_SHUT", within: bounds{lease: 2, generations: 2, images: 1, epochs: 2, switches: 1}},
	{broken: "ALONE_UNRECORDED", within: bounds{lease: 2, generations: 2, images: 1, epochs: 1}},
	{broken: "ACK_WHILE_ASKING", within: bounds{lease: 2, generations: 2, images: 1, epochs: 2}},
	{broken: "OUTPUT_WHILE_ACTIVATING", within: bounds{lease: 2, generations: 2, images: 1, epochs: 1}},
	{broken: "TAKEOVER_HASTY", within: bounds{lease: 2, generations: 2, images: 1, epochs: 1}},
	{broken: "LEASE_FROM_ANSWER", within: bounds{lease: 2, generations: 2, images: 1, epochs: 1}},
	{broken: "KERNEL_GATE_LATE", within: bounds{lease: 2, generations: 2, images: 1, epochs: 1}},
	{broken: "ANY_REVISION", within: bounds{lease: 2, generations: 2, images: 1, epochs: 1, unknowns: 1}},
	{broken: "RELEASE_UNACKNOWLEDGED", within: bounds{lease: 2, generations: 2, images: 1, epochs: 2}},
	{broken: "ANY_GENERATION", within: bounds{lease: 2, generations: 2, images: 1, epochs: 1}},
	{broken: "TAKEOVER_UNSYNCED", within: bounds{lease: 2, generations: 2, images: 1, epochs: 1}},
	{broken: "TAKE_BACK_HASTY", within: bounds{lease: 2, generations: 3, images: 1, epochs: 1}},
	{broken: "TAKE_BACK_TOO_LATE", within: bounds{lease: 2, generations: 3, images: 1, epochs: 1}},
	{broken: "TAKE_BACK_UNRECORDED", within: bounds{lease: 2, generations: 3, images: 1, epochs: 2, switches: 1}},
	{broken: "DECLINE_WHOLE", within: bounds{lease: 2, generations: 2, images: 1, epochs: 1}},
	{broken: "DECLINE_BY_WORD", within: bounds{lease: 2, generations: 2, images: 1, epochs: 1, failures: 1}},
	{broken: "DECLINE_ANY_IMAGE", within: bounds{lease: 2, generations: 2, images: 2, epochs: 1, failures: 1}},
	{broken: "RECLAIM_UNRECORDED", within: bounds{lease: 2, generations: 2, images: 1, epochs: 2, switches: 1, failures: 1}},
	{broken: "PAUSED_TAKEN", within: bounds{lease: 1, generations: 2, images: 1, epochs: 1, turns: 1}},
	{broken: "PASS_BEFORE_PAUSED", within: bounds{lease: 1, generations: 2, images: 1, epochs: 1, turns: 1, away: 1}},
	{broken: "INSYNC_WHILE_PAUSED", within: bounds{lease: 1, generations: 2, images: 1, epochs: 1, turns: 1}},
	{broken: "INSYNC_OLD_IMAGE", within: bounds{lease: 1, generations: 2, images: 1, epochs: 2}},
	{broken: "SWITCH_ANY_PHASE", within: bounds{lease: 1, generations: 2, images: 1, epochs: 2, switches: 1, turns: 1}},
	{broken: "FORCE_HASTY", within: bounds{lease: 1, generations: 2, images: 1, epochs: 1, forces: 1}},
	{broken: "FORCE_UNRECORDED", within: bounds{lease: 1, generations: 2, images: 1, epochs: 1, forces: 1}},
	{broken: "FORCE_KEEPS_GENERATION", within: bounds{lease: 1, generations: 2, images: 1, epochs: 1, forces: 1}},
	{broken: "FORCE_WHILE_ACKING", within: bounds{lease: 1, generations: 2, images: 1, epochs: 2, forces: 1}},
	{broken: "FORCE_OVER_OLD_GUEST", within: bounds{lease: 1, generations: 3, images: 1, epochs: 1, forces: 1}},
	{broken: "FENCE_UNSEEN", within: bounds{lease: 1, generations: 2, images: 1, epochs: 1, fences: 1}},
	{broken: "FENCE_ANY_GENERATION", within: bounds{lease: 1, generations: 3, images: 1, epochs: 1, crashes: 1, fences: 1}},
	{broken: "RENEW_FENCED", within: bounds{lease: 1, generations: 2, images: 1, epochs: 1, failures: 1, fences: 1}},
	{broken: "NEVER_ASKS", within: bounds{lease: 1, generations: 3, images: 1, epochs: 1, crashes: 1, live: true}},
}

// quick is what a test has time for.
func quick() (checks []check) {
	checks = append(checks, sound[0])
	for _, b := range breaches {
		if b.broken == "KERNEL_GATE_LATE" {
			checks = append(checks, b)
		}
	}
	return checks
}

func main() {
	short := flag.Bool("quick", false, "only the smallest checks")
	only := flag.String("only", "", "only the checks whose names match this regular expression")
	story := flag.Bool("story", false, "tell for each rule left out how it is broken")
	flag.Parse()
	checks, all := slices.Concat(sound, breaches), true
	if *short {
		checks, all = quick(), false
	}
	if *only != "" {
		wanted, err := regexp.Compile(*only)
		if err != nil {
			fmt.Fprintln(os.Stderr, "model: -only:", err)
			os.Exit(2)
		}
		checks, all = slices.DeleteFunc(checks, func(c check) bool { return !wanted.MatchString(c.String()) }), false
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Stdout, checks, all, *story)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "model:", err)
		os.Exit(1)
	}
}

// run does the checks, prints what came of them, and returns what is wrong. When
// they are all there are, each transition must have been taken.
func run(ctx context.Context, w io.Writer, checks []check, all, story bool) error {
	var wrong []error
	did := map[string]uint64{}
	fmt.Fprintf(w, "%-38s %10s %7s %8s %8s  %s\n", "check", "states", "depth", "MB", "time", "result")
	for _, c := range checks {
		f, err := c.search(ctx)
		if err != nil {
			return err
		}
		result := "clean"
		if f.violated != "" {
			result = fmt.Sprintf("violated after %d transitions: %s", len(f.story), f.violated)
		}
		fmt.Fprintf(w, "%-38s %10d %7d %8.0f %8s  %s\n", c, f.states, f.depth, f.memory, f.took.Round(100*time.Millisecond), result)
		switch {
		case c.broken == "" && f.violated != "":
			wrong = append(wrong, fmt.Errorf("%s: %s\n  %s", c.name, f.violated, strings.Join(f.story, "\n  ")))
		case c.broken != "" && f.violated == "":
			wrong = append(wrong, fmt.Errorf("%s is left out and nothing is violated: the model has no teeth there", c.broken))
		case story && f.violated != "":
			fmt.Fprintf(w, "    %s\n", strings.Join(f.story, ", "))
		}
		if c.broken == "" {
			for name, n := range f.did {
				did[name] += n
			}
		}
	}
	known := transitions(source)
	var dead []string
	for _, name := range known {
		if did[name] == 0 {
			dead = append(dead, name)
		}
	}
	fmt.Fprintf(w, "%d of %d transitions were taken in clean checks\n", len(known)-len(dead), len(known))
	if len(dead) > 0 && all {
		wrong = append(wrong, fmt.Errorf("never taken: %s", strings.Join(dead, ", ")))
	}
	return errors.Join(wrong...)
}

// found is what a search came to.
type found struct {
	states   uint64
	depth    int
	memory   float64       // that pan took, in MB
	took     time.Duration // of the search alone
	violated string        // the assertion, "" if none
	story    []string      // transitions that lead to it
	did      map[string]uint64
}

// memory bounds a search, in MiB.
const memory = 7000

// search compiles the model with the bounds of c and visits every state.
// A breach is searched breadth first: its story is a shortest one. Whether the
// guest goes on is asked of cycles, depth first.
func (c check) search(ctx context.Context) (f found, err error) {
	dir, err := os.MkdirTemp("", "understudy-model-")
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.WriteFile(filepath.Join(dir, "ownership.pml"), []byte(source), 0o600); err != nil {
		return f, err
	}
	flags := c.within.flags()
	order, cc := []string{"-m200000", "-w24"}, []string{"-O2", "-DSAFETY", "-DNOFAIR"}
	if c.broken != "" {
		flags = append(flags, "-DBREAK="+c.broken)
	}
	switch {
	case c.within.live: // acceptance cycles, every process weakly fair
		order, cc = []string{"-a", "-f", "-m1000000", "-w22"}, []string{"-O2", "-DNFAIR=4"}
	case c.broken != "":
		order, cc = []string{"-w22"}, []string{"-O1", "-DSAFETY", "-DNOFAIR", "-DBFS"} // -O2 takes longer than it saves
	}
	cc = append(cc, fmt.Sprintf("-DMEMLIM=%d", memory), "-o", "pan", "pan.c")
	if _, err := in(ctx, dir, "spin", append(append([]string{"-a"}, flags...), "ownership.pml")...); err != nil {
		return f, err
	}
	if _, err := in(ctx, dir, "gcc", cc...); err != nil {
		return f, err
	}
	began := time.Now()
	said, err := in(ctx, dir, "./pan", order...)
	if err != nil {
		return f, err
	}
	f, err = parsePan(said)
	if err != nil {
		return f, fmt.Errorf("%s: %w", c, err)
	}
	f.took = time.Since(began)
	if f.violated != "" {
		told, err := in(ctx, dir, "./pan", "-r")
		if err != nil {
			return f, err
		}
		f.story = parseStory(told)
	}
	return f, nil
}

// in runs a program in dir. pan ends with 0 whatever it finds; its trail's
// replay does not.
func in(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return "", fmt.Errorf("%s: %w: scripts/setup installs it", name, err)
	case errors.As(err, &exit) && exit.Exited() && slices.Contains(args, "-r"):
	case err != nil:
		return "", fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out.String())
	}
	return out.String(), nil
}

var (
	panStates   = regexp.MustCompile(`(?m)^\s*(\d+) states, stored`)
	panMemory   = regexp.MustCompile(`(?m)^\s*([\d.]+)\s+total actual memory usage`)
	panDepth    = regexp.MustCompile(`depth reached (\d+), errors: (\d+)`)
	panViolated = regexp.MustCompile(`(?m)^pan:1: (.*) \(at depth`)
	panDid      = regexp.MustCompile(`(?m)^did (\d+) (\d+)$`)
	panDoes     = regexp.MustCompile(`(?m)^\s*does (\w+)$`)
	didForm     = regexp.MustCompile(`DID\(([A-Z_]+)\)`)
)

// parsePan reads pan's report. A search that did not end is an error.
func parsePan(said string) (f found, err error) {
	states, depth := panStates.FindStringSubmatch(said), panDepth.FindStringSubmatch(said)
	if states == nil || depth == nil || strings.Contains(said, "max search depth too small") || strings.Contains(said, "out of memory") {
		return f, fmt.Errorf("the search did not come to its end:\n%s", said)
	}
	f.states, _ = strconv.ParseUint(states[1], 10, 64)
	f.depth, _ = strconv.Atoi(depth[1])
	if m := panMemory.FindStringSubmatch(said); m != nil {
		f.memory, _ = strconv.ParseFloat(m[1], 64)
	}
	switch v := panViolated.FindStringSubmatch(said); {
	case v != nil:
		f.violated = strings.TrimPrefix(v[1], "assertion violated ")
	case depth[2] != "0":
		return f, fmt.Errorf("errors that it does not name:\n%s", said)
	case strings.Contains(said, "Search not completed"):
		return f, fmt.Errorf("the search did not come to its end:\n%s", said)
	}
	f.did = map[string]uint64{}
	lines := strings.Split(source, "\n")
	for _, m := range panDid.FindAllStringSubmatch(said, -1) {
		at, _ := strconv.Atoi(m[1])
		times, _ := strconv.ParseUint(m[2], 10, 64)
		if at < 1 || at > len(lines) || !didForm.MatchString(lines[at-1]) {
			return f, fmt.Errorf("line %d of the model is counted and names no transition", at)
		}
		f.did[didForm.FindStringSubmatch(lines[at-1])[1]] += times
	}
	return f, nil
}

// parseStory reads the transitions of a replayed trail.
func parseStory(told string) (story []string) {
	for _, m := range panDoes.FindAllStringSubmatch(told, -1) {
		story = append(story, m[1])
	}
	return story
}

// transitions lists the model's own, in its order.
func transitions(model string) (names []string) {
	for _, m := range didForm.FindAllStringSubmatch(model, -1) {
		names = append(names, m[1])
	}
	return names
}
