package integration

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"understudy/checkpoint"
	"understudy/config"
	"understudy/demo/world"
	"understudy/guest/client"
	"understudy/host"
)

// TestARealGuestGoesOnFromAFile saves Linux, with its disk in use, and lets it go
// on: once from where it was stopped, and once from where it was while it ran on
// for a while, which its disk has to be rolled back for.
func TestARealGuestGoesOnFromAFile(t *testing.T) {
	const prefix = "usckpt"
	r := newReal(t, prefix, world.Guest{Name: web, Home: world.HostA, Memory: 128 * config.MiB, Machine: "q35", Disk: config.Shared})
	began := time.Now()
	var counter *world.Client
	var disk *world.DiskClient
	defer func() {
		if t.Failed() {
			r.dump(began)
		}
		if counter != nil {
			counter.Close()
		}
		if disk != nil {
			_ = disk.Close()
		}
		r.end(prefix)
	}()
	var err error
	counter, err = r.Connect(r.ctx, web)
	r.must(err)
	boot, err := r.Boot(r.ctx, web)
	r.must(err)
	r.must(r.Load(r.ctx, web))
	disk, err = r.LoadDisk(r.ctx, web)
	r.must(err)
	r.protected(web, world.HostA)
	r.must(disk.Wait(r.ctx, disk.Last()+50, soon))

	// Stopped with its save, it goes on where it was: the client's connections
	// live, and no line and no write that was acknowledged is lost.
	stopped := filepath.Join(r.Disks, "stopped.ckpt")
	s := saved(r, stopped, "--stop")
	t.Logf("saved and stopped in %v: %d KiB for %d MiB, left out %+v", s.Took, s.FileBytes>>10, s.ImageBytes>>20, s.Summary.Pages)
	if s.Summary.Pages.Mapped+s.Summary.Pages.Content == 0 {
		t.Error("no page was left out for being on the disk")
	}
	if n := len(s.Disks); n != 3 || s.Disks[1].Store != checkpoint.StoreBoot || s.Disks[2].Store != checkpoint.StoreBoot {
		t.Errorf("the file names %+v, want the disk, the initrd and the kernel", s.Disks)
	}
	r.until(web, "stopped", func(name string, g host.GuestStatus) bool { return name == world.HostA && g.Role == "stopped" })
	ok(r, "checkpoint", "verify", stopped)
	since := time.Now()
	back := restored(r, stopped)
	r.must(counter.More(r.ctx, 1, soon))
	t.Logf("restored: runs after %v, answers after %v", back.Ready, time.Since(since))
	if !back.Lazy || back.RolledBack {
		t.Errorf("restored lazily: %t, disks rolled back: %t", back.Lazy, back.RolledBack)
	}
	r.must(counter.More(r.ctx, 50, soon))
	r.must(counter.Err())
	r.must(disk.Wait(r.ctx, disk.Last()+50, soon))
	r.goesOnAs(boot)
	r.protected(web, world.HostA)
	t.Logf("protected again %v after the restore was asked for", time.Since(since))
	r.must(disk.Verify(r.ctx))
	r.must(r.Fsck(r.ctx, web, world.HostA))
	if text, status := r.cli(world.HostA, "checkpoint", "verify", stopped); status != 4 {
		t.Errorf("verify of a file whose disk was written since: %d: %s", status, text)
	}
	r.must(disk.Close())
	counter.Close()

	// Pinned, it runs on, and its disk is written over and over.
	disk, err = r.LoadDisk(r.ctx, web)
	r.must(err)
	r.must(disk.Wait(r.ctx, disk.Last()+20, soon))
	pinned := filepath.Join(r.Disks, "pinned.ckpt")
	s = saved(r, pinned, "--pin")
	t.Logf("saved with a pin in %v, the guest stood still %v", s.Took, s.Pause)
	at := disk.Last()
	r.must(disk.Wait(r.ctx, at+100, soon))
	ok(r, "stop", web)
	ok(r, "checkpoint", "verify", pinned)
	if text, status := r.cli(world.HostA, "checkpoint", "restore", web, stopped); status != 1 {
		t.Errorf("restore on a disk written since: %d: %s", status, text)
	}
	back = restored(r, pinned)
	if !back.RolledBack {
		t.Error("the disk was not rolled back")
	}
	t.Logf("restored: disk rolled back after %v, runs after %v", back.Disks, back.Ready)
	r.goesOnAs(boot)
	r.must(r.Control(r.ctx, web, func(ctx context.Context, c *client.Control) error {
		p, err := c.DiskProgress(ctx)
		if err == nil && p.Errors > 0 {
			t.Errorf("the guest's disk failed it: %+v", p)
		}
		if err := c.StopDiskWork(ctx); err != nil {
			return err
		}
		for range 2 {
			if _, err := c.VerifyDisk(ctx, nil); err != nil {
				return err
			}
			if err := c.DropCaches(ctx); err != nil {
				return err
			}
		}
		return c.SyncDisk(ctx)
	}))
	r.must(r.Fsck(r.ctx, web, world.HostA))
	r.protected(web, world.HostA)
	ok(r, "checkpoint", "remove", pinned)
	for _, gone := range []string{pinned, host.PinPath(pinned, 0)} {
		if _, err := os.Stat(gone); err == nil {
			t.Errorf("%s is still there", gone)
		}
	}
}

// goesOnAs checks that the guest is the same boot, with its memory whole.
func (r *real) goesOnAs(boot string) {
	r.t.Helper()
	now, err := r.Boot(r.ctx, web)
	r.must(err)
	if now != boot {
		r.t.Errorf("boot id %s, was %s", now, boot)
	}
	r.must(r.Check(r.ctx, web))
}

// ok runs the operator's tool on host a, which must succeed.
func ok(r *real, args ...string) string {
	r.t.Helper()
	text, status := r.cli(world.HostA, args...)
	if status != 0 {
		r.t.Fatalf("%q: status %d: %s", args, status, text)
	}
	return text
}

func saved(r *real, file string, more ...string) (s host.SaveResult) {
	r.t.Helper()
	r.must(json.Unmarshal([]byte(ok(r, append([]string{"checkpoint", "save", web, file, "-o", "json"}, more...)...)), &s))
	return s
}

func restored(r *real, file string, more ...string) (b host.RestoreResult) {
	r.t.Helper()
	r.must(json.Unmarshal([]byte(ok(r, append([]string{"checkpoint", "restore", web, file, "-o", "json"}, more...)...)), &b))
	return b
}
