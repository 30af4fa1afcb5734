//go:build xen

package xenctl

// This file has the driver pass the conformance suite on a real Xen host, and tells
// how long its steps take:
//
//	xenctl.test -test.v -test.run Driver -kernel FILE -initrd FILE
//	xenctl.test -test.v -test.run Driver -kernel FILE -initrd FILE -type hvm
//
// The guest is Linux with testdata/counting. The pair of hosts is one host, where the
// guest's domains have two names.

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"understudy/epoch"
	"understudy/hypervisor"
	"understudy/hypervisor/hypervisortest"
	"understudy/hypervisor/qemu/qmp"
	"understudy/hypervisor/xen"
)

var (
	kernel = flag.String("kernel", "", "the guest's kernel; none: this is no Xen host")
	initrd = flag.String("initrd", "", "its initramfs, with testdata/counting as /counting, and as /sbin/poweroff")
	kind   = flag.String("type", string(xen.PVH), "the type of the guest's domain")
	// consoles is where xenconsoled writes down what guests say.
	consoles = flag.String("consoles", "", "where the guests' consoles are written down, told of when a test fails")
)

const guestMemory = 96 << 20

// config is of a guest that counts, whose domains have that name.
func config(domain string) xen.Config {
	c := xen.Config{Name: "web", Domain: domain, Type: xen.Type(*kind), Memory: guestMemory, VCPUs: 1, Kernel: *kernel, Initrd: *initrd, Append: "console=hvc0 quiet rdinit=/counting"}
	if c.Type == xen.HVM {
		c.Memory *= 2 // what starts its kernel needs room
	}
	return c
}

