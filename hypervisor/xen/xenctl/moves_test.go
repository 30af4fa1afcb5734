//go:build xen

package xenctl

// This file has a guest's memory taken, given and moved on a real Xen host, as a guest,
// its balloon and its toolstack may (testdata/stir.c), between captures:
//
//	xenctl.test -test.v -test.run Moves -kernel FILE -initrd FILE -stir FILE

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy/epoch"
	"understudy/hypervisor"
	"understudy/hypervisor/hypervisortest"
	"understudy/hypervisor/xen"
)

var (
	stir   = flag.String("stir", "", "testdata/stir.c, as a program")
	orphan = flag.Bool("orphan", false, "start a guest, say so, and wait for being killed")
)

// moving is a guest whose frames are moved about.
type moving struct {
	*testing.T
	ctx     context.Context
	host    *Host
	guest   *xen.Guest
	number  uint32
	frames  *xen.Frames
	counter counting
	spare   []uint64 // frames of pages that are zero
}

func newMoving(t *testing.T) *moving {
	if *kernel == "" || *stir == "" {
		t.Fatal("no -kernel, or no -stir: this takes a Xen host, see scripts/xen-try")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	a, host := newDriver(t, "web-a", nil)
	g, err := a.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	m := &moving{T: t, ctx: ctx, host: host}
	m.owns(g)
	spec, frames, err := xen.ParseSpec(g.Spec())
	m.must(err)
	t.Logf("%d pages, a head of %d bytes", frames.Pages(), len(spec.Head))
	m.frames = frames
	m.must(g.Resume(ctx))
	m.must(m.counter.up(ctx, g))
	m.number, err = find(ctx, host.Store(), "web-a")
	m.must(err)

	// What the boot of Linux has done to its frames is no harm.
	info, err := host.Control().Info(m.number)
	m.must(err)
	m.capture()
	t.Logf("after its boot it has %d pages, and is captured", info.Pages)
	all, err := hypervisortest.Copy(g)
	m.must(err)
	zero := make([]byte, epoch.PageSize)
	for p := frames.Pages() / 2; len(m.spare) < 4; p += 64 {
		if bytes.Equal(all[p*epoch.PageSize:][:epoch.PageSize], zero) {
			m.spare = append(m.spare, frames.Frame(epoch.GFN(p)))
		}
	}
	return m
}

// owns has the guest destroyed at the end.
func (m *moving) owns(g hypervisor.Guest) {
	m.guest = g.(*xen.Guest)
	m.Cleanup(func() { m.must(g.Destroy()) })
}

func (m *moving) must(err error) {
	m.Helper()
	if err != nil {
		m.Fatal(err)
	}
}

// capture pauses the guest, and lets it run on.
func (m *moving) capture() {
	m.Helper()
	began := time.Now()
	m.must(m.guest.Pause(m.ctx))
	paused := time.Since(began)
	m.must(m.guest.Resume(m.ctx))
	m.Logf("paused after %v", paused)
}

func (m *moving) stir(what string, args ...any) error {
	out, err := exec.CommandContext(m.ctx, *stir, append([]string{fmt.Sprint(m.number), what}, strings.Fields(fmt.Sprintln(args...))...)...).CombinedOutput()
	m.Logf("stir %s %v: %s (error %v)", what, args, bytes.TrimSpace(out), err)
	return err
}

// alive makes sure that what is mapped is what the guest writes to.
func (m *moving) alive() {
	m.Helper()
	n, err := m.counter.read(m.ctx, m.guest)
	m.must(err)
	for now := n; now == n; {
		now, err = m.counter.read(m.ctx, m.guest)
		m.must(errors.Join(err, m.ctx.Err()))
	}
}

// present waits until the domain has as many frames as is wanted, and returns how many.
func (m *moving) present(wanted func(pages uint64) bool) uint64 {
	m.Helper()
	for {
		f, err := m.host.Control().Frames(m.number)
		m.must(errors.Join(err, m.ctx.Err()))
		if wanted(f.Pages()) {
			m.Logf("it has %d frames", f.Pages())
			return f.Pages()
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// ends has the next pause fail for that reason, and the guest be of no use any more.
func (m *moving) ends(why error) {
	m.Helper()
	pauses := 0
	var err error
	for ; err == nil && pauses <= int(m.frames.Pages()/patrolSlice)+1; pauses++ {
		if err = m.guest.Pause(m.ctx); err == nil {
			m.must(m.guest.Resume(m.ctx))
		}
	}
	if !errors.Is(err, why) {
		m.Fatalf("pause %d says: %v, want %v", pauses, err, why)
	}
	m.Logf("pause %d says: %v", pauses, err)
	for e := range m.guest.Events() {
		if e.Kind == hypervisor.EventExited {
			m.Logf("its owner hears: %s", e.Detail)
			return
		}
	}
	m.Error("its owner hears nothing")
}

// TestMovesOfABalloon: what a balloon takes is no harm, the toolstack cannot tell it to,
// and it gets nothing back within what the domain may have.
func TestMovesOfABalloon(t *testing.T) {
	m := newMoving(t)
	for _, command := range [][]string{{"mem-set", fmt.Sprint(m.number), "64"}, {"mem-set", fmt.Sprint(m.number), "96"}, {"mem-max", fmt.Sprint(m.number), "128"}} {
		out, err := exec.CommandContext(m.ctx, "xl", command...).CombinedOutput()
		t.Logf("xl %v: %s (error %v)", command, bytes.TrimSpace(out), err)
		if err == nil {
			t.Errorf("xl %v works", command)
		}
	}
	m.must(m.stir("take", m.spare[0]))
	m.must(m.stir("take", m.spare[1]))
	if m.stir("give", m.spare[0]) == nil {
		t.Error("a balloon gets memory back, which is not mapped")
	}
	m.capture()
	m.alive()
	if m.stir("give", m.spare[1]) == nil {
		t.Error("a balloon gets memory back after a capture, which is not mapped")
	}
	m.capture()
	m.alive()

	// Linux' own balloon, told by hand: it takes 8 MiB, and wants them back.
	target := func(kib uint64) {
		m.must(m.host.Store().Write(m.ctx, 0, fmt.Sprintf("/local/domain/%d/memory/target", m.number), fmt.Sprint(kib)))
	}
	size := m.frames.Pages() * epoch.PageSize >> 10
	const taken = 8 << 20 / epoch.PageSize
	target(size - taken*epoch.PageSize>>10)
	left := m.present(func(pages uint64) bool { return pages < m.frames.Pages()-taken*3/4 })
	m.capture()
	m.alive()
	target(size)
	time.Sleep(2 * time.Second) // the balloon's, which asks at once, and after a second
	if now := m.present(func(uint64) bool { return true }); now > left {
		t.Errorf("the balloon has given %d pages back", now-left)
	}
	m.capture()
	m.alive()

	// Who is root may allow the domain more, for a moment.
	m.must(m.stir("allow", m.frames.Pages()+512))
	m.must(m.stir("give", m.spare[0]))
	m.must(m.stir("allow", m.frames.Pages()))
	m.ends(xen.ErrShape)
}

// TestMovesOfAPage: other memory at the place of the counter, which begins as it was, has
// the guest count where nobody sees it.
func TestMovesOfAPage(t *testing.T) {
	m := newMoving(t)
	memory, err := m.host.Control().Map(m.number, m.frames, true)
	m.must(err)
	spare, ok := m.frames.Page(m.spare[0])
	if !ok {
		t.Fatalf("frame %#x is no page", m.spare[0])
	}
	page := func(p epoch.GFN) []byte { return memory.Bytes()[uint64(p)*epoch.PageSize:][:epoch.PageSize] }
	m.must(m.guest.Pause(m.ctx))
	copy(page(spare), page(m.counter.page))
	m.must(m.guest.Resume(m.ctx))
	m.must(m.stir("put", m.frames.Frame(m.counter.page), m.spare[0]))
	time.Sleep(time.Second) // the guest's, in which it counts on
	at := func(p epoch.GFN) uint64 { return binary.LittleEndian.Uint64(page(p)[len(counterMark):]) }
	was, now := at(m.counter.page), at(spare)
	t.Logf("what is mapped as its counter says %d, it counts to %d", was, now)
	m.must(memory.Close())
	if now <= was {
		t.Error("the guest does not count elsewhere")
	}
	m.ends(xen.ErrMoved)
}

// orphaned is what a process says that has started a guest, and waits for its death.
const orphaned = "the guest counts, and its process can die"

// TestMovesOutliveTheirProcess: when the process is killed that answers the processors of
// a guest, they wait; the next one lets them go on.
func TestMovesOutliveTheirProcess(t *testing.T) {
	if *orphan {
		newMoving(t)
		fmt.Println(orphaned)
		select {}
	}
	m := &moving{T: t}
	var cancel context.CancelFunc
	m.ctx, cancel = context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	var a *xen.Driver
	a, m.host = newDriver(t, "web-a", nil)
	former := exec.CommandContext(m.ctx, os.Args[0], append(slices.Clone(os.Args[1:]), "-orphan", "-test.run", "^TestMovesOutliveTheirProcess$")...)
	out, err := former.StdoutPipe()
	m.must(err)
	m.must(former.Start())
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.Contains(lines.Text(), orphaned) {
		t.Logf("the former process: %s", lines.Text())
	}
	m.must(lines.Err())
	m.must(former.Process.Kill())
	_ = former.Wait() // it was killed
	m.number, err = find(m.ctx, m.host.Store(), "web-a")
	m.must(err)
	m.frames, err = m.host.Control().Frames(m.number)
	m.must(err)

	// A frame that nobody uses: the processor that does something next waits.
	memory, err := m.host.Control().Map(m.number, m.frames, false)
	m.must(err)
	zero := make([]byte, epoch.PageSize)
	for p := m.frames.Pages() / 2; len(m.spare) == 0; p += 64 {
		if bytes.Equal(memory.Bytes()[p*epoch.PageSize:][:epoch.PageSize], zero) {
			m.spare = append(m.spare, m.frames.Frame(epoch.GFN(p)))
		}
	}
	m.must(m.stir("take", m.spare[0]))
	time.Sleep(2 * time.Second) // the guest's, which stands still soon
	before := bytes.Clone(memory.Bytes())
	time.Sleep(time.Second)
	if !bytes.Equal(before, memory.Bytes()) {
		t.Error("the guest goes on although nobody answers: this test shows nothing")
	}
	m.must(memory.Close())

	began := time.Now()
	g, err := a.Adopt(m.ctx)
	m.must(err)
	m.owns(g)
	t.Logf("adopted after %v", time.Since(began))
	m.must(g.Resume(m.ctx))
	m.must(m.counter.up(m.ctx, g))
	m.alive()
	m.capture()
	m.alive()
}
