package qemu

import (
	"bytes"
	"context"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"understudy/epoch"
	"understudy/hypervisor"
)

// Served disks are tried here with a back end of QEMU's own, so that what is
// seen is this package's doing and not that of package disk/vhost.

// diskLoop is assembled from testdata/diskloop.S (as --32; ld -m elf_i386
// -Ttext 0x7c00 --oformat binary): a guest that writes to its disk and reads
// back for ever, by way of the firmware.
const diskLoop = "fafc31c08ed88ec08ed0bc007c8816697cfbbe6a7ce8450066ff06001066a100" +
	"1066a30020b443c706807c0020e81f00c706807c0030b442e8140066a1003066" +
	"3b06001074d2be757ce81100f4ebfdb0008a16697cbe7c7ccd1372eac3baf803" +
	"ac84c07403eeebf8c30066726f6d206469736b0a0077726f6e670a0010000100" +
	"0000000008000000"

// diskImage makes a disk that holds diskLoop.
func diskImage(t testing.TB) string {
	t.Helper()
	code, err := hex.DecodeString(diskLoop)
	must(t, err)
	image := make([]byte, mib)
	copy(image, code)
	image[510], image[511] = 0x55, 0xaa
	path := filepath.Join(openDir(t), "disk")
	must(t, os.WriteFile(path, image, 0o644))
	return path
}

// backEnd serves disk 0 of a host.
type backEnd struct {
	cmd    *exec.Cmd
	socket string
}

func serve(t testing.TB, d *Driver, image string) *backEnd {
	t.Helper()
	must(t, d.Prepare())
	b := &backEnd{socket: d.cfg.DiskSocket(0)}
	_ = os.Remove(b.socket)
	b.cmd = exec.Command("qemu-storage-daemon", "--blockdev", "driver=file,locking=off,node-name=f,filename="+image,
		"--export", "type=vhost-user-blk,id=e,node-name=f,writable=on,addr.type=unix,addr.path="+b.socket)
	b.cmd.Stderr = os.Stderr
	must(t, b.cmd.Start())
	t.Cleanup(b.end)
	deadline := time.Now().Add(10 * time.Second)
	for os.Chmod(b.socket, 0o600) != nil {
		if time.Now().After(deadline) {
			t.Fatal("the back end does not listen")
		}
		time.Sleep(time.Millisecond)
	}
	must(t, d.Grant(b.socket))
	return b
}

// end kills the back end without a word.
func (b *backEnd) end() {
	if b.cmd.ProcessState == nil {
		_ = b.cmd.Process.Kill()
		_ = b.cmd.Wait()
	}
}

func diskConfig(t testing.TB) Config {
	c := testConfig(t, "q35")
	c.Kernel, c.Served = "", []ServedDisk{{}}
	return c
}

// diskCount is the count of diskLoop.
func diskCount(t testing.TB, image hypervisor.Image) uint64 {
	t.Helper()
	page := make([]byte, epoch.PageSize)
	must(t, image.ReadPages(1, page))
	return le64(page) & 0xffffffff
}

// waitDisk waits until a guest's disk has answered some more.
func waitDisk(ctx context.Context, t testing.TB, g hypervisor.Guest) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for from := diskCount(t, g); diskCount(t, g) < from+20; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("the disk does not answer: the count stays at %d", diskCount(t, g))
		}
	}
}

