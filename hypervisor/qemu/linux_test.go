package qemu

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"understudy/epoch"
	"understudy/guest"
)

// linuxFiles returns the kernel and the initrd that `make guest` builds.
func linuxFiles(t testing.TB) (kernel, initrd string) {
	t.Helper()
	dir, err := filepath.Abs("../../build/guest")
	must(t, err)
	kernel, initrd = filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "initrd")
	for _, f := range []string{kernel, initrd} {
		if _, err := os.Stat(f); err != nil {
			t.Fatalf("%v: run make guest", err)
		}
	}
	return kernel, initrd
}

const guestMAC = "52:54:00:12:34:56"

func linuxConfig(t testing.TB, machine string, memory uint64, cpus int) Config {
	t.Helper()
	c := testConfig(t, machine)
	c.Memory, c.CPUs = memory, cpus
	c.Kernel, c.Initrd = linuxFiles(t)
	boot := guest.Boot{Address: netip.MustParsePrefix("192.168.77.2/24")}
	if machine == "microvm" {
		boot.TSCKHz = guest.TSCKHz()
	}
	c.Append = boot.CommandLine()
	c.NICs = []NIC{{MAC: guestMAC}}
	return c
}

// wire is the host's end of a guest's network card.
type wire struct {
	conn  *net.UnixConn
	guest *net.UnixAddr
}

// plug binds the host's end.
func plug(t testing.TB, d *Driver) *wire {
	t.Helper()
	must(t, d.Prepare())
	to, here := d.cfg.NICSockets(0)
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: here, Net: "unixgram"})
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	must(t, d.Grant(here))
	return &wire{conn, &net.UnixAddr{Name: to, Net: "unixgram"}}
}

// answers asks the guest for its address with ARP until it answers: its
// network card, its driver and its interrupts work.
func (w *wire) answers(ctx context.Context, t testing.TB) {
	t.Helper()
	request := append(bytes.Repeat([]byte{0xff}, 6), 0x52, 0x54, 0, 0, 0, 1, 8, 6)
	request = append(request, 0, 1, 8, 0, 6, 4, 0, 1)                                         // Ethernet, IPv4, request
	request = append(request, 0x52, 0x54, 0, 0, 0, 1, 192, 168, 77, 1)                        // from
	request = append(append(request, 0, 0, 0, 0, 0, 0, 192, 168, 77, 2), make([]byte, 18)...) // to, padding
	frame := make([]byte, 2048)
	for ctx.Err() == nil {
		if _, err := w.conn.WriteToUnix(request, w.guest); err != nil {
			t.Fatalf("send a frame to the guest: %v", err)
		}
		must(t, w.conn.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
		for {
			n, err := w.conn.Read(frame)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			must(t, err)
			if n >= 42 && binary.BigEndian.Uint16(frame[12:]) == 0x0806 && frame[21] == 2 && net.HardwareAddr(frame[22:28]).String() == guestMAC {
				return
			}
		}
	}
	t.Fatal("the guest does not answer")
}

// A Linux guest survives the loss of its host with its network alive, and
// boots again afterwards.
func TestLinuxSurvivesAndReboots(t *testing.T) {
	tests := []struct {
		machine string
		cpus    int
	}{{"pc", 2}, {"q35", 4}, {"microvm", 1}}
	for _, test := range tests {
		t.Run(test.machine, func(t *testing.T) {
			t.Parallel() // most of it is booting, on one processor
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			hosts := newPair(t, linuxConfig(t, test.machine, 192*mib, test.cpus))
			wireA, wireB := plug(t, hosts.a), plug(t, hosts.b)

			g, err := hosts.a.Start(ctx)
			must(t, err)
			drain(t, g)
			must(t, g.Resume(ctx))
			waitConsole(ctx, t, hosts.consoleA, guest.ReadyLine, 1)
			wireA.answers(ctx, t)

			sb, err := hosts.b.Standby(ctx, g.Spec())
			must(t, err)
			t.Cleanup(func() { must(t, sb.Destroy()) })
			copyDirty(t, g, sb)
			for i := range 10 {
				commit(ctx, t, g, sb)
				if i%5 > 0 {
					must(t, g.Resume(ctx))
					continue
				}
				if d := differs(t, g, sb); len(d) != 0 {
					t.Fatalf("after the commit %d pages differ, the first is %d", len(d), d[0])
				}
				must(t, g.Resume(ctx))
				wireA.answers(ctx, t)
			}
			state := commit(ctx, t, g, sb)
			must(t, g.Destroy())

			start := time.Now()
			must(t, sb.Load(ctx, state, nil))
			loaded := time.Now()
			next, err := sb.Run(ctx)
			must(t, err)
			t.Logf("load %v, run %v", loaded.Sub(start), time.Since(loaded))
			drain(t, next)
			wireB.answers(ctx, t)

			// Protected again, and it boots again.
			set := epoch.NewPageSet(next.Pages())
			must(t, next.CollectDirty(set))
			wireB.answers(ctx, t)
			set.Clear()
			must(t, next.CollectDirty(set))
			if set.Empty() {
				t.Fatal("a guest that answers writes no memory")
			}
			systemReset(ctx, t, next)
			waitConsole(ctx, t, hosts.consoleB, guest.ReadyLine, 1)
			wireB.answers(ctx, t)
		})
	}
}
