//go:build xen

package main

// This file takes domains from the toolstack of this host, and gives them back.

import (
	"context"
	"errors"
	"io"

	"understudy/hypervisor/xen"
	"understudy/hypervisor/xen/xenctl"
)

// suspendDomain has a PV domain of this host suspend, and reads what stands before
// its memory. end ends the domain if it was kept, and lets it go on otherwise.
func suspendDomain(ctx context.Context, name string) (_ *xen.Saved, end func(kept bool) error, err error) {
	h, err := xenctl.OpenHost(ctx, nil)
	if err != nil {
		return nil, nil, err
	}
	domain, err := h.Named(ctx, name)
	if err != nil {
		return nil, nil, errors.Join(err, h.Close())
	}
	leaving, err := h.Suspend(ctx, domain)
	if err != nil {
		return nil, nil, errors.Join(err, h.Close())
	}
	end = func(kept bool) error { return errors.Join(leaving.End(kept), h.Close()) }
	saved, err := xen.NewSaved(leaving, leaving.Config, leaving.Pages)
	if err != nil {
		return nil, nil, errors.Join(err, end(false))
	}
	return saved, end, nil
}

// startDomain makes a domain of this host of a stream, and lets it run.
func startDomain(ctx context.Context, config []byte, write func(io.Writer) error) (uint32, error) {
	h, err := xenctl.OpenHost(ctx, nil)
	if err != nil {
		return 0, err
	}
	domain, err := h.Arrive(config, write)
	return domain, errors.Join(err, h.Close())
}
