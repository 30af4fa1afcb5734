package protocol

import (
	"encoding/binary"
	"fmt"
)

// A Hello can be larger than one message of a session. It travels as pieces:
// each begins with the total size (u32), and the last one completes it.

// pieceHeader is the size of the total in front of each piece.
const pieceHeader = 4

// Pieces calls send for each piece of b, none longer than max bytes.
func Pieces(b []byte, max int, send func(piece []byte) error) error {
	if max <= pieceHeader || len(b) > MaxHello {
		return fmt.Errorf("pieces: %d bytes in pieces of %d (at most %d in all)", len(b), max, MaxHello)
	}
	total := binary.LittleEndian.AppendUint32(nil, uint32(len(b)))
	for {
		n := min(len(b), max-pieceHeader)
		if err := send(append(total[:pieceHeader:pieceHeader], b[:n]...)); err != nil {
			return err
		}
		if b = b[n:]; len(b) == 0 {
			return nil
		}
	}
}

// Joiner puts pieces together again.
type Joiner struct {
	total int
	got   []byte
}

// Add takes one piece and reports whether the message is whole. Memory grows
// with what was received, never with what was announced.
func (j *Joiner) Add(piece []byte) (whole []byte, done bool, err error) {
	if len(piece) < pieceHeader {
		return nil, false, fmt.Errorf("piece of %d bytes, want at least %d", len(piece), pieceHeader)
	}
	total := binary.LittleEndian.Uint32(piece)
	body := piece[pieceHeader:]
	switch {
	case total == 0 || total > MaxHello:
		return nil, false, fmt.Errorf("message of %d bytes in pieces (at most %d)", total, MaxHello)
	case j.total != 0 && int(total) != j.total:
		return nil, false, fmt.Errorf("piece of a message of %d bytes amid one of %d", total, j.total)
	case len(body) == 0:
		return nil, false, fmt.Errorf("empty piece")
	case len(body) > int(total)-len(j.got):
		return nil, false, fmt.Errorf("pieces of %d bytes for a message of %d", len(j.got)+len(body), total)
	}
	j.total = int(total)
	j.got = append(j.got, body...)
	if len(j.got) < j.total {
		return nil, false, nil
	}
	whole = j.got
	*j = Joiner{}
	return whole, true, nil
}
