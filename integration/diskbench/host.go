package main

// What the back ends cost by themselves: a driver of our own (disk/vhost/vhosttest)
// in the place of a guest, since an emulated guest is slower than any back end.

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"understudy/disk/vhost/vhosttest"
)

// Names of the back ends in the report.
const (
	nameQEMU = "qemu"
	nameQSD  = "qsd"
	nameOurs = "understudy"
)

// hostLoads are what is measured without a guest.
func hostLoads(size int64, each time.Duration) []namedLoad {
	one := func(name string, l vhosttest.Load) namedLoad {
		l.Size, l.Time = size, each
		return namedLoad{name, l}
	}
	const small, large = 4 << 10, 128 << 10
	return []namedLoad{
		one("random read 4 KiB, depth 1", vhosttest.Load{Random: true, Block: small, Depth: 1}),
		one("random read 4 KiB, depth 32", vhosttest.Load{Random: true, Block: small, Depth: 32}),
		one("random write 4 KiB, depth 1", vhosttest.Load{Write: true, Random: true, Block: small, Depth: 1}),
		one("random write 4 KiB, depth 32", vhosttest.Load{Write: true, Random: true, Block: small, Depth: 32}),
		one("sequential read 128 KiB, depth 32", vhosttest.Load{Block: large, Depth: 32}),
		one("sequential write 128 KiB, depth 32", vhosttest.Load{Write: true, Block: large, Depth: 32}),
		one("write 4 KiB and flush, depth 1", vhosttest.Load{Write: true, Sync: true, Random: true, Block: small, Depth: 1}),
	}
}

type namedLoad struct {
	name string
	load vhosttest.Load
}

// measureHost measures our back end and qemu-storage-daemon in turn.
func measureHost(ctx context.Context, o *options, dir string, say func(string, ...any)) (rows []Row, err error) {
	file := filepath.Join(dir, "host.raw")
	if err := randomFile(ctx, file, fileSize); err != nil {
		return nil, err
	}
	sides := []struct {
		name  string
		start func(socket string) (*server, error)
	}{
		{nameQSD, func(socket string) (*server, error) { return startQSD(file, socket, o.aio) }},
		{nameOurs, func(socket string) (*server, error) { return startOurs(file, socket, o.profile) }},
	}
	var drivers []*vhosttest.Driver
	var servers []*server
	defer func() {
		for _, d := range drivers {
			err = errors.Join(err, d.Close())
		}
		for _, s := range servers {
			err = errors.Join(err, s.close())
		}
	}()
	for _, side := range sides {
		s, err := side.start(filepath.Join(dir, side.name+".sock"))
		if err != nil {
			return nil, err
		}
		servers = append(servers, s)
		d, err := vhosttest.Dial(s.socket)
		if err != nil {
			return nil, err
		}
		drivers = append(drivers, d)
	}
	for _, l := range hostLoads(fileSize, o.hostTime) {
		if o.only != "" && !o.matches(l.name) {
			continue
		}
		row := newRow(l.name, l.load.Block)
		for range o.rounds {
			for i, side := range sides {
				before := servers[i].cpu()
				r, err := drivers[i].Run(ctx, l.load)
				if err != nil {
					return nil, fmt.Errorf("%s, %s: %w", side.name, l.name, err)
				}
				cpu := servers[i].cpu() - before
				row.add(side.name, Sample{IOPS: r.IOPS(), P50: micros(r.P50), P99: micros(r.P99), CPU: micros(cpu) / float64(max(r.Ops, 1))})
			}
		}
		say("%s", row.line())
		rows = append(rows, row)
	}
	return rows, nil
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
