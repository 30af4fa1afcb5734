package strike

// A cut: a table of nftables whose rules drop the pair's TCP traffic with the
// addresses in a set, whose elements run out in time. So whatever becomes of the
// agent, the cable is whole again.

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// tableName is of the one table there can be: one strike at a time.
const tableName = "understudy-strike"

// grace is how much longer than the strike the kernel's own limit is.
const grace = 2 * time.Second

// Cut cuts the cable for limit, and a little, at most.
func (Real) Cut(c Cable, limit time.Duration) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("cut the cable: %w", err)
	}
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName}
	conn.AddTable(table) // so that it is there to be deleted
	conn.DelTable(table)
	conn.AddTable(table)
	var v4, v6 []nftables.SetElement
	ports := []uint16{}
	for _, p := range c.Peers {
		if a := p.Addr().Unmap(); a.Is4() {
			v4 = append(v4, element(a, limit))
		} else {
			v6 = append(v6, element(a.WithZone(""), limit))
		}
		if !slices.Contains(ports, p.Port()) {
			ports = append(ports, p.Port())
		}
	}
	// Before everything else, so that no rule of the host's own lets it through.
	first := nftables.ChainPriorityRef(-10000)
	in := conn.AddChain(&nftables.Chain{Table: table, Name: "in", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: first})
	out := conn.AddChain(&nftables.Chain{Table: table, Name: "out", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput, Priority: first})
	for _, f := range []family{
		{"v4", nftables.TypeIPAddr, v4, unix.NFPROTO_IPV4, 12, 16, 4},
		{"v6", nftables.TypeIP6Addr, v6, unix.NFPROTO_IPV6, 8, 24, 16},
	} {
		if len(f.elements) == 0 {
			continue
		}
		set := &nftables.Set{Table: table, Name: f.name, KeyType: f.key, HasTimeout: true}
		if err := conn.AddSet(set, f.elements); err != nil {
			return fmt.Errorf("cut the cable: %w", err)
		}
		conn.AddRule(&nftables.Rule{Table: table, Chain: in, Exprs: f.drop(set, f.source, destinationPort, c.Port)})
		conn.AddRule(&nftables.Rule{Table: table, Chain: out, Exprs: f.drop(set, f.destination, sourcePort, c.Port)})
		for _, port := range ports {
			conn.AddRule(&nftables.Rule{Table: table, Chain: in, Exprs: f.drop(set, f.source, sourcePort, port)})
			conn.AddRule(&nftables.Rule{Table: table, Chain: out, Exprs: f.drop(set, f.destination, destinationPort, port)})
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("cut the cable: nftables: %w", err)
	}
	return nil
}

func element(a netip.Addr, limit time.Duration) nftables.SetElement {
	return nftables.SetElement{Key: a.AsSlice(), Timeout: max(limit, 0) + grace}
}

// family is a version of the Internet Protocol.
type family struct {
	name                string
	key                 nftables.SetDatatype
	elements            []nftables.SetElement
	number              byte
	source, destination uint32 // offsets of the addresses in the header
	size                uint32 // of an address
}

// Offsets of the ports in TCP's header.
const (
	sourcePort      = 0
	destinationPort = 2
)

// drop is a rule: TCP, with an address of the set at one offset and the port at
// another, is dropped.
func (f family) drop(set *nftables.Set, address, portAt uint32, port uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f.number}},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: address, Len: f.size},
		&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: portAt, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.Counter{},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}
}

// Mend makes the cable whole.
func (Real) Mend() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("mend the cable: %w", err)
	}
	conn.DelTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: tableName})
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("mend the cable: nftables: %w", err)
	}
	return nil
}
