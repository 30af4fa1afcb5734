package image

// The Xen host: Debian's Xen with its tools and kernel, made as the big image is.
//
//	debootstrap ─> tree ─ + dom0Init as /sbin/dom0-init, /boot/{xen,vmlinuz,initrd} ─> mkfs.ext4 -d
//	image ── debugfs ─> the three files that a machine is started with, beside the image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const (
	dom0Size = 3072 * mib
	// dom0Packages come to the minimal Debian: Xen, a kernel that can be its
	// first domain, device models, and what a guest's disks and networks need.
	dom0Packages = "xen-utils-4.17,xen-hypervisor-4.17-amd64,linux-image-amd64,qemu-system-xen,seabios,ipxe-qemu," +
		"iproute2,kmod,nbd-client,procps,iputils-ping,e2fsprogs"
	dom0Recipe = "dom0 1: 3 GiB, minbase " + bigSuite + " with " + dom0Packages + "\n" + dom0Init
)

// dom0Init is the first process of a Xen host: it brings up what xl needs, and
// then carries out the lines that come by the machine's port "control", one after
// the other. Each answer ends with a line of dom0Done and the exit status.
const dom0Init = `#!/bin/bash
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mountpoint -q /dev || mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
for dir in /run /tmp /dev/shm; do mount -t tmpfs tmpfs $dir; done
mkdir -p /run/xen /run/xenstored /run/lock /var/lib/xenstored /var/log/xen /mnt/share
for m in xen-evtchn xen-gntdev xen-gntalloc xen-privcmd xenfs xen-blkback xen-netback virtio_pci virtio_console 9pnet_virtio 9p tun bridge loop; do modprobe -q $m; done
mount -t xenfs xenfs /proc/xen
mount -t 9p -o trans=virtio,version=9p2000.L share /mnt/share 2>/dev/null
tools=/usr/lib/xen-4.17/bin
$tools/xenstored --pid-file=/run/xenstored.pid
$tools/xen-init-dom0
$tools/xenconsoled --pid-file=/run/xenconsoled.pid
ip link set lo up
for port in /dev/vport*; do
	[ "$(cat /sys/class/virtio-ports/${port#/dev/}/name)" = control ] && break
done
exec 3<>"$port"
echo "<done> 0" >&3
while read -r line <&3; do
	bash -c "$line" </dev/null >&3 2>&1
	echo "<done> $?" >&3
done
sync
echo o >/proc/sysrq-trigger
sleep 60
`

// Dom0Done begins the line that ends the answer of a Xen host to a command; the
// exit status follows.
const Dom0Done = "<done> "

// Dom0 is what a machine is started with to be a Xen host.
type Dom0 struct {
	Image   string // of its disk, ext4, with the label "dom0"
	Xen     string // the hypervisor, for QEMU's -kernel
	Kernel  string
	Initrd  string
	Cmdline string // of the kernel
}

// MakeDom0 makes a Xen host's image in dir if it is not there. That takes root,
// debootstrap, a Debian mirror and some minutes.
func MakeDom0(ctx context.Context, dir string) (Dom0, error) {
	path, err := built(dir, "dom0", dom0Recipe, func(path string) error { return makeDom0(ctx, path) })
	if err != nil {
		return Dom0{}, fmt.Errorf("make a Xen host's disk image: %w", err)
	}
	base := strings.TrimSuffix(path, ".ext4")
	d := Dom0{Image: path, Xen: base + ".xen", Kernel: base + ".vmlinuz", Initrd: base + ".initrd", Cmdline: "root=LABEL=dom0 rw console=hvc0 quiet init=/sbin/dom0-init"}
	for _, file := range []string{d.Xen, d.Kernel, d.Initrd} {
		if err := dump(ctx, path, "/boot/"+strings.TrimPrefix(filepath.Ext(file), "."), file); err != nil {
			return Dom0{}, fmt.Errorf("take %s out of a Xen host's disk image: %w", filepath.Base(file), err)
		}
	}
	return d, nil
}

// dump copies a file out of an image, in one step, unless it has been.
func dump(ctx context.Context, image, from, to string) error {
	if _, err := os.Stat(to); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	said, err := command(ctx, nil, nil, "debugfs", "-R", "dump "+from+" "+to+".new", image)
	if err != nil {
		return err
	}
	if info, err := os.Stat(to + ".new"); err != nil || info.Size() == 0 {
		return fmt.Errorf("debugfs has not found %s in it: %s", from, tail([]byte(said)))
	}
	return os.Rename(to+".new", to)
}

func makeDom0(ctx context.Context, path string) error {
	if os.Geteuid() != 0 {
		return errors.New("debootstrap needs root")
	}
	tree := path + "-tree"
	if err := debootstrap(ctx, tree, dom0Packages); err != nil {
		return err
	}
	boot := filepath.Join(tree, "boot")
	for name, pattern := range map[string]string{"xen": "xen-4.17-amd64.gz", "vmlinuz": "vmlinuz-*-amd64", "initrd": "initrd.img-*-amd64"} {
		found, err := filepath.Glob(filepath.Join(boot, pattern))
		if err != nil || len(found) != 1 {
			return fmt.Errorf("%d files boot/%s in Debian's packages, want one", len(found), pattern)
		}
		to := filepath.Join(boot, name)
		if err := os.Rename(found[0], to); err != nil {
			return err
		}
		if filepath.Ext(found[0]) != ".gz" {
			continue
		}
		if err := os.Rename(to, to+".gz"); err != nil {
			return err
		}
		if _, err := command(ctx, nil, nil, "gzip", "-d", to+".gz"); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(tree, "sbin", "dom0-init"), []byte(dom0Init), 0o755); err != nil {
		return err
	}
	for _, waste := range []string{"var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"} {
		if err := os.RemoveAll(filepath.Join(tree, waste)); err != nil {
			return err
		}
	}
	return Filesystem(ctx, path, "dom0", tree, dom0Size)
}
