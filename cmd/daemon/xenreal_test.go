//go:build xen

package daemon

// This file tries a Xen guest's devices on a real Xen host, in its first domain:
// Linux' own drivers at one end of the rings, ours at the other.
//
//	daemon.test -test.v -test.run XenDevices -xen-kernel FILE -xen-initrd FILE
//
// The guest is testdata/xen/try-devices: it writes its disk without end and reads it
// back, and is a TCP echo server. The initramfs has it and the kernel's modules.

import (
	"bytes"
	"context"
	"crypto/sha1"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"understudy/clock"
	"understudy/disk"
	"understudy/disk/disktest"
	"understudy/egress"
	"understudy/egress/netif"
	"understudy/epoch"
	"understudy/hypervisor"
	"understudy/hypervisor/xen"
	"understudy/hypervisor/xen/xenctl"
	"understudy/protocol"
)

var (
	xenKernel = flag.String("xen-kernel", "", "the guest's kernel; none: this is no Xen host")
	xenInitrd = flag.String("xen-initrd", "", "its initramfs")
	xenType   = flag.String("xen-type", string(xen.PVH), "the type of its domain: pvh or hvm")
)

const (
	trySectors = 1 << 15
	tryStatus  = trySectors - 1
	tryWish    = trySectors - 2
)

// try is a guest with a disk and a network on a real Xen host.
type try struct {
	t     *testing.T
	ctx   context.Context
	log   *slog.Logger
	media *disktest.Media
	set   *disk.Set
	link  *netif.Link
	mac   net.HardwareAddr
	gate  *egress.Gate
	conn  net.Conn
	asked int // bytes sent to the guest
	heard int // bytes that came back
}

func newTry(ctx context.Context, t *testing.T) *try {
	t.Helper()
	if *xenKernel == "" {
		t.Fatal("no -xen-kernel: this takes a Xen host, see scripts/xen-try")
	}
	return &try{t: t, ctx: ctx, log: slog.New(slog.NewTextHandler(t.Output(), nil)), media: disktest.NewMedia(trySectors, true), link: netif.New(),
		mac: net.HardwareAddr{2, 0x16, 0x3e, 0, 0, 7}}
}

// connect makes the one connection to the guest.
func (y *try) connect() {
	y.t.Helper()
	for y.conn == nil {
		var err error
		if y.conn, err = net.DialTimeout("tcp", "10.99.7.2:7", time.Second); err != nil && y.ctx.Err() != nil {
			y.t.Fatal(err)
		}
	}
}

func (y *try) must(err error) {
	y.t.Helper()
	if err != nil {
		y.t.Fatal(err)
	}
}

// disks is the guest's disks, as a host that owns it has them.
func (y *try) disks(generation epoch.Generation) {
	y.t.Helper()
	y.closed(nil)
	y.set.Own(generation)
	y.must(y.set.Allow(clock.Instant(1 << 62)))
	y.set.Pass()
}

// closed is the guest's disks, as a host has them that does nothing with them.
func (y *try) closed(index disk.Index) {
	y.t.Helper()
	set, err := disk.NewSet(disk.SetConfig{
		Pages: 1 << 16, Disks: []disk.DiskConfig{{Store: y.media.Open(), Serial: "xvda"}}, Clock: clock.Boot{}, Log: y.log, Index: index,
	})
	y.must(err)
	y.set = set
}

// outside is what a host has of the guest.
func (y *try) outside() *xenOutside {
	return &xenOutside{disks: &served{Set: y.set, specs: make([]protocol.DiskSpec, 1)}, nets: []xenNet{{y.link, y.mac}}, log: y.log}
}

func (y *try) driver(domain string, outside xen.Devices) *xen.Driver {
	y.t.Helper()
	h, err := xenctl.OpenHost(y.ctx, deviceModel)
	y.must(err)
	y.t.Cleanup(func() { _ = h.Close() })
	d, err := xen.NewDriver(xen.Config{Name: "try", Domain: domain, Type: xen.Type(*xenType), Memory: 128 << 20, VCPUs: 1, Kernel: *xenKernel, Initrd: *xenInitrd,
		Append: "console=hvc0 quiet rdinit=/try-devices", Devices: outside}, h, y.log)
	y.must(err)
	y.t.Cleanup(func() { y.must(d.Clean(context.Background())) })
	return d
}

// network makes the way out: a TAP of the first domain's, which has the other end of
// the guest's connection.
func (y *try) network() {
	tap, err := egress.OpenTAP(egress.TAPConfig{Name: "ustry0"})
	y.must(err)
	at, err := netlink.LinkByName("ustry0")
	y.must(err)
	address, err := netlink.ParseAddr("10.99.7.1/24")
	y.must(err)
	y.must(netlink.AddrAdd(at, address))
	y.gate, err = egress.NewGate(egress.Config{Guest: y.link, Network: tap, Clock: clock.Boot{}, MAC: y.mac, Log: y.log})
	y.must(err)
	y.t.Cleanup(func() { y.must(y.gate.Close()) })
	y.must(y.gate.Allow(clock.Instant(1 << 62)))
	y.gate.Pass()
}

