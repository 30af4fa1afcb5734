package main

// This file is what the hosts are given. In a directory that each of them sees as
// /mnt/share: the daemon with Xen's libraries, certificates, the configuration, and
// what the guest boots. On a disk of its own, which outlives a loss of power: its
// state, and at the first host the guest's disk.

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"understudy/config"
	"understudy/guest"
	"understudy/guest/cpio"
	"understudy/guest/image"
	"understudy/transport/pki"
)

// The hosts, and the guest.
const (
	hostA, hostB, witness = "a", "b", "w"
	guestName             = "web"
	// share is the directory as the hosts see it.
	share = "/mnt/share"
	// kept is where a host mounts its disk.
	kept = "/var/lib/understudy"
	// guestDisk is the guest's disk, on that of its host.
	guestDisk = "web.img"
)

// Sizes of disks, in bytes: of the guest's, and of each host's.
const (
	guestDiskSize = 64 << 20
	hostDiskSize  = 1 << 30
)

// What tells of another story than the one of two hosts has one Xen host: the other
// votes beside us, and has no guests.
func (o options) xenHosts() []string {
	if o.story == takeovers {
		return []string{hostA, hostB}
	}
	return []string{hostA}
}

// addresses in the world's network.
var addresses = map[string]string{witness: "10.77.0.1", hostA: "10.77.0.11", hostB: "10.77.0.12"}

// files writes everything into dir, and returns the hosts' configuration.
func files(ctx context.Context, dir string, o options) (*config.Config, error) {
	if err := programs(ctx, dir, o); err != nil {
		return nil, err
	}
	if err := pki.Init(filepath.Join(dir, "tls"), []string{hostA, hostB, witness}, 30*24*time.Hour); err != nil {
		return nil, err
	}
	return configure(dir, o)
}

// programs are what the hosts run, and where.
func programs(ctx context.Context, dir string, o options) error {
	for _, name := range []string{"understudyd", "understudy"} {
		if err := goBuild(ctx, filepath.Join(dir, name), nil, "-tags", "xen", "./cmd/"+name); err != nil {
			return err
		}
	}
	if err := guestFiles(ctx, dir, o); err != nil {
		return err
	}
	for _, host := range o.xenHosts() {
		if err := os.Mkdir(filepath.Join(dir, host), 0o755); err != nil {
			return err
		}
		if err := hostDisk(ctx, dir, host, o); err != nil {
			return err
		}
	}
	return nil
}

// diskOf is the file that is a host's disk.
func diskOf(dir, host string) string { return filepath.Join(dir, "disk-"+host) }

// hostDisk makes it. The guest's second copy begins as nothing: it has to be made.
func hostDisk(ctx context.Context, dir, host string, o options) error {
	tree := filepath.Join(dir, "tree-"+host)
	if err := os.Mkdir(tree, 0o755); err != nil {
		return err
	}
	if host == hostA && o.guest == linux && o.story != compares {
		if err := dataDisk(ctx, filepath.Join(tree, guestDisk), o); err != nil {
			return fmt.Errorf("the guest's disk: %w", err)
		}
	}
	if err := image.Filesystem(ctx, diskOf(dir, host), "kept", tree, hostDiskSize); err != nil {
		return fmt.Errorf("the disk of host %s: %w", host, err)
	}
	return os.RemoveAll(tree)
}

// dataDisk makes the guest's disk: empty, or with files to read.
func dataDisk(ctx context.Context, path string, o options) error {
	if o.story == takeovers {
		return image.Filesystem(ctx, path, "data", "", guestDiskSize)
	}
	small, err := image.Small(ctx, o.boots)
	if err != nil {
		return err
	}
	return image.Copy(path, small)
}

// guestFiles are what the guest boots.
func guestFiles(ctx context.Context, dir string, o options) error {
	names := []string{"vmlinuz"}
	if o.guest == linux {
		names = append(names, "initrd")
	}
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join(o.boots, name))
		if err != nil {
			return fmt.Errorf("the guest (make guest): %w", err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return err
		}
	}
	if o.guest == linux {
		return nil
	}
	program := filepath.Join(dir, "counting")
	if err := goBuild(ctx, program, []string{"CGO_ENABLED=0"}, "./hypervisor/xen/xenctl/testdata/counting"); err != nil {
		return err
	}
	return cpio.Initramfs(program, filepath.Join(dir, "initrd"))
}

// goBuild builds a program of this module.
func goBuild(ctx context.Context, out string, env []string, what ...string) error {
	build := exec.CommandContext(ctx, "go", append([]string{"build", "-o", out}, what...)...)
	build.Env = append(os.Environ(), env...)
	if said, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", build, err, said)
	}
	return nil
}

// The configurations: of the hosts, and of one that is none and only votes.
const (
	configFile = "understudy.toml"
	voterFile  = "voter.toml"
)

// configure writes the configuration of the hosts, and of those beside us, whose
// directories are elsewhere.
func configure(dir string, o options) (*config.Config, error) {
	c := &config.Config{Cluster: "xen", Lease: config.Duration(o.lease)}
	c.TLS = share + "/tls"
	for _, name := range []string{hostA, hostB, witness} {
		h := config.Host{Name: name, Address: addresses[name] + ":7400", Witness: name == witness}
		if !slices.Contains(o.xenHosts(), name) {
			at := filepath.Join(dir, "beside-"+name)
			h.Dirs = config.Dirs{State: filepath.Join(at, "state"), Run: filepath.Join(at, "run"), TLS: filepath.Join(dir, "tls")}
		}
		c.Hosts = append(c.Hosts, h)
	}
	if err := os.WriteFile(filepath.Join(dir, voterFile), c.Render(), 0o600); err != nil {
		return nil, err
	}
	g := config.Guest{
		Name: guestName, Host: hostA, Backup: hostB, Hypervisor: config.Xen, Type: o.kind, Memory: 96 * config.MiB, CPUs: 1,
		Kernel: share + "/vmlinuz", Initrd: share + "/initrd", Append: "console=hvc0 quiet rdinit=/counting",
	}
	if o.guest == linux {
		// Enough for forty moves and more: Debian's kernel loses 1.1 MB at each, by its
		// network driver, under xl and the kernel's own back ends too.
		g.Memory = 192 * config.MiB
		g.Append = guest.Boot{Address: guestAddress, Disk: guest.Disk{Device: "/dev/xvda", Dir: guest.DataDir}, Extra: "console=hvc0"}.CommandLine()
		g.Disks = []config.Disk{{Path: kept + "/" + guestDisk, Mode: config.Replicated, Size: guestDiskSize}}
		g.NICs = []config.NIC{{MAC: guestMAC, Bridge: "br0"}}
	}
	switch o.story {
	case saves:
		g.Memory, g.Disks[0].Size = savedMemory, 0
	case compares:
		g.Memory, g.Disks[0].Size, g.Disks[0].Path = comparedMemory, 0, oursDevice
		g.Append = guest.Boot{Address: guestAddress, Disk: guest.Disk{Device: "/dev/xvda", Dir: guest.RootDir}, Extra: "console=hvc0"}.CommandLine()
	}
	if o.kind == config.TypeHVM && o.story != compares {
		g.Memory += 64 * config.MiB // what starts its kernel needs room
	}
	if o.kind != pv {
		c.Guests = []config.Guest{g}
	}
	path := filepath.Join(dir, configFile)
	if err := os.WriteFile(path, c.Render(), 0o600); err != nil {
		return nil, err
	}
	c, err := config.Load(path)
	if err != nil {
		return nil, fmt.Errorf("the configuration of the hosts: %w", err)
	}
	return c, nil
}
