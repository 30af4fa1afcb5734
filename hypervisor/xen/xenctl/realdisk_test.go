//go:build xen

package xenctl

// This file tries a disk of ours on a real Xen host, on a paused PVH domain without
// devices whose guest is testdata/try-disk: Linux' own block driver at one end of
// the ring, disk/blkif at the other.

import (
	"bytes"
	"context"
	"crypto/sha1"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy/clock"
	"understudy/disk"
	"understudy/disk/blkif"
	"understudy/disk/disktest"
	"understudy/epoch"
	"understudy/hypervisor/xen"
	"understudy/hypervisor/xen/xenbus"
	"understudy/hypervisor/xen/xenstore"
)

var diskDomain = flag.String("disk-domain", "", "the paused PVH domain to give a disk")

const (
	trySectors = 1 << 15
	tryStatus  = trySectors - 1
	tryWish    = trySectors - 2
)

// host is what a Xen host's first domain has of Xen.
type host struct {
	t     *testing.T
	ctx   context.Context
	store *xenstore.Client
	c     *Control
	tools *Toolstack
}

func newHost(t *testing.T) *host {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	t.Cleanup(cancel)
	h := &host{t: t, ctx: ctx}
	var err error
	h.store, err = xenstore.Dial(ctx, xenstore.Socket)
	h.must(err)
	t.Cleanup(func() { _ = h.store.Close() })
	h.c, err = Open()
	h.must(err)
	t.Cleanup(func() { _ = h.c.Close() })
	h.tools, err = NewToolstack()
	h.must(err)
	t.Cleanup(func() { _ = h.tools.Close() })
	children := make(chan os.Signal, 64)
	signal.Notify(children, syscall.SIGCHLD)
	go func() {
		for range children {
			h.tools.ChildEnded()
		}
	}()
	t.Cleanup(func() { signal.Stop(children); close(children) })
	return h
}

func (h *host) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

// disks is a disk.Set of one disk, as the engine has it, without an end to its lease.
func (h *host) disks(media *disktest.Media, pages uint64, generation epoch.Generation) *disk.Set {
	set, err := disk.NewSet(disk.SetConfig{
		Pages: pages, Disks: []disk.DiskConfig{{Store: media.Open(), Serial: "xvda"}}, Clock: clock.Boot{}, Log: h.log(),
	})
	h.must(err)
	set.Own(generation)
	h.must(set.Allow(clock.Instant(1 << 62)))
	return set
}

func (h *host) log() *slog.Logger { return slog.New(slog.NewTextHandler(h.t.Output(), nil)) }

// served is a domain's disk.
type servedDisk struct {
	table *GrantTable
	dev   *blkif.Device
	bus   *xenbus.Device
}

// serve plugs a disk into a domain.
func (h *host) serve(domain uint32, frames *xen.Frames, memory []byte, set *disk.Set) *servedDisk {
	h.t.Helper()
	began := time.Now()
	table, err := h.c.Grants(domain)
	h.must(err)
	dev, err := blkif.New(blkif.Config{
		Backend: set.Disk(0), Memory: xen.Lent{Grants: table.Grants(), Frames: frames, Memory: memory}, Log: h.log(),
		Bind: func(port uint32) (blkif.Channel, error) { return h.c.Bind(domain, port) },
	})
	h.must(err)
	h.must(set.Disk(0).Attach(dev))
	bus, err := xenbus.Attach(h.ctx, xenbus.Config{
		Store: h.store, Domain: domain, Kind: xenbus.Disk, Number: 51712, Backend: dev, Log: h.log(),
		Front: map[string]string{"virtual-device": "51712", "device-type": "disk"},
		Back:  map[string]string{"dev": "xvda", "mode": "w", "removable": "0", "bootable": "1"},
	})
	h.must(err)
	h.t.Logf("plugged a disk into domain %d in %v", domain, time.Since(began))
	return &servedDisk{table, dev, bus}
}

// leave ends the service as a process that goes: the guest's driver sees nothing.
func (s *servedDisk) leave(h *host) {
	h.t.Helper()
	h.must(s.bus.Detach(h.ctx))
	h.must(s.dev.Close())
	h.must(s.table.Close())
}

