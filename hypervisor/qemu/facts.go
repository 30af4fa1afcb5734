package qemu

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// hostCPU describes the processor of this host: model and a hash of its
// features. Equal descriptions mean that a guest finds the same on both.
func hostCPU() (string, error) {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	var model, flags string
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		key, value, ok := strings.Cut(lines.Text(), ":")
		if !ok {
			if model != "" {
				break // the first processor's lines are over
			}
			continue
		}
		switch strings.TrimSpace(key) {
		case "model name":
			model = strings.TrimSpace(value)
		case "flags":
			flags = strings.TrimSpace(value)
		}
	}
	if err := lines.Err(); err != nil {
		return "", fmt.Errorf("read /proc/cpuinfo: %w", err)
	}
	sum := sha256.Sum256([]byte(flags))
	return fmt.Sprintf("%s, features %s", model, hex.EncodeToString(sum[:8])), nil
}

// HostFacts are what must be equal on the two hosts of a guest (RULES 26).
type HostFacts struct {
	QEMU     string   `json:"qemu"`        // version line, builder included
	Program  string   `json:"qemu_sha256"` // of the program file
	Machine  string   `json:"machine"`     // versioned machine type
	Accel    string   `json:"accelerator"` // "kvm" or "tcg"
	HostCPU  string   `json:"host_cpu"`    // compared under KVM only
	Kernel   string   `json:"kernel_sha256,omitempty"`
	Initrd   string   `json:"initrd_sha256,omitempty"`
	Firmware []File   `json:"firmware"`        // what the machine may load at a start
	Shape    []string `json:"shape"`           // every argument that decides what the guest sees
	Disks    []string `json:"disks,omitempty"` // kind and size of each that we serve
}

// File is a file by its base name and content.
type File struct {
	Name   string `json:"name"`
	SHA256 string `json:"sha256"`
}

// Difference is a fact that is not equal on two hosts.
type Difference struct {
	What   string `json:"what"`
	Here   string `json:"here"`
	There  string `json:"there"`
	Remedy string `json:"remedy"`
}

// Compare returns what differs between two hosts' facts, nil if a guest can
// move between them.
func (f HostFacts) Compare(there HostFacts) (differences []Difference) {
	differ := func(what, here, there, remedy string) {
		if here != there {
			differences = append(differences, Difference{what, here, there, remedy})
		}
	}
	const samePackage = "install the same version of the package on both hosts"
	differ("QEMU", f.QEMU, there.QEMU, samePackage)
	differ("QEMU's program file", f.Program, there.Program, samePackage)
	differ("machine type", f.Machine, there.Machine, "configure the same versioned machine type on both hosts")
	differ("accelerator", f.Accel, there.Accel, "make KVM work on both hosts, or configure the accelerator tcg")
	if f.Accel == AccelKVM || there.Accel == AccelKVM {
		differ("processor", f.HostCPU, there.HostCPU, "use hosts with the same processor, or the accelerator tcg")
	}
	differ("kernel", f.Kernel, there.Kernel, "copy the kernel from one host to the other")
	differ("initrd", f.Initrd, there.Initrd, "copy the initrd from one host to the other")
	differ("machine", strings.Join(f.Shape, " "), strings.Join(there.Shape, " "), "configure the same guest on both hosts")
	for i := range max(len(f.Disks), len(there.Disks)) {
		differ(fmt.Sprintf("disk %d", i), nth(f.Disks, i), nth(there.Disks, i), "configure the same disks on both hosts, and give each copy the same size")
	}
	theirs := map[string]string{}
	for _, file := range there.Firmware {
		theirs[file.Name] = file.SHA256
	}
	for _, file := range f.Firmware {
		differ("firmware "+file.Name, file.SHA256, theirs[file.Name], samePackage)
		delete(theirs, file.Name)
	}
	for name, sum := range theirs {
		differ("firmware "+name, "", sum, samePackage)
	}
	return differences
}

func nth(list []string, i int) string {
	if i < len(list) {
		return list[i]
	}
	return "none"
}

// firmware are the files that QEMU loads for the machines known here.
var firmware = []string{"bios-256k.bin", "bios-microvm.bin", "kvmvapic.bin", "linuxboot_dma.bin", "pvh.bin", "vgabios-stdvga.bin"}

// facts collects this host's.
func (c *Config) facts(p *program, accel string) (HostFacts, error) {
	l, err := c.look(p, hashFile)
	if err != nil {
		return HostFacts{}, err
	}
	f := HostFacts{QEMU: p.Version, Accel: accel, HostCPU: l.hostCPU, Kernel: l.kernel, Initrd: l.initrd}
	if f.Machine, err = p.resolve(c.Machine); err != nil {
		return HostFacts{}, err
	}
	f.Shape = c.shape(machine{Type: f.Machine, Accel: accel})
	path, err := exec.LookPath(c.QEMU)
	if err != nil {
		return HostFacts{}, err
	}
	if f.Program, err = hashFile(path); err != nil {
		return HostFacts{}, err
	}
	for _, name := range firmware {
		for _, dir := range p.Data {
			sum, err := hashFile(filepath.Join(dir, name))
			if err == nil {
				f.Firmware = append(f.Firmware, File{name, sum})
				break // QEMU takes the first
			}
		}
	}
	return f, nil
}
