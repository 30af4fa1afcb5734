package vhost

// This file reads one request from its chain of descriptors. The guest may
// change everything while we look: each field is read once, and nothing read is
// believed.

import (
	"encoding/binary"
	"errors"
	"fmt"

	"understudy/disk"
	"understudy/epoch"
)

const (
	descNextFlag     = 1
	descWriteFlag    = 2
	descIndirectFlag = 4

	pageSize = epoch.PageSize
	// maxChain bounds the descriptors of one request in an indirect table.
	maxChain = 1024
	// maxPieces bounds what a chain may fall into: a descriptor that lies
	// across memory regions is several pieces.
	maxPieces = maxChain + 2*maxRegions
)

// Types of requests (virtio 1.2, 5.2.6).
const (
	typeIn          = 0
	typeOut         = 1
	typeFlush       = 4
	typeGetID       = 8
	typeDiscard     = 11
	typeWriteZeroes = 13

	statusOK          = 0
	statusIOErr       = 1
	statusUnsupported = 2

	requestHeader = 16
	rangeSize     = 16 // struct virtio_blk_discard_write_zeroes
	rangeUnmap    = 1
	serialSize    = 20
)

// chain is a request's memory in order, used again for every request of a
// ring.
type chain struct {
	read, write []piece
	table       [maxChain * descEntry]byte // an indirect table, copied
}

func (c *chain) clear() {
	clear(c.read[:cap(c.read)])
	clear(c.write[:cap(c.write)])
	c.read, c.write = c.read[:0], c.write[:0]
}

// walk follows a chain from head on. What it finds is filled (RULES 18).
func (r *ring) walk(head uint16) error {
	c := &r.chain
	c.read, c.write = c.read[:0], c.write[:0]
	table, n, i := r.desc.data, uint32(r.num), uint32(head)
	indirect := false
	for count := uint32(0); ; {
		if i >= n {
			return fmt.Errorf("descriptor %d of a table of %d", i, n)
		}
		if count++; count > n {
			return fmt.Errorf("a chain of more than %d descriptors", n)
		}
		d := table[i*descEntry:][:descEntry]
		addr, length := binary.LittleEndian.Uint64(d), binary.LittleEndian.Uint32(d[8:])
		flags, next := binary.LittleEndian.Uint16(d[12:]), binary.LittleEndian.Uint16(d[14:])
		if flags&descIndirectFlag != 0 {
			switch {
			case !r.indirect || indirect || count > 1 || flags&descNextFlag != 0:
				return errors.New("an indirect descriptor where none may be")
			case length == 0 || length%descEntry != 0 || length > maxChain*descEntry:
				return fmt.Errorf("an indirect table of %d bytes", length)
			}
			if err := r.copyTable(addr, length); err != nil {
				return err
			}
			table, n, i, count, indirect = c.table[:length], length/descEntry, 0, 0, true
			continue
		}
		to := &c.read
		if flags&descWriteFlag != 0 {
			to = &c.write
		} else if len(c.write) > 0 {
			return errors.New("a readable descriptor behind a writable one")
		}
		if length == 0 {
			return errors.New("an empty descriptor")
		}
		if err := r.pieces(to, addr, uint64(length)); err != nil {
			return err
		}
		if flags&descNextFlag == 0 {
			return nil
		}
		i = uint32(next)
	}
}

// pieces appends guest memory.
func (r *ring) pieces(to *[]piece, gpa, n uint64) error {
	if gpa+n < gpa {
		return fmt.Errorf("%d bytes at %#x go around", n, gpa)
	}
	for n > 0 {
		p, ok := r.mem.guest(gpa, n)
		if !ok || len(p.data) == 0 {
			return fmt.Errorf("%d bytes at %#x are not in guest memory", n, gpa)
		}
		if len(*to) == maxPieces {
			return fmt.Errorf("a request of more than %d pieces", maxPieces)
		}
		if err := r.fill(p); err != nil {
			return err
		}
		*to = append(*to, p)
		gpa += uint64(len(p.data))
		n -= uint64(len(p.data))
	}
	return nil
}

// copyTable copies an indirect table.
func (r *ring) copyTable(gpa uint64, length uint32) error {
	c := &r.chain
	defer func() { c.read = c.read[:0] }()
	if err := r.pieces(&c.read, gpa, uint64(length)); err != nil {
		return fmt.Errorf("indirect table: %w", err)
	}
	gather(c.table[:length], c.read)
	return nil
}

// gather copies from pieces, as much as there is.
func gather(dst []byte, from []piece) (n int) {
	for _, p := range from {
		n += copy(dst[n:], p.data)
	}
	return n
}

