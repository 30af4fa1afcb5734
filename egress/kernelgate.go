package egress

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// KernelGate is a time limit on what a TAP lets out, kept by the kernel
// (RULES 8). It is the nftables table
//
//	table netdev understudy-TAP {
//		flags owner
//		set open { type ifname; flags timeout }     # the TAP's name, for as long as it may
//		chain gate { type filter hook ingress device TAP priority 0; policy drop
//			iifname @open accept
//		}
//	}
//
// An element's timeout runs in the kernel, so a process that was stopped
// between looking at its lease and writing a frame writes into a closed gate.
// The table belongs to this object's netlink socket: other programs cannot
// change it, and a daemon that dies takes it along. The kernel counts the
// timeout in jiffies, rounded so that the gate shuts early, never late; it
// stands still while the machine is suspended, when Gate's own look at
// CLOCK_BOOTTIME is what keeps the lease.
//
// It needs CAP_NET_ADMIN, Linux 5.12 with nf_tables and its netdev family, and
// the network namespace in which it was made.
type KernelGate struct {
	tap string

	mu      sync.Mutex
	conn    *nftConn
	open    *nftBatch
	timeout int // offset of the timeout in open
	shut    *nftBatch
}

// TablePrefix begins the name of every table of ours; the TAP's name follows.
const TablePrefix = "understudy-"

const (
	setName   = "open"
	chainName = "gate"
)

// NewKernelGate makes the gate for the TAP of that name, shut. A table of that
// name that an earlier process left behind is replaced.
func NewKernelGate(tap string) (*KernelGate, error) {
	if err := checkInterfaceName(tap); err != nil {
		return nil, err
	}
	// Since Linux 6.16 a chain may be made for an interface that does not exist.
	if _, err := net.InterfaceByName(tap); err != nil {
		return nil, fmt.Errorf("kernel gate of %s: %w", tap, err)
	}
	conn, err := openNFT()
	if err != nil {
		return nil, fmt.Errorf("kernel gate of %s: %w", tap, err)
	}
	k := &KernelGate{tap: tap, conn: conn}
	// A table without an owner can only be a stale one of a kernel or a program
	// that does not know owners; one with an owner is in use.
	if err := conn.run(k.deleteTable()); err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, errors.Join(fmt.Errorf("kernel gate: removing the former table %s: %w", TablePrefix+tap, err), conn.close())
	}
	if err := conn.run(k.makeTable()); err != nil {
		return nil, errors.Join(fmt.Errorf("kernel gate: making table %s: %w (it needs Linux 5.12 with the nf_tables modules, and CAP_NET_ADMIN)",
			TablePrefix+tap, err), conn.close())
	}
	k.shut = newBatch()
	k.flushSet(k.shut)
	k.shut.finish()
	k.open, k.timeout = k.refresh()
	return k, nil
}

// Open lets frames out for at most d, rounded down to milliseconds.
func (k *KernelGate) Open(d time.Duration) error {
	if d < time.Millisecond {
		return k.Shut()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	binary.BigEndian.PutUint64(k.open.bytes[k.timeout:], uint64(d/time.Millisecond))
	return k.run(k.open, "opening")
}

// Shut lets nothing out.
func (k *KernelGate) Shut() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.run(k.shut, "shutting")
}

// Close removes the table. What the TAP still emits is then let through, so
// the TAP must be closed first.
func (k *KernelGate) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.conn == nil {
		return nil
	}
	// The kernel removes the table with its owner, but only after a while.
	err := k.conn.run(k.deleteTable())
	if errors.Is(err, unix.ENOENT) {
		err = nil
	}
	err = errors.Join(err, k.conn.close())
	k.conn = nil
	if err != nil {
		return fmt.Errorf("removing table %s: %w", TablePrefix+k.tap, err)
	}
	return nil
}

func (k *KernelGate) run(b *nftBatch, what string) error {
	if k.conn == nil {
		return fmt.Errorf("%s the kernel gate of %s: it is closed", what, k.tap)
	}
	if err := k.conn.run(b); err != nil {
		return fmt.Errorf("%s the kernel gate of %s: %w", what, k.tap, err)
	}
	return nil
}

// The batches. Attribute names are those of linux/netfilter/nf_tables.h.

