package cell

// This file counts what a stream of Remus brings for each checkpoint. It looks at the
// records' heads only, because whoever drains the stream while the guest stands still
// holds the guest up; hypervisor/xen/stream reads the same streams whole, and the tests
// hold the two together.
//
//	libxl header │ LIBXC_CONTEXT, libxc's headers │ libxc records … CHECKPOINT │
//	libxl records … CHECKPOINT_END ─> one checkpoint │ libxc records … CHECKPOINT │ …

import (
	"encoding/binary"
	"fmt"
)

// Checkpoint is what one checkpoint took in the stream.
type Checkpoint struct {
	Bytes uint64 // all of it
	Pages uint64 // with content
}

// Meter counts a stream that it is given piece by piece. Its zero value is at the
// stream's beginning.
type Meter struct {
	// End is called at the end of each checkpoint.
	End func(Checkpoint)

	begun bool // the header is behind us
	libxc bool // libxc's records, not libxl's
	head  []byte
	skip  uint64 // bytes of a body that are still to come
	now   Checkpoint
}

// The records that matter (hypervisor/xen/stream has them all).
const (
	libxlHeader    = 16
	libxlContext   = 1
	libxlEnd       = 4 // CHECKPOINT_END
	libxcHeaders   = 40
	libxcPages     = 1
	libxcEnd       = 0x0e // CHECKPOINT
	recordHead     = 8
	pagesHead      = 8
	maxRecordBytes = 128 << 20
)

// Write takes the next piece.
func (m *Meter) Write(b []byte) (int, error) {
	n := len(b)
	m.now.Bytes += uint64(n)
	for len(b) > 0 {
		if m.skip > 0 {
			s := min(m.skip, uint64(len(b)))
			m.skip -= s
			b = b[s:]
			continue
		}
		want := m.want()
		take := min(want-len(m.head), len(b))
		m.head = append(m.head, b[:take]...)
		b = b[take:]
		if len(m.head) < want || m.want() > want { // or it is a head of which more is looked at
			continue
		}
		if err := m.record(uint64(len(b))); err != nil {
			return n - len(b), err
		}
		m.head = m.head[:0]
	}
	return n, nil
}

// want is how many bytes have to be there before anything is known.
func (m *Meter) want() int {
	switch {
	case !m.begun:
		return libxlHeader
	case m.libxc && len(m.head) >= recordHead && binary.LittleEndian.Uint32(m.head) == libxcPages:
		return recordHead + pagesHead
	}
	return recordHead
}

// record looks at a head. left is how much of the piece follows it.
func (m *Meter) record(left uint64) error {
	if !m.begun {
		if string(m.head[:8]) != "LibxlFmt" {
			return fmt.Errorf("a stream that begins with %x is none of libxl", m.head)
		}
		m.begun = true
		return nil
	}
	kind, length := binary.LittleEndian.Uint32(m.head), uint64(binary.LittleEndian.Uint32(m.head[4:]))
	if length > maxRecordBytes {
		return fmt.Errorf("a record of type %#x with %d bytes", kind, length)
	}
	m.skip = (length + 7) &^ 7
	switch {
	case m.libxc && kind == libxcPages:
		names := uint64(binary.LittleEndian.Uint32(m.head[recordHead:]))
		if length < pagesHead+8*names {
			return fmt.Errorf("a record of %d pages with %d bytes", names, length)
		}
		m.now.Pages += (length - pagesHead - 8*names) / PageSize
		m.skip -= pagesHead
	case m.libxc && kind == libxcEnd:
		m.libxc = false
	case !m.libxc && kind == libxlContext:
		m.libxc, m.skip = true, m.skip+libxcHeaders
	case !m.libxc && kind == libxlEnd:
		m.now.Bytes -= left // of the next one
		m.End(m.now)
		m.now, m.libxc = Checkpoint{Bytes: left}, true
	}
	return nil
}
