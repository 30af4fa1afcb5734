package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"understudy/epoch"
	"understudy/guest"
	"understudy/guest/client"
	"understudy/hypervisor/hypervisortest"
)

// Whatever is punched, touched by others, read in a pause and read while the
// guest runs: an image that is brought up to date with what was written and what
// collectFreed reports is the memory's.
func TestFreedPagesAreFound(t *testing.T) {
	const pages = 300
	r := newRAM(t, memoryDir(t), pages*epoch.PageSize)
	defer func() { must(t, r.close()) }()
	must(t, r.watch())
	others, err := unix.Mmap(int(r.file.Fd()), 0, len(r.mem), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	defer func() { must(t, unix.Munmap(others)) }()
	var paused atomic.Bool
	rng, last := rand.New(rand.NewPCG(5, 6)), uint64(0)
	written := epoch.NewPageSet(pages) // what the scan would say
	image := make([]byte, pages*epoch.PageSize)
	buf := make([]byte, pages*epoch.PageSize)
	sync := func() {
		must(t, r.collectFreed(written, &paused))
		for first, count := range written.Runs {
			from, end := int(first)*epoch.PageSize, (int(first)+int(count))*epoch.PageSize
			must(t, r.read(uint64(first), image[from:end]))
		}
		written.Clear()
	}
	for round := range 200 {
		r.unsettle()
		paused.Store(false)
		for range rng.IntN(40) {
			page := rng.Uint64N(pages)
			if rng.IntN(2) == 0 { // where something was freed not long ago
				page = min(last+rng.Uint64N(20), pages-1)
			}
			n := min(1+rng.Uint64N(20), pages-page)
			switch rng.IntN(6) {
			case 0, 1:
				others[page*epoch.PageSize+rng.Uint64N(epoch.PageSize)] = byte(1 + round%200)
				written.Add(epoch.GFN(page))
			case 2: // the guest looks at it: no hole any more, and not written
				if others[page*epoch.PageSize] == 255 {
					t.Fatal("nobody wrote that")
				}
			case 3: // the guest tells that it is free
				last = page
				must(t, punchFile(r.file, page, n))
				written.RemoveRange(epoch.GFN(page), n) // what the scan does not see any more
			case 4: // somebody reads while the guest runs
				must(t, r.read(page, buf[:n*epoch.PageSize]))
			case 5: // a round of an initial synchronisation
				sync()
			}
		}
		paused.Store(true)
		if round%3 == 0 {
			must(t, r.read(0, buf)) // before the collect
		}
		sync()
		must(t, r.read(0, buf))
		for at := 0; !bytes.Equal(buf[at:], image[at:]); at += epoch.PageSize {
			if !bytes.Equal(buf[at:at+epoch.PageSize], image[at:at+epoch.PageSize]) {
				t.Fatalf("round %d: page %d of the image is not the memory's", round, at/epoch.PageSize)
			}
		}
	}
	if r.freed.Load() == 0 {
		t.Fatal("no page was freed")
	}
	set := epoch.NewPageSet(pages)
	if n := testing.AllocsPerRun(50, func() {
		must(t, punchFile(r.file, 7, 1))
		r.unsettle()
		must(t, r.collectFreed(set, &paused))
		must(t, r.read(0, buf))
	}); n > 2 { // the test's own, of the punch
		t.Errorf("a collect and a read allocate %v times", n)
	}
}

func punchFile(f *os.File, page, count uint64) error {
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE,
		int64(page*epoch.PageSize), int64(count*epoch.PageSize))
}

// cable joins a guest's network card to a network namespace of its own, which
// ends with it.
type cable struct {
	tap  *os.File
	do   chan func()
	wire atomic.Pointer[wire]
}

func newCable(t testing.TB) *cable {
	t.Helper()
	c := &cable{do: make(chan func())}
	failed := make(chan error)
	var running sync.WaitGroup
	running.Go(func() {
		runtime.LockOSThread() // for good: the thread and its namespace end with us
		failed <- c.open()
		for f := range c.do {
			f()
		}
	})
	t.Cleanup(func() {
		close(c.do)
		if c.tap != nil {
			_ = c.tap.Close()
		}
		running.Wait()
	})
	must(t, <-failed)
	running.Go(func() { // from us to the guest
		frame := make([]byte, 2048)
		for {
			n, err := c.tap.Read(frame)
			if err != nil {
				return
			}
			if w := c.wire.Load(); w != nil {
				_, _ = w.conn.WriteToUnix(frame[:n], w.guest)
			}
		}
	})
	return c
}

func (c *cable) open() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("make a network namespace: %w", err)
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	request, err := unix.NewIfreq("cable")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	c.tap = os.NewFile(uintptr(fd), "tap")
	h, err := netlink.NewHandle()
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName("cable")
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr("192.168.77.1/24")
	if err != nil {
		return err
	}
	return errors.Join(h.AddrAdd(link, addr), h.LinkSetUp(link))
}

// join plugs the cable into a host's wire.
func (c *cable) join(t testing.TB, w *wire) {
	c.wire.Store(w)
	done := make(chan struct{})
	go func() { // from the guest to us; ends with the wire
		defer close(done)
		frame := make([]byte, 2048)
		for {
			n, err := w.conn.Read(frame)
			if err != nil {
				return
			}
			_, _ = c.tap.Write(frame[:n])
		}
	}()
	t.Cleanup(func() { _ = w.conn.Close(); <-done })
}

func (c *cable) control(ctx context.Context, t testing.TB) *client.Control {
	t.Helper()
	var conn net.Conn
	var err error
	done := make(chan struct{})
	c.do <- func() {
		defer close(done)
		conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", fmt.Sprintf("192.168.77.2:%d", guest.ControlPort))
	}
	<-done
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return client.NewControl(conn)
}

