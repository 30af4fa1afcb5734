//go:build xen

package daemon

import (
	"errors"

	"understudy/config"
	"understudy/hypervisor/xen"
)

// xenDevices makes the ways out of a Xen guest and the disks that it is served, and
// the back ends of both.
func xenDevices(_ Options, _ config.Host, g config.Guest, _ recorder) (gates, xen.Devices, *served, error) {
	if len(g.Disks)+len(g.NICs) > 0 {
		return nil, nil, nil, errors.New("a Xen guest cannot have disks or network devices yet: leave them out")
	}
	return nil, xen.Join(), nil, nil
}