// status is what the guest says of itself, with the held writes in it.
type status struct {
	verified bool
	n, bad   int
	rest     string
}

func (h *host) read(set *disk.Set, sector uint64) string {
	h.t.Helper()
	r := &disk.Request{Op: disk.OpRead, Sector: sector, Sectors: 1, Buffer: make([]byte, epoch.SectorSize), Segments: []disk.Segment{{Data: make([]byte, epoch.SectorSize)}}}
	h.must(set.Disk(0).Do(h.ctx, r))
	return string(r.Buffer)
}

func (h *host) status(set *disk.Set) (s status) {
	h.t.Helper()
	words := strings.Fields(strings.Trim(h.read(set, tryStatus), "\x00"))
	if len(words) > 0 && words[0] == "verified" {
		s.verified, words = true, words[1:]
	}
	if len(words) > 2 {
		_, err := fmt.Sscan(words[0]+" "+words[1], &s.n, &s.bad)
		h.must(err)
		s.rest = words[2]
	}
	return s
}

// await waits until the guest says what is asked for.
func (h *host) await(set *disk.Set, what string, is func(status) bool) status {
	h.t.Helper()
	began := time.Now()
	for limit := time.Now().Add(3 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if s := h.status(set); is(s) {
			h.t.Logf("%s after %v: %+v", what, time.Since(began), s)
			if s.bad != 0 {
				h.t.Errorf("the guest has read %d times what it has not written", s.bad)
			}
			return s
		}
		if time.Now().After(limit) {
			h.t.Fatalf("%s: the guest says %+v", what, h.status(set))
		}
	}
}

