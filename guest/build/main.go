// Command build makes the test guest: a kernel, an initramfs and a disk.
//
//	go run ./guest/build -o build/guest
//
// The kernel is the one that Debian's linux-image-cloud-amd64 depends on. Its
// package is downloaded and unpacked, never installed, and only while the output
// directory has no kernel with these modules yet (-refresh takes the newest). The
// initramfs is then written from four inputs: our own PID 1, the host's
// busybox, the kernel's modules and the list below. It is written anew only if
// one of them differs. The disk is package image's small one; -big makes the big one too.
// -dom0 makes a Xen host for tests instead.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"understudy/guest/image"
)

// modules are the drivers the guest loads, those of every machine it boots on;
// what they depend on comes with them.
var modules = []string{
	"virtio_pci",     // machines pc and q35
	"virtio_mmio",    // machine microvm
	"virtio_net",     //
	"virtio_blk",     //
	"virtio_balloon", //
	"virtio-rng",     //
	"pvpanic-mmio",   // tells QEMU of a panic, also on the ISA bus
	"xen-blkfront",   // guests of Xen
	"xen-netfront",   //
}

func main() {
	out := flag.String("o", "build/guest", "directory for vmlinuz and initrd")
	busybox := flag.String("busybox", "", "statically linked busybox (default: the one in the path)")
	refresh := flag.Bool("refresh", false, "take the newest kernel although there is one")
	big := flag.Bool("big", false, "make the big disk image of the benchmarks too (needs root and a minute or two)")
	dom0 := flag.String("dom0", "", "make nothing but a Xen host's disk image, kernel and hypervisor in this directory (needs root and some minutes)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	var err error
	if *dom0 != "" {
		err = makeDom0(ctx, *dom0)
	} else {
		err = build(ctx, *out, *busybox, *refresh)
	}
	if err == nil && *big {
		err = makeBig(ctx, *out)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "guest/build:", err)
		os.Exit(1)
	}
}

func build(ctx context.Context, out, busybox string, refresh bool) error {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	kernel := filepath.Join(out, "kernel")
	there, err := hasKernel(kernel)
	if err != nil {
		return err
	}
	if refresh || !there {
		if err := fetchKernel(ctx, kernel); err != nil {
			return fmt.Errorf("get a kernel for the guest: %w", err)
		}
	}
	initrd, err := makeInitramfs(ctx, kernel, busybox)
	if err != nil {
		return fmt.Errorf("make the guest's initramfs: %w", err)
	}
	vmlinuz, err := os.ReadFile(filepath.Join(kernel, "vmlinuz"))
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{"vmlinuz": vmlinuz, "initrd": initrd} {
		if err := replace(filepath.Join(out, name), data); err != nil {
			return err
		}
	}
	_, err = image.Small(ctx, out)
	return err
}

func makeBig(ctx context.Context, out string) error {
	path, err := image.Big(ctx, out)
	if err == nil {
		fmt.Println("the big disk image is", path)
	}
	return err
}

func makeDom0(ctx context.Context, dir string) error {
	host, err := image.MakeDom0(ctx, dir)
	if err == nil {
		fmt.Println("the Xen host's disk image is", host.Image)
	}
	return err
}

// hasKernel reports whether there is a kernel with all the modules that are wanted.
func hasKernel(dir string) (bool, error) {
	if _, err := os.Stat(filepath.Join(dir, "vmlinuz")); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		return false, err
	}
	order, err := os.ReadFile(filepath.Join(dir, "modules", "order"))
	if errors.Is(err, os.ErrNotExist) {
		return true, nil // one of the operator's own: makeInitramfs says what it lacks
	}
	have := map[string]bool{}
	for _, file := range strings.Fields(string(order)) {
		have[moduleName(file)] = true
	}
	for _, name := range modules {
		if !have[moduleName(name)] {
			return false, err
		}
	}
	return true, err
}

// replace writes the file, unless it holds data already, in one step: a guest
// that boots meanwhile sees the old one or the new one.
func replace(path string, data []byte) error {
	old, err := os.ReadFile(path)
	if err == nil && bytes.Equal(old, data) {
		return nil
	}
	temporary := path + ".new"
	if err := os.WriteFile(temporary, data, 0o644); err != nil {
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		return err
	}
	fmt.Printf("%s: %.1f MiB\n", path, float64(len(data))/(1<<20))
	return nil
}