// say sends a line, which the guest sends back some time.
func (y *try) say() {
	y.t.Helper()
	line := fmt.Sprintf("%06d\n", y.asked)
	n, err := y.conn.Write([]byte(line))
	y.must(err)
	y.asked += n
}

// hear reads what comes back until all has, or for so long, and tells whether all has.
func (y *try) hear(patience time.Duration) bool {
	y.t.Helper()
	y.must(y.conn.SetReadDeadline(time.Now().Add(patience)))
	line := make([]byte, 7)
	for y.heard < y.asked {
		if _, err := io.ReadFull(y.conn, line); errors.Is(err, os.ErrDeadlineExceeded) {
			return false
		} else if err != nil {
			y.t.Fatal(err)
		}
		if want := fmt.Sprintf("%06d\n", y.heard); string(line) != want {
			y.t.Fatalf("%q comes back, want %q", line, want)
		}
		y.heard += len(line)
	}
	return true
}

// progress is what the guest says of its disk.
type progress struct {
	verified bool
	n, bad   int
	rest     string
}

func (y *try) status() (s progress) {
	y.t.Helper()
	r := &disk.Request{Op: disk.OpRead, Sector: tryStatus, Sectors: 1, Buffer: make([]byte, epoch.SectorSize), Segments: []disk.Segment{{Data: make([]byte, epoch.SectorSize)}}}
	y.must(y.set.Disk(0).Do(y.ctx, r))
	words := strings.Fields(strings.Trim(string(r.Buffer), "\x00"))
	if len(words) > 0 && words[0] == "verified" {
		s.verified, words = true, words[1:]
	}
	if len(words) > 2 {
		_, err := fmt.Sscan(words[0]+" "+words[1], &s.n, &s.bad)
		y.must(err)
		s.rest = words[2]
	}
	return s
}

// await waits until the guest says what is asked for.
func (y *try) await(what string, is func(progress) bool) progress {
	y.t.Helper()
	began := time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range tick.C {
		s := y.status()
		if s.bad != 0 {
			y.t.Fatalf("%s: the guest has read %d times what it has not written", what, s.bad)
		}
		if is(s) {
			y.t.Logf("%s after %v: %+v", what, time.Since(began), s)
			return s
		}
		if time.Since(began) > 4*time.Minute {
			y.t.Fatalf("%s: the guest says %+v", what, s)
		}
	}
	panic("unreachable")
}

// protect carries epochs out as the engine does, and returns the last one's state.
func (y *try) protect(g hypervisor.Guest, standby hypervisor.Standby, epochs epoch.Number) (tail []byte) {
	y.t.Helper()
	must, t := y.must, y.t
	y.set.Hold()
	y.gate.Hold()
	for !y.set.Settled() {
		must(y.ctx.Err())
		time.Sleep(time.Millisecond)
	}
	dirty := epoch.NewPageSet(g.Pages())
	page, other := make([]byte, epoch.PageSize), make([]byte, epoch.PageSize)
	pages, exact := 0, 0
	for n := epoch.Number(1); n <= epochs; n++ {
		y.say()
		if y.hear(300 * time.Millisecond) {
			t.Errorf("epoch %d: an answer has left before its epoch was released", n)
		}
		began := time.Now()
		must(g.Pause(y.ctx))
		must(y.set.Seal(n))
		must(y.gate.Seal(n))
		stopped := time.Now()
		dirty.Clear()
		must(g.CollectDirty(dirty))
		y.set.CollectDirty(dirty)
		for first, count := range dirty.Runs {
			data := make([]byte, count*epoch.PageSize)
			must(g.ReadPages(first, data))
			must(standby.WritePages(first, data))
		}
		var err error
		tail, err = g.AppendDeviceState(y.ctx, tail[:0])
		must(err)
		took := time.Since(began)
		differ := 0
		for n := range epoch.GFN(g.Pages()) {
			must(g.ReadPages(n, page))
			must(standby.ReadPages(n, other))
			if !bytes.Equal(page, other) {
				differ++
			}
		}
		if differ > 0 {
			t.Errorf("epoch %d: %d pages of the image differ", n, differ)
		}
		writes, _ := y.set.Sealed(n)
		for _, w := range writes {
			for i, gfn := range w.Pages {
				pages++
				must(g.ReadPages(gfn, page))
				if bytes.Equal(page, w.Data[i*epoch.PageSize:][:epoch.PageSize]) {
					exact++
				}
			}
		}
		held, _ := y.gate.Held()
		must(g.Resume(y.ctx))
		y.set.Release(n)
		y.gate.Release(n)
		t.Logf("epoch %d: %d pages dirty, %d writes, %d frames held; suspended and sealed in %v, all in %v", n, dirty.Count(), len(writes), held, stopped.Sub(began), took)
	}
	t.Logf("%d of %d written pages were still what was written when their epoch ended", exact, pages)
	if exact == 0 {
		t.Error("no page of a write is known")
	}
	must(y.set.Drain(y.ctx))
	return tail
}

