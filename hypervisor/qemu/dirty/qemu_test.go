package dirty

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy/epoch"
	"understudy/hypervisor/qemu/qmp"
)

// bootSector is a guest that writes for ever: it counts in CX, stores the
// count at 0x600 and at the start of a page chosen by it between 64 KiB and
// 576 KiB, and idles a while.
var bootSector = []byte{
	0xfa,       // cli
	0x31, 0xc9, // xor cx,cx
	0x8e, 0xd9, // mov ds,cx
	0x41,                   // next: inc cx
	0x69, 0xd1, 0x37, 0x9e, // imul dx,cx,0x9e37
	0x89, 0xd0, // mov ax,dx
	0x25, 0x00, 0x7f, // and ax,0x7f00
	0x05, 0x00, 0x10, // add ax,0x1000
	0x8e, 0xc0, // mov es,ax
	0x26, 0x89, 0x0e, 0x00, 0x00, // mov [es:0],cx
	0x89, 0x0e, 0x00, 0x06, // mov [0x600],cx
	0xbb, 0x00, 0x40, // mov bx,0x4000
	0x4b,       // idle: dec bx
	0x75, 0xfd, // jnz idle
	0xeb, 0xe0, // jmp next
}

const (
	guestRAM     = 8 << 20
	guestBIOS    = 256 << 10
	guestVideo   = 4 << 20
	guestCounter = 0x600 // where the boot sector's count is
)

// machine is a real QEMU, emulated, paused at its first instruction.
type machine struct {
	t     *testing.T
	pid   int
	qmp   *qmp.Client
	ram   []byte // our mapping
	file  *os.File
	mem   *os.File // /proc/PID/mem
	parts []Region // what is tracked
}

func startMachine(t *testing.T, uid uint32) *machine {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "understudy-dirty-")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	ram, floppy := filepath.Join(dir, "ram"), filepath.Join(dir, "floppy")
	disk := make([]byte, 1440<<10)
	copy(disk, bootSector)
	disk[510], disk[511] = 0x55, 0xaa
	must(t, os.WriteFile(floppy, disk, 0o600))
	must(t, os.WriteFile(ram, nil, 0o600))
	must(t, os.Truncate(ram, guestRAM))
	for _, path := range []string{dir, ram, floppy} {
		must(t, os.Chown(path, int(uid), int(uid)))
	}

	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	theirs := os.NewFile(uintptr(pair[0]), "qmp")
	ours := os.NewFile(uintptr(pair[1]), "qmp")
	cmd := exec.Command("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-accel", "tcg",
		"-machine", "pc,memory-backend=ram", "-m", "8M",
		"-object", fmt.Sprintf("memory-backend-file,id=ram,size=8M,share=on,mem-path=%s", ram),
		"-drive", fmt.Sprintf("if=floppy,format=raw,readonly=on,file=%s", floppy), "-boot", "a",
		"-device", "VGA,vgamem_mb=4", "-smp", "2", "-display", "none", "-sandbox", "on", "-S",
		"-chardev", "socket,id=qmp,fd=3", "-mon", "chardev=qmp,mode=control")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	var said bytes.Buffer
	cmd.Stderr = &said
	must(t, cmd.Start())
	must(t, theirs.Close())
	m := &machine{t: t, pid: cmd.Process.Pid}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("QEMU said: %s", said.String())
		}
	})

	conn, err := net.FileConn(ours)
	must(t, err)
	must(t, ours.Close())
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	m.qmp, err = qmp.New(ctx, conn.(*net.UnixConn))
	must(t, err)
	t.Cleanup(func() { _ = m.qmp.Close() })

	m.file, err = os.OpenFile(ram, os.O_RDWR, 0)
	must(t, err)
	t.Cleanup(func() { _ = m.file.Close() })
	m.ram, err = unix.Mmap(int(m.file.Fd()), 0, guestRAM, unix.PROT_READ, unix.MAP_SHARED)
	must(t, err)
	t.Cleanup(func() { _ = unix.Munmap(m.ram) })
	m.mem, err = os.Open(fmt.Sprintf("/proc/%d/mem", m.pid))
	must(t, err)
	t.Cleanup(func() { _ = m.mem.Close() })
	m.parts = m.regions()
	return m
}

// regions are the guest's RAM, then its firmware and video memory, which are
// private memory of QEMU.
func (m *machine) regions() []Region {
	m.t.Helper()
	regions, err := FileRegions(m.pid, m.file, 0)
	must(m.t, err)
	var answer string
	m.do("human-monitor-command", map[string]any{"command-line": "gpa2hva 0xfffc0000"}, &answer)
	_, hex, _ := strings.Cut(answer, " is 0x")
	var bios uint64
	if _, err := fmt.Sscanf(hex, "%x", &bios); err != nil {
		m.t.Fatalf("gpa2hva answered %q", answer)
	}
	regions = append(regions, Region{Addr: bios, Length: guestBIOS, FirstPage: guestRAM / epoch.PageSize})
	maps, err := ReadMaps(m.pid)
	must(m.t, err)
	for _, v := range maps {
		if v.Path == "" && v.Write && !v.Shared && v.End-v.Start == guestVideo {
			return append(regions, Region{Addr: v.Start, Length: guestVideo, FirstPage: (guestRAM + guestBIOS) / epoch.PageSize})
		}
	}
	m.t.Fatal("video memory not found")
	return nil
}

