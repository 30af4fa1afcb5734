package qemu

import (
	"context"
	"encoding/json"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"understudy/hypervisor"
	"understudy/hypervisor/hypervisortest"
)

func TestConformance(t *testing.T) {
	t.Run("plain", func(t *testing.T) { conforms(t, false, 3) })
	t.Run("free-page reporting", func(t *testing.T) { conforms(t, true, 1) })
}

func conforms(t *testing.T, frees bool, rounds int) {
	var dirs []string
	hypervisortest.Run(t, hypervisortest.Harness{
		NewPair: func(t testing.TB) (a, b hypervisor.Driver) {
			here := testConfig(t, "q35")
			here.ExtraArgs = []string{"-device", "pvpanic"}
			here.FreePageReporting = frees
			there := onAnotherHost(t, here)
			dirs = []string{here.RunDir, here.ImageDir, there.RunDir, there.ImageDir}
			return newDriver(t, here), newDriver(t, there)
		},
		WaitUp:  waitCounting,
		Counter: readCounter,
		Leftovers: func() (left []string) {
			for _, dir := range dirs {
				found, _ := filepath.Glob(filepath.Join(dir, "*"))
				left = append(left, found...)
			}
			return left
		},
		PowerOff: func(ctx context.Context, g hypervisor.Guest) error { return press(ctx, g, "p") },
		Reboot:   func(ctx context.Context, g hypervisor.Guest) error { return press(ctx, g, "r") },
		Panic:    func(ctx context.Context, g hypervisor.Guest) error { return press(ctx, g, "k") },
		Crash: func(_ context.Context, g hypervisor.Guest) error {
			return unix.PidfdSendSignal(g.(*Guest).vm.proc.pidfd, unix.SIGKILL, nil, 0)
		},
		ForeignSpecs: func(s hypervisor.Spec) (foreign []hypervisor.Spec) {
			spoil := []func(*machineSpec){
				func(m *machineSpec) { m.QEMU += " (other)" },
				func(m *machineSpec) { m.Machine = "pc-q35-7.1" },
				func(m *machineSpec) { m.Machine = "q35,usb=on" },
				func(m *machineSpec) { m.Accel = AccelKVM },
				func(m *machineSpec) { m.Kernel = "00" },
				func(m *machineSpec) { m.Initrd = "00" },
				func(m *machineSpec) { m.Shape = append(m.Shape, "-device", "e1000") },
				func(m *machineSpec) { m.Shape = append(m.Shape, "-device", "virtio-balloon-pci") },
				func(m *machineSpec) { m.Blocks[1].Total += 4096; m.Blocks[2].Total -= 4096 },
				func(m *machineSpec) { m.Blocks[1].Name = m.Blocks[2].Name },
				func(m *machineSpec) { m.Devices = nil },
			}
			for _, f := range spoil {
				m := &machineSpec{}
				if json.Unmarshal(s.Machine, m) != nil {
					continue
				}
				f(m)
				if text, err := json.Marshal(m); err == nil {
					foreign = append(foreign, hypervisor.Spec{Pages: s.Pages, Machine: text})
				}
			}
			return foreign
		},
		Rounds: rounds,
	})
}
