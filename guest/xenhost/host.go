// Package xenhost runs a Xen host for tests: Debian's Xen inside QEMU's emulation,
// from image.Dom0.
//
//	Boot ─> QEMU ─ Xen ─ Linux ─ dom0-init ──(virtio-serial)──> "<done> 0": it is up
//	Run: a line to a shell there ─> its output, and "<done> STATUS"
//
// The disk is never written: what a host does to it is gone with it. A Host has
// one QEMU process and ends with Close. QEMU runs in the scheduling class of who
// boots it.
package xenhost

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"understudy/guest/image"
)

// Config says what host to boot.
type Config struct {
	Dom0 image.Dom0
	// Dir is a directory of this host alone, for its socket and its log
	// (console.log). It stays the caller's.
	Dir string
	// Share is a directory that the host sees as /mnt/share; "": none.
	Share string
	// Memory is the machine's, in MiB; 0 means 2048. Half of it is the first
	// domain's.
	Memory int
	// Args are further arguments for QEMU: networks.
	Args []string
}

// Host is a Xen host that is up. Its methods are called by one goroutine at a time.
type Host struct {
	qemu    *exec.Cmd
	conn    net.Conn
	answers *bufio.Reader
	ended   chan struct{}
	err     error // of the process, after ended
	closing sync.Once
}

// maxAnswer bounds what a command may say, in bytes.
const maxAnswer = 16 << 20

// machine is what keeps Xen stable under this emulation: more than one processor,
// SMAP, RDTSCP and XSAVE do not (TCG's iret and SVM).
func machine(c Config, socket string) []string {
	args := []string{
		"-accel", "tcg,thread=single", "-smp", "1", "-cpu", "max,-smap,-smep,-rdtscp,-xsave", "-m", strconv.Itoa(c.Memory),
		"-display", "none", "-no-user-config", "-nodefaults", "-no-reboot", "-serial", "file:" + filepath.Join(c.Dir, "console.log"),
		"-kernel", c.Dom0.Xen, "-append", fmt.Sprintf("console=com1 com1=115200,8n1 dom0_mem=%dM,max:%dM dom0_max_vcpus=1 noreboot", c.Memory/2, c.Memory/2),
		"-initrd", c.Dom0.Kernel + " " + c.Dom0.Cmdline + "," + c.Dom0.Initrd,
		"-drive", "file=" + c.Dom0.Image + ",if=virtio,format=raw,snapshot=on",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=control,path=" + socket, "-device", "virtserialport,chardev=control,name=control",
	}
	if c.Share != "" {
		args = append(args, "-virtfs", "local,path="+c.Share+",mount_tag=share,security_model=none")
	}
	return append(args, c.Args...)
}

// Boot starts a host and returns when it is up, or ctx ends: half a minute on an
// idle machine.
func Boot(ctx context.Context, c Config) (_ *Host, err error) {
	if c.Memory == 0 {
		c.Memory = 2048
	}
	socket := filepath.Join(c.Dir, "control.sock")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("boot a Xen host: %w", err)
	}
	defer func() { _ = ln.Close() }()
	h := &Host{qemu: exec.Command("qemu-system-x86_64", machine(c, socket)...), ended: make(chan struct{})}
	var said bytes.Buffer
	h.qemu.Stdout, h.qemu.Stderr = &said, &said
	h.qemu.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := h.qemu.Start(); err != nil {
		return nil, fmt.Errorf("boot a Xen host: %w", err)
	}
	go func() {
		defer close(h.ended)
		h.err = h.qemu.Wait()
		_ = ln.Close() // nobody will come
	}()
	defer func() {
		if err != nil {
			_ = h.Close()
			err = fmt.Errorf("boot a Xen host: %w\n%s%s", err, said.String(), lastLines(filepath.Join(c.Dir, "console.log")))
		}
	}()
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	if h.conn, err = ln.Accept(); err != nil {
		return nil, errors.Join(errors.New("QEMU has not connected"), ctx.Err())
	}
	h.answers = bufio.NewReader(h.conn)
	if _, _, err = h.answer(ctx); err != nil {
		return nil, err
	}
	return h, nil
}

// Run carries out one line in a shell of the host and returns what it said, on
// both outputs, and its exit status.
func (h *Host) Run(ctx context.Context, line string) (out string, status int, err error) {
	if strings.ContainsAny(line, "\n\x00") {
		return "", 0, fmt.Errorf("carry out %q on a Xen host: it is not one line", line)
	}
	if _, err := h.conn.Write([]byte(line + "\n")); err != nil {
		return "", 0, fmt.Errorf("carry out %q on a Xen host: %w", line, err)
	}
	if out, status, err = h.answer(ctx); err != nil {
		err = fmt.Errorf("carry out %q on a Xen host: %w", line, err)
	}
	return out, status, err
}

// answer reads up to the line that ends an answer.
func (h *Host) answer(ctx context.Context) (string, int, error) {
	stop := context.AfterFunc(ctx, func() { _ = h.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer func() {
		if stop() {
			return
		}
		_ = h.conn.SetReadDeadline(time.Time{})
	}()
	var out strings.Builder
	for {
		line, err := h.answers.ReadString('\n')
		if before, status, ok := strings.Cut(line, image.Dom0Done); ok && err == nil {
			out.WriteString(before) // an output without a newline at its end
			n, err := strconv.Atoi(strings.TrimSpace(status))
			return out.String(), n, err
		}
		out.WriteString(line)
		if err != nil {
			return out.String(), 0, errors.Join(err, ctx.Err())
		}
		if out.Len() > maxAnswer {
			return "", 0, fmt.Errorf("it says more than %d bytes", maxAnswer)
		}
	}
}

// Kill ends the host as a loss of power does.
func (h *Host) Kill() { _ = h.qemu.Process.Kill() }

// Close ends the host. It returns after its process has ended.
func (h *Host) Close() error {
	h.closing.Do(func() {
		h.Kill()
		<-h.ended
		if h.conn != nil {
			_ = h.conn.Close()
		}
	})
	return nil
}

// lastLines is the end of a log.
func lastLines(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	const most = 2048
	return string(b[max(0, len(b)-most):])
}