// TestDiskOnXen: a disk whose guest writes all the time is protected for some
// epochs, served by another process, and goes on in a new domain from the last
// epoch that was committed; the guest never reads what it has not written.
func TestDiskOnXen(t *testing.T) {
	if *diskDomain == "" {
		return
	}
	h := newHost(t)
	ctx, c, store, tools, must := h.ctx, h.c, h.store, h.tools, h.must
	number, err := find(ctx, store, *diskDomain)
	must(err)
	config, err := tools.Config(number)
	must(err)
	major, minor, err := c.Version()
	must(err)
	policies, err := c.Policies(number)
	must(err)
	head, err := xen.Head(major, minor, policies)
	must(err)
	frames, err := c.Frames(number)
	must(err)
	domain, err := c.Attach(number, frames, tools, nil)
	must(err)
	memory := domain.Memory()
	media := disktest.NewMedia(trySectors, true)
	set := h.disks(media, frames.Pages(), 1)
	set.Pass()
	s := h.serve(number, frames, memory, set)
	s.dev.Start()
	must(tools.Unpause(number))
	h.await(set, "the guest has begun", func(s status) bool { return s.n >= 3 })

	// A process that comes after another.
	for range 3 {
		s.leave(h)
		before := h.status(set).n
		s = h.serve(number, frames, memory, set)
		s.dev.Start()
		h.await(set, "served by another process", func(s status) bool { return s.n >= before+2 })
	}

	// Epochs, with all of the guest's memory compared.
	g, err := xen.NewGuest(xen.GuestConfig{Name: "disk", Domain: domain, Ask: xen.Control{Store: store, Domain: number}, Spec: xen.Spec{Head: head, Memory: frames.Runs(), Config: config}})
	must(err)
	maker := &Maker{Control: c, Tools: tools, Store: store, Name: "understudy-try", UUID: "6f1d0000-0000-4000-8000-000000000003"}
	standby, err := xen.NewStandby(ctx, "disk", maker, g.Spec())
	must(err)
	defer func() { must(standby.Destroy()) }()
	set.Hold()
	for !set.Settled() {
		time.Sleep(time.Millisecond)
	}
	dirty := epoch.NewPageSet(g.Pages())
	page, other := make([]byte, epoch.PageSize), make([]byte, epoch.PageSize)
	var tail []byte
	pages, exact, writes := 0, 0, 0
	const epochs = 12
	for n := epoch.Number(1); n <= epochs; n++ {
		began := time.Now()
		must(g.Pause(ctx))
		s.dev.Stop()
		must(set.Seal(n))
		stopped := time.Now()
		dirty.Clear()
		must(g.CollectDirty(dirty))
		set.CollectDirty(dirty)
		for first, count := range dirty.Runs {
			must(standby.WritePages(first, memory[uint64(first)*epoch.PageSize:(uint64(first)+count)*epoch.PageSize]))
		}
		tail, err = g.AppendDeviceState(ctx, tail[:0])
		must(err)
		took := time.Since(began)
		differ := 0
		for n := range epoch.GFN(g.Pages()) {
			must(g.ReadPages(n, page))
			must(standby.ReadPages(n, other))
			if !bytes.Equal(page, other) {
				if differ++; differ <= 8 {
					t.Logf("epoch %d: frame %#x differs", n, frames.Frame(n))
				}
			}
		}
		if differ > 0 {
			t.Errorf("epoch %d: %d pages of the image differ", n, differ)
		}
		list, _ := set.Sealed(n)
		for _, w := range list {
			writes++
			for i, gfn := range w.Pages {
				pages++
				must(g.ReadPages(gfn, page))
				if bytes.Equal(page, w.Data[i*epoch.PageSize:][:epoch.PageSize]) {
					exact++
				}
			}
		}
		s.dev.Start()
		must(g.Resume(ctx))
		set.Release(n)
		t.Logf("epoch %d: %d pages dirty, %d writes; suspended and stopped in %v, all in %v", n, dirty.Count(), len(list), stopped.Sub(began), took)
		if n < epochs {
			time.Sleep(300 * time.Millisecond)
		}
	}
	t.Logf("%d writes of %d pages; %d pages were still what was written when their epoch ended", writes, pages, exact)
	if exact == 0 {
		t.Error("no page of a write is known")
	}
	must(set.Drain(ctx))
	at := h.status(set)

	// The host is gone: what was not committed is nowhere.
	h.await(set, "the guest writes on, uncommitted", func(s status) bool { return s.n > at.n })
	must(g.Destroy())
	must(s.bus.Remove(ctx))
	must(s.dev.Close())
	must(s.table.Close())
	must(set.Close())
	set = h.disks(media, frames.Pages(), 2)
	defer func() { must(set.Close()) }()
	set.Pass()
	if back := h.status(set); back.n > at.n {
		t.Errorf("the disk is at %d, committed was %d", back.n, at.n)
	}

	began := time.Now()
	must(standby.Load(ctx, tail, nil))
	loaded := time.Now()
	made, err := find(ctx, store, "understudy-try")
	must(err)
	restored, err := c.Map(made, frames, true)
	must(err)
	mapped := time.Now()
	s = h.serve(made, frames, restored.Bytes(), set)
	s.dev.Start()
	plugged := time.Now()
	again, err := standby.Run(ctx)
	must(err)
	t.Logf("load %v, (map anew %v), plug %v, run %v", loaded.Sub(began), mapped.Sub(loaded), plugged.Sub(mapped), time.Since(plugged))
	for watched := time.Now(); s.dev.Stopped(); time.Sleep(time.Millisecond) {
		if time.Since(watched) > time.Minute {
			t.Fatal("its driver does not come back")
		}
	}
	t.Logf("its driver is connected again %v after run", time.Since(plugged))
	on := h.await(set, "the guest goes on in its new domain", func(s status) bool { return s.n > at.n })
	h.await(set, "and on", func(s status) bool { return s.n > on.n+3 })

	// All that it has ever written is there.
	wish := &disk.Request{Op: disk.OpWrite, Sector: tryWish, Sectors: 1, Segments: []disk.Segment{{Data: append([]byte("verify\n"), make([]byte, epoch.SectorSize-7)...)}}}
	must(set.Disk(0).Do(ctx, wish))
	end := h.await(set, "verified", func(s status) bool { return s.verified })
	sum := fmt.Sprintf("%x", sha1.Sum(media.Bytes()[:60*256<<10]))
	if end.rest != sum {
		t.Errorf("the disk's sum is %s, the guest says %s", sum, end.rest)
	}
	must(again.Destroy())
	must(s.bus.Remove(ctx))
	must(s.dev.Close())
	must(s.table.Close())
	must(restored.Close())
}
