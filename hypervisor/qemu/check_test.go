package qemu

import (
	"context"
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// This host can protect a guest: every check passes here, the trial included.
func TestCheckHost(t *testing.T) {
	for _, machine := range []string{"pc", "microvm"} {
		t.Run(machine, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			c := testConfig(t, machine)
			report, err := CheckHost(ctx, c)
			must(t, err)
			for _, check := range report.Checks {
				if check.Status == StatusFail {
					t.Errorf("%s: %s: %s", check.Name, check.Detail, check.Remedy)
				}
			}
			if !report.OK() || len(report.Checks) < 12 {
				t.Errorf("%d checks, ok %t", len(report.Checks), report.OK())
			}
			if f := report.Facts; f.QEMU == "" || len(f.Program) != 64 || len(f.Kernel) != 64 || len(f.Firmware) < 3 || f.Accel != AccelTCG {
				t.Errorf("facts are incomplete: %+v", f)
			}
			if _, err := json.Marshal(report); err != nil {
				t.Error(err)
			}
			if left, _ := filepath.Glob(filepath.Join(c.ImageDir, "*")); len(left) != 0 {
				t.Errorf("the trial has left %q", left)
			}
		})
	}
}

// A host that lacks something says what, and what to do.
func TestCheckHostSaysWhatIsWrong(t *testing.T) {
	c := testConfig(t, "pc")
	c.QEMU = "/nonexistent/qemu"
	c.User = "no-such-account"
	c.Memory = maxMemory
	c.ImageDir = t.TempDir()
	report, err := CheckHost(t.Context(), c)
	must(t, err)
	var failed []string
	for _, check := range report.Checks {
		if check.Status == StatusFail {
			failed = append(failed, check.Name)
			if check.Detail == "" || check.Remedy == "" {
				t.Errorf("%+v does not say what was found and what to do", check)
			}
		}
	}
	if want := []string{"account", "image directory", "memory", "QEMU"}; !slices.Equal(failed, want) || report.OK() {
		t.Errorf("failed: %q, want %q", failed, want)
	}
}

func TestFactsCompare(t *testing.T) {
	base := HostFacts{
		QEMU: "7.2", Program: "1", Machine: "pc-q35-7.2", Accel: AccelTCG, HostCPU: "x", Kernel: "k", Initrd: "i",
		Firmware: []File{{"bios", "1"}, {"rom", "2"}}, Shape: []string{"-smp", "2"}, Disks: []string{"replicated, 512 bytes"},
	}
	tests := map[string]struct {
		change func(*HostFacts)
		want   string
	}{
		"equal":                 {func(*HostFacts) {}, ""},
		"processor under TCG":   {func(f *HostFacts) { f.HostCPU = "y" }, ""},
		"processor under KVM":   {func(f *HostFacts) { f.HostCPU, f.Accel = "y", AccelKVM }, "accelerator processor"},
		"build":                 {func(f *HostFacts) { f.QEMU = "8" }, "QEMU"},
		"program":               {func(f *HostFacts) { f.Program = "2" }, "QEMU's program file"},
		"machine type":          {func(f *HostFacts) { f.Machine = "pc-q35-7.1" }, "machine type"},
		"kernel and initrd":     {func(f *HostFacts) { f.Kernel, f.Initrd = "", "" }, "kernel initrd"},
		"firmware":              {func(f *HostFacts) { f.Firmware = []File{{"bios", "1"}, {"rom", "3"}} }, "firmware rom"},
		"firmware missing here": {func(f *HostFacts) { f.Firmware = append(f.Firmware, File{"more", "4"}) }, "firmware more"},
		"firmware elsewhere":    {func(f *HostFacts) { f.Firmware = f.Firmware[:1] }, "firmware rom"},
		"shape":                 {func(f *HostFacts) { f.Shape = nil }, "machine"},
		"a disk's size":         {func(f *HostFacts) { f.Disks = []string{"replicated, 1024 bytes"} }, "disk 0"},
		"one disk more there":   {func(f *HostFacts) { f.Disks = append(slices.Clone(base.Disks), "shared, 512 bytes") }, "disk 1"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			there := base
			there.Firmware = slices.Clone(base.Firmware)
			test.change(&there)
			var got []string
			for _, d := range base.Compare(there) {
				got = append(got, d.What)
				if d.Remedy == "" || d.Here == d.There {
					t.Errorf("%+v", d)
				}
			}
			if strings.Join(got, " ") != test.want {
				t.Errorf("differences %q, want %q", got, test.want)
			}
		})
	}
}

func TestHostParsers(t *testing.T) {
	versions := map[string][2]int{
		"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)": {7, 2},
		"QEMU emulator version 10.0.3":                                   {10, 0},
	}
	for line, want := range versions {
		major, minor, err := parseVersion(line)
		if err != nil || [2]int{major, minor} != want {
			t.Errorf("%q gives %d.%d, %v", line, major, minor, err)
		}
	}
	for _, line := range []string{"", "QEMU", "QEMU emulator version x.y", "QEMU emulator version 7"} {
		if _, _, err := parseVersion(line); err == nil {
			t.Errorf("%q is taken for a version", line)
		}
	}
	if major, minor := kernelVersion("6.18.44-fc"); major != 6 || minor != 18 {
		t.Errorf("kernel %d.%d", major, minor)
	}
	if n := memAvailable("MemTotal: 9 kB\nMemAvailable:   24105000 kB\n"); n != 24105000<<10 {
		t.Errorf("%d bytes available", n)
	}
	if got := parseMachines([]byte("Supported machines are:\npc    Standard PC (i440FX) (alias of pc-i440fx-7.2)\nmicrovm  microvm (i386)\n")); got["pc"] != "pc-i440fx-7.2" || got["microvm"] != "microvm" {
		t.Errorf("machines %v", got)
	}
}
