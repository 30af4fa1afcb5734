package guest_test

import (
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy/guest"
	"understudy/guest/client"
	"understudy/guest/diskspeed"
	"understudy/guest/image"
)

// newDisk is a fresh copy of the small image.
func newDisk(t *testing.T) string {
	t.Helper()
	small, err := image.Small(t.Context(), filepath.Join("..", "build", "guest"))
	if err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(t.TempDir(), "disk")
	if err := image.Copy(disk, small); err != nil {
		t.Fatal(err)
	}
	return disk
}

// TestDiskSurvivesAKill works on a disk of QEMU's own, kills QEMU in the middle,
// and finds a clean file system with every acknowledged write, before and after
// the next boot. That one ends in order and leaves nothing to be recovered.
func TestDiskSurvivesAKill(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	s := setup{machine: "microvm", nic: "virtio-net-device", disk: newDisk(t)}

	m := boot(t, s)
	control := client.NewControl(m.dial(t, guest.ControlPort))
	cold, err := control.ReadDisk(ctx, "library")
	if err != nil || cold.Files != 64 || cold.Bytes != 32<<20 {
		t.Errorf("the library: %+v, %v", cold, err)
	}
	if err := control.DropCaches(ctx); err != nil {
		t.Error(err)
	}
	if again, err := control.ReadDisk(ctx, "library"); err != nil || again != cold {
		t.Errorf("the library once more: %+v, %v", again, err)
	}
	if err := control.StartDiskWork(ctx, client.DiskWork{Files: 24}); err != nil {
		t.Fatal(err)
	}
	acks, err := client.FollowAcks(ctx, m.dial(t, guest.ControlPort), 1)
	if err != nil {
		t.Fatal(err)
	}
	for range 150 {
		if _, err := acks.Next(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if c, err := control.VerifyDisk(ctx, acks.Newest()); err != nil || c.Files != 24 {
		t.Errorf("while it works: %+v, %v", c, err)
	}
	for range 50 {
		if _, err := acks.Next(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if p, err := control.DiskProgress(ctx); err != nil || p.Errors != 0 || p.Acked < 200 {
		t.Errorf("progress: %+v, %v", p, err)
	}
	if err := m.kill(); err != nil {
		t.Fatal(err)
	}
	<-m.ended
	for err = nil; err == nil; { // what was on its way
		_, err = acks.Next(ctx)
	}
	if err := image.Fsck(ctx, s.disk); err != nil {
		t.Error(err)
	}

	m = boot(t, s)
	control = client.NewControl(m.dial(t, guest.ControlPort))
	checked, err := control.VerifyDisk(ctx, acks.Newest())
	if err != nil || checked.Files != 24 {
		t.Errorf("after %d acknowledgements and a kill: %+v, %v", acks.Last(), checked, err)
	}
	if done, err := control.Run(ctx, []string{"postmark", "files=30", "transactions=30"}, nil); err != nil || done.Ops != 30 {
		t.Errorf("a workload: %+v, %v", done, err)
	}
	speed := diskspeed.Options{Mode: diskspeed.RandRead, Block: 4096, Depth: 4, Time: 100 * time.Millisecond}
	if r, err := control.MeasureDisk(ctx, speed, guest.FirstDisk); err != nil || r.Ops == 0 {
		t.Errorf("the disk's speed: %+v, %v", r, err)
	}
	speed.Mode = diskspeed.RandWrite
	if _, err := control.MeasureDisk(ctx, speed, guest.FirstDisk); err == nil || !strings.Contains(err.Error(), "busy") {
		t.Errorf("writing to a device that is mounted: %v", err)
	}
	if err := control.StartDiskWork(ctx, client.DiskWork{Files: 24, Every: 10 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	if err := control.Poweroff(ctx); err != nil {
		t.Fatal(err)
	}
	select {
	case <-m.ended:
	case <-ctx.Done():
		t.Fatalf("the machine did not end after poweroff; its console:\n%s", m.console())
	}
	if err := image.Fsck(ctx, s.disk); err != nil {
		t.Error(err)
	}
	if needsRecovery(t, s.disk) {
		t.Errorf("poweroff left the file system mounted; the console:\n%s", m.console())
	}
}

// needsRecovery tells whether an ext4 file system has a journal to be replayed.
func needsRecovery(t *testing.T, path string) bool {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var incompat [4]byte
	if _, err := f.ReadAt(incompat[:], 1024+0x60); err != nil {
		t.Fatal(err)
	}
	return binary.LittleEndian.Uint32(incompat[:])&4 != 0
}

// TestADiskThatIsNotThere is told on the console; the guest comes up without.
func TestADiskThatIsNotThere(t *testing.T) {
	t.Parallel()
	m := start(t, setup{machine: "microvm", nic: "virtio-net-device", words: "understudy.disk=/dev/vdz:/data"})
	m.waitFor(t, "no /dev/vdz", guest.ReadyLine)
	control := client.NewControl(m.dial(t, guest.ControlPort))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := control.CheckDisk(ctx); err == nil || !strings.Contains(err.Error(), "no disk mounted") {
		t.Errorf("check of a disk that is not there: %v", err)
	}
}
