package main

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"understudy/config"
	"understudy/demo/world"
	"understudy/guest/image"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestEveryPointIsPlanned: no point of the protocol is without a way to it.
func TestEveryPointIsPlanned(t *testing.T) {
	if m := missing(); len(m) > 0 {
		t.Errorf("no situation leads to %v", m)
	}
	seen := map[string]bool{}
	for _, c := range cells(regexp.MustCompile(""), config.Replicated, true) {
		if seen[c.String()] {
			t.Errorf("cell %q is there twice", c)
		}
		seen[c.String()] = true
	}
}

// TestSomeCells plays a handful, of each kind one, in one world. `make faults`
// plays them all.
func TestSomeCells(t *testing.T) {
	const prefix = "usfaulttest"
	t.Cleanup(func() {
		left, err := world.Leftovers(prefix)
		if err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	})
	images, err := filepath.Abs("../../build/guest")
	if err != nil {
		t.Fatal(err)
	}
	small, err := image.Small(t.Context(), images)
	if err != nil {
		t.Fatal(err)
	}
	programs, err := world.Programs("crashpoints")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(programs) })
	logs := t.TempDir()
	s, err := newStage(t.Context(), setup{daemon: filepath.Join(programs, "understudyd"), kernel: filepath.Join(images, "vmlinuz"),
		initrd: filepath.Join(images, "initrd"), image: small, mode: config.Replicated, memory: 128 * config.MiB, prefix: prefix, logs: logs})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	}()
	dice := rand.New(rand.NewPCG(1, 0))
	for _, name := range []string{
		"protected: captured / kill owner",
		"protected: ack-sent / kill backup",
		"any time / torn writes, owner",
		"switchover: surrender-proposed / kill owner's QEMU",
		"owner lost: granted / stall",
	} {
		found := cells(regexp.MustCompile("^"+regexp.QuoteMeta(name)+"$"), config.Replicated, true)
		if len(found) != 1 {
			t.Fatalf("%d cells are called %q", len(found), name)
		}
		result, err := s.play(t.Context(), found[0], dice)
		t.Logf("%s: %s, first line after %v, %v in all", name, result.Outcome, result.FirstLine, result.Took)
		if err != nil || !result.ok() {
			for _, h := range world.Hosts() {
				text, _ := os.ReadFile(filepath.Join(logs, h+".log"))
				t.Logf("host %s:\n%s", h, text)
			}
			t.Fatalf("%s: %+v, %v", name, result, err)
		}
	}
	if r := s.checker.Result(); r.Batches == 0 || r.Frames == 0 || len(r.Breaches) > 0 {
		t.Errorf("the histories: %+v", r)
	}
}

// TestReportSaysWhatFailed prints one of each kind of outcome.
func TestReportSaysWhatFailed(t *testing.T) {
	r := Report{Trials: []trial{
		{Row: "p: x", Fault: "kill", Outcome: goesOn, FirstLine: 1200 * time.Millisecond, Granted: 1000 * time.Millisecond, Running: 1010 * time.Millisecond},
		{Row: "p: x", Fault: "kill", Outcome: boots, Mended: true},
		{Row: "p: y", Fault: "cut", Outcome: failed, Why: "it broke"},
	}}
	var out bytes.Buffer
	if err := r.Print(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"2/2 1.2sb", "1: kill", "0/1!", "1200 ms", "FAILED: p: y / cut: it broke", "2 of 3 trials"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the report lacks %q:\n%s", want, out.String())
		}
	}
	if r.Failed() != 1 {
		t.Errorf("%d failed", r.Failed())
	}
}
