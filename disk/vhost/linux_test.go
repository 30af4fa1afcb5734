package vhost

import (
	"bytes"
	"crypto/md5"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy/guest"
)

// linux is a Linux guest under a QEMU of its own, with a shell on its console
// and our disk as /dev/vda.
type linux struct {
	t       testing.TB
	qmp     *json.Decoder
	qmpConn net.Conn
	console net.Conn
	output  bytes.Buffer
	count   int
}

func testLog(t testing.TB) *slog.Logger {
	if testing.Verbose() {
		return slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	return slog.New(slog.DiscardHandler)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// bootLinux starts the project's test guest.
func bootLinux(t testing.TB, socket string, queues int, extra ...string) *linux {
	t.Helper()
	files, err := filepath.Abs("../../build/guest")
	must(t, err)
	if _, err := os.Stat(filepath.Join(files, "initrd")); err != nil {
		t.Fatalf("%v: run make guest", err)
	}
	dir := t.TempDir()
	memory, err := os.MkdirTemp("/dev/shm", "usv")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(memory) })
	args := []string{
		"-no-user-config", "-nodefaults", "-display", "none", "-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "192M",
		"-machine", "q35,memory-backend=ram",
		"-object", "memory-backend-file,id=ram,size=192M,share=on,mem-path=" + filepath.Join(memory, "ram"),
		"-kernel", filepath.Join(files, "vmlinuz"), "-initrd", filepath.Join(files, "initrd"),
		"-append", guest.Boot{Shell: true}.CommandLine(),
		"-chardev", "socket,id=disk,reconnect=1,path=" + socket,
		"-device", fmt.Sprintf("vhost-user-blk-pci,chardev=disk,num-queues=%d,queue-size=128", queues),
		"-chardev", "socket,id=con,server=on,wait=off,path=" + filepath.Join(dir, "con"), "-serial", "chardev:con",
		"-qmp", "unix:" + filepath.Join(dir, "qmp") + ",server=on,wait=off",
	}
	cmd := exec.Command("qemu-system-x86_64", append(args, extra...)...)
	var trouble bytes.Buffer
	cmd.Stderr = &trouble
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if trouble.Len() > 0 {
			t.Logf("qemu: %s", trouble.Bytes())
		}
	})
	g := &linux{t: t}
	g.console = g.dial(filepath.Join(dir, "con"))
	g.qmpConn = g.dial(filepath.Join(dir, "qmp"))
	g.qmp = json.NewDecoder(g.qmpConn)
	g.execute("qmp_capabilities", "")
	g.expect(guest.ReadyLine, time.Minute)
	return g
}

