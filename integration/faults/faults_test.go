package main

import (
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

// TestSomeCells plays a handful, of each kind one, in two worlds. `make faults`
// plays them all.
func TestSomeCells(t *testing.T) {
	o := options{mode: config.Replicated, memory: 112, workers: 2, seed: 1}
	logs := t.TempDir()
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
	build, err := identify(program)
	if err != nil {
		t.Fatal(err)
	}
	q := queue{ctx: t.Context(), out: filepath.Join(t.TempDir(), "report.json"), say: t.Output(), setup: setup{daemon: program, kernel: filepath.Join(images, "vmlinuz"),
		initrd: filepath.Join(images, "initrd"), image: small, mode: o.mode, memory: 112 * config.MiB, prefix: "usfaulttest", logs: logs}, report: newReport(o, build)}
	t.Cleanup(func() {
		for i := range o.workers {
			left, err := world.Leftovers(q.setup.world(i))
			if err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		}
	})
	for i, name := range []string{
		"protected: captured / kill owner",
		"protected: ack-sent / kill backup",
		"any time / stranger in the hosts' places",
		"switchover: surrender-proposed / kill owner's QEMU",
		"owner lost: granted / stall",
		"any time / torn writes, owner",
	} {
		found := cells(regexp.MustCompile("^"+regexp.QuoteMeta(name)+"$"), config.Replicated, true)
		if len(found) != 1 {
			t.Fatalf("%d cells are called %q", len(found), name)
		}
		q.waiting = append(q.waiting, job{i + 1, found[0]})
	}
	err = q.play(o.workers)
	if err != nil || q.report.Failed() > 0 || len(q.report.Trials) != 6 {
		t.Errorf("%d trials, %d failed: %v", len(q.report.Trials), q.report.Failed(), err)
		kept, _ := filepath.Glob(filepath.Join(logs, "*", "*.log"))
		for _, path := range kept {
			text, _ := os.ReadFile(path)
			t.Logf("%s:\n%s", path, text)
		}
	}
	for _, x := range q.report.Trials {
		if x.Seen.Batches == 0 || x.Seen.Frames == 0 || len(x.Phases) == 0 {
			t.Errorf("%s: the histories held %+v, its phases are %v", x.name(), x.Seen, x.Phases)
		}
	}
	again := queue{ctx: t.Context(), say: t.Output(), report: newReport(o, build)}
	if err := again.resume(q.out, false); err != nil || len(again.report.Trials) != len(q.report.Trials) {
		t.Errorf("the report is read back with %d trials: %v", len(again.report.Trials), err)
	}
}