// newDriver makes the driver of a host, whose domains have a name of their own.
func newDriver(t testing.TB, domain string, change func(*xen.Config)) (*xen.Driver, *Host) {
	t.Helper()
	h, err := OpenHost(context.Background(), func(ctx context.Context, path string) (xen.Monitor, error) { return qmp.Dial(ctx, path) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	c := config(domain)
	if change != nil {
		change(&c)
	}
	d, err := xen.NewDriver(c, h, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Clean(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return d, h
}

// explain tells what the hypervisor and the guests have said, if the test has failed.
func explain(t testing.TB) {
	if !t.Failed() {
		return
	}
	said, err := exec.Command("xl", "dmesg").CombinedOutput()
	t.Logf("the hypervisor's last words (error %v):\n%s", err, tail(said))
	logs, _ := filepath.Glob(filepath.Join(*consoles, "guest-*.log"))
	changed := map[string]time.Time{}
	for _, path := range logs {
		if info, err := os.Stat(path); err == nil {
			changed[path] = info.ModTime()
		}
	}
	slices.SortFunc(logs, func(a, b string) int { return changed[b].Compare(changed[a]) })
	const newest = 3 // those of this test
	for _, path := range logs[:min(newest, len(logs))] {
		said, err := os.ReadFile(path)
		t.Logf("%s (error %v):\n%s", path, err, tail(said))
	}
}

func tail(said []byte) []byte { return said[max(0, len(said)-1500):] }

// counterMark is what the page of testdata/counting begins with.
var counterMark = []byte("counting\xff\xdd\xbb\x99\x77\x55\x33\x10")

// counting finds the guest's counter, and remembers where it was.
type counting struct{ page epoch.GFN }

func (c *counting) read(_ context.Context, image hypervisor.Image) (uint64, error) {
	page := make([]byte, epoch.PageSize)
	if err := image.ReadPages(c.page, page); err != nil {
		return 0, err
	}
	if bytes.HasPrefix(page, counterMark) {
		return binary.LittleEndian.Uint64(page[len(counterMark):]), nil
	}
	all, err := hypervisortest.Copy(image)
	if err != nil {
		return 0, err
	}
	for p := range image.Pages() {
		if b := all[p*epoch.PageSize:]; bytes.HasPrefix(b, counterMark) {
			c.page = epoch.GFN(p)
			return binary.LittleEndian.Uint64(b[len(counterMark):]), nil
		}
	}
	return 0, errors.New("the guest has no counter")
}

// up waits until the guest counts.
func (c *counting) up(ctx context.Context, g hypervisor.Guest) error {
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	for {
		if n, err := c.read(ctx, g); err == nil && n > 2 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait until the guest counts: %w", ctx.Err())
		}
	}
}

// control tells the guest's kernel something: by "sysrq" a key of its keyboard, by
// "shutdown" what the toolstack wants of it.
func control(h **Host, domain, name, what string) func(context.Context, hypervisor.Guest) error {
	return func(ctx context.Context, _ hypervisor.Guest) error {
		n, err := find(ctx, (*h).Store(), domain)
		if err != nil {
			return err
		}
		return (*h).Store().Write(ctx, 0, fmt.Sprintf("/local/domain/%d/control/%s", n, name), what)
	}
}

func TestDriverConforms(t *testing.T) {
	if *kernel == "" {
		t.Fatal("no -kernel: this takes a Xen host, see scripts/xen-try")
	}
	var host *Host
	c := &counting{}
	hypervisortest.Run(t, hypervisortest.Harness{
		NewPair: func(t testing.TB) (a, b hypervisor.Driver) {
			a, host = newDriver(t, "web-a", nil)
			b, _ = newDriver(t, "web-b", nil)
			t.Cleanup(func() { explain(t) })
			return a, b
		},
		WaitUp: c.up, Counter: c.read,
		Leftovers: func() (left []string) {
			all, err := host.Domains(context.Background())
			if err != nil {
				return []string{err.Error()}
			}
			for _, one := range all {
				if strings.HasPrefix(one.Name, "web-") && !one.Dying {
					left = append(left, one.Name)
				}
			}
			return left
		},
		PowerOff: control(&host, "web-a", "shutdown", "poweroff"), Reboot: control(&host, "web-a", "sysrq", "b"), Panic: control(&host, "web-a", "sysrq", "c"),
		Crash: func(ctx context.Context, _ hypervisor.Guest) error {
			n, err := find(ctx, host.Store(), "web-a")
			if err != nil {
				return err
			}
			return host.Destroy(n)
		},
		ForeignSpecs: func(s hypervisor.Spec) (foreign []hypervisor.Spec) {
			for _, change := range [][2]string{{`"vcpus":1`, `"vcpus":2`}, {"rdinit", "init"}, {`"type":"` + *kind + `"`, `"type":"pv"`}, {`"format":1`, `"format":9`}} {
				foreign = append(foreign, hypervisor.Spec{Pages: s.Pages, Machine: bytes.Replace(s.Machine, []byte(change[0]), []byte(change[1]), 1)})
			}
			return foreign
		},
		// A story in emulation, on a machine that does other things besides.
		StateVaries: true, Rounds: 2, Deadline: 12 * time.Minute,
	})
}

// TestDriverIsLetGoOfWithAStandby: a host that is closed ends the restores that wait
// there. Closing libxenlight beside one would end this process.
func TestDriverIsLetGoOfWithAStandby(t *testing.T) {
	if *kernel == "" {
		t.Fatal("no -kernel: this takes a Xen host, see scripts/xen-try")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	a, left := newDriver(t, "web-a", nil)
	g, err := a.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := g.Destroy(); err != nil {
			t.Error(err)
		}
	}()
	host, err := OpenHost(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := xen.NewDriver(config("web-b"), host, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err == nil {
		_, err = b.Standby(ctx, g.Spec())
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := host.Close(); err != nil {
		t.Error(err)
	}
	all, err := left.Domains(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range all {
		if strings.HasPrefix(one.Name, "web-b") && !one.Dying {
			t.Errorf("domain %q is left", one.Name)
		}
	}
}

// TestDriverFigures protects a guest for some epochs and takes it over, and says how
// long each step takes. A first restore is given a state that Xen refuses.
func TestDriverFigures(t *testing.T) {
	if *kernel == "" {
		t.Fatal("no -kernel: this takes a Xen host, see scripts/xen-try")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	a, _ := newDriver(t, "web-a", nil)
	b, _ := newDriver(t, "web-b", nil)
	c := &counting{}
	began := time.Now()
	g, err := a.Start(ctx)
	must(err)
	var heard sync.WaitGroup
	heard.Go(func() {
		for e := range g.Events() {
			t.Logf("the guest: %v: %s", e.Kind, e.Detail)
		}
	})
	defer heard.Wait()
	t.Logf("start %v", time.Since(began))
	began = time.Now()
	must(g.Resume(ctx))
	must(c.up(ctx, g))
	t.Logf("it counts after %v", time.Since(began))
	began = time.Now()
	standby, err := b.Standby(ctx, g.Spec())
	must(err)
	t.Logf("the standby waits after %v", time.Since(began))
	var tail, buf []byte
	dirty := epoch.NewPageSet(g.Pages())
	for i := range 10 {
		began := time.Now()
		must(g.Pause(ctx))
		paused := time.Now()
		dirty.Clear()
		must(g.CollectDirty(dirty))
		collected := time.Now()
		for first, count := range dirty.Runs {
			buf = append(buf[:0], make([]byte, count*epoch.PageSize)...)
			must(g.ReadPages(first, buf))
			must(standby.WritePages(first, buf))
		}
		copied := time.Now()
		tail, err = g.AppendDeviceState(ctx, tail[:0])
		must(err)
		saved := time.Now()
		must(g.Resume(ctx))
		t.Logf("epoch %d: %d pages; asked to suspended %v, log %v, copy %v, state %v, resume %v", i, dirty.Count(), paused.Sub(began), collected.Sub(paused), copied.Sub(collected), saved.Sub(copied), time.Since(saved))
		time.Sleep(200 * time.Millisecond) // the guest's own life between two epochs
	}
	must(g.Destroy())

	// A state that parses, and that Xen refuses: its processor has no valid CR0.
	spec, _, err := xen.ParseSpec(g.Spec())
	must(err)
	d, err := xen.ParseHead(spec.Head)
	must(err)
	state, err := xen.ParseTail(tail, d)
	must(err)
	context, err := xen.ParseContext(state.Context)
	must(err)
	for _, e := range context.Entries {
		if e.Type == 2 {
			copy(e.Data[512+18*8:], bytes.Repeat([]byte{0xff}, 8)) // struct hvm_hw_cpu: fpu_regs, 16 registers, rip, rflags, cr0
		}
	}
	bad, err := state.AppendTail(nil, d)
	must(err)
	began = time.Now()
	if err := standby.Load(ctx, bad, nil); err == nil {
		t.Error("Xen takes a processor that cannot be")
	} else {
		t.Logf("a bad state fails after %v: %v", time.Since(began), err)
	}
	began = time.Now()
	must(standby.Reset(ctx))
	t.Logf("reset in %v", time.Since(began))
	began = time.Now()
	must(standby.Load(ctx, tail, nil))
	loaded := time.Now()
	next, err := standby.Run(ctx)
	must(err)
	runs := time.Now()
	at, err := c.read(ctx, next)
	must(err)
	for now := at; now == at; {
		now, err = c.read(ctx, next)
		must(err)
		must(ctx.Err())
	}
	t.Logf("load %v, run %v, until it counts %v", loaded.Sub(began), runs.Sub(loaded), time.Since(runs))
	must(next.Destroy())
}