// A guest boots from a served disk, is checkpointed while it uses it, and goes
// on with it on the other host, where another process serves it at another
// path.
func TestServedDisk(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	hosts := newPair(t, diskConfig(t))
	image := diskImage(t)
	serve(t, hosts.a, image)
	serve(t, hosts.b, image)
	g, err := hosts.a.Start(ctx)
	must(t, err)
	drain(t, g)
	must(t, g.Resume(ctx))
	waitConsole(ctx, t, hosts.consoleA, "from disk", 1)
	sb, err := hosts.b.Standby(ctx, g.Spec())
	must(t, err)
	t.Cleanup(func() { must(t, sb.Destroy()) })
	var state []byte
	for range 5 {
		must(t, g.Resume(ctx))
		waitDisk(ctx, t, g)
		state = commit(ctx, t, g, sb)
		// What the back end writes through its own mapping no scan sees, and
		// this one does not report it.
		for _, page := range differs(t, g, sb) {
			set := epoch.NewPageSet(g.Pages())
			set.Add(epoch.GFN(page))
			copySet(t, g, sb, set)
		}
	}
	must(t, g.Destroy())

	// A load in vain leaves the disk's socket to the next machine.
	must(t, sb.Load(ctx, state, nil))
	must(t, sb.Reset(ctx))
	must(t, sb.Load(ctx, state, nil))
	next, err := sb.Run(ctx)
	must(t, err)
	drain(t, next)
	waitDisk(ctx, t, next)
	systemReset(ctx, t, next)
	waitConsole(ctx, t, hosts.consoleB, "from disk", 1)
	waitDisk(ctx, t, next)
	said, err := os.ReadFile(hosts.consoleB)
	must(t, err)
	if bytes.Contains(said, []byte("wrong")) {
		t.Fatalf("the guest says %q", said)
	}
}

// A daemon that is started anew finds its guest's disk disconnected. It adopts
// the guest all the same, before or after it serves the disk again.
func TestAdoptWithoutItsDisk(t *testing.T) {
	for _, first := range []string{"adopts", "serves"} {
		t.Run(first+" first", func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			hosts := newPair(t, diskConfig(t))
			image := diskImage(t)
			old := serve(t, hosts.a, image)
			g, err := hosts.a.Start(ctx)
			must(t, err)
			drained(t, g)
			must(t, g.Resume(ctx))
			waitDisk(ctx, t, g)
			must(t, g.Detach())
			old.end()

			if first == "serves" {
				serve(t, hosts.a, image)
			}
			began := time.Now()
			again, err := hosts.a.Adopt(ctx)
			must(t, err)
			t.Logf("adopted after %v", time.Since(began))
			drain(t, again)
			must(t, again.Pause(ctx))
			if _, err := again.AppendDeviceState(ctx, nil); err != nil {
				t.Fatal(err)
			}
			must(t, again.Resume(ctx))
			if first == "adopts" {
				serve(t, hosts.a, image)
			}
			waitDisk(ctx, t, again)
		})
	}
}

// drained reads a guest's events to their end.
func drained(t testing.TB, g hypervisor.Guest) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range g.Events() {
		}
	}()
	t.Cleanup(func() { <-done })
}

// QEMU takes the number of queues and entries that the configuration names,
// on every kind of machine.
func TestServedDiskShape(t *testing.T) {
	for _, machine := range []string{"pc", "q35", "microvm"} {
		t.Run(machine, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			c := testConfig(t, machine)
			c.Served = []ServedDisk{{QueueSize: 64}}
			hosts := newPair(t, c)
			image := diskImage(t)
			serve(t, hosts.a, image)
			serve(t, hosts.b, image)
			g, err := hosts.a.Start(ctx)
			must(t, err)
			drain(t, g)
			must(t, g.Resume(ctx))
			must(t, waitCounting(ctx, g))
			sb, err := hosts.b.Standby(ctx, g.Spec())
			must(t, err)
			t.Cleanup(func() { must(t, sb.Destroy()) })
			must(t, sb.Load(ctx, commit(ctx, t, g, sb), nil))
			must(t, g.Destroy())
			next, err := sb.Run(ctx)
			must(t, err)
			drain(t, next)
			must(t, waitCounting(ctx, next))

			other := c
			other.Served = []ServedDisk{{QueueSize: 128}}
			other = onAnotherHost(t, other)
			if _, err := newDriver(t, other).Standby(ctx, next.Spec()); err == nil {
				t.Fatal("a host with another disk stands by")
			} else {
				t.Log(err)
			}
		})
	}
}
