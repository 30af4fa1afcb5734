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
)

func demoCommand(f *common) *cobra.Command {
	o := demo.Options{Memory: 256 * config.MiB}
	var kind, profile, images string
	c := &cobra.Command{
		Use:   "demo",
		Short: "Watch a guest survive the loss of its host, on this machine",
		Long: `Three hosts in network namespaces, a Linux guest under QEMU with one client
connection. The host that runs it is lost to SIGKILL; the guest goes on at the
other. Then the lost host comes back and stands by. Needs root, QEMU and the
guest of "make guest"; with --guest sim it needs nothing.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Guest, o.Profile = config.Hypervisor(kind), config.Profile(profile)
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
			if images, err = filepath.Abs(images); err != nil {
				return err
			}
			o.Kernel, o.Initrd = filepath.Join(images, "vmlinuz"), filepath.Join(images, "initrd")
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
		},
	}
	c.Flags().StringVar(&kind, "guest", "qemu", "qemu, or sim for the simulated guest")
	c.Flags().IntVar(&o.Repeat, "repeat", 1, "how many hosts are lost, one after the other")
	c.Flags().Uint64Var(&o.Seed, "seed", 0, "spreads the kills over the epoch (default: drawn and printed)")
	c.Flags().StringVar(&profile, "profile", "standard", "standard (lease 1s) or fast (lease 300ms)")
	c.Flags().StringVar(&o.Machine, "machine", "q35", "QEMU's machine type: pc, q35 or microvm")
	c.Flags().Var(&textValue{&o.Memory, "size"}, "memory", "the guest's memory")
	c.Flags().Var(&textValue{&o.Epoch, "epoch"}, "epoch", "adaptive, or a fixed time")
	c.Flags().StringVar(&images, "images", "build/guest", "directory of the guest's kernel and initrd (make guest)")
	c.Flags().StringVar(&o.Daemon, "daemon", "", "the understudyd program (default: beside this one)")
	c.Flags().StringVar(&o.KeepLogs, "keep-logs", "", "keep the daemons' logs in this directory")
	return c
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
