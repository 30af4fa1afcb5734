//go:build !xen

package daemon

import (
	"context"
	"errors"

	"understudy/config"
	"understudy/host"
	"understudy/hypervisor"
	"understudy/hypervisor/qemu"
)

// ErrNoXen says what this program cannot do.
var ErrNoXen = errors.New("this program was built without Xen's libraries: build it with -tags xen, on a machine with the libxen-dev of the host's very version")

// newXen refuses a Xen guest.
func newXen(Options, config.Host, config.Guest, recorder) (hypervisor.Driver, host.Gate, *served, error) {
	return nil, nil, nil, ErrNoXen
}

// checkXen says so, too.
func checkXen(_ context.Context, r *qemu.Report, _ config.Guest) {
	r.Checks = append(r.Checks, qemu.Check{Name: "Xen", Status: qemu.StatusFail, Detail: ErrNoXen.Error(), Remedy: "build with -tags xen"})
}