func (k *KernelGate) deleteTable() *nftBatch {
	b := newBatch().message(unix.NFT_MSG_DELTABLE, 0)
	b.str(unix.NFTA_TABLE_NAME, TablePrefix+k.tap)
	return b.finish()
}

func (k *KernelGate) makeTable() *nftBatch {
	table := TablePrefix + k.tap
	b := newBatch().message(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	b.str(unix.NFTA_TABLE_NAME, table)
	b.u32(unix.NFTA_TABLE_FLAGS, tableOwner)

	b.message(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	b.str(unix.NFTA_SET_TABLE, table)
	b.str(unix.NFTA_SET_NAME, setName)
	b.u32(unix.NFTA_SET_FLAGS, unix.NFT_SET_TIMEOUT)
	b.u32(unix.NFTA_SET_KEY_TYPE, ifnameType)
	b.u32(unix.NFTA_SET_KEY_LEN, unix.IFNAMSIZ)
	b.u32(unix.NFTA_SET_ID, 1)

	b.message(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	b.str(unix.NFTA_CHAIN_TABLE, table)
	b.str(unix.NFTA_CHAIN_NAME, chainName)
	b.nest(unix.NFTA_CHAIN_HOOK, func() {
		b.u32(unix.NFTA_HOOK_HOOKNUM, unix.NF_NETDEV_INGRESS)
		b.u32(unix.NFTA_HOOK_PRIORITY, 0)
		b.str(unix.NFTA_HOOK_DEV, k.tap)
	})
	b.u32(unix.NFTA_CHAIN_POLICY, nfDrop)
	b.str(unix.NFTA_CHAIN_TYPE, "filter")

	b.message(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND)
	b.str(unix.NFTA_RULE_TABLE, table)
	b.str(unix.NFTA_RULE_CHAIN, chainName)
	b.nest(unix.NFTA_RULE_EXPRESSIONS, func() {
		expr := func(name string, data func()) {
			b.nest(unix.NFTA_LIST_ELEM, func() {
				b.str(unix.NFTA_EXPR_NAME, name)
				b.nest(unix.NFTA_EXPR_DATA, data)
			})
		}
		expr("meta", func() {
			b.u32(unix.NFTA_META_KEY, unix.NFT_META_IIFNAME)
			b.u32(unix.NFTA_META_DREG, unix.NFT_REG_1)
		})
		expr("lookup", func() {
			b.str(unix.NFTA_LOOKUP_SET, setName)
			b.u32(unix.NFTA_LOOKUP_SREG, unix.NFT_REG_1)
		})
		expr("immediate", func() {
			b.u32(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT)
			b.nest(unix.NFTA_IMMEDIATE_DATA, func() {
				b.nest(unix.NFTA_DATA_VERDICT, func() { b.u32(unix.NFTA_VERDICT_CODE, nfAccept) })
			})
		})
	})
	return b.finish()
}

// Verdicts of linux/netfilter.h.
const (
	nfDrop   = 0
	nfAccept = 1
)

// refresh empties the set and puts the TAP in again, in one transaction:
// between the two no frame is dropped, and kernels before 6.12 would not renew
// the timeout of an element that is there.
func (k *KernelGate) refresh() (b *nftBatch, timeout int) {
	b = newBatch()
	k.flushSet(b)
	b.message(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE)
	b.str(unix.NFTA_SET_ELEM_LIST_TABLE, TablePrefix+k.tap)
	b.str(unix.NFTA_SET_ELEM_LIST_SET, setName)
	b.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func() {
		b.nest(unix.NFTA_LIST_ELEM, func() {
			b.nest(unix.NFTA_SET_ELEM_KEY, func() {
				key := make([]byte, unix.IFNAMSIZ)
				copy(key, k.tap)
				b.attr(unix.NFTA_DATA_VALUE, key)
			})
			timeout = b.attr(unix.NFTA_SET_ELEM_TIMEOUT, make([]byte, 8))
		})
	})
	return b.finish(), timeout
}

func (k *KernelGate) flushSet(b *nftBatch) {
	b.message(unix.NFT_MSG_DELSETELEM, 0)
	b.str(unix.NFTA_SET_ELEM_LIST_TABLE, TablePrefix+k.tap)
	b.str(unix.NFTA_SET_ELEM_LIST_SET, setName)
}
