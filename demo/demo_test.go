package demo_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"understudy/config"
	"understudy/demo"
	"understudy/demo/world"
	"understudy/guest/image"
)

// programs is the directory of understudy and understudyd.
var programs string

func TestMain(m *testing.M) {
	var err error
	if programs, err = world.Programs(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(programs)
		os.Exit(code)
	}))
}

// TestDemo runs both demos, each twice in a row: every check holds, the report
// says what happened when, and nothing is left on the machine.
func TestDemo(t *testing.T) {
	images, err := filepath.Abs("../build/guest")
	if err != nil {
		t.Fatal(err)
	}
	small, err := image.Small(t.Context(), images)
	if err != nil {
		t.Fatal(err)
	}
	disk := map[string]config.DiskMode{"qemu/first": config.Replicated, "qemu/again": config.Shared}
	for _, guest := range []config.Hypervisor{config.Sim, config.QEMU} {
		for _, turn := range []string{"first", "again"} {
			t.Run(fmt.Sprintf("%s/%s", guest, turn), func(t *testing.T) {
				const prefix = "usdemotest"
				t.Cleanup(func() { nothingLeft(t, prefix) })
				ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
				defer cancel()
				logs := t.TempDir()
				report, err := demo.Run(ctx, demo.Options{
					Guest: guest, Repeat: 1, Seed: 1, Profile: config.Standard, Memory: 256 * config.MiB, Machine: "q35",
					Daemon: filepath.Join(programs, "understudyd"),
					Kernel: filepath.Join(images, "vmlinuz"), Initrd: filepath.Join(images, "initrd"), Image: small,
					Disk: disk[string(guest)+"/"+turn],
					Say:  t.Logf, Prefix: prefix, KeepLogs: logs,
				})
				if err != nil || !report.Passed {
					for _, h := range world.Hosts() {
						text, _ := os.ReadFile(filepath.Join(logs, h+".log"))
						t.Logf("host %s:\n%s", h, text)
					}
					t.Fatalf("passed: %v, err: %v", report.Passed, err)
				}
				r := report.Rounds[0]
				if r.Lost != "a" || r.Taker != "b" {
					t.Errorf("host %s was lost and %s took over: the guest's home is a", r.Lost, r.Taker)
				}
				inOrder(t, r)
				if err := report.Print(t.Output()); err != nil {
					t.Error(err)
				}
				if _, err := json.Marshal(report); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// inOrder checks the timeline: what must come after what, and that the owner's
// lease was waited for.
func inOrder(t *testing.T, r demo.Round) {
	t.Helper()
	before := time.Duration(0)
	for _, step := range []struct {
		what string
		at   time.Duration
	}{{"asked", r.Asked}, {"granted", r.Granted}, {"running", r.Running}, {"first packet", r.FirstPacket}} {
		if step.at <= before {
			t.Errorf("%s %v after the kill: not after the step before it, %v", step.what, step.at, before)
		}
		before = step.at
	}
	if r.LastCommit > 0 {
		t.Errorf("the last commit before the kill is said to be %v after it", r.LastCommit)
	}
}

// nothingLeft checks that every world of a test is gone without a trace.
func nothingLeft(t *testing.T, prefix string) {
	t.Helper()
	left, err := world.Leftovers(prefix)
	if err != nil {
		t.Error(err)
	}
	for _, what := range left {
		t.Errorf("left behind: %s", what)
	}
}
