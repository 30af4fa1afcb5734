package xen

// This file is the state of a PV domain in a checkpoint file. A PV domain's pages
// have types: its page tables are in its own memory, and are kept as Xen's streams
// have them, with numbers of pages in place of the hypervisor's frames. The types
// stand before the tail:
//
//	8 "XENPVST1" · 4 number of runs · 4 zero
//	8 first page, type in the upper 4 bits · 8 pages      for each run
//	TSC_INFO, SHARED_INFO, processors …, END, END         the tail of its stream

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"understudy/hypervisor/xen/stream"
)

const (
	pvMagic   = "XENPVST1"
	pvHead    = len(pvMagic) + 8
	pvRunSize = 16
)

// appendPV appends a PV domain's state.
func appendPV(dst []byte, types []stream.PageType, tail []byte) []byte {
	dst = append(dst, pvMagic...)
	at := len(dst)
	dst = append(dst, make([]byte, 8)...)
	runs := uint32(0)
	for first := 0; first < len(types); runs++ {
		end := first + 1
		for end < len(types) && types[end] == types[first] {
			end++
		}
		dst = binary.LittleEndian.AppendUint64(dst, uint64(stream.NewPFN(uint64(first), types[first])))
		dst = binary.LittleEndian.AppendUint64(dst, uint64(end-first))
		first = end
	}
	binary.LittleEndian.PutUint32(dst[at:], runs)
	return append(dst, tail...)
}

// typeRun is adjacent pages of one type.
type typeRun struct {
	first, count uint64
	kind         stream.PageType
}

// parsePV reads the state of a PV domain of so many pages. The tail is part of b.
func parsePV(b []byte, d stream.Domain, pages uint64) (runs []typeRun, tail []byte, err error) {
	if runs, tail, err = parsePVTypes(b, pages); err == nil {
		err = checkPVTail(tail, d)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("the state of a PV domain: %w", err)
	}
	return runs, tail, nil
}

func parsePVTypes(b []byte, pages uint64) ([]typeRun, []byte, error) {
	if len(b) < pvHead || string(b[:len(pvMagic)]) != pvMagic || binary.LittleEndian.Uint32(b[len(pvMagic)+4:]) != 0 {
		return nil, nil, errors.New("it does not begin as one does")
	}
	count := uint64(binary.LittleEndian.Uint32(b[len(pvMagic):]))
	b = b[pvHead:]
	if count > uint64(len(b)/pvRunSize) {
		return nil, nil, fmt.Errorf("%d runs of pages in %d bytes", count, len(b))
	}
	runs := make([]typeRun, 0, count)
	end := uint64(0)
	for range count {
		at, n := stream.PFN(binary.LittleEndian.Uint64(b)), binary.LittleEndian.Uint64(b[8:])
		if b = b[pvRunSize:]; uint64(stream.NewPFN(at.Number(), at.Type())) != uint64(at) || !at.Type().Valid() ||
			at.Number() != end || n == 0 || n > pages-end {
			return nil, nil, fmt.Errorf("%d pages of type %d at page %d, behind page %d of %d", n, at.Type(), at.Number(), end, pages)
		}
		runs = append(runs, typeRun{end, n, at.Type()})
		end += n
	}
	if end != pages {
		return nil, nil, fmt.Errorf("the types of %d pages, it has %d", end, pages)
	}
	return runs, b, nil
}

// checkPVTail makes sure that a tail is that of a whole PV domain, and nothing else.
func checkPVTail(tail []byte, d stream.Domain) error {
	if len(tail) > MaxTail {
		return fmt.Errorf("%d bytes, at most %d are allowed", len(tail), MaxTail)
	}
	in := bytes.NewReader(tail)
	counted := false
	for r := stream.NewTailReader(in, d); ; {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return err
		}
		switch rec := rec.(type) {
		case stream.TSCInfo:
			counted = true
		case stream.SharedInfo, stream.VCPU, stream.DomainEnd, stream.End:
		default:
			return fmt.Errorf("it has a record that is no state (%T)", rec)
		}
	}
	if in.Len() != 0 || !counted {
		return fmt.Errorf("%d bytes follow it, the time stamp counter is there: %v", in.Len(), counted)
	}
	return nil
}
