package qemu

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"understudy/disk"
	"understudy/disk/vhost"
	"understudy/epoch"
)

// memoryDisk is a disk.Backend in memory that says of every page that was
// touched, so that checkpoints are whole.
type memoryDisk struct {
	mu      sync.Mutex
	content []byte
	touched map[epoch.GFN]bool
}

func newMemoryDisk(t testing.TB) *memoryDisk {
	t.Helper()
	content, err := os.ReadFile(diskImage(t))
	must(t, err)
	return &memoryDisk{content: content, touched: map[epoch.GFN]bool{}}
}

func (d *memoryDisk) Info() disk.Info {
	return disk.Info{Sectors: uint64(len(d.content)) / epoch.SectorSize, Serial: "memory", MaxSectors: 2048, MaxZeroSectors: 2048}
}

func (d *memoryDisk) Accept(*disk.Request) (bool, error) { return false, nil }

func (d *memoryDisk) Do(_ context.Context, r *disk.Request) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	at := d.content[min(r.Sector*epoch.SectorSize, uint64(len(d.content))):]
	switch r.Op {
	case disk.OpRead:
		copy(r.Buffer, at)
	case disk.OpWrite:
		for _, s := range r.Segments {
			at = at[copy(at, s.Data):]
		}
	}
	return nil
}

func (d *memoryDisk) Landed(r *disk.Request) {
	for _, s := range r.Segments {
		d.Touched(s.Page, s.At+len(s.Data))
	}
}

func (d *memoryDisk) Touched(page epoch.GFN, length int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range epoch.GFN(length/epoch.PageSize + 2) {
		d.touched[page+i] = true
	}
}

func (d *memoryDisk) Fill(epoch.GFN, int) error { return nil }

func (d *memoryDisk) listen(t testing.TB, on *Driver) *vhost.Server {
	t.Helper()
	must(t, on.Prepare())
	s, err := vhost.Listen(vhost.Config{
		Path: on.cfg.DiskSocket(0), UID: int(on.as.uid), GID: int(on.as.gid), Backend: d, Log: testLog(t),
	})
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}

// Our own back end, ended and started anew, three times and in every order of
// its ends: while the guest runs, and while it stands still. QEMU 7.2 does not
// notice an end of the second kind; it goes on with the next connection without
// a greeting, notices no later end either, and comes back at a stop and cont.
func TestOwnBackEndStartsAnew(t *testing.T) {
	for order := range 8 {
		still := []bool{order&4 != 0, order&2 != 0, order&1 != 0}
		t.Run(fmt.Sprint(still), func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			hosts, content := newPair(t, diskConfig(t)), newMemoryDisk(t)
			d := hosts.a
			old := content.listen(t, d)
			g, err := d.Start(ctx)
			must(t, err)
			drain(t, g)
			must(t, g.Resume(ctx))
			waitDisk(ctx, t, g)
			for _, paused := range still {
				if paused {
					must(t, g.Pause(ctx))
				}
				must(t, old.Close())
				old = content.listen(t, d)
				eventually(ctx, t, "QEMU connects again", old.Connected)
				client := g.(*Guest).vm.client
				must(t, d.awaitDisks(ctx, client))
				must(t, g.Pause(ctx))
				if _, err := g.AppendDeviceState(ctx, nil); err != nil {
					t.Fatal(err)
				}
				must(t, g.Resume(ctx))
				waitDisk(ctx, t, g)
			}
			said, err := os.ReadFile(hosts.consoleA)
			must(t, err)
			if bytes.Contains(said, []byte("wrong")) {
				t.Fatalf("the guest says %q", said)
			}
		})
	}
}
