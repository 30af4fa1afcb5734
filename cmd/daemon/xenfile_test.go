//go:build xen

package daemon

// This file tries a Xen guest's checkpoint file on a real Xen host: saved, the domain
// gone, and on from the file in another one.
//
//	daemon.test -test.v -test.run XenCheckpoint -xen-kernel FILE -xen-initrd FILE

import (
	"context"
	"crypto/sha1"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"understudy/checkpoint"
	"understudy/clock"
	"understudy/disk"
	"understudy/disk/disktest"
	"understudy/epoch"
	"understudy/exclusion"
)

// TestXenCheckpointFile: a guest with a disk and a connection is saved as a daemon
// saves it with --stop, and goes on from the file: with its connection, and its disk
// has all that it has ever written.
func TestXenCheckpointFile(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	y := newTry(ctx, t)
	must := y.must
	y.network()
	key := newPrintKey()
	index := exclusion.NewIndex(exclusion.Config{Pages: 1 << 16, Key: key})
	y.closed(index)
	y.set.Own(1)
	must(y.set.Allow(clock.Instant(1 << 62)))
	y.set.Pass()
	outside := y.outside()
	driver := y.driver("try-c", outside)
	g, err := driver.Start(ctx)
	must(err)
	must(g.Resume(ctx))
	y.await("the guest has begun", func(s progress) bool { return s.n >= 8 })
	y.connect()
	defer func() { _ = y.conn.Close() }()
	y.say()
	if !y.hear(20 * time.Second) {
		t.Fatal("the guest does not answer")
	}

	path := filepath.Join(t.TempDir(), "try.ckpt")
	began := time.Now()
	must(g.Pause(ctx))
	writes, state, err := y.set.Snapshot()
	must(err)
	w, err := checkpoint.Create(path, checkpoint.Head{Guest: "try", Hypervisor: "xen", Created: time.Now(), Pages: g.Pages(), Key: key, Machine: g.Spec().Machine},
		checkpoint.Options{Finder: index})
	must(err)
	all := epoch.NewPageSet(g.Pages())
	must(g.CollectDirty(all))
	must(w.Image(ctx, g, all, nil))
	must(w.Stale(epoch.NewPageSet(g.Pages())))
	device, err := g.AppendDeviceState(ctx, nil)
	must(err)
	must(w.Final(checkpoint.Final{DeviceState: device, Disks: []checkpoint.Disk{{Name: "xvda", Store: "test", Sectors: trySectors}}}))
	info, err := w.Commit(nil)
	must(err)
	t.Logf("saved in %v, all of it: %d bytes for %d of memory; %+v; %d writes and %d bytes of the disk's state", time.Since(began), info.FileBytes, info.ImageBytes, info.Summary.Pages, len(writes), len(state))
	must(g.Destroy())
	must(y.set.Close())
	at := progressOf(t, y.media)

	// Another process, another day.
	y.closed(nil)
	defer func() { must(y.set.Close()) }()
	outside.disks.Set = y.set
	file, err := checkpoint.Open(path)
	must(err)
	defer func() { must(file.Close()) }()
	report, err := file.Verify(ctx, y.set, nil)
	must(err)
	must(report.Err())
	began = time.Now()
	must(y.set.StandBy(ctx))
	must(y.set.Commit(1, writes, state))
	standby, pending, err := checkpoint.Restore(ctx, file, driver, y.set, checkpoint.RestoreOptions{})
	must(err)
	if pending != nil {
		t.Error("pages are missing")
	}
	y.set.SetFiller(standby.Fill)
	y.set.Own(2)
	must(y.set.Activate(ctx, nil))
	must(y.set.Allow(clock.Instant(1 << 62)))
	y.set.Pass()
	again, err := standby.Run(ctx)
	must(err)
	t.Logf("it runs %v after the file was opened", time.Since(began))
	y.gate.Pass()
	must(y.gate.Announce())
	on := y.await("the guest goes on from the file", func(s progress) bool { return s.n > at.n })
	y.say()
	if !y.hear(60 * time.Second) {
		t.Error("the connection is dead")
	}
	y.await("and on", func(s progress) bool { return s.n > on.n+2 })
	wish := &disk.Request{Op: disk.OpWrite, Sector: tryWish, Sectors: 1, Segments: []disk.Segment{{Data: append([]byte("verify\n"), make([]byte, epoch.SectorSize-7)...)}}}
	must(y.set.Disk(0).Do(ctx, wish))
	end := y.await("verified", func(s progress) bool { return s.verified })
	if sum := fmt.Sprintf("%x", sha1.Sum(y.media.Bytes()[:60*256<<10])); end.rest != sum {
		t.Errorf("the disk's sum is %s, the guest says %s", sum, end.rest)
	}
	must(again.Destroy())
}

// progressOf is what a guest that is gone has said last.
func progressOf(t *testing.T, media *disktest.Media) (s progress) {
	t.Helper()
	if _, err := fmt.Sscan(string(media.Bytes()[tryStatus*epoch.SectorSize:][:64]), &s.n, &s.bad); err != nil {
		t.Fatal(err)
	}
	return s
}
