package xen

// This file reads a domain's grant table: which of its frames it has granted to
// whom, and which of them are mapped for writing at this moment.

import (
	"encoding/binary"
	"fmt"
)

// Grant is an entry of a grant table of version 1.
type Grant struct {
	Frame  uint64 // the guest's frame
	Domain uint16 // who may map it
	flags  uint16
}

const (
	grantLen       = 8
	grantAccess    = 1
	grantTypeMask  = 3
	grantReadOnly  = 1 << 2
	grantReading   = 1 << 3
	grantWriting   = 1 << 4
	grantSubPage   = 1 << 8
	grantsReserved = 8 // of the toolstack: console, xenstore
)

// Valid reports whether the entry lets a domain map or copy a whole frame.
func (g Grant) Valid() bool { return g.flags&grantTypeMask == grantAccess && g.flags&grantSubPage == 0 }

// ReadOnly reports whether the frame may only be read.
func (g Grant) ReadOnly() bool { return g.flags&grantReadOnly != 0 }

// Grants is a domain's grant table, version 1, as xenforeignmemory_map_resource
// maps it. The guest changes it at any time: an entry is read once, and what was
// read is what counts.
type Grants []byte

// Len returns how many entries the table has.
func (t Grants) Len() uint32 { return uint32(len(t) / grantLen) }

// At returns an entry.
func (t Grants) At(ref uint32) (Grant, error) {
	if ref >= t.Len() {
		return Grant{}, fmt.Errorf("grant %d of a domain whose table has %d", ref, t.Len())
	}
	e := binary.LittleEndian.Uint64(t[uint64(ref)*grantLen:])
	return Grant{flags: uint16(e), Domain: uint16(e >> 16), Frame: e >> 32}, nil
}

// Written calls yield with every frame that somebody has mapped for writing now, of
// which Xen tells only when the mapping ends, and with those that the toolstack's own
// entries name (console and xenstore, which are mapped by other means), until yield
// returns false. It is called in the pause, for a table that is as large as it may
// become and mostly empty.
func (t Grants) Written(yield func(frame uint64) bool) {
	for at := 0; at+grantLen <= len(t); at += grantLen {
		e := binary.LittleEndian.Uint64(t[at:])
		if e&grantTypeMask != grantAccess || e&grantWriting == 0 && at >= grantsReserved*grantLen {
			continue
		}
		if !yield(e >> 32) {
			return
		}
	}
}
