package daemon

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"understudy/config"
	"understudy/egress"
	"understudy/hypervisor/qemu"
)

// TestTheExampleGuestIsWhatQEMUGets: init writes the example, so QEMU must be
// given what it says: a disk that we serve; and one that it opens itself, in the
// format that its name says.
func TestTheExampleGuestIsWhatQEMUGets(t *testing.T) {
	c := config.Example()
	self, _ := c.Host("alpha")
	got := qemuConfig(c, self, c.Guests[0], []string{"/helper"})
	if err := got.Validate(); err != nil {
		t.Errorf("the example is refused: %v", err)
	}
	if len(got.Served) != 1 || got.Served[0].Queues != 1 || len(got.Disks) != 0 {
		t.Errorf("served disks %+v, others %+v, want one that is served", got.Served, got.Disks)
	}
	c.Guests[0].Disks = []config.Disk{{Path: "/srv/understudy/web.qcow2", Mode: config.Snapshot}}
	got = qemuConfig(c, self, c.Guests[0], []string{"/helper"})
	want := qemu.Disk{Path: "/srv/understudy/web.qcow2", Format: "qcow2", Snapshot: true}
	if len(got.Disks) != 1 || got.Disks[0] != want {
		t.Errorf("disks %+v, want %+v", got.Disks, want)
	}
	for path, want := range map[string]string{"/a/b.qcow2": "qcow2", "/a/b.raw": "raw", "/dev/vg/web": "raw", "/a/qcow2": "raw"} {
		if got := diskFormat(path); got != want {
			t.Errorf("%s is taken for %s, want %s", path, got, want)
		}
	}
}

// TestAnUnfencedGuestIsNotTakenBack: what the other host replays to a disk of both
// could come after its lease, and nothing keeps it out.
func TestAnUnfencedGuestIsNotTakenBack(t *testing.T) {
	for _, unfenced := range []bool{false, true} {
		g := config.Example().Guests[0]
		g.Disks = append(g.Disks, config.Disk{Path: "/srv/shared", Mode: config.Shared, Unfenced: unfenced})
		if after := primaryConfig(g, "alpha", time.Second).TakeBackAfter; (after == 0) != unfenced {
			t.Errorf("unfenced %v: taken back after %v", unfenced, after)
		}
	}
}

// TestASimulatedGuestLeavesNoGoroutine makes one and lets it go again.
func TestASimulatedGuestLeavesNoGoroutine(t *testing.T) {
	defer goleak.VerifyNone(t)
	dir, err := os.MkdirTemp("", "us") // short: it holds Unix sockets
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	log := slog.New(slog.DiscardHandler)
	network, err := egress.NewSwitch(filepath.Join(dir, "switch"), log)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = network.Close() }()
	g := config.Guest{Name: "web", Hypervisor: config.Sim, Memory: 4 * config.MiB,
		NICs: []config.NIC{{MAC: config.MAC{2, 0, 0, 0, 0, 1}, Segment: filepath.Join(dir, "switch")}}}
	g.Protection.HeldOutput = 1 * config.MiB
	self := config.Host{Name: "alpha", Dirs: config.Dirs{Run: filepath.Join(dir, "run")}}
	_, gate, err := newSim(Options{Config: &config.Config{}, Slog: log}, self, g, recorder{})
	if err != nil {
		t.Fatal(err)
	}
	if err := gate.Close(); err != nil {
		t.Error(err)
	}
}
