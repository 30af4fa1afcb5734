package egress

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"understudy/clock"
	"understudy/lab"
)

// The tests of this file run on real TAPs, bridges and nftables, in namespaces
// of their own. They need root.

func newNetwork(t testing.TB) *lab.Lab {
	t.Helper()
	l, err := lab.New(lab.Options{Prefix: "egresstest", Hosts: []string{"a", "b"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// capture hears the experimental frames that arrive at a host.
type capture struct {
	fd     int
	offset int64 // from CLOCK_BOOTTIME to CLOCK_REALTIME, in ns
}

func newCapture(t testing.TB, h *lab.Host) *capture {
	t.Helper()
	c := &capture{}
	err := h.Do(func() (err error) {
		// Of a bridge's port only "all protocols" sees what the bridge will take.
		const all = unix.ETH_P_ALL << 8 // in network byte order
		if c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all); err != nil {
			return err
		}
		link, err := netlink.LinkByName(lab.Uplink)
		if err != nil {
			return err
		}
		return errors.Join(
			unix.Bind(c.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Attrs().Index}),
			unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
			unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
		)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(c.fd) })
	c.offset = time.Now().UnixNano() - int64(clock.Boot{}.Now())
	return c
}

// heard is a frame and when the kernel of the receiving host got it.
type heard struct {
	number uint64
	at     clock.Instant
}

func (c *capture) read(t testing.TB) []heard {
	t.Helper()
	var all []heard
	frame, control := make([]byte, 2048), make([]byte, 256)
	for {
		n, cn, _, _, err := unix.Recvmsg(c.fd, frame, control, 0)
		if err == unix.EAGAIN {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if n < headerLen+8 || binary.BigEndian.Uint16(frame[12:]) != 0x88b5 {
			continue
		}
		h := heard{number: numberOf(frame)}
		messages, err := unix.ParseSocketControlMessage(control[:cn])
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range messages {
			if m.Header.Type == unix.SCM_TIMESTAMPNS {
				sec, ns := binary.NativeEndian.Uint64(m.Data), binary.NativeEndian.Uint64(m.Data[8:])
				h.at = clock.Instant(int64(sec)*1e9 + int64(ns) - c.offset)
			}
		}
		all = append(all, h)
	}
}

// openTAP makes a TAP on a host's bridge, and its kernel gate.
func openTAP(t testing.TB, h *lab.Host, name string) (*TAP, *KernelGate) {
	t.Helper()
	var tap *TAP
	var k *KernelGate
	if err := h.Do(func() (err error) {
		if tap, err = OpenTAP(TAPConfig{Name: name, Bridge: lab.Bridge}); err != nil {
			return err
		}
		k, err = NewKernelGate(name)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(tap.Close(), k.Close()); err != nil {
			t.Error(err)
		}
	})
	return tap, k
}

func tables(t testing.TB, h *lab.Host) (names []string) {
	t.Helper()
	if err := h.Do(func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		all, err := conn.ListTablesOfFamily(nftables.TableFamilyNetdev)
		for _, table := range all {
			names = append(names, table.Name)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return names
}

func TestFramesGoThroughATAPAndABridgeToAnotherHost(t *testing.T) {
	l := newNetwork(t)
	heardAtB := newCapture(t, l.Host("b"))
	tap, k := openTAP(t, l.Host("a"), "tap0")
	guest, far := NewPipe(64)
	g, err := NewGate(Config{Guest: guest, Network: tap, Limit: k, Clock: clock.Boot{}, Log: quietLog})
	if err != nil {
		t.Fatal(err)
	}
	g.Pass()
	if err := g.Allow(clock.Boot{}.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	var got []heard
	sent := uint64(0)
	until(t, "the first frame at the other host", func() bool {
		if err := far.WriteFrame(numbered(sent, 60)); err != nil {
			t.Fatal(err)
		}
		sent++
		got = append(got, heardAtB.read(t)...)
		return len(got) > 0
	})
	t.Logf("first frame after %v, it was number %d", time.Since(began), got[0].number)
	// The other way: b asks for the guest's address.
	conn, err := l.Host("b").Dial(context.Background(), "udp", "10.99.0.77:9")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	buf := make([]byte, MaxFrame+1)
	until(t, "b's ARP request at the guest", func() bool {
		_, _ = conn.Write([]byte("hello")) // no neighbour yet, no error that matters
		n, err := far.ReadFrame(buf)
		return err == nil && n >= headerLen && binary.BigEndian.Uint16(buf[12:]) == typeARP
	})
	if got := tables(t, l.Host("a")); len(got) != 1 || got[0] != TablePrefix+"tap0" {
		t.Errorf("tables %v", got)
	}
	if err := errors.Join(g.Close(), far.Close()); err != nil {
		t.Fatal(err)
	}
	if got := tables(t, l.Host("a")); len(got) != 0 {
		t.Errorf("tables left: %v", got)
	}
	if err := l.Host("a").Do(func() error {
		if _, err := netlink.LinkByName("tap0"); err == nil {
			return errors.New("the TAP outlived its gate")
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

func TestKernelGateOpensForATime(t *testing.T) {
	l := newNetwork(t)
	heardAtB := newCapture(t, l.Host("b"))
	tap, k := openTAP(t, l.Host("a"), "tap0")
	n := uint64(0)
	send := func() bool {
		n++
		if err := tap.WriteFrame(numbered(n, 60)); err != nil {
			t.Fatal(err)
		}
		// Synchronous up to the cable; the last hop is a softirq on this machine.
		time.Sleep(2 * time.Millisecond)
		for _, h := range heardAtB.read(t) {
			if h.number == n {
				return true
			}
		}
		return false
	}
	open := func(d time.Duration) {
		t.Helper()
		if err := k.Open(d); err != nil {
			t.Fatal(err)
		}
	}
	if send() {
		t.Error("a new gate is open")
	}
	open(time.Hour)
	until(t, "an open gate", send)
	if err := k.Shut(); err != nil {
		t.Fatal(err)
	}
	if send() {
		t.Error("a shut gate is open")
	}
	if err := k.Shut(); err != nil {
		t.Errorf("shutting a shut gate: %v", err)
	}
	open(0)
	if send() {
		t.Error("open for no time is open")
	}
	open(time.Hour)
	opened := time.Now()
	open(50 * time.Millisecond)                              // shorter counts
	if !send() && time.Since(opened) < 40*time.Millisecond { // later, a busy machine had us wait
		t.Error("an open gate is shut")
	}
	time.Sleep(60 * time.Millisecond)
	if send() {
		t.Error("the gate stayed open after its time")
	}
	began := time.Now()
	for time.Since(began) < 300*time.Millisecond { // renewed, it stays open
		opened = time.Now()
		open(100 * time.Millisecond)
		if !send() && time.Since(opened) < 90*time.Millisecond {
			t.Fatal("a renewed gate is shut")
		}
	}
}

func TestTablesDoNotOutliveTheirDaemon(t *testing.T) {
	l := newNetwork(t)
	a := l.Host("a")
	d := startDaemon(t, l, true)
	if got := tables(t, a); len(got) != 1 {
		t.Fatalf("the daemon's tables: %v", got)
	}
	if err := a.Do(func() error {
		if k, err := NewKernelGate("tap0"); err == nil {
			return errors.Join(errors.New("took over a living daemon's gate"), k.Close())
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	d.kill()
	until(t, "the table of a killed daemon to vanish", func() bool { return len(tables(t, a)) == 0 })
	// A table of that name without an owner is replaced.
	if err := a.Do(func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		conn.AddTable(&nftables.Table{Family: nftables.TableFamilyNetdev, Name: TablePrefix + "tap0"})
		return conn.Flush()
	}); err != nil {
		t.Fatal(err)
	}
	openTAP(t, a, "tap0")
}

// daemon is another process with a gate in ModePass that floods the network as
// long as its leases last. It gets each lease's end on its standard input.
type daemon struct {
	t   testing.TB
	cmd *lab.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func startDaemon(t testing.TB, l *lab.Lab, kernel bool) *daemon {
	t.Helper()
	mode := "user"
	if kernel {
		mode = "kernel"
	}
	d := &daemon{t: t, cmd: l.Host("a").Command(context.Background(), os.Args[0], "frozen-daemon", mode)}
	d.cmd.Stderr = os.Stderr
	var err error
	if d.in, err = d.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	d.out = bufio.NewScanner(out)
	t.Cleanup(d.kill)
	if !d.out.Scan() || d.out.Text() != "ready" {
		t.Fatalf("the daemon says %q", d.out.Text())
	}
	return d
}

func (d *daemon) kill() {
	if d.cmd.ProcessState == nil {
		_ = d.cmd.Process.Kill()
		_ = d.cmd.Wait() // it says that it was killed
	}
}

func (d *daemon) signal(s syscall.Signal) {
	d.t.Helper()
	if err := d.cmd.Process.Signal(s); err != nil {
		d.t.Fatal(err)
	}
}

// frozenDaemon is that process.
func frozenDaemon(kernel bool) {
	check := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, "daemon:", err)
			os.Exit(1)
		}
	}
	tap, err := OpenTAP(TAPConfig{Name: "tap0", Bridge: lab.Bridge})
	check(err)
	c := Config{Network: tap, Clock: clock.Boot{}, Log: quietLog}
	if kernel {
		c.Limit, err = NewKernelGate("tap0")
		check(err)
	}
	guest, far := NewPipe(512)
	c.Guest = guest
	g, err := NewGate(c)
	check(err)
	g.Pass()
	go func() {
		for n := uint64(0); ; n++ {
			for far.WriteFrame(numbered(n, 60)) != nil {
				time.Sleep(20 * time.Microsecond)
			}
		}
	}()
	fmt.Println("ready")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var until int64
		_, err := fmt.Sscan(strings.TrimSpace(lines.Text()), &until)
		check(err)
		check(g.Allow(clock.Instant(until)))
	}
}

// freezeAndThaw stops the daemon at rounds different moments of its sending and
// of its renewals, lets it go on when its lease is over, and returns how many
// frames reached the other host in time and how many too late.
func freezeAndThaw(t *testing.T, kernel bool, rounds int) (inTime, late int) {
	const lease = 60 * time.Millisecond
	l := newNetwork(t)
	heardAtB := newCapture(t, l.Host("b"))
	d := startDaemon(t, l, kernel)
	now := clock.Boot{}.Now
	for round := range rounds {
		end := now().Add(lease)
		fmt.Fprintln(d.in, int64(end))
		// Some rounds stop it within the renewal, others in the midst of sending.
		time.Sleep(time.Duration(round%4*round) * 300 * time.Microsecond)
		d.signal(syscall.SIGSTOP)
		time.Sleep(end.Sub(now()) + 10*time.Millisecond)
		d.signal(syscall.SIGCONT)
		time.Sleep(15 * time.Millisecond)
		for _, h := range heardAtB.read(t) {
			if h.at.Before(end) {
				inTime++
			} else {
				late++
			}
		}
	}
	return inTime, late
}

func TestAFrozenProcessLetsNothingOutAfterItsLease(t *testing.T) {
	inTime, late := freezeAndThaw(t, true, 40)
	t.Logf("%d frames in time, %d late", inTime, late)
	if inTime == 0 {
		t.Error("no frame left at all")
	}
	if late != 0 {
		t.Errorf("%d frames left after the lease", late)
	}
}

// Without the kernel's gate the same process does let frames out too late:
// what the test above would not notice otherwise.
func TestTheFreezeTestCanTell(t *testing.T) {
	for range 5 {
		if _, late := freezeAndThaw(t, false, 20); late > 0 {
			t.Logf("%d frames late", late)
			return
		}
	}
	t.Error("no frame was late without the kernel's gate: the freeze test proves nothing")
}

func TestTAPNamesAndBridgesAreChecked(t *testing.T) {
	l := newNetwork(t)
	if err := l.Host("a").Do(func() error {
		for _, c := range []TAPConfig{
			{Name: ""}, {Name: "sixteen-letters-"}, {Name: "a/b"}, {Name: "tap%d"}, {Name: "a b"}, {Name: ".."},
			{Name: "tap0", Bridge: "nowhere"}, {Name: "tap0", Bridge: lab.Uplink}, {Name: lab.Uplink},
		} {
			if tap, err := OpenTAP(c); err == nil {
				t.Errorf("%+v was accepted", c)
				_ = tap.Close()
			}
		}
		if _, err := net.InterfaceByName("tap0"); err == nil {
			t.Error("a refused TAP was left behind")
		}
		if k, err := NewKernelGate("tap9"); err == nil {
			t.Error("a gate without an interface was made")
			_ = k.Close()
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkKernelGateRefresh(b *testing.B) {
	_, k := openTAP(b, newNetwork(b).Host("a"), "tap0")
	b.ReportAllocs()
	for b.Loop() {
		if err := k.Open(300 * time.Millisecond); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkTAP writes full-sized frames through the kernel's gate, the bridge
// and a cable.
func BenchmarkTAP(b *testing.B) {
	tap, k := openTAP(b, newNetwork(b).Host("a"), "tap0")
	if err := k.Open(time.Hour); err != nil {
		b.Fatal(err)
	}
	frame := numbered(1, 1514)
	b.ReportAllocs()
	b.SetBytes(int64(len(frame)))
	for b.Loop() {
		if err := tap.WriteFrame(frame); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "frames/s")
}
