package qemu

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"understudy/hypervisor"
)

// Whether KVM works is found out by running a guest under it: the device may
// be there, and yet run a guest so slowly that it is of no use (nested, without
// hardware help).

// probeLimit is how long the trial guest may take to boot and to finish its
// work. Hardware takes 0.3 s, most of it QEMU's start.
const probeLimit = 2 * time.Second

// accelerator returns "kvm" or "tcg" as configured, or as it works here.
func (d *Driver) accelerator(ctx context.Context) (string, error) {
	switch d.cfg.Accel {
	case AccelTCG:
		return AccelTCG, nil
	case AccelKVM:
		if !d.kvmWorks(ctx) {
			if err := ctx.Err(); err != nil {
				return "", err
			}
			return "", &hypervisor.Refusal{What: "KVM does not work on this host: a trial guest did not finish", Remedy: "enable virtualisation in the firmware and load kvm_intel or kvm_amd, or configure the accelerator tcg"}
		}
		return AccelKVM, nil
	}
	if d.kvmWorks(ctx) {
		return AccelKVM, nil
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	d.log.Warn("KVM does not work on this host, the guest runs under TCG, which is slow")
	return AccelTCG, nil
}

// kvmWorks runs the trial once and remembers its outcome.
func (d *Driver) kvmWorks(ctx context.Context) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.kvm != nil {
		return *d.kvm
	}
	works := tryKVM(ctx, d.cfg.QEMU) == nil
	if ctx.Err() == nil {
		d.kvm = &works
	}
	return works
}

// tryKVM boots trialKernel under KVM and waits for its word.
func tryKVM(ctx context.Context, qemu string) error {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_ = f.Close()
	dir, err := os.MkdirTemp("", "understudy-kvm-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	kernel := filepath.Join(dir, "kernel")
	if err := os.WriteFile(kernel, trialKernel(), 0o644); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	out, err := exec.CommandContext(ctx, qemu, trialArguments(AccelKVM, kernel)...).Output()
	if bytes.Contains(out, []byte(trialWord)) {
		return nil
	}
	if err == nil {
		err = fmt.Errorf("it ended without a word")
	}
	return fmt.Errorf("trial guest under KVM: %w", err)
}

func trialArguments(accel, kernel string) []string {
	return []string{"-no-user-config", "-nodefaults", "-display", "none", "-machine", "pc", "-accel", accel,
		"-m", "32", "-no-reboot", "-kernel", kernel, "-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-serial", "stdio"}
}
