package blkif

// This file is the requests and responses as they lie in the ring, in the two
// layouts that guests use: those of 64-bit and of 32-bit x86.

import (
	"encoding/binary"
	"errors"
	"fmt"

	"understudy/epoch"
)

// Protocol is a layout of requests.
type Protocol uint8

const (
	X86_64 Protocol = iota
	X86_32
)

// ParseProtocol reads what the guest's driver wrote. One that wrote nothing has our
// own layout.
func ParseProtocol(s string) (Protocol, error) {
	switch s {
	case "", "x86_64-abi":
		return X86_64, nil
	case "x86_32-abi":
		return X86_32, nil
	}
	return 0, fmt.Errorf("the guest's driver speaks %.40q, only x86_64-abi and x86_32-abi are known", s)
}

// Operations.
const (
	opRead     = 0
	opWrite    = 1
	opBarrier  = 2
	opFlush    = 3
	opDiscard  = 5
	opIndirect = 6
)

// Statuses of a response.
const (
	statusOK          = 0
	statusError       = -1
	statusUnsupported = -2
)

const (
	maxDirect   = 11 // segments in the request itself
	maxIndirect = 8  // pages of segments
	segmentLen  = 8
	pageSegs    = pageSize / segmentLen
	maxEntry    = 112
	pageSectors = pageSize / epoch.SectorSize
)

// layout says where a protocol has what, in bytes from a request's begin.
type layout struct {
	entry                    int // size
	id, sector               int
	segments                 int
	indirectHandle, indirect int
	discardSectors           int
}

func (p Protocol) layout() layout {
	if p == X86_32 {
		return layout{entry: 108, id: 4, sector: 12, segments: 20, indirectHandle: 20, indirect: 24, discardSectors: 20}
	}
	return layout{entry: 112, id: 8, sector: 16, segments: 24, indirectHandle: 24, indirect: 28, discardSectors: 24}
}

// entries is how many requests a ring of so many bytes has: a power of two.
func (l layout) entries(size int) uint32 {
	n := uint32(1)
	for int(n)*2*l.entry <= size-ringHeader {
		n *= 2
	}
	return n
}

// segment is a piece of a page: adjacent sectors, first to last.
type segment struct {
	ref         uint32
	first, last uint8
}

// request is what a request says. It is made of a copy of the ring's bytes.
type request struct {
	operation byte // with opIndirect already replaced by what is done
	id        uint64
	sector    uint64
	count     uint64 // sectors, of a discard
	segments  []segment
	tables    []uint32 // references of the pages with the segments of an indirect request
	left      int      // segments that are in tables
}

// errUnsupported is answered with statusUnsupported, every other error of a
// request with statusError.
var errUnsupported = errors.New("an operation that is not supported")

// parse reads a request, except for an indirect one's segments. It uses q's
// memory again. q.id and q.operation are valid after an error, too: the response
// has them.
func (l layout) parse(b []byte, q *request) error {
	*q = request{operation: b[0], id: binary.LittleEndian.Uint64(b[l.id:]), sector: binary.LittleEndian.Uint64(b[l.sector:]), segments: q.segments[:0], tables: q.tables[:0]}
	switch b[0] {
	case opRead, opWrite, opFlush:
		count := int(b[1])
		if count > maxDirect || count == 0 && b[0] != opFlush {
			return fmt.Errorf("a request of %d segments", count)
		}
		return q.add(b[l.segments:], count)
	case opDiscard:
		q.count = binary.LittleEndian.Uint64(b[l.discardSectors:])
		return nil
	case opIndirect:
		count := int(binary.LittleEndian.Uint16(b[2:]))
		if b[1] != opRead && b[1] != opWrite || count == 0 || count > MaxSegments {
			return fmt.Errorf("an indirect request of operation %d with %d segments", b[1], count)
		}
		q.operation, q.left = b[1], count
		for at := l.indirect; count > 0; at, count = at+4, count-pageSegs {
			q.tables = append(q.tables, binary.LittleEndian.Uint32(b[at:]))
		}
		return nil
	}
	return errUnsupported // a barrier, too: we do not say that we have any
}

// add appends segments of a table.
func (q *request) add(table []byte, count int) error {
	for range count {
		s := segment{binary.LittleEndian.Uint32(table), table[4], table[5]}
		if s.first > s.last || s.last >= pageSectors {
			return fmt.Errorf("sectors %d to %d of a page", s.first, s.last)
		}
		q.segments = append(q.segments, s)
		table = table[segmentLen:]
	}
	return nil
}

// addTable appends the segments that the next page of an indirect request has.
func (q *request) addTable(page []byte) error {
	count := min(q.left, pageSegs)
	q.left -= count
	return q.add(page, count)
}

// sectors is how many sectors the segments have.
func (q *request) sectors() (n uint32) {
	for _, s := range q.segments {
		n += uint32(s.last-s.first) + 1
	}
	return n
}

// responseLen is what of a response is written; the rest of its entry is left.
const responseLen = 12

// putResponse writes a response, which is the same in both layouts.
func putResponse(dst []byte, id uint64, operation byte, status int16) {
	binary.LittleEndian.PutUint64(dst, id)
	dst[8], dst[9] = operation, 0
	binary.LittleEndian.PutUint16(dst[10:], uint16(status))
}
