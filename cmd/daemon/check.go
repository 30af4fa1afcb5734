package daemon

import (
	"context"
	"fmt"

	"understudy/config"
	"understudy/hypervisor/qemu"
)

// CheckHost finds out whether a host can run, and stand by for, each of its
// guests under QEMU and Xen. A simulated guest needs nothing.
func CheckHost(ctx context.Context, c *config.Config, self config.Host, helper []string) ([]qemu.Report, error) {
	var all []qemu.Report
	for _, g := range c.Guests {
		if g.Hypervisor == config.Sim || g.Host != self.Name && g.Backup != self.Name {
			continue
		}
		if g.Hypervisor == config.Xen {
			r := qemu.Report{Guest: g.Name}
			checkXen(ctx, &r, g)
			checkDisks(&r, self.Name, g)
			all = append(all, r)
			continue
		}
		r, err := qemu.CheckHost(ctx, qemuConfig(c, self, g, helper))
		if err != nil {
			return all, fmt.Errorf("check host %s for guest %s: %w", self.Name, g.Name, err)
		}
		checkDisks(&r, self.Name, g)
		all = append(all, r)
	}
	return all, nil
}
