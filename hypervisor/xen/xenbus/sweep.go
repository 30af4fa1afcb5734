package xenbus

// This file removes what a process that has died left of domains that are gone: the
// guest's side goes with its domain, ours does not.

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"

	"understudy/hypervisor/xen/xenstore"
)

// Sweep removes our side's nodes of every domain that is gone, as far as gone, which
// is asked after they were listed, says so.
func Sweep(ctx context.Context, store *xenstore.Client, gone func(domain uint32) (bool, error)) error {
	var errs []error
	for _, kind := range []Kind{Disk, Network} {
		domains, err := store.List(ctx, 0, ours(kind))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		errs = append(errs, err)
		for _, text := range domains {
			number, err := strconv.ParseUint(text, 10, 32)
			if err != nil {
				continue // nothing that we have written
			}
			over, err := gone(uint32(number))
			if err == nil && over {
				err = store.Remove(ctx, 0, ours(kind)+"/"+text)
			}
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove what was left of devices in xenstore: %w", err)
	}
	return nil
}