// skip returns pieces without their first n bytes.
func skip(from []piece, n int) []piece {
	for len(from) > 0 && n >= len(from[0].data) {
		n -= len(from[0].data)
		from = from[1:]
	}
	if len(from) > 0 && n > 0 {
		from[0].data = from[0].data[n:]
		from[0].off += uint64(n)
		from[0].gpa += uint64(n)
	}
	return from
}

func total(of []piece) (n uint64) {
	for _, p := range of {
		n += uint64(len(p.data))
	}
	return n
}

// read makes the request of q.head. An error says that the chain makes no
// sense: there is not even a place for a status. starved: it needs a buffer of
// that size and there is none now.
func (r *ring) read(q *work) (starved int, err error) {
	if err := r.walk(q.head); err != nil {
		return 0, err
	}
	in, out := r.chain.read, r.chain.write
	var head [requestHeader]byte
	if n := gather(head[:], in); n < requestHeader {
		return 0, fmt.Errorf("a request header of %d bytes", n)
	}
	if len(out) == 0 {
		return 0, errors.New("a request without a status byte")
	}
	in = skip(in, requestHeader)

	last := &out[len(out)-1]
	end := len(last.data) - 1
	q.statusAt = piece{data: last.data[end:], off: last.off + uint64(end), gpa: last.gpa + uint64(end)}
	if last.data = last.data[:end]; end == 0 {
		out = out[:len(out)-1]
	}
	q.written = 1
	kind, sector := binary.LittleEndian.Uint32(head[:]), binary.LittleEndian.Uint64(head[8:])
	s := r.s
	switch kind {
	case typeIn, typeOut:
		q.Op = disk.OpRead
		data := out
		if kind == typeOut {
			q.Op, data = disk.OpWrite, in
		}
		n := total(data)
		if n%epoch.SectorSize != 0 || n > s.limits.maxBytes || !s.within(sector, n/epoch.SectorSize) || kind == typeOut && s.info.ReadOnly {
			q.answer(statusIOErr)
			return 0, nil
		}
		if n == 0 {
			q.answer(statusOK)
			return 0, nil
		}
		q.Sector, q.Sectors = sector, uint32(n/epoch.SectorSize)
		for _, p := range data {
			q.Segments = append(q.Segments, disk.Segment{Data: p.data, Page: p.page(), At: p.at()})
			q.gpas = append(q.gpas, p.gpa)
		}
		if kind == typeIn {
			if !r.direct(q) {
				if q.Buffer = s.budget.take(int(n)); q.Buffer == nil {
					q.unmap()
					return int(n), nil
				}
			}
			q.written += uint32(n)
		}
		q.flushes = kind == typeOut && s.writeThrough.Load()
	case typeFlush:
		q.Op = disk.OpFlush
	case typeGetID:
		var id [serialSize]byte
		copy(id[:], s.info.Serial)
		n := 0
		for _, p := range out {
			m := copy(p.data, id[n:])
			if m > 0 {
				r.touch(p, m)
			}
			n += m
		}
		q.written += uint32(n)
		q.answer(statusOK)
		return 0, nil
	case typeDiscard, typeWriteZeroes:
		r.readRange(q, kind, in)
		q.flushes = s.writeThrough.Load()
	default:
		q.answer(statusUnsupported)
		return 0, nil
	}
	if q.state != isDone {
		q.state = isRead
	}
	return 0, nil
}

// readRange reads what a discard or write-zeroes is about.
func (r *ring) readRange(q *work, kind uint32, in []piece) {
	var b [rangeSize]byte
	s := r.s
	if s.limits.maxZero == 0 && !s.info.ReadOnly {
		q.answer(statusUnsupported)
		return
	}
	if s.info.ReadOnly || total(in) != rangeSize { // one range, as the guest was told
		q.answer(statusIOErr)
		return
	}
	gather(b[:], in)
	sector, sectors := binary.LittleEndian.Uint64(b[:]), binary.LittleEndian.Uint32(b[8:])
	flags := binary.LittleEndian.Uint32(b[12:])
	switch {
	case flags&^rangeUnmap != 0 || kind == typeDiscard && flags != 0:
		q.answer(statusUnsupported)
	case uint64(sectors) > s.limits.maxZero || !s.within(sector, uint64(sectors)):
		q.answer(statusIOErr)
	case sectors == 0:
		q.answer(statusOK)
	default:
		q.Op, q.Sector, q.Sectors = disk.OpDiscard, sector, sectors
		if kind == typeWriteZeroes {
			q.Op, q.Unmap = disk.OpWriteZeroes, flags&rangeUnmap != 0
		}
	}
}

// within reports whether the disk has those sectors.
func (s *Server) within(sector, sectors uint64) bool {
	return sectors <= s.info.Sectors && sector <= s.info.Sectors-sectors
}
