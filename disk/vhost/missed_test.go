package vhost

import (
	"bytes"
	"net"
	"strings"
	"testing"
	"time"
)

// A hypervisor that has missed the end of a daemon takes up a connection in the
// middle: it asks where the rings stand, which nobody knows, and starts them
// again without a greeting.
func TestMissedEnd(t *testing.T) {
	for name, base := range map[string]func(*queue) uint16{
		"at the used index":            (*queue).usedIdx,
		"where a wrong answer left it": func(*queue) uint16 { return 0 },
	} {
		t.Run(name, func(t *testing.T) {
			b := newMemoryDisk(4096)
			s := serve(t, b)
			path := s.cfg.Path
			c := newGuest(t, newGuestMemory(t), 1, 64)
			c.connect(path)
			c.start()
			q := c.queues[0]
			for n := range 100 {
				if got := q.do(n%8, typeOut, uint64(8*n), 4096); got.status != 0 {
					t.Fatal(got)
				}
			}
			for range 3 {
				must(t, s.Close())
				s = serve(t, b, func(cfg *Config) { cfg.Path = path })
				_ = c.conn.Close()
				conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
				must(t, err)
				c.conn = conn
				old := q.avail
				q.put(3, typeIn, 8, 4096) // nobody is kicked for it
				reply, _ := c.ask(getVringBase, pair(0, 0))
				if len(reply) != 0 {
					t.Fatalf("a ring that was never set up is said to stand at %x", reply)
				}
				if s.Connected() {
					t.Fatal("the requests in flight are said to be known")
				}
				c.start(base(q))
				if !s.Connected() {
					t.Fatal("the requests in flight are said not to be known")
				}
				q.kick(old)
				if got := q.next(); got.status != 0 {
					t.Fatal(got)
				}
				if got := q.do(1, typeOut, 16, 4096); got.status != 0 {
					t.Fatal(got)
				}
			}
			if reply, _ := c.ask(getVringBase, pair(0, 0)); len(reply) != 8 {
				t.Fatalf("a ring that runs is said to stand at %x", reply)
			}
		})
	}
}

// The daemon ends under a Linux guest that uses its disk with many requests at
// once, again and again, while it runs and while it stands still. It loses
// nothing and sees no error.
func TestLinuxMissesEnds(t *testing.T) {
	b := newMemoryDisk(32768)
	s := serve(t, b)
	path := s.cfg.Path
	g := bootLinux(t, path, 2)
	g.sh("for i in 1 2 3 4; do dd if=/dev/urandom of=/tmp/r$i bs=64k count=20 2>/dev/null; done; " +
		"while [ ! -e /tmp/done ]; do for i in 1 2 3 4; do dd if=/tmp/r$i of=/dev/vda bs=4k seek=$((i*800)) conv=notrunc,fsync 2>/dev/null & done; wait; done & " +
		"true")
	g.wait()
	for i, still := range []bool{true, false, false, true, true, false, true, false} {
		if still {
			g.execute("stop", "")
		}
		must(t, s.Close())
		s = serve(t, b, func(c *Config) { c.Path = path })
		for deadline := time.Now().Add(10 * time.Second); !s.Connected(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("end %d: QEMU does not connect again", i)
			}
		}
		// The kernel connects before QEMU knows, and a QEMU that goes on in between
		// ends: who adopts a guest asks it, too.
		for bytes.Contains(g.execute("query-chardev", ""), []byte(`"disconnected:`)) {
			time.Sleep(time.Millisecond)
		}
		if !still { // who adopts a guest stops it
			g.execute("stop", "")
		}
		g.execute("cont", "")
		if out := g.run("dd if=/dev/urandom of=/dev/vda bs=4k seek=$((100+" + string(rune('0'+i)) + ")) count=1 conv=notrunc,fsync 2>/dev/null && echo written"); strings.TrimSpace(out) != "written" {
			t.Fatalf("end %d: %s", i, out)
		}
	}
	g.run("touch /tmp/done; wait; echo 3 > /proc/sys/vm/drop_caches")
	out := strings.Fields(g.run("cat /tmp/r? | md5sum; for i in 1 2 3 4; do dd if=/dev/vda bs=4k skip=$((i*800)) count=320 2>/dev/null; done | md5sum"))
	if len(out) != 4 || out[0] != out[2] {
		t.Fatalf("the guest reads other data than it wrote: %v", out)
	}
	if dmesg := g.run("dmesg | grep -i -e 'I/O error' -e vda.*error; true"); strings.TrimSpace(dmesg) != "" {
		t.Error(dmesg)
	}
}
