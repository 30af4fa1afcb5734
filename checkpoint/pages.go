package checkpoint

import (
	"context"
	"fmt"

	"understudy/epoch"
)

// Pages gives every page of the image that is not zero to visit, each once, in
// whatever order they are quickest to come by, and then the runs of those that are
// to zero. Both are called by one goroutine at a time. blocks reads the disks as
// they were at the checkpoint, and may be nil if there are none. A page that cannot
// be had is an error.
func (f *File) Pages(ctx context.Context, blocks Blocks, visit func(first epoch.GFN, data []byte) error, zero func(first epoch.GFN, count uint64) error, progress Progress) error {
	if blocks == nil {
		blocks = noBlocks{}
	}
	w := &walk{file: f, blocks: blocks, visit: visit, progress: progress, fault: func(d Damage) error { return d.Err }}
	err := w.run(ctx)
	if err == nil {
		err = f.zeros(zero)
	}
	if err != nil {
		return fmt.Errorf("read checkpoint file %s: %w", f.path, err)
	}
	return nil
}

func (f *File) zeros(zero func(first epoch.GFN, count uint64) error) error {
	var first epoch.GFN
	var count uint64
	give := func() (err error) {
		if count > 0 {
			err = zero(first, count)
		}
		count = 0
		return err
	}
	var err error
	failed := f.each(func(page epoch.GFN, r *resolved) {
		switch {
		case err != nil:
		case r.entry.kind() != kindZero:
			err = give()
		case count == 0:
			first, count = page, 1
		default:
			count++
		}
	})
	if failed == nil && err == nil {
		err = give()
	}
	if failed != nil {
		return failed
	}
	return err
}
