package qemu

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"understudy/hypervisor"
)

var update = flag.Bool("update", false, "write the golden files anew")

// The command lines are kept as golden files, one argument a line.
func TestArgumentsGolden(t *testing.T) {
	base := Config{
		Name: "shop", Memory: 512 * mib, CPUs: 2, Machine: "q35", Accel: AccelTCG,
		Kernel: "/boot/vmlinuz", Initrd: "/boot/initrd", Append: "console=ttyS0 quiet",
		RunDir: "/run/understudy/shop", Helper: []string{"/usr/bin/understudyd", "dirty-helper"},
		NICs: []NIC{{MAC: "52:54:00:AB:cd:01"}}, Console: "/var/log/shop.console",
	}
	pc, microvm := base, base
	pc.Kernel, pc.Initrd, pc.Append = "", "", ""
	pc.Disks = []Disk{{Path: "/srv/root.qcow2", Format: "qcow2", Snapshot: true}, {Path: "/srv/data.img", ReadOnly: true}}
	pc.ExtraArgs = []string{"-device", "VGA"}
	microvm.Machine, microvm.CPUs, microvm.NICs = "microvm", 1, append(base.NICs, NIC{MAC: "52:54:00:ab:cd:02", GuestSocket: "/run/g", HostSocket: "/run/h"})
	microvm.CPU = "max"
	served, servedMicro := pc, microvm
	served.Served = []ServedDisk{{}, {Socket: "/run/two.sock", Queues: 4, QueueSize: 256}}
	servedMicro.Served = []ServedDisk{{Queues: 1}}
	served.FreePageReporting, servedMicro.FreePageReporting = true, true
	fork := base
	fork.RunDir, fork.Idle = "/run/understudy/shop/bubble", true
	fork.NICs = []NIC{{MAC: "52:54:00:AB:cd:01", TAP: os.Stdin}, {MAC: "52:54:00:AB:cd:02"}, {MAC: "52:54:00:AB:cd:03", TAP: os.Stdin}}
	tests := map[string]struct {
		c        Config
		machine  machine
		incoming bool
	}{
		"q35":            {base, machine{"pc-q35-7.2", AccelTCG}, false},
		"q35-standby":    {base, machine{"pc-q35-7.2", AccelTCG}, true},
		"pc-served":      {served, machine{"pc-i440fx-7.2", AccelTCG}, false},
		"microvm-served": {servedMicro, machine{"microvm", AccelTCG}, true},
		"pc-disks":       {pc, machine{"pc-i440fx-7.2", AccelKVM}, false},
		"q35-fork":       {fork, machine{"pc-q35-7.2", AccelTCG}, true},
		"microvm":        {microvm, machine{"microvm", AccelTCG}, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if err := test.c.Validate(); err != nil {
				t.Fatal(err)
			}
			c := test.c.withDefaults()
			got := strings.Join(c.arguments(test.machine, "/dev/shm/understudy-shop/1.ram", test.incoming), "\n") + "\n"
			path := filepath.Join("testdata", name+".args")
			if *update {
				must(t, os.WriteFile(path, []byte(got), 0o644))
			}
			want, err := os.ReadFile(path)
			must(t, err)
			if got != string(want) {
				t.Errorf("arguments\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestValidate(t *testing.T) {
	good := func() Config {
		return Config{
			Name: "shop", Memory: 512 * mib, CPUs: 2, Machine: "q35", Accel: AccelAuto,
			RunDir: "/run/understudy/shop", Helper: []string{"/usr/bin/understudyd"},
			Disks: []Disk{{Path: "/srv/root.img", ReadOnly: true}}, NICs: []NIC{{MAC: "52:54:00:ab:cd:01"}},
		}
	}
	if err := good().Validate(); err != nil {
		t.Fatal(err)
	}
	extra := func(args ...string) func(*Config) { return func(c *Config) { c.ExtraArgs = args } }
	tests := map[string]struct {
		spoil   func(*Config)
		want    string
		refusal bool // not a mistake, but a machine that cannot be protected
	}{
		"no name":             {func(c *Config) { c.Name = "" }, `name ""`, false},
		"a name with a slash": {func(c *Config) { c.Name = "a/b" }, `name "a/b"`, false},
		"no memory":           {func(c *Config) { c.Memory = 0 }, "memory of 0 bytes", false},
		"uneven memory":       {func(c *Config) { c.Memory = 512*mib + 1 }, "whole MiB", false},
		"no processor":        {func(c *Config) { c.CPUs = 0 }, "0 processors", false},
		"another machine":     {func(c *Config) { c.Machine = "isapc" }, `"isapc"`, true},
		"machine options":     {func(c *Config) { c.Machine = "pc-q35-7.2,smm=off" }, "smm=off", true},
		"no such accelerator": {func(c *Config) { c.Accel = "xen" }, `"xen"`, false},
		"host processor":      {func(c *Config) { c.CPU = "host" }, `"host"`, true},
		"all features":        {func(c *Config) { c.CPU = "max" }, `"max"`, true},
		"nested":              {func(c *Config) { c.CPU = "EPYC,+svm" }, "nested", true},
		"two commas":          {func(c *Config) { c.CPU = "EPYC,,x" }, "EPYC,,x", false},
		"initrd alone":        {func(c *Config) { c.Initrd = "/initrd" }, "without a kernel", false},
		"microvm, no kernel":  {func(c *Config) { c.Machine = "microvm" }, "give it a kernel", false},
		"relative kernel":     {func(c *Config) { c.Kernel = "vmlinuz" }, "not an absolute path", false},
		"comma in a path":     {func(c *Config) { c.Disks[0].Path = "/srv/a,b" }, "commas", false},
		"two lines appended":  {func(c *Config) { c.Kernel, c.Append = "/k", "a\nb" }, "one line", false},
		"writable disk":       {func(c *Config) { c.Disks[0].ReadOnly = false }, "QEMU would write it", true},
		"both kinds of disk":  {func(c *Config) { c.Disks[0].Snapshot = true }, "one of the two", true},
		"disk format":         {func(c *Config) { c.Disks[0].Format = "vmdk" }, `"vmdk"`, false},
		"no address":          {func(c *Config) { c.NICs[0].MAC = "" }, "unicast", false},
		"multicast address":   {func(c *Config) { c.NICs[0].MAC = "01:00:5e:00:00:01" }, "unicast", false},
		"an address twice":    {func(c *Config) { c.NICs = append(c.NICs, NIC{MAC: "52:54:00:AB:CD:01"}) }, "address of network card 0", false},
		"too many queues":     {func(c *Config) { c.Served = []ServedDisk{{Queues: 17}} }, "17 queues", false},
		"an odd queue":        {func(c *Config) { c.Served = []ServedDisk{{QueueSize: 100}} }, "power of two", false},
		"a disk on a NIC":     {func(c *Config) { c.Served = []ServedDisk{{Socket: "/run/x"}}; c.NICs[0].HostSocket = "/run/x" }, "is also", false},
		"too many disks":      {func(c *Config) { c.Served = make([]ServedDisk, 17) }, "17 served", false},
		"a socket twice":      {func(c *Config) { c.NICs[0].HostSocket, c.NICs[0].GuestSocket = "/run/x", "/run/x" }, "is also", false},
		"long socket":         {func(c *Config) { c.NICs[0].HostSocket = "/" + strings.Repeat("x", 107) }, "longer than", false},
		"long run directory":  {func(c *Config) { c.RunDir = "/" + strings.Repeat("x", 100) }, "too long", false},
		"no helper":           {func(c *Config) { c.Helper = nil }, "helper", false},
		"reserved and freed":  {func(c *Config) { c.Reserve, c.FreePageReporting = true, true }, "FreePageReporting", false},
		"balloon":             {extra("-device", "virtio-balloon-pci"), "balloon", true},
		"vfio":                {extra("-device", "vfio-pci,host=01:00.0"), "passed-through", true},
		"ivshmem":             {extra("-device", "ivshmem-plain,memdev=x"), "shared memory", true},
		"vhost-vsock":         {extra("-device", "vhost-vsock-pci,guest-cid=3"), "kernel's back end", true},
		"vhost-user":          {extra("-device", "vhost-user-fs-pci"), "foreign back end", true},
		"virtio-mem":          {extra("-device", "virtio-mem-pci"), "not tracked", true},
		"pmem":                {extra("-device", "virtio-pmem-pci"), "persistent memory", true},
		"ungated card":        {extra("-device", "e1000"), "egress gate", true},
		"unknown device":      {extra("-device", "frobnicator"), "not known to survive", true},
		"driver key":          {extra("-device", "driver=vfio-pci"), "passed-through", true},
		"json device":         {extra("-device", `{"driver":"VGA"}`), "not as JSON", false},
		"a disk in passing":   {extra("-drive", "file=/x"), "only disks of the configuration", true},
		"two dashes":          {extra("--drive", "file=/x"), "only disks of the configuration", true},
		"vnc":                 {extra("-vnc", ":0"), "cannot be taken back", true},
		"a monitor":           {extra("-monitor", "stdio"), "second monitor", true},
		"pflash":              {extra("-pflash", "/x"), "UEFI", true},
		"incoming":            {extra("-incoming", "defer"), "engine's", true},
		"memory object":       {extra("-object", "memory-backend-ram,id=x"), "memory-backend-ram", true},
		"unknown option":      {extra("-frobnicate", "x"), "not known to survive", true},
		"a file of the host":  {extra("-smbios", "file=/x"), "file of this host", true},
		"value missing":       {extra("-device"), "value is missing", false},
		"no option":           {extra("VGA"), "want an option", false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c := good()
			test.spoil(&c)
			err := c.Validate()
			var refusal *hypervisor.Refusal
			if err == nil || !strings.Contains(err.Error(), test.want) || errors.As(err, &refusal) != test.refusal {
				t.Fatalf("got %v, want one with %q, a refusal %t", err, test.want, test.refusal)
			}
			if refusal != nil && (refusal.What == "" || refusal.Remedy == "") {
				t.Fatalf("refusal %+v does not say what to do", refusal)
			}
			if _, err := NewDriver(c, testLog(t)); err == nil {
				t.Fatal("a driver takes it")
			}
		})
	}
}

func TestAllowedExtras(t *testing.T) {
	for _, args := range [][]string{
		{"-device", "virtio-rng-pci"}, {"-device", "VGA,vgamem_mb=16"}, {"-rtc", "base=utc"}, {"-boot", "menu=off"},
		{"-object", "rng-builtin,id=r", "-device", "virtio-rng-pci,rng=r"}, {"-uuid", "b5b1fb5a-63a0-4d6f-9c4b-9a2b1d1b0c3e"},
		{"-device", "qemu-xhci", "-device", "usb-tablet"}, {"-device", "pvpanic"},
	} {
		if err := checkExtra(args); err != nil {
			t.Errorf("%q: %v", args, err)
		}
	}
}
