package guest_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"understudy/guest"
	"understudy/guest/client"
)

// TestGuestBoots boots the guest that `make guest` built on each machine type
// that understudy protects, emulated, with 256 MiB, and uses its services.
func TestGuestBoots(t *testing.T) {
	for _, c := range []struct {
		machine, nic string
	}{
		{"pc", "virtio-net-pci"},
		{"q35", "virtio-net-pci"},
		{"microvm", "virtio-net-device"},
	} {
		t.Run(c.machine, func(t *testing.T) {
			m := boot(t, setup{machine: c.machine, nic: c.nic, disk: newDisk(t)})
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()

			stream, err := client.OpenStream(ctx, m.dial(t, guest.CounterPort), 5*time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			control := client.NewControl(m.dial(t, guest.ControlPort))
			id, err := control.Boot(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if !regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`).MatchString(id) || stream.Boot() != id {
				t.Errorf("boot id is %q for control, %q for the counter", id, stream.Boot())
			}
			if err := control.Dirty(ctx, client.Dirty{Pages: 1000, Every: 20 * time.Millisecond, Random: true}); err != nil {
				t.Fatal(err)
			}
			if n, took, err := control.Work(ctx, 100*time.Millisecond); err != nil || n == 0 {
				t.Errorf("work: %d iterations in %s, %v", n, took, err)
			}
			for range 20 {
				if _, err := stream.Next(ctx); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := client.Echo(ctx, m.dial(t, guest.EchoPort), []byte("anybody in?\n")); err != nil {
				t.Error(err)
			}
			through := m.dial(t, guest.ThroughputPort)
			if _, err := client.Source(ctx, through, 1<<20); err != nil {
				t.Error(err)
			}
			if _, err := client.Sink(ctx, through, 1<<20); err != nil {
				t.Error(err)
			}
			if pages, err := control.Check(ctx); err != nil || pages != 1024+16384 {
				t.Errorf("check of the memory: %d pages, %v", pages, err)
			}
			if progress, err := control.DirtyProgress(ctx); err != nil || progress.Intervals == 0 {
				t.Errorf("dirtying: %+v, %v", progress, err)
			}
			if read, err := control.ReadDisk(ctx, "library/07"); err != nil || read.Bytes != 512<<10 {
				t.Errorf("a file of the disk: %+v, %v", read, err)
			}
			if err := control.Poweroff(ctx); err != nil {
				t.Fatal(err)
			}
			select {
			case <-m.ended:
			case <-ctx.Done():
				t.Errorf("the machine did not end after poweroff; its console:\n%s", m.console())
			}
		})
	}
}

// TestShellOnTheConsole asks for a shell, types into it, leaves it and finds a
// new one.
func TestShellOnTheConsole(t *testing.T) {
	m := boot(t, setup{machine: "microvm", nic: "virtio-net-device", words: "understudy.shell"})
	const prompt = "/ # "
	m.waitFor(t, prompt)
	m.enter(t, "busybox echo 6 times 7 is $((6*7)); exit")
	m.waitFor(t, "6 times 7 is 42", prompt)
	m.enter(t, "busybox echo 1 is $(busybox cat /proc/1/comm); busybox poweroff")
	m.waitFor(t, "1 is init", "Power down")
	<-m.ended
}

func TestHostTSCIsMeasuredAlikeTwice(t *testing.T) {
	one, two := guest.TSCKHz(), guest.TSCKHz()
	if one < 100_000 || math.Abs(float64(one-two)) > float64(one)/1000 {
		t.Errorf("measured %d kHz, then %d kHz", one, two)
	}
}

// machine is a running QEMU.
type machine struct {
	address map[int]string // of a service on this host, by its port
	dir     string
	stdin   *os.File
	seen    int // bytes of the console that waitFor has gone past
	kill    func() error
	ended   chan struct{}
}

// setup is a machine to boot.
type setup struct {
	machine, nic string
	words        string // for the kernel's command line
	disk         string // an image, mounted on guest.DataDir
}

// boot starts a machine and waits until the guest is ready, without a complaint.
func boot(t *testing.T, s setup) *machine {
	t.Helper()
	began := time.Now()
	m := start(t, s)
	m.waitFor(t, guest.ReadyLine)
	if strings.Contains(m.console(), "level=ERROR") {
		t.Errorf("init complains:\n%s", m.console())
	}
	t.Logf("%s: ready after %s", s.machine, time.Since(began).Round(10*time.Millisecond))
	return m
}

// start starts QEMU.
func start(t *testing.T, s setup) *machine {
	t.Helper()
	build := filepath.Join("..", "build", "guest")
	if _, err := os.Stat(filepath.Join(build, "initrd")); err != nil {
		t.Fatalf("the guest is not built, run make guest: %v", err)
	}
	m := &machine{address: map[int]string{}, dir: t.TempDir(), ended: make(chan struct{})}
	user := "user,id=n"
	for _, port := range []int{guest.CounterPort, guest.ControlPort, guest.EchoPort, guest.ThroughputPort} {
		m.address[port] = freeAddress(t)
		user += fmt.Sprintf(",hostfwd=tcp:%s-:%d", m.address[port], port)
	}
	b := guest.Boot{
		Address: netip.MustParsePrefix("10.0.2.15/24"),
		Gateway: netip.MustParseAddr("10.0.2.2"),
		TSCKHz:  guest.TSCKHz(),
		Extra:   s.words,
	}
	if s.disk != "" {
		b.Disk = guest.Disk{Device: guest.FirstDisk, Dir: guest.DataDir}
	}
	console, err := os.Create(filepath.Join(m.dir, "console"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = console.Close() }()
	stdin, typed, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stdin.Close() }()
	m.stdin = typed
	qemu := exec.Command("qemu-system-x86_64", "-accel", "tcg", "-machine", s.machine, "-m", "256",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-serial", "stdio",
		"-kernel", filepath.Join(build, "vmlinuz"), "-initrd", filepath.Join(build, "initrd"),
		"-append", b.CommandLine(),
		"-netdev", user, "-device", s.nic+",netdev=n")
	if s.disk != "" {
		qemu.Args = append(qemu.Args, "-drive", "if=none,id=d,format=raw,cache=none,file="+s.disk,
			"-device", strings.Replace(s.nic, "net", "blk", 1)+",drive=d")
	}
	qemu.Stdin, qemu.Stdout, qemu.Stderr = stdin, console, console
	if err := qemu.Start(); err != nil {
		t.Fatalf("start QEMU (run scripts/setup if it is missing): %v", err)
	}
	go func() {
		_ = qemu.Wait() // a killed QEMU is no news
		close(m.ended)
	}()
	t.Cleanup(func() {
		_ = qemu.Process.Kill()
		<-m.ended
		_ = typed.Close()
	})
	m.kill = qemu.Process.Kill
	return m
}

// console is what the guest has written so far.
func (m *machine) console() string {
	text, err := os.ReadFile(filepath.Join(m.dir, "console"))
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// waitFor waits until the console says each of texts, after what was waited for
// before, in this order.
func (m *machine) waitFor(t *testing.T, texts ...string) {
	t.Helper()
	limit := time.After(60 * time.Second)
	for _, text := range texts {
		for ended := false; ; {
			at := strings.Index(m.console()[m.seen:], text)
			if at >= 0 {
				m.seen += at + len(text)
				break
			}
			if ended {
				t.Fatalf("QEMU ended without %q on the console:\n%s", text, m.console())
			}
			select {
			case <-m.ended:
				ended = true // look once more at what it wrote last
			case <-limit:
				t.Fatalf("no %q on the console:\n%s", text, m.console())
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
}

// enter types a line on the console.
func (m *machine) enter(t *testing.T, line string) {
	t.Helper()
	if _, err := m.stdin.WriteString(line + "\n"); err != nil {
		t.Fatal(err)
	}
}

func (m *machine) dial(t *testing.T, port int) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", m.address[port])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	return conn
}

// freeAddress is an address on loopback that was free a moment ago.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}
