package main

// This file is the Xen host: what it sees as /mnt/share, its network, which leads to
// this process alone, and the program that measures there.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"understudy/guest/cpio"
	"understudy/guest/image"
	"understudy/guest/xenhost"
	"understudy/integration/xen/remus/pair"
	"understudy/transport/pki"
)

// Names in the shared directory.
const (
	tlsDir  = "tls"
	results = "runs"
	dom0Log = "dom0.log"
)

// files makes the directory.
func files(ctx context.Context, dir string, o options) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if err := pki.Init(filepath.Join(dir, tlsDir), []string{pair.HostA, pair.HostB}, 24*time.Hour); err != nil {
		return err
	}
	const here = "./integration/xen/remus/"
	guest := filepath.Join(dir, "guest")
	for _, build := range [][]string{
		{"go", "build", "-tags", "xen", "-o", filepath.Join(dir, "dom0"), here + "dom0"},
		{"env", "CGO_ENABLED=0", "go", "build", "-o", guest, here + "guest"},
		{"cc", "-O2", "-Wall", "-D__XEN_TOOLS__", "-rdynamic", "-o", filepath.Join(dir, "stock"), here + "stock/stock.c", "-lxenlight", "-lxencall", "-lxentoollog", "-ldl"},
	} {
		cmd := exec.CommandContext(ctx, build[0], build[1:]...)
		if said, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", cmd, err, said)
		}
	}
	kernel, err := os.ReadFile(filepath.Join(o.boots, "vmlinuz"))
	if err != nil {
		return fmt.Errorf("the guest (make guest): %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "vmlinuz"), kernel, 0o644); err != nil {
		return err
	}
	return cpio.Initramfs(guest, filepath.Join(dir, "initrd"))
}

// measure boots the host and has it measure. QEMU's own network gives the host this
// machine as 10.0.2.2, and nothing else that it would use.
func measure(ctx context.Context, dom0 image.Dom0, dir, share string, port int, o options) (err error) {
	h, err := xenhost.Boot(ctx, xenhost.Config{Dom0: dom0, Dir: dir, Share: share, Args: []string{
		"-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net",
	}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	for _, line := range []string{
		"modprobe virtio_net; udevadm settle 2>/dev/null; for i in /sys/class/net/e*; do ip link set ${i##*/} up && ip addr add 10.0.2.15/24 dev ${i##*/} || exit 1; done",
		fmt.Sprintf("/mnt/share/dom0 -kernel /mnt/share/vmlinuz -initrd /mnt/share/initrd -stock /mnt/share/stock -tls /mnt/share/%s -backup 10.0.2.2:%d -out /mnt/share/%s -intervals %s -loads %s -epochs %d >/mnt/share/%s 2>&1",
			tlsDir, port, results, o.intervals, o.loads, o.epochs, dom0Log),
	} {
		if strings.ContainsAny(o.intervals+o.loads, " ;&|<>$`'\"\\") {
			return fmt.Errorf("intervals %q, loads %q", o.intervals, o.loads)
		}
		said, status, err := h.Run(ctx, line)
		if err == nil && status != 0 {
			err = fmt.Errorf("%s: status %d: %s", line, status, said)
		}
		if err != nil {
			log, _ := os.ReadFile(filepath.Join(share, dom0Log))
			return fmt.Errorf("the Xen host: %w\n%s", err, log[max(0, len(log)-8192):])
		}
	}
	if o.verbose {
		log, err := os.ReadFile(filepath.Join(share, dom0Log))
		if err != nil {
			return err
		}
		_, _ = os.Stderr.Write(log)
	}
	return nil
}
