//go:build !xen

package main

import (
	"context"
	"io"

	"understudy/cmd/daemon"
	"understudy/hypervisor/xen"
)

func suspendDomain(context.Context, string) (*xen.Saved, func(bool) error, error) {
	return nil, nil, daemon.ErrNoXen
}

func startDomain(context.Context, []byte, func(io.Writer) error) (uint32, error) {
	return 0, daemon.ErrNoXen
}
