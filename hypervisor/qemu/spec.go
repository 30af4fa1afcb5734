package qemu

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"understudy/epoch"
	"understudy/hypervisor"
	"understudy/hypervisor/qemu/stream"
)

// machineSpec is what hypervisor.Spec.Machine holds, as JSON: what must be
// equal on both hosts, and what the incoming stream is composed from.
type machineSpec struct {
	Format int `json:"format"`
	// QEMU is the program's version line, with its builder.
	QEMU string `json:"qemu"`
	// Machine is the versioned machine type.
	Machine string `json:"machine"`
	Accel   string `json:"accel"`
	// HostCPU describes the host's processor, under KVM only: what the guest
	// has found out about it must stay true.
	HostCPU string `json:"host_cpu,omitempty"`
	Memory  uint64 `json:"memory"`
	// Shape is every argument that decides what the guest sees.
	Shape []string `json:"shape"`
	// Kernel and Initrd are SHA-256, in hexadecimal, "" for none.
	Kernel string `json:"kernel,omitempty"`
	Initrd string `json:"initrd,omitempty"`
	// RAM, Blocks and Devices are from the guest's own migration stream.
	RAM     stream.Section   `json:"ram"`
	Blocks  []block          `json:"blocks"`
	Devices []stream.Section `json:"devices"`
}

const (
	specFormat = 1
	maxBlocks  = 64
	maxDevices = 1024
	maxSide    = 256 * mib // bytes in all side blocks together
)

// pack returns the spec as the other host gets it.
func (m *machineSpec) pack() (hypervisor.Spec, error) {
	text, err := json.Marshal(m)
	if err != nil {
		return hypervisor.Spec{}, err
	}
	_, pages := layout(m.Blocks)
	return hypervisor.Spec{Pages: pages, Machine: text}, nil
}

// unpackSpec reads a spec from the other host. Whatever is wrong with it is a
// *hypervisor.Refusal.
func unpackSpec(s hypervisor.Spec) (*machineSpec, error) {
	m, err := parseSpec(s)
	if err != nil {
		return nil, &hypervisor.Refusal{
			What:   fmt.Sprintf("the other host's description of the guest: %v", err),
			Remedy: "run the same version of this program on both hosts",
		}
	}
	return m, nil
}

func parseSpec(s hypervisor.Spec) (*machineSpec, error) {
	if len(s.Machine) > hypervisor.MaxSpec {
		return nil, fmt.Errorf("%d bytes, at most %d are allowed", len(s.Machine), hypervisor.MaxSpec)
	}
	d := json.NewDecoder(bytes.NewReader(s.Machine))
	d.DisallowUnknownFields()
	m := &machineSpec{}
	if err := d.Decode(m); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows it")
	}
	if m.Format != specFormat {
		return nil, fmt.Errorf("format %d, want %d", m.Format, specFormat)
	}
	if m.Memory < minMemory || m.Memory > maxMemory || m.Memory%mib != 0 {
		return nil, fmt.Errorf("%d bytes of memory", m.Memory)
	}
	if m.Accel != AccelKVM && m.Accel != AccelTCG {
		return nil, fmt.Errorf("accelerator %q", m.Accel)
	}
	if err := checkBlocks(m.Blocks, m.Memory); err != nil {
		return nil, err
	}
	if len(m.Devices) == 0 || len(m.Devices) > maxDevices {
		return nil, fmt.Errorf("%d device sections", len(m.Devices))
	}
	for _, d := range append(slices.Clone(m.Devices), m.RAM) {
		if len(d.Name) == 0 || len(d.Name) > 255 {
			return nil, fmt.Errorf("section %d has a name of %d bytes", d.ID, len(d.Name))
		}
	}
	if _, pages := layout(m.Blocks); pages != s.Pages {
		return nil, fmt.Errorf("its RAM blocks have %d pages, the image %d", pages, s.Pages)
	}
	return m, nil
}

