package xen

// This file is what an operator says of a domain, and what becomes of it: libxl's
// configuration, the shape that both hosts have to agree on, and the UUIDs by which
// a later process knows the domains of a guest.

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"

	"understudy/epoch"
	"understudy/hypervisor"
)

// Type is how a domain is virtualised.
type Type string

// The types that can be protected continuously. The kernel of either has Xen's
// drivers, for its disks, its network devices, and to suspend.
const (
	// PVH is a domain without a device model: its kernel is started directly.
	PVH Type = "pvh"
	// HVM is a PC, whose firmware starts the kernel. Its device model has neither a
	// screen nor a device that writes to memory by itself.
	HVM Type = "hvm"
)

// Config says what domain a Driver makes.
type Config struct {
	// Name is the guest's, for messages.
	Name string
	// Domain is the domain's name on this host; "": Name. One that waits for a
	// takeover has ".standby-" and four digits behind it, one that is being started
	// ".new-" and four.
	Domain string
	Type   Type
	Memory uint64 // bytes
	VCPUs  int
	Kernel string // path
	Initrd string // path; "": none
	Append string // to the kernel's command line
	// Devices are its disks and network devices; nil: none.
	Devices Devices
}

// What names look like: libxl puts them into paths of xenstore.
var domainNames = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_+-]{0,63}$`)

// What of a configuration Xen cannot take, or this package.
const (
	minMemory = 16 << 20
	maxMemory = 1 << 40
	maxVCPUs  = 128
)

func (c *Config) validate() error {
	refuse := func(what, remedy string) error {
		return fmt.Errorf("guest %q: %w", c.Name, &hypervisor.Refusal{What: what, Remedy: remedy})
	}
	switch {
	case !domainNames.MatchString(c.Domain):
		return refuse(fmt.Sprintf("%.80q is no name of a domain", c.Domain), "use letters, digits, dashes")
	case c.Type == "pv":
		return refuse("a PV domain's writes cannot be logged: Debian's Xen has no shadow paging", "make it PVH; PV domains can be saved to checkpoint files only")
	case c.Type != PVH && c.Type != HVM:
		return refuse(fmt.Sprintf("domains of type %.20q are not supported", c.Type), fmt.Sprintf("make it %s or %s", PVH, HVM))
	case c.Memory%epoch.PageSize != 0 || c.Memory < minMemory || c.Memory > maxMemory:
		return refuse(fmt.Sprintf("%d bytes of memory", c.Memory), fmt.Sprintf("give it whole pages, %d MiB to %d GiB", minMemory>>20, maxMemory>>30))
	case c.VCPUs < 1 || c.VCPUs > maxVCPUs:
		return refuse(fmt.Sprintf("%d processors", c.VCPUs), fmt.Sprintf("give it 1 to %d", maxVCPUs))
	case c.Kernel == "":
		return refuse("a domain without a kernel", "say which kernel it boots")
	}
	return nil
}

// The suffixes of a domain's name for what is no guest yet.
const (
	suffixStandby = ".standby-"
	suffixNew     = ".new-"
)

// shape is what of a domain must be equal on both hosts. It travels in Spec.Config.
type shape struct {
	Type   Type   `json:"type"`
	Memory uint64 `json:"memory"`
	VCPUs  int    `json:"vcpus"`
	Kernel string `json:"kernel"` // SHA-256, in hex
	Initrd string `json:"initrd,omitempty"`
	Append string `json:"append,omitempty"`
}

// Shape returns what both hosts have to agree on, as Spec.Config has it. It reads the
// boot files, to know them by their content.
func (c *Config) Shape() (json.RawMessage, error) { return c.shape() }

func (c *Config) shape() (json.RawMessage, error) {
	s := shape{Type: c.Type, Memory: c.Memory, VCPUs: c.VCPUs, Append: c.Append}
	for _, one := range []struct {
		path string
		to   *string
	}{{c.Kernel, &s.Kernel}, {c.Initrd, &s.Initrd}} {
		if one.path == "" {
			continue
		}
		f, err := os.Open(one.path)
		if err != nil {
			return nil, fmt.Errorf("read what the domain boots: %w", err)
		}
		h := sha256.New()
		_, err = io.Copy(h, f)
		_ = f.Close()
		if err != nil {
			return nil, fmt.Errorf("read what the domain boots: %w", err)
		}
		*one.to = hex.EncodeToString(h.Sum(nil))
	}
	return json.Marshal(s)
}

// toolstack returns the configuration as libxl wants it, in its JSON, for a domain
// of this UUID that is no guest yet. Nothing follows from a domain's end: we decide
// what does.
func (c *Config) toolstack(suffix string, id [16]byte) ([]byte, error) {
	return json.Marshal(c.domain(id, c.Domain+suffix+hex.EncodeToString(id[14:])))
}

func (c *Config) domain(id [16]byte, name string) map[string]any {
	processors := make([]int, c.VCPUs)
	for i := range processors {
		processors[i] = i
	}
	build := map[string]any{
		"max_vcpus": c.VCPUs, "avail_vcpus": processors, "max_memkb": c.Memory >> 10, "target_memkb": c.Memory >> 10,
		"kernel": c.Kernel, "cmdline": c.Append, "type." + string(c.Type): machines[c.Type],
	}
	if c.Initrd != "" {
		build["ramdisk"] = c.Initrd
	}
	return map[string]any{
		"c_info": map[string]any{"type": c.Type, "name": name, "uuid": uuidText(id)}, "b_info": build,
		"on_poweroff": "preserve", "on_reboot": "preserve", "on_crash": "preserve", "on_watchdog": "preserve",
	}
}

// machines are libxl's settings of what only domains of one type have.
var machines = map[Type]map[string]any{
	PVH: {},
	HVM: {"vga": map[string]any{"kind": "none"}, "vnc": map[string]any{"enable": "False"}, "vkb_device": "False"},
}

// A UUID of ours begins with six bytes that are the domain's name's, and is of
// version 8 (RFC 9562), which is for such.
const uuidPrefix = 6

func prefixOf(domain string) (p [uuidPrefix]byte) {
	sum := sha256.Sum256([]byte("understudy domain " + domain))
	copy(p[:], sum[:])
	return p
}

// newUUID returns one for a domain that is to be made.
func newUUID(domain string) (id [16]byte) {
	_, _ = rand.Read(id[:]) // never fails, see crypto/rand
	p := prefixOf(domain)
	copy(id[:], p[:])
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80
	return id
}

// ours reports whether a domain was made for the guest of that name.
func ours(domain string, id [16]byte) bool {
	return [uuidPrefix]byte(id[:uuidPrefix]) == prefixOf(domain) && id[6]>>4 == 8 && id[8]>>6 == 2
}

func uuidText(id [16]byte) string {
	t := hex.EncodeToString(id[:])
	return t[:8] + "-" + t[8:12] + "-" + t[12:16] + "-" + t[16:20] + "-" + t[20:]
}
