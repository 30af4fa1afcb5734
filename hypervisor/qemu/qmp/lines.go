package qmp

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

// lineReader cuts a stream into lines, none longer than limit bytes. The
// length is checked before the memory for it is taken.
type lineReader struct {
	in    *bufio.Reader
	limit int
	long  []byte // a line longer than in's buffer is put together here
}

func newLineReader(r io.Reader, limit int) *lineReader {
	return &lineReader{in: bufio.NewReaderSize(r, 64<<10), limit: limit}
}

// next returns the next line without its end. The slice is good until the
// next call. A stream that ends inside a line is an error, not a line.
func (l *lineReader) next() ([]byte, error) {
	if cap(l.long) > 1<<20 {
		l.long = nil // do not hold on to the memory of one huge reply
	}
	l.long = l.long[:0]
	for {
		part, err := l.in.ReadSlice('\n')
		if len(l.long)+len(part) > l.limit {
			return nil, fmt.Errorf("message longer than %d bytes", l.limit)
		}
		if err == nil && len(l.long) == 0 {
			return trim(part), nil
		}
		l.long = append(l.long, part...)
		switch {
		case err == nil:
			return trim(l.long), nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(l.long) > 0:
			return nil, io.ErrUnexpectedEOF
		default:
			return nil, err
		}
	}
}