func checkBlocks(blocks []block, memory uint64) error {
	if len(blocks) == 0 || len(blocks) > maxBlocks {
		return fmt.Errorf("%d RAM blocks, want 1 to %d", len(blocks), maxBlocks)
	}
	var side uint64
	names := map[string]bool{}
	for _, b := range blocks {
		switch {
		case len(b.Name) == 0 || len(b.Name) > 255 || names[b.Name]:
			return fmt.Errorf("RAM block %.80q: no name, or not the only one of that name", b.Name)
		case b.Used == 0 || b.Used > b.Total || b.Used%epoch.PageSize != 0 || b.Total%epoch.PageSize != 0:
			return fmt.Errorf("RAM block %.80q uses %d of %d bytes", b.Name, b.Used, b.Total)
		case b.Name == mainBlock && (b.Used != memory || b.Total != memory):
			return fmt.Errorf("main memory has %d of %d bytes, the machine %d", b.Used, b.Total, memory)
		case b.Name != mainBlock && b.Total > maxSide-side:
			return fmt.Errorf("RAM blocks beside main memory of more than %d MiB", maxSide/mib)
		}
		names[b.Name] = true
		if b.Name != mainBlock {
			side += b.Total
		}
	}
	if !names[mainBlock] {
		return errors.New("no main memory among the RAM blocks")
	}
	return nil
}

// local is what this host would run the guest with.
type local struct {
	program *program
	kernel  string // SHA-256
	initrd  string
	hostCPU string
}

// look finds out what this host has. sum returns a file's SHA-256.
func (c *Config) look(p *program, sum func(path string) (string, error)) (*local, error) {
	l := &local{program: p}
	var err error
	if l.kernel, err = sum(c.Kernel); err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	if l.initrd, err = sum(c.Initrd); err != nil {
		return nil, fmt.Errorf("initrd: %w", err)
	}
	if l.hostCPU, err = hostCPU(); err != nil {
		return nil, err
	}
	return l, nil
}

func differ(what, theirs, ours, remedy string) error {
	return &hypervisor.Refusal{
		What:   fmt.Sprintf("%s differs: the guest's host has %.200q, this one %.200q", what, theirs, ours),
		Remedy: remedy,
	}
}

// agreesInSize checks that an image of ours has the size of the machine's.
func (m *machineSpec) agreesInSize(c *Config) error {
	if m.Memory != c.Memory {
		return differ("memory in bytes", fmt.Sprint(m.Memory), fmt.Sprint(c.Memory), "configure the same guest on both hosts")
	}
	return nil
}

// agrees checks, beside the size, that this host can take over the machine that the spec
// describes. The first difference is returned as a *hypervisor.Refusal.
func (m *machineSpec) agrees(c *Config, l *local) error {
	machineType, err := l.program.resolve(c.Machine)
	if err != nil {
		return err
	}
	switch {
	case m.QEMU != l.program.Version:
		return differ("QEMU", m.QEMU, l.program.Version, "install the same package on both hosts")
	case m.Machine != machineType:
		return differ("machine type", m.Machine, machineType, "configure the same versioned machine type on both hosts")
	case c.Accel != AccelAuto && m.Accel != c.Accel:
		return differ("accelerator", m.Accel, c.Accel, "configure the same accelerator on both hosts")
	case m.Kernel != l.kernel:
		return differ("kernel (SHA-256)", m.Kernel, l.kernel, "copy the kernel from one host to the other")
	case m.Initrd != l.initrd:
		return differ("initrd (SHA-256)", m.Initrd, l.initrd, "copy the initrd from one host to the other")
	case m.Accel == AccelKVM && m.HostCPU != l.hostCPU:
		return differ("processor", m.HostCPU, l.hostCPU, "use hosts with the same processor, or the accelerator tcg")
	}
	ours := c.shape(machine{Type: m.Machine, Accel: m.Accel})
	if !slices.Equal(m.Shape, ours) {
		i := 0 // both are long: show from an option or value before the first difference on
		for i < len(ours) && i < len(m.Shape) && ours[i] == m.Shape[i] {
			i++
		}
		i = max(i-1, 0)
		return differ("machine", strings.Join(m.Shape[i:], " "), strings.Join(ours[i:], " "), "configure the same guest on both hosts")
	}
	return nil
}
