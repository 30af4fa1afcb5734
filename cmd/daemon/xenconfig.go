package daemon

import (
	"encoding/json"

	"understudy/config"
	"understudy/hypervisor/xen"
)

// xenConfig is what package xen wants to know of a guest.
func xenConfig(g config.Guest) xen.Config {
	return xen.Config{Name: g.Name, Type: xen.Type(g.Type), Memory: uint64(g.Memory), VCPUs: g.CPUs, Kernel: g.Kernel, Initrd: g.Initrd, Append: g.Append}
}

// XenShape is what a checkpoint file of a Xen guest has to say of its domain to be
// restored as it is configured. It reads the boot files.
func XenShape(g config.Guest) (json.RawMessage, error) {
	c := xenConfig(g)
	return c.Shape()
}
