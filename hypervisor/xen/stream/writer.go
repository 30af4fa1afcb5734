package stream

// This file writes: header, then record by record.

import (
	"fmt"
	"io"
)

// Writer writes the records of a stream.
type Writer struct {
	out   io.Writer
	order order
	buf   []byte
	err   error
}

// NewWriter writes the header of a libxl stream and returns a Writer for its
// records, the first of which is a Domain.
func NewWriter(out io.Writer) (*Writer, error) {
	w := &Writer{out: out}
	if _, err := out.Write(appendHeader(nil)); err != nil {
		return nil, fmt.Errorf("write a libxl stream's header: %w", err)
	}
	return w, nil
}

// NewLibxcWriter returns a Writer for a libxc stream that stands alone.
func NewLibxcWriter(out io.Writer) *Writer { return &Writer{out: out, order: order{bare: true}} }

// NewTailWriter returns a Writer for the end of a libxl stream: what follows the
// memory of the domain that d describes.
func NewTailWriter(out io.Writer, d Domain) *Writer {
	return &Writer{out: out, order: tailOf(d)}
}

// Write writes a record. It refuses one that cannot be the next, with nothing of
// it written. After an error the stream is of no use, and every call returns it.
func (w *Writer) Write(rec Record) error {
	if p, ok := rec.(Pages); ok {
		return w.WritePages(p.PFNs, p.Data)
	}
	if w.err == nil {
		w.err = w.write(rec)
	}
	return w.err
}

func (w *Writer) write(rec Record) error {
	k := rec.kind()
	fail := func(err error) error { return fmt.Errorf("write a Xen stream's %s: %w", k, err) }
	if d, ok := rec.(Domain); ok {
		if err := d.check(); err != nil {
			return fail(err)
		}
	}
	if err := w.order.take(rec); err != nil {
		return fail(err)
	}
	w.begin(k)
	var err error
	if k.level == Libxc {
		w.buf, err = appendLibxc(w.buf, rec)
	} else {
		w.buf, err = appendLibxl(w.buf, rec)
	}
	if err == nil && len(w.buf)-8 > MaxRecord {
		err = fmt.Errorf("%d bytes, at most %d are allowed", len(w.buf)-8, MaxRecord)
	}
	if err != nil {
		return fail(err)
	}
	w.end(len(w.buf) - 8)
	if d, ok := rec.(Domain); ok {
		if w.order.bare {
			w.buf = w.buf[:0]
		}
		w.buf = d.append(w.buf)
	}
	if _, err := w.out.Write(w.buf); err != nil {
		return fail(err)
	}
	return nil
}

// WritePages writes memory whose content lies in several places: data has
// together PageSize bytes for each page that HasData, in their order. It
// allocates nothing once it has written as many pages at a time before.
func (w *Writer) WritePages(pfns []PFN, data ...[]byte) error {
	if w.err == nil {
		w.err = w.writePages(pfns, data)
	}
	return w.err
}

func (w *Writer) writePages(pfns []PFN, data [][]byte) error {
	k := Pages{}.kind()
	fail := func(err error) error { return fmt.Errorf("write a Xen stream's %s: %w", k, err) }
	size := 0
	for _, d := range data {
		size += len(d)
	}
	body := pageHeaderLen + 8*len(pfns) + size
	if body > MaxRecord {
		return fail(fmt.Errorf("%d bytes, at most %d are allowed", body, MaxRecord))
	}
	if err := checkPages(pfns, uint64(size)); err != nil {
		return fail(err)
	}
	if err := w.order.take(Pages{}); err != nil {
		return fail(err)
	}
	w.begin(k)
	w.buf = le.AppendUint64(w.buf, uint64(len(pfns)))
	for _, p := range pfns {
		w.buf = le.AppendUint64(w.buf, uint64(p))
	}
	le.PutUint32(w.buf[4:], uint32(body)) // a multiple of 8: nothing fills it up
	if _, err := w.out.Write(w.buf); err != nil {
		return fail(err)
	}
	for _, d := range data {
		if _, err := w.out.Write(d); err != nil {
			return fail(err)
		}
	}
	return nil
}

// begin and end put a record's header before its body, and zeros behind it.
func (w *Writer) begin(k kind) {
	w.buf = le.AppendUint32(w.buf[:0], k.number)
	w.buf = le.AppendUint32(w.buf, 0)
}

func (w *Writer) end(body int) {
	le.PutUint32(w.buf[4:], uint32(body))
	for range padded(body) - body {
		w.buf = append(w.buf, 0)
	}
}

// Ended reports whether the stream has been written to its end.
func (w *Writer) Ended() bool { return w.err == nil && w.order.at == over }