func (m *machine) do(command string, args, result any) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), 20*time.Second)
	defer cancel()
	must(m.t, m.qmp.Execute(ctx, command, args, result))
}

// snapshot copies the whole tracked memory into all.
func (m *machine) snapshot(all []byte) []byte {
	m.t.Helper()
	for _, r := range m.parts {
		_, err := m.mem.ReadAt(all[uint64(r.FirstPage)*epoch.PageSize:][:r.Length], int64(r.Addr))
		must(m.t, err)
	}
	return all
}

func (m *machine) image() uint64 { return (guestRAM + guestBIOS + guestVideo) / epoch.PageSize }

func (m *machine) counter() uint16 { return binary.LittleEndian.Uint16(m.ram[guestCounter:]) }

// runUntil lets the guest run until a condition holds.
func (m *machine) runUntil(what string, holds func() bool) {
	m.t.Helper()
	m.do("cont", nil, nil)
	deadline := time.Now().Add(30 * time.Second)
	for !holds() {
		if time.Now().After(deadline) {
			m.t.Fatalf("waited in vain: %s", what)
		}
		time.Sleep(200 * time.Microsecond)
	}
	m.do("stop", nil, nil)
}

// From the first instruction through the firmware and on: every page that
// differs from the last stop is reported, in RAM, firmware and video memory,
// and a paused machine writes nothing.
func TestQEMU(t *testing.T) {
	for name, c := range map[string]struct {
		uid     uint32
		running bool // when it is injected
	}{"root, paused": {0, false}, "root, running": {0, true}, "unprivileged, running": {65534, true}} {
		t.Run(name, func(t *testing.T) {
			m := startMachine(t, c.uid)
			if c.running {
				m.do("cont", nil, nil)
			}
			began := time.Now()
			tr := attach(t, Config{PID: m.pid, Helper: helperArgv, Regions: m.parts})
			t.Logf("attached in %v", time.Since(began))
			if c.running {
				m.do("stop", nil, nil)
			}
			if got := collect(t, tr, m.image()); uint64(len(got)) != m.image() {
				t.Fatalf("the first Collect reported %d of %d pages", len(got), m.image())
			}
			want(t, collect(t, tr, m.image()))

			before := m.snapshot(make([]byte, m.image()*epoch.PageSize))
			after := bytes.Clone(before)
			changed := epoch.NewPageSet(m.image())
			reported, quiet := uint64(0), 0
			compare := func(what string, tr *Tracker) {
				set := epoch.NewPageSet(m.image())
				must(t, tr.Collect(set))
				m.snapshot(after)
				same := true
				for p := range m.image() {
					at := p * epoch.PageSize
					if bytes.Equal(before[at:at+epoch.PageSize], after[at:at+epoch.PageSize]) {
						continue
					}
					same = false
					changed.Add(epoch.GFN(p))
					if !set.Contains(epoch.GFN(p)) {
						t.Fatalf("page %#x changed (%s) and was not reported", p, what)
					}
				}
				if same {
					quiet++
				}
				reported += set.Count()
				before, after = after, before
				want(t, collect(t, tr, m.image())) // it is paused
			}
			copied := bytes.Clone(m.ram[:1<<20])
			for m.counter() == 0 || m.ram[0x7c00] != bootSector[0] {
				m.runUntil("the firmware writes", func() bool {
					same := bytes.Equal(copied, m.ram[:1<<20])
					copy(copied, m.ram)
					return !same
				})
				compare("firmware", tr)
			}
			for range 20 {
				start := m.counter()
				m.runUntil("the guest writes", func() bool { return m.counter()-start > 20 })
				compare("guest", tr)
			}
			t.Logf("%d pages changed, %d reported, %d stops without a change", changed.Count(), reported, quiet)
			changed.RemoveRange(0, (guestRAM+guestBIOS)/epoch.PageSize)
			if changed.Empty() && !c.running { // else the firmware may have been faster than we
				t.Fatal("no video memory changed: another memory was watched")
			}

			// Our restart: the tracker goes, the guest runs on, another comes.
			must(t, tr.Close())
			start := m.counter()
			m.runUntil("the guest writes", func() bool { return m.counter()-start > 20 })
			tr = attach(t, Config{PID: m.pid, Regions: m.parts, Resume: true})
			if !tr.Resumed() {
				t.Fatal("not resumed")
			}
			reported = 0
			compare("while nobody looked", tr)
			if reported == 0 || reported > m.image()/4 {
				t.Fatalf("%d of %d pages reported after the re-attach", reported, m.image())
			}
		})
	}
}
