package stream

// This file reads: header, then record by record.

import (
	"errors"
	"fmt"
	"io"
)

// Reader reads the records of a stream. It reads no byte behind the stream's
// end.
type Reader struct {
	in    io.Reader
	at    int64 // bytes read
	count int   // records read
	order order
	buf   []byte
	pages Pages
	err   error
}

// NewReader reads the header of a libxl stream, which in a file of `xl save`
// follows SaveFile, and returns a Reader for its records.
func NewReader(in io.Reader) (*Reader, error) {
	r := &Reader{in: in}
	head, err := r.read(headerLen)
	if err == nil {
		err = parseHeader(head)
	}
	if err != nil {
		return nil, fmt.Errorf("read a libxl stream's header: %w", err)
	}
	return r, nil
}

// NewLibxcReader returns a Reader for a libxc stream that stands alone, as
// xc_domain_save writes it. Its first record is a Domain.
func NewLibxcReader(in io.Reader) *Reader { return &Reader{in: in, order: order{bare: true}} }

// NewTailReader returns a Reader for the end of a libxl stream: what follows the
// memory of the domain that d describes.
func NewTailReader(in io.Reader, d Domain) *Reader {
	return &Reader{in: in, order: tailOf(d)}
}

// Domain returns what the stream said of its domain, the zero Domain before it did.
func (r *Reader) Domain() Domain { return r.order.domain }

// Next returns the next record, and io.EOF after the last. A stream that is cut
// off ends with io.ErrUnexpectedEOF. What Next returned before belongs to the
// Reader again. After an error it returns the same again.
func (r *Reader) Next() (Record, error) {
	if r.err != nil {
		return nil, r.err
	}
	if r.order.at == over {
		return nil, io.EOF
	}
	at := r.at
	rec, k, err := r.next()
	if err != nil {
		r.err = fmt.Errorf("record %d of a Xen stream, %s at byte %d: %w", r.count, k, at, err)
		return nil, r.err
	}
	r.count++
	return rec, nil
}

func (r *Reader) next() (Record, kind, error) {
	if r.order.bare && r.order.at == begins {
		rec, err := r.domain()
		return rec, rec.kind(), err
	}
	k := kind{level: r.order.level(), number: ^uint32(0)}
	head, err := r.read(8)
	if err != nil {
		return nil, k, err
	}
	k.number = le.Uint32(head)
	length := le.Uint32(head[4:])
	if length > MaxRecord {
		return nil, k, fmt.Errorf("%d bytes are announced, at most %d are allowed", length, MaxRecord)
	}
	body, err := r.read(padded(int(length)))
	if err != nil {
		return nil, k, err
	}
	body = body[:length:length]
	var rec Record
	if k.level == Libxc {
		rec, err = parseLibxc(k.number, body, &r.pages)
	} else {
		rec, err = parseLibxl(k.number, body)
	}
	if err != nil {
		return nil, k, err
	}
	if _, begins := rec.(Domain); begins {
		rec, err = r.domain()
		return rec, k, err
	}
	return rec, k, r.order.take(rec)
}

// domain reads the two headers of a libxc stream.
func (r *Reader) domain() (Domain, error) {
	head, err := r.read(headersLen)
	if err != nil {
		return Domain{}, err
	}
	d, err := parseDomain(head)
	if err != nil {
		return d, err
	}
	return d, r.order.take(d)
}

// step is by how much memory grows for a body of which the bytes have yet to come.
const step = 1 << 20

// read returns the next n bytes, in memory that the next call uses again. It
// takes memory as bytes arrive, not as a length announces them.
func (r *Reader) read(n int) ([]byte, error) {
	for have := 0; have < n; {
		want := min(n, have+max(step, have))
		if want > cap(r.buf) {
			grown := make([]byte, want)
			copy(grown, r.buf[:have])
			r.buf = grown
		}
		got, err := io.ReadFull(r.in, r.buf[have:want])
		r.at += int64(got)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, fmt.Errorf("after %d of %d bytes: %w", have+got, n, err)
		}
		have = want
	}
	return r.buf[:n], nil
}

// padded returns the length of a body with what fills it up to 8 bytes.
func padded(n int) int { return (n + 7) &^ 7 }
