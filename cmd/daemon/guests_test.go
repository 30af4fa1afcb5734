package daemon

import (
	"testing"

	"understudy/config"
	"understudy/hypervisor/qemu"
)

// TestTheExampleGuestIsWhatQEMUGets: init writes the example, so QEMU must be
// given what it says, the format of its disk image included.
func TestTheExampleGuestIsWhatQEMUGets(t *testing.T) {
	c := config.Example()
	self, _ := c.Host("alpha")
	got := qemuConfig(c, self, c.Guests[0], []string{"/helper"})
	if err := got.Validate(); err != nil {
		t.Errorf("the example is refused: %v", err)
	}
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
