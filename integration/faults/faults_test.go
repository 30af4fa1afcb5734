package main

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"go.uber.org/goleak"

	"understudy/config"
	"understudy/demo/world"
	"understudy/guest/image"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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
	program, remove, err := buildDaemon(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = remove() })
	logs := t.TempDir()
	s, err := newStage(t.Context(), setup{daemon: program, kernel: filepath.Join(images, "vmlinuz"),
		initrd: filepath.Join(images, "initrd"), image: small, mode: config.Replicated, memory: 112 * config.MiB, prefix: prefix, logs: logs})
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
