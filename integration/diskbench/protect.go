package main

// What protection costs a guest that uses our disk: the same loads on the same
// guest, unprotected and protected in turn. A flush of an unprotected guest waits
// for the disk; that of a protected one is answered when its writes are in the
// held log, for they are safe once the epoch is committed, and nobody outside
// hears of it before.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"understudy/guest"
	"understudy/guest/diskspeed"
)

const (
	nameUnprotected = "unprotected"
	nameProtected   = "protected"
)

func protectedLoads(each time.Duration) []guestLoad {
	return []guestLoad{
		syncLoad(each),
		{"random read 4 KiB, depth 1", diskspeed.Options{Mode: diskspeed.RandRead, Block: 4 << 10, Depth: 1, Time: each}},
		{"random read 4 KiB, depth 16", diskspeed.Options{Mode: diskspeed.RandRead, Block: 4 << 10, Depth: 16, Time: each}},
		{"random write 4 KiB, depth 1", diskspeed.Options{Mode: diskspeed.RandWrite, Block: 4 << 10, Depth: 1, Time: each}},
		{"sequential read 128 KiB, depth 16", diskspeed.Options{Mode: diskspeed.Read, Block: 128 << 10, Depth: 16, Time: each}},
		{"sequential write 128 KiB, depth 1", diskspeed.Options{Mode: diskspeed.Write, Block: 128 << 10, Depth: 1, Time: each}},
	}
}

func measureProtected(ctx context.Context, o *options, dir string, say func(string, ...any)) (rows []Row, err error) {
	if err := o.checkGuest(); err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "protected.raw")
	if err := randomFile(ctx, file, fileSize); err != nil {
		return nil, err
	}
	p, err := newPair(pairConfig{file: file, images: o.images, log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	if err := p.start(ctx); err != nil {
		return nil, err
	}
	loads := protectedLoads(o.guestTime)
	for _, l := range loads {
		rows = append(rows, newRow(l.name, l.Block))
	}
	for round := range o.rounds {
		for _, side := range []string{nameUnprotected, nameProtected} {
			if side == nameProtected {
				if err := p.protect(ctx, nil); err != nil {
					return nil, err
				}
			}
			for i, l := range loads {
				s, err := measureDisk(ctx, p.control, l, guest.FirstDisk)
				if err != nil {
					return nil, fmt.Errorf("%s, %s: %w", side, l.name, err)
				}
				rows[i].add(side, s)
			}
		}
		if err := p.unprotect(ctx); err != nil {
			return nil, err
		}
		say("round %d of %d of the protected guest", round+1, o.rounds)
	}
	for i := range rows {
		say("%s", rows[i].line())
	}
	return rows, nil
}
