package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"understudy/config"
	"understudy/demo"
	"understudy/guest/image"
)

func demoCommand(f *common) *cobra.Command {
	d := demoFlags{Options: demo.Options{Memory: 256 * config.MiB}}
	c := &cobra.Command{
		Use:   "demo",
		Short: "Watch a guest survive the loss of its host, on this machine",
		Long: `Three hosts in network namespaces, a Linux guest under QEMU with one client
connection. The host that runs it is lost to SIGKILL; the guest goes on at the
other. Then the lost host comes back and stands by. Needs root, QEMU and the
guest of "make guest"; with --guest sim it needs nothing.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return d.run(cmd, f) },
	}
	c.Flags().StringVar(&d.kind, "guest", "qemu", "qemu, or sim for the simulated guest")
	c.Flags().IntVar(&d.Repeat, "repeat", 1, "how many hosts are lost, one after the other")
	c.Flags().BoolVar(&d.VerifyAll, "verify-all", false, "compare all memory of both hosts at every checkpoint")
	d.add(c)
	return c
}

func selftestCommand(f *common) *cobra.Command {
	d := demoFlags{Options: demo.Options{Memory: 256 * config.MiB, Repeat: 6, VerifyAll: true}, kind: string(config.QEMU)}
	c := &cobra.Command{
		Use:   "selftest",
		Short: "Prove protection on this machine's own hardware, memory compared at every checkpoint",
		Long: `The demo six times over, with the hypervisor that production would use here (KVM
where it works) and all of the guest's memory compared on both sides at every
checkpoint. KVM is experimental until this has passed on your hardware.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return d.run(cmd, f) },
	}
	d.add(c)
	return c
}

// demoFlags are what demo and selftest have in common.
type demoFlags struct {
	demo.Options
	kind, profile, images string
	disk, rebuild         string
}

func (d *demoFlags) add(c *cobra.Command) {
	c.Flags().Uint64Var(&d.Seed, "seed", 0, "spreads the kills over the epoch (default: drawn and printed)")
	c.Flags().StringVar(&d.profile, "profile", "standard", "standard (lease 1s) or fast (lease 300ms)")
	c.Flags().StringVar(&d.Machine, "machine", "q35", "QEMU's machine type: pc, q35 or microvm")
	c.Flags().StringVar(&d.Accel, "accel", "auto", "QEMU's accelerator: auto, kvm or tcg")
	c.Flags().StringVar(&d.disk, "disk", string(config.Replicated), "the guest's disk: replicated, shared or none")
	c.Flags().StringVar(&d.rebuild, "rebuild", string(config.RebuildLazy), "pages that were left out of checkpoints come back while the guest runs (lazy) or before (eager)")
	c.Flags().Var(&textValue{&d.Memory, "size"}, "memory", "the guest's memory")
	c.Flags().Var(&textValue{&d.Epoch, "epoch"}, "epoch", "adaptive, or a fixed time")
	c.Flags().StringVar(&d.images, "images", "build/guest", "directory of the guest's kernel and initrd (make guest)")
	c.Flags().StringVar(&d.Daemon, "daemon", "", "the understudyd program (default: beside this one)")
	c.Flags().StringVar(&d.Prefix, "prefix", "usdemo", "begins the names of network namespaces and directories; two demos side by side need two")
	c.Flags().StringVar(&d.KeepLogs, "keep-logs", "", "keep the daemons' logs in this directory")
}

func (d *demoFlags) run(cmd *cobra.Command, f *common) error {
	o := d.Options
	o.Guest, o.Profile = config.Hypervisor(d.kind), config.Profile(d.profile)
	if o.Seed == 0 {
		o.Seed = rand.Uint64N(1 << 32)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if o.Daemon == "" {
		o.Daemon = filepath.Join(filepath.Dir(self), "understudyd")
	}
	images, err := filepath.Abs(d.images)
	if err != nil {
		return err
	}
	o.Kernel, o.Initrd = filepath.Join(images, "vmlinuz"), filepath.Join(images, "initrd")
	if o.Guest == config.QEMU && d.disk != "none" {
		o.Disk, o.Rebuild = config.DiskMode(d.disk), config.Rebuild(d.rebuild)
		// Made with the guest; what is missing of that is told where it is needed.
		if _, err := os.Stat(o.Kernel); err == nil {
			if o.Image, err = image.Small(cmd.Context(), images); err != nil {
				return err
			}
		}
	}
	began := time.Now()
	o.Say = func(format string, a ...any) {
		if f.output == "table" {
			_, _ = fmt.Fprintf(cmd.OutOrStdout(), "%6.1f s  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, a...))
		}
	}
	report, err := demo.Run(cmd.Context(), o)
	if perr := f.print(cmd.OutOrStdout(), report, report.Print); perr != nil {
		return errors.Join(err, perr)
	}
	if err == nil && !report.Passed {
		err = errors.New("a check failed")
	}
	return err
}

// textValue makes a flag of a type that reads and writes text.
type textValue struct {
	to interface {
		UnmarshalText([]byte) error
		String() string
	}
	kind string
}

func (v *textValue) String() string {
	if v.to == nil {
		return ""
	}
	return v.to.String()
}
func (v *textValue) Set(s string) error { return v.to.UnmarshalText([]byte(s)) }
func (v *textValue) Type() string       { return v.kind }