// TestXenDevices: a guest with a disk and a connection is protected for some epochs,
// and goes on in a new domain from the last epoch that was committed. Nothing leaves
// before its epoch's release, every image is exact, the connection goes on, and the
// guest never reads what it has not written.
func TestXenDevices(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 14*time.Minute)
	defer cancel()
	y := newTry(ctx, t)
	must := y.must
	y.network()
	y.disks(1)
	g, err := y.driver("try-a", y.outside()).Start(ctx)
	must(err)
	must(g.Resume(ctx))
	booted := time.Now()
	for g.(hypervisor.Booting).Ready() != nil {
		must(ctx.Err())
		time.Sleep(100 * time.Millisecond) // the guest's
	}
	t.Logf("it can be suspended %v after it began to run", time.Since(booted))
	y.await("the guest has begun", func(s progress) bool { return s.n >= 2 })
	y.connect()
	defer func() { _ = y.conn.Close() }()
	var trips []time.Duration
	for range 50 {
		began := time.Now()
		y.say()
		if !y.hear(20 * time.Second) {
			t.Fatal("the guest does not answer")
		}
		trips = append(trips, time.Since(began))
	}
	slices.Sort(trips)
	t.Logf("there and back, unprotected: median %v, the longest of 50 %v", trips[25], trips[49])

	// The other host's: the same network, and its own view of the same disk.
	elsewhere := y.outside()
	other := y.driver("try-b", elsewhere)
	began := time.Now()
	standby, err := other.Standby(ctx, g.Spec())
	must(err)
	t.Logf("the standby waits after %v", time.Since(began))
	tail := y.protect(g, standby, 10)
	at := y.status()

	// The host is gone: what was not committed is nowhere.
	y.say()
	y.await("the guest writes on, uncommitted", func(s progress) bool { return s.n > at.n })
	lost := time.Now()
	must(g.Destroy())
	y.gate.Discard()
	must(y.set.Close())
	y.disks(2)
	defer func() { must(y.set.Close()) }()
	elsewhere.disks.Set = y.set
	if back := y.status(); back.n > at.n {
		t.Errorf("the disk is at %d, committed was %d", back.n, at.n)
	}
	first := make(chan time.Time, 1)
	y.gate.OnFirst(func() { first <- time.Now() })
	began = time.Now()
	must(standby.Load(ctx, tail, nil))
	loaded := time.Now()
	again, err := standby.Run(ctx)
	must(err)
	ran := time.Now()
	y.gate.Pass()
	must(y.gate.Announce())
	select {
	case at := <-first:
		t.Logf("its first frame leaves %v after run", at.Sub(ran))
	case <-ctx.Done():
		t.Fatal("no frame leaves")
	}
	for !y.hear(100 * time.Millisecond) {
		if ctx.Err() != nil {
			t.Fatal("the connection does not go on")
		}
	}
	t.Logf("destroyed to begun %v; load with its devices %v, run %v, answer on the old connection %v after run (the other end waits for longer with each attempt)", began.Sub(lost), loaded.Sub(began), ran.Sub(loaded), time.Since(ran))
	on := y.await("the guest goes on in its new domain", func(s progress) bool { return s.n > at.n })
	y.await("and on", func(s progress) bool { return s.n > on.n+2 })

	// All that it has ever written is there.
	wish := &disk.Request{Op: disk.OpWrite, Sector: tryWish, Sectors: 1, Segments: []disk.Segment{{Data: append([]byte("verify\n"), make([]byte, epoch.SectorSize-7)...)}}}
	must(y.set.Disk(0).Do(ctx, wish))
	end := y.await("verified", func(s progress) bool { return s.verified })
	if sum := fmt.Sprintf("%x", sha1.Sum(y.media.Bytes()[:60*256<<10])); end.rest != sum {
		t.Errorf("the disk's sum is %s, the guest says %s", sum, end.rest)
	}
	y.say()
	if !y.hear(20 * time.Second) {
		t.Error("the connection is dead")
	}
	t.Logf("the gate: %+v; malformed %d", y.gate.Stats(), y.link.Malformed())
	must(again.Destroy())
}
