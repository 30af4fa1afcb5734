package lab

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Direction is a direction on a host's cable.
type Direction uint8

const (
	// FromHost is what the host sends.
	FromHost Direction = 1 << iota
	// ToHost is what the host would receive.
	ToHost
	// Both is a cable pulled out, except that no carrier is lost: the host
	// sees silence, which is the worse case.
	Both = FromHost | ToHost
)

// Cut loses every frame in the given directions, and only in those: an earlier
// cut in the other one is mended.
func (h *Host) Cut(d Direction) error {
	if d&Both == 0 || d&^Both != 0 {
		return fmt.Errorf("cutting the cable of %s: direction %d: want FromHost, ToHost or Both", h.name, d)
	}
	return h.setCut(d)
}

// Restore mends the cable.
func (h *Host) Restore() error { return h.setCut(0) }

// setCut puts a table that drops frames on the switch's side of the cable, out
// of sight of the host, or takes it away.
func (h *Host) setCut(d Direction) error {
	h.cutting.Lock()
	defer h.cutting.Unlock()
	err := h.lab.sw.Use(func(ns int) error { return dropFrames(ns, h.port, d) })
	if err != nil {
		return fmt.Errorf("cable of %s: %w", h.name, err)
	}
	return nil
}

// dropFrames sets what is dropped of a port's frames in a namespace.
func dropFrames(ns int, port string, d Direction) error {
	conn, err := nftables.New(nftables.WithNetNSFd(ns))
	if err != nil {
		return err
	}
	table := &nftables.Table{Family: nftables.TableFamilyNetdev, Name: "cut-" + port}
	// Made first, so that it is there to be deleted.
	conn.AddTable(table)
	conn.DelTable(table)
	if d != 0 {
		conn.AddTable(table)
	}
	drop := nftables.ChainPolicyDrop
	for _, c := range []struct {
		d    Direction
		name string
		hook *nftables.ChainHook
	}{{FromHost, "from", nftables.ChainHookIngress}, {ToHost, "to", nftables.ChainHookEgress}} {
		if d&c.d != 0 {
			conn.AddChain(&nftables.Chain{Table: table, Name: c.name, Type: nftables.ChainTypeFilter,
				Hooknum: c.hook, Priority: nftables.ChainPriorityFilter, Policy: &drop, Device: port})
		}
	}
	if err := conn.Flush(); err != nil {
		if errors.Is(err, unix.EOPNOTSUPP) {
			err = fmt.Errorf("%w (it needs Linux 5.16 with nf_tables and netdev hooks)", err)
		}
		return err
	}
	return nil
}
