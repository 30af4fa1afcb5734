package daemon

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"understudy/clock"
	"understudy/disk"
	"understudy/disk/store"
	"understudy/disk/vhost"
	"understudy/disk/vhost/vhosttest"
)

// TestNoCheckpointWhileTheHypervisorIsAway: a daemon that was started anew under
// a guest does not know the requests in flight before the hypervisor has come
// back, so what is taken of the disks then would lack them.
func TestNoCheckpointWhileTheHypervisorIsAway(t *testing.T) {
	defer goleak.VerifyNone(t)
	dir, err := os.MkdirTemp("", "us") // short: it holds a Unix socket
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	file, err := store.Open(store.Config{Path: filepath.Join(dir, "disk"), Create: 64, StateDir: dir, Host: "alpha"})
	if err != nil {
		t.Fatal(err)
	}
	set, err := disk.NewSet(disk.SetConfig{Pages: 64, HeldBytes: 32 << 20, JournalDir: dir, Clock: clock.Boot{},
		Disks: []disk.DiskConfig{{Store: file, Serial: "web-0"}}})
	if err != nil {
		t.Fatal(err)
	}
	s := &served{Set: set}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	front, err := vhost.Listen(vhost.Config{Path: filepath.Join(dir, "socket"), Backend: set.Disk(0)})
	if err != nil {
		t.Fatal(err)
	}
	s.servers = append(s.servers, front)
	if err := set.Disk(0).Attach(front); err != nil {
		t.Fatal(err)
	}
	s.Own(1)
	s.Hold()

	if s.Settled() {
		t.Error("the disks are settled while nobody knows the requests in flight")
	}
	if err := s.Seal(1); err == nil {
		t.Error("an epoch was sealed that lacks the requests in flight")
	}
	if _, _, err := s.Snapshot(); err == nil {
		t.Error("a checkpoint file got the state of disks without the requests in flight")
	}

	back, err := vhosttest.Dial(filepath.Join(dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = back.Close() }()
	for end := time.Now().Add(5 * time.Second); !front.Connected(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the hypervisor is back and nobody sees it")
		}
	}
	if err := s.found(); err != nil {
		t.Errorf("once the hypervisor is back: %v", err)
	}
}
