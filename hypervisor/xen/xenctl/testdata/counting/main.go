// Command counting is all that runs in a Linux guest that the binding is tried
// with: PID 1 of an initramfs with nothing else. It counts, and writes memory, in a
// page that whoever can read the guest's memory finds by its first bytes; ten times
// a second it says so on its console. Started again, as /sbin/poweroff, it switches
// the guest off: the kernel starts that when the toolstack asks for it.
package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Found is what the page begins with; the count follows. The program's own file must
// not have it.
var found = []byte{'c' ^ 1, 'o' ^ 1, 'u' ^ 1, 'n' ^ 1, 't' ^ 1, 'i' ^ 1, 'n' ^ 1, 'g' ^ 1, 0xfe, 0xdc, 0xba, 0x98, 0x76, 0x54, 0x32, 0x11}

// pages that are written in turn.
const pages = 64

func main() {
	act := run
	if os.Getpid() != 1 {
		// A PVH domain has nothing to switch it off with: the kernel stops its processors
		// instead, which the key of sysrq for it does not.
		act = func() error { return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) }
	}
	if err := act(); err != nil {
		fmt.Println("counting:", err)
		select {}
	}
}

func run() error {
	for _, m := range []struct{ kind, dir string }{{"proc", "/proc"}, {"devtmpfs", "/dev"}} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil {
			return err
		}
	}
	// Every key of it: a crash is not among those that Debian allows.
	if err := os.WriteFile("/proc/sys/kernel/sysrq", []byte("1"), 0); err != nil {
		return err
	}
	memory, err := unix.Mmap(-1, 0, (1+pages)*4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_LOCKED|unix.MAP_POPULATE)
	if err != nil {
		return err
	}
	for i, b := range found {
		memory[i] = b ^ 1
	}
	said := time.Now()
	for n, lines := uint64(1), 0; ; n++ {
		binary.LittleEndian.PutUint64(memory[16:], n)
		binary.LittleEndian.PutUint64(memory[(1+n%pages)*4096:], n)
		time.Sleep(2 * time.Millisecond)
		if time.Since(said) >= 100*time.Millisecond {
			said = time.Now()
			lines++
			fmt.Printf("count %d\n", lines)
		}
	}
}
