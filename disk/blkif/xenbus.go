package blkif

// This file is what a guest's driver and we tell each other in xenstore, beside the
// states (package xenbus, which calls Offer, Plug and Unplug).
//
//	ours:   Offer ─> …            Size ─> …
//	guest:           ring, event channel     reads the size, and is there

import (
	"errors"
	"fmt"
	"strconv"

	"understudy/disk"
	"understudy/epoch"
)

// Offer is what is written before the guest's driver looks.
func (d *Device) Offer() map[string]string { return features(d.info) }

// Plug connects to the ring that the guest's driver has written of: read returns
// the value of one of its keys, "" for one that is not there. It returns what the
// driver reads next.
func (d *Device) Plug(read func(key string) string) (map[string]string, error) {
	p, port, err := parameters(read)
	if err != nil {
		return nil, err
	}
	channel, err := d.cfg.Bind(port)
	if err != nil {
		return nil, err
	}
	return size(d.info), d.Connect(p, channel)
}

// Unplug is Disconnect.
func (d *Device) Unplug() { d.Disconnect() }

func features(info disk.Info) map[string]string {
	entries := map[string]string{
		"max-ring-page-order": strconv.Itoa(MaxRingOrder),
		"feature-flush-cache": "1",
		"feature-barrier":     "0",
		"feature-persistent":  "0",
	}
	if n := min(MaxSegments, info.MaxSectors/pageSectors); n > maxDirect {
		entries["feature-max-indirect-segments"] = strconv.FormatUint(uint64(n), 10)
	}
	if info.MaxZeroSectors > 0 && !info.ReadOnly {
		entries["feature-discard"], entries["discard-secure"] = "1", "0"
		entries["discard-granularity"], entries["discard-alignment"] = strconv.Itoa(epoch.SectorSize), "0"
	}
	return entries
}

// vdiskReadOnly is the bit of "info" that says so.
const vdiskReadOnly = 4

func size(info disk.Info) map[string]string {
	flags := 0
	if info.ReadOnly {
		flags = vdiskReadOnly
	}
	return map[string]string{
		"sectors":              strconv.FormatUint(info.Sectors, 10),
		"sector-size":          strconv.Itoa(epoch.SectorSize),
		"physical-sector-size": strconv.Itoa(pageSize),
		"info":                 strconv.Itoa(flags),
	}
}

// parameters reads what the guest's driver says of its ring, and the port of its
// event channel.
func parameters(read func(key string) string) (Parameters, uint32, error) {
	none := Parameters{}
	protocol, err := ParseProtocol(read("protocol"))
	if err != nil {
		return none, 0, err
	}
	port, err := number(read, "event-channel")
	if err != nil {
		return none, 0, err
	}
	if port == 0 {
		return none, 0, errors.New("the guest's event-channel is 0, which is none")
	}
	p := Parameters{Protocol: protocol}
	if read("ring-page-order") == "" {
		ref, err := number(read, "ring-ref")
		p.Refs = append(p.Refs, ref)
		return p, port, err
	}
	order, err := number(read, "ring-page-order")
	if err != nil {
		return none, 0, err
	}
	if order > MaxRingOrder {
		return none, 0, fmt.Errorf("a ring of 2^%d pages, at most 2^%d were offered", order, MaxRingOrder)
	}
	for i := range 1 << order {
		ref, err := number(read, "ring-ref"+strconv.Itoa(i))
		if err != nil {
			return none, 0, err
		}
		p.Refs = append(p.Refs, ref)
	}
	return p, port, nil
}

func number(read func(key string) string, key string) (uint32, error) {
	n, err := strconv.ParseUint(read(key), 10, 32)
	if err != nil {
		return 0, fmt.Errorf("the guest's %s is %.20q, which is no number", key, read(key))
	}
	return uint32(n), nil
}