// A guest gives memory back, and takes it again. What it has given back is found
// in the next pause, the standby's image is the guest's memory at each
// checkpoint, and so it is after a takeover during which it goes on with that
// while pages of it are still missing.
func TestLinuxGivesMemoryBack(t *testing.T) {
	for _, machine := range []string{"q35", "microvm"} {
		t.Run(machine, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			const area = 64
			c := linuxConfig(t, machine, 224*mib, 1)
			c.FreePageReporting = true
			hosts := newPair(t, c)
			line := newCable(t)
			line.join(t, plug(t, hosts.a))
			wireB := plug(t, hosts.b)

			started, err := hosts.a.Start(ctx)
			must(t, err)
			g := started.(*Guest)
			drain(t, g)
			must(t, g.Resume(ctx))
			waitConsole(ctx, t, hosts.consoleA, guest.ReadyLine, 1)
			control := line.control(ctx, t)
			load := client.Dirty{Pages: 20, Every: 20 * time.Millisecond, AreaMiB: area, Bytes: 64}
			must(t, control.Dirty(ctx, load))
			sb, err := hosts.b.Standby(ctx, g.Spec())
			must(t, err)
			t.Cleanup(func() { must(t, sb.Destroy()) })
			copyDirty(t, g, sb) // while it runs

			story := givesBack(ctx, t, g, sb.(*Standby), control, area)
			must(t, control.Dirty(ctx, load)) // it takes it again
			for range 3 {
				story.commit()
			}
			state := story.commit()
			must(t, g.Pause(ctx))

			// The other host takes over with nothing there, and the guest frees
			// what is missing.
			content, err := hypervisortest.Copy(sb)
			must(t, err)
			must(t, g.Destroy())
			missing := epoch.NewPageSet(sb.Pages())
			missing.AddRange(0, sb.(*Standby).main)
			shelf := hypervisortest.NewShelf(content, missing)
			must(t, sb.Load(ctx, state, shelf))
			line.join(t, wireB)
			taken, err := sb.Run(ctx)
			must(t, err)
			next := taken.(*Guest)
			drain(t, next)
			must(t, control.StopDirty(ctx))
			back, err := hosts.a.Standby(ctx, next.Spec())
			must(t, err)
			t.Cleanup(func() { must(t, back.Destroy()) })
			copyDirty(t, next, back)
			if pages, err := control.Check(ctx); err != nil {
				t.Fatalf("after %d pages: %v", pages, err)
			}
			must(t, control.Dirty(ctx, load))
			givesBack(ctx, t, next, back.(*Standby), control, area)
			if wrong := shelf.Wrong(); len(wrong) != 0 {
				t.Fatal(wrong)
			}
			if _, err := control.Check(ctx); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// freeStory takes checkpoints of a guest that gives memory back.
type freeStory struct {
	ctx     context.Context
	t       testing.TB
	g       *Guest
	sb      *Standby
	collect [2]time.Duration // the longest: nothing was freed, something was
}

func (s *freeStory) commit() []byte {
	s.t.Helper()
	must(s.t, s.g.Pause(s.ctx))
	state, err := s.g.AppendDeviceState(s.ctx, nil)
	must(s.t, err)
	before, set := s.g.Freed(), epoch.NewPageSet(s.g.Pages())
	began := time.Now()
	must(s.t, s.g.CollectDirty(set))
	took := time.Since(began)
	if s.g.Freed() == before {
		s.collect[0] = max(s.collect[0], took)
	} else {
		s.collect[1] = max(s.collect[1], took)
	}
	copySet(s.t, s.g, s.sb, set)
	if d := differs(s.t, s.g, s.sb); len(d) != 0 {
		s.t.Fatalf("%d pages differ after a commit, the first is %d", len(d), d[0])
	}
	must(s.t, s.g.Resume(s.ctx))
	return state
}

// givesBack has the guest free an area of the given MiB.
func givesBack(ctx context.Context, t testing.TB, g *Guest, sb *Standby, control *client.Control, area uint64) *freeStory {
	t.Helper()
	s := &freeStory{ctx: ctx, t: t, g: g, sb: sb}
	s.commit()
	full, fullStandby := blocksOf(t, g.vm.ram), blocksOf(t, sb.ram)
	before := g.Freed()
	must(t, control.StopDirty(ctx))
	began := time.Now()
	limit := time.NewTimer(time.Minute)
	defer limit.Stop()
	for g.Freed()-before < area*mib/epoch.PageSize/2 {
		select {
		case <-time.After(time.Second): // its clock stands still in a pause
		case <-limit.C:
			t.Fatalf("the guest has given back %d pages of %d", g.Freed()-before, area*mib/epoch.PageSize)
		}
		s.commit()
		if testing.Verbose() {
			t.Logf("%d pages given back after %v", g.Freed()-before, time.Since(began))
		}
	}
	t.Logf("%d pages given back; memory file %d → %d MiB, the standby's %d → %d MiB; collect at most %v, with pages freed %v",
		g.Freed()-before, full/mib, blocksOf(t, g.vm.ram)/mib, fullStandby/mib, blocksOf(t, sb.ram)/mib, s.collect[0], s.collect[1])
	if now := blocksOf(t, g.vm.ram); full-now < int64(area)*mib/2 {
		t.Fatalf("the memory file took %d MiB, and takes %d", full/mib, now/mib)
	}
	if now := blocksOf(t, sb.ram); fullStandby-now < int64(area)*mib/2 {
		t.Fatalf("the standby's memory file took %d MiB, and takes %d", fullStandby/mib, now/mib)
	}
	return s
}