func (g *linux) dial(path string) net.Conn {
	g.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		c, err := net.Dial("unix", path)
		if err == nil {
			g.t.Cleanup(func() { _ = c.Close() })
			return c
		}
		if time.Now().After(deadline) {
			g.t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// execute runs a QMP command and returns what it answers.
func (g *linux) execute(command, arguments string) json.RawMessage {
	g.t.Helper()
	if arguments == "" {
		arguments = "{}"
	}
	_, err := fmt.Fprintf(g.qmpConn, `{"execute":%q,"arguments":%s}`+"\n", command, arguments)
	must(g.t, err)
	must(g.t, g.qmpConn.SetReadDeadline(time.Now().Add(20*time.Second)))
	for {
		var m struct {
			Return json.RawMessage
			Error  *struct{ Desc string }
		}
		must(g.t, g.qmp.Decode(&m))
		if m.Error != nil {
			g.t.Fatalf("%s: %s", command, m.Error.Desc)
		}
		if m.Return != nil {
			return m.Return
		}
	}
}

// expect reads the console until a text comes.
func (g *linux) expect(text string, within time.Duration) string {
	g.t.Helper()
	must(g.t, g.console.SetReadDeadline(time.Now().Add(within)))
	p := make([]byte, 4096)
	for {
		if at := strings.Index(g.output.String(), text); at >= 0 {
			before := g.output.String()[:at]
			g.output.Next(at + len(text))
			return before
		}
		n, err := g.console.Read(p)
		if err != nil {
			g.t.Fatalf("waiting for %q: %v; the console says:\n%s", text, err, g.output.String())
		}
		g.output.Write(p[:n])
	}
}

// sh starts a command; wait returns what it printed once it has ended.
func (g *linux) sh(command string) {
	g.t.Helper()
	g.count++
	// The marks are not to be found in the echo of the command itself.
	_, err := fmt.Fprintf(g.console, "echo be'gin'%d; %s; echo en'd'%d=$?\n", g.count, command, g.count)
	must(g.t, err)
	g.expect(fmt.Sprintf("begin%d\r\n", g.count), time.Minute)
}

func (g *linux) wait() string {
	g.t.Helper()
	out := g.expect(fmt.Sprintf("end%d=", g.count), time.Minute)
	if status := g.expect("\r\n", time.Minute); status != "0" {
		g.t.Fatalf("the command ended with %s: %s", status, out)
	}
	return strings.ReplaceAll(out, "\r", "")
}

func (g *linux) run(command string) string {
	g.t.Helper()
	g.sh(command)
	return g.wait()
}

func sum(p []byte) string { return fmt.Sprintf("%x", md5.Sum(p)) }

func serve(t testing.TB, b *memoryDisk, change ...func(*Config)) *Server {
	t.Helper()
	dir, err := os.MkdirTemp("", "usv")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	cfg := Config{Path: filepath.Join(dir, "disk"), Backend: b, Queues: 2, Log: testLog(t)}
	for _, f := range change {
		f(&cfg)
	}
	s, err := Listen(cfg)
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}

// A Linux guest reads what is on the disk and its writes arrive there, held or
// not.
func TestLinuxReadsAndWrites(t *testing.T) {
	b := newMemoryDisk(32768)
	fill(b.data)
	want := sum(b.data)
	s := serve(t, b)
	g := bootLinux(t, s.cfg.Path, 2)
	if out := g.run("md5sum < /dev/vda"); !strings.Contains(out, want) {
		t.Fatalf("the guest reads %s, the disk has %s", out, want)
	}
	if out := g.run("cat /sys/block/vda/serial; echo; cat /sys/block/vda/queue/write_cache; ls /sys/block/vda/mq"); out != "understudy-0\nwrite back\n0  1\n" {
		t.Errorf("the guest sees another device: %q", out)
	}
	for _, hold := range []bool{false, true} {
		b.hold.Store(hold)
		g.run("for i in 0 1 2 3; do dd if=/dev/urandom of=/tmp/r$i bs=64k count=32 2>/dev/null; dd if=/tmp/r$i of=/dev/vda bs=4k seek=$((i*1000)) conv=notrunc 2>/dev/null & done; wait; sync; echo 3 > /proc/sys/vm/drop_caches")
		out := strings.Fields(g.run("md5sum < /dev/vda; md5sum < /tmp/r1"))
		got, part := sum(b.content(0, len(b.data))), sum(b.content(8000, 32<<16))
		if len(out) != 4 || out[0] != got || out[2] != part || got == want {
			t.Fatalf("hold %v: the guest has %s, the disk %s and %s", hold, out, got, part)
		}
		want = got
	}
}

// A guest that writes all the while is paused many times; the daemon is started
// anew under it; it loses nothing.
func TestLinuxPausesAndRestarts(t *testing.T) {
	b := newMemoryDisk(32768)
	s := serve(t, b)
	path := s.cfg.Path
	g := bootLinux(t, path, 2)
	g.sh("for i in 1 2 3 4; do dd if=/dev/urandom of=/tmp/r$i bs=64k count=20 2>/dev/null; done; for k in 1 2 3 4; do for i in 1 2 3 4; do dd if=/tmp/r$i of=/dev/vda bs=4k seek=$((i*800)) conv=notrunc,fsync 2>/dev/null & done; wait; done; echo 3 > /proc/sys/vm/drop_caches; cat /tmp/r? | md5sum; for i in 1 2 3 4; do dd if=/dev/vda bs=4k skip=$((i*800)) count=320 2>/dev/null; done | md5sum")
	pauses, most := 0, 0
	var longest time.Duration
	for range 60 {
		start := time.Now()
		g.execute("stop", "")
		longest = max(longest, time.Since(start))
		if !s.Stopped() {
			t.Fatal("the guest is paused and the disk is not")
		}
		state := s.AppendInFlight(nil)
		if _, _, err := parseState(state, 2); err != nil {
			t.Fatal(err)
		}
		most = max(most, len(state))
		pauses++
		g.execute("cont", "")
		if pauses%20 == 0 {
			must(t, s.Close())
			s = serve(t, b, func(c *Config) { c.Path = path })
		}
		time.Sleep(20 * time.Millisecond) // the guest's turn
	}
	out := strings.Fields(g.wait())
	if len(out) != 4 || out[0] != out[2] {
		t.Fatalf("the guest reads other data than it wrote: %v", out)
	}
	t.Logf("%d pauses, the longest stop took %v, at most %d bytes in flight", pauses, longest, most)
	if dmesg := g.run("dmesg | grep -i -e 'I/O error' -e vda.*error; true"); strings.TrimSpace(dmesg) != "" {
		t.Error(dmesg)
	}
}

// The hypervisor's own migration accepts the device, and a guest that reboots
// finds its disk again.
func TestLinuxMigratesAndReboots(t *testing.T) {
	b := newMemoryDisk(32768)
	fill(b.data)
	s := serve(t, b)
	g := bootLinux(t, s.cfg.Path, 2)
	g.sh("while [ ! -e /tmp/end ]; do dd if=/dev/vda of=/dev/null bs=64k count=16 2>/dev/null; echo 3 > /proc/sys/vm/drop_caches; done & true")
	g.wait()
	g.execute("migrate", `{"uri":"exec:cat >/dev/null"}`)
	deadline := time.Now().Add(time.Minute)
	for {
		var info struct {
			Status    string
			ErrorDesc string `json:"error-desc"`
		}
		must(t, json.Unmarshal(g.execute("query-migrate", ""), &info))
		if info.Status == "completed" {
			break
		}
		if info.Status == "failed" || time.Now().After(deadline) {
			t.Fatalf("the migration is %+v", info)
		}
		time.Sleep(50 * time.Millisecond)
	}
	if !s.Stopped() {
		t.Error("the guest has moved away and the disk runs")
	}
	g.execute("cont", "")
	g.run("touch /tmp/end; sync")
	g.execute("system_reset", "")
	g.expect(guest.ReadyLine, time.Minute)
	if out := g.run("md5sum < /dev/vda"); !strings.Contains(out, sum(b.data)) {
		t.Fatalf("the guest reads %s", out)
	}
}
