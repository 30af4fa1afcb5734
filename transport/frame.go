package transport

// The frames of a session, all integers little endian. Every frame is one
// header, followed by length bytes of payload:
//
//	offset size field
//	     0    2 magic     0x5355 ("US")
//	     2    1 version   1
//	     3    1 type      see below
//	     4    1 kind      data: the message's kind; else 0
//	     5    1 flags     0
//	     6    2 lane      index of the connection within the session
//	     8    8 session   first 8 bytes of the session's id
//	    16    8 sequence  data: number of the message, from 0, one count per
//	                      direction of the session; else: number of the frame
//	                      among the frames of this connection and direction
//	                      that are not data, from 0
//	    24    4 length    of the payload, in bytes
//	    28    4 reserved  0
//	    32    8 checksum  xxh3-64 of the payload, seeded with the xxh3-64 of
//	                      bytes 0 to 31
//
//	type      payload
//	1 hello   the first frame of every connection, in both directions: see
//	          hello. The acceptor answers when it has all connections.
//	2 data    a message, at most MaxMessage of the receiver's hello
//	3 credit  8 bytes: the cost of all messages the receiver has consumed so
//	          far (a message costs its length plus messageCost)
//	4 ping    8 bytes that mean something to the sender only
//	5 pong    the 8 bytes of a ping
//	6 bye     0 bytes: the last frame of a connection
//	7 refuse  up to 512 bytes of text, instead of a hello: why not
//
// The numbers on one connection only grow, and every number comes once: a
// frame that was lost, repeated or moved is found although the messages of a
// session are spread over several connections.

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/zeebo/xxh3"
)

const (
	frameMagic    = 0x5355
	frameVersion  = 1
	headerSize    = 40
	maxReason     = 512
	helloSize     = 40
	controlSize   = 8   // payload of credit, ping and pong
	messageCost   = 512 // what a message costs beyond its length, in bytes of credit
	maxLanes      = 16
	maxMessageMax = 64 << 20
	maxWindow     = 4 << 30
)

type frameType uint8

const (
	frameHello  frameType = 1
	frameData   frameType = 2
	frameCredit frameType = 3
	framePing   frameType = 4
	framePong   frameType = 5
	frameBye    frameType = 6
	frameRefuse frameType = 7
)

// ErrBadFrame is wrapped by the errors of frames that are malformed, corrupt,
// foreign or out of order. The session they came in is dead.
var ErrBadFrame = errors.New("bad frame")

// sessionID names a session: 16 random bytes drawn by the dialer.
type sessionID [16]byte

func (id sessionID) String() string { return fmt.Sprintf("%x", id[:4]) }

// tag is the part of the id that every header carries.
func (id sessionID) tag() uint64 { return binary.LittleEndian.Uint64(id[:8]) }

// header is a decoded frame header.
type header struct {
	typ      frameType
	kind     uint8
	lane     uint16
	session  uint64
	sequence uint64
	length   uint32
	checksum uint64
}

// seal writes the header, with its checksum, in front of the payload:
// frame[headerSize:] must hold it already. h.length and h.checksum are set from
// the frame.
func seal(frame []byte, h header) {
	binary.LittleEndian.PutUint16(frame[0:], frameMagic)
	frame[2] = frameVersion
	frame[3] = byte(h.typ)
	frame[4] = h.kind
	frame[5] = 0
	binary.LittleEndian.PutUint16(frame[6:], h.lane)
	binary.LittleEndian.PutUint64(frame[8:], h.session)
	binary.LittleEndian.PutUint64(frame[16:], h.sequence)
	binary.LittleEndian.PutUint32(frame[24:], uint32(len(frame)-headerSize))
	binary.LittleEndian.PutUint32(frame[28:], 0)
	binary.LittleEndian.PutUint64(frame[32:], checksum(frame[:headerSize], frame[headerSize:]))
}

func checksum(head, payload []byte) uint64 {
	return xxh3.HashSeed(payload, xxh3.Hash(head[:32]))
}

// parseHeader decodes a header and checks every field that can be checked
// without knowing the session, above all that the length is possible for the
// type: the caller may then read that much. maxMessage bounds data frames.
func parseHeader(b []byte, maxMessage int) (header, error) {
	if len(b) != headerSize {
		return header{}, fmt.Errorf("%w: a header of %d bytes", ErrBadFrame, len(b))
	}
	if m := binary.LittleEndian.Uint16(b[0:]); m != frameMagic {
		return header{}, fmt.Errorf("%w: magic %#04x, not %#04x: the peer speaks another protocol, or bytes were lost", ErrBadFrame, m, frameMagic)
	}
	if b[2] != frameVersion {
		return header{}, fmt.Errorf("%w: version %d of the frame format, this side speaks %d", ErrBadFrame, b[2], frameVersion)
	}
	h := header{
		typ:      frameType(b[3]),
		kind:     b[4],
		lane:     binary.LittleEndian.Uint16(b[6:]),
		session:  binary.LittleEndian.Uint64(b[8:]),
		sequence: binary.LittleEndian.Uint64(b[16:]),
		length:   binary.LittleEndian.Uint32(b[24:]),
		checksum: binary.LittleEndian.Uint64(b[32:]),
	}
	if b[5] != 0 || binary.LittleEndian.Uint32(b[28:]) != 0 {
		return header{}, fmt.Errorf("%w: flags %#02x and reserved bytes %x, both must be zero", ErrBadFrame, b[5], b[28:32])
	}
	if h.kind != 0 && h.typ != frameData {
		return header{}, fmt.Errorf("%w: type %d with the kind %d of a message", ErrBadFrame, h.typ, h.kind)
	}
	low, high := uint32(0), uint32(0)
	switch h.typ {
	case frameHello:
		low, high = helloSize, helloSize
	case frameData:
		high = uint32(maxMessage)
	case frameCredit, framePing, framePong:
		low, high = controlSize, controlSize
	case frameBye:
	case frameRefuse:
		high = maxReason
	default:
		return header{}, fmt.Errorf("%w: unknown type %d", ErrBadFrame, h.typ)
	}
	if h.length < low || h.length > high {
		return header{}, fmt.Errorf("%w: type %d with a payload of %d bytes, not %d to %d", ErrBadFrame, h.typ, h.length, low, high)
	}
	return h, nil
}

// verify checks the checksum of a frame given as its header's bytes and its
// payload.
func (h header) verify(head, payload []byte) error {
	if sum := checksum(head, payload); sum != h.checksum {
		return fmt.Errorf("%w: checksum %016x, computed %016x (type %d, sequence %d, %d bytes)",
			ErrBadFrame, h.checksum, sum, h.typ, h.sequence, h.length)
	}
	return nil
}

// hello opens a connection of a session.
//
//	offset size field
//	     0   16 id         of the session
//	    16    2 lane       index of this connection
//	    18    2 lanes      connections of the session, 1 to 16
//	    20    4 maxMessage largest message the sender of the hello takes, bytes
//	    24    8 window     credit the sender of the hello gives at first, bytes
//	    32    4 interval   of its heartbeats, in microseconds
//	    36    4 timeout    after which it gives up, in microseconds
type hello struct {
	id                sessionID
	lane, lanes       int
	maxMessage        int
	window            uint64
	interval, timeout time.Duration
}

func (h hello) append(b []byte) []byte {
	b = append(b, h.id[:]...)
	b = binary.LittleEndian.AppendUint16(b, uint16(h.lane))
	b = binary.LittleEndian.AppendUint16(b, uint16(h.lanes))
	b = binary.LittleEndian.AppendUint32(b, uint32(h.maxMessage))
	b = binary.LittleEndian.AppendUint64(b, h.window)
	b = binary.LittleEndian.AppendUint32(b, uint32(h.interval.Microseconds()))
	return binary.LittleEndian.AppendUint32(b, uint32(h.timeout.Microseconds()))
}

func parseHello(b []byte) (hello, error) {
	if len(b) != helloSize {
		return hello{}, fmt.Errorf("%w: a hello of %d bytes, not %d", ErrBadFrame, len(b), helloSize)
	}
	h := hello{
		lane:       int(binary.LittleEndian.Uint16(b[16:])),
		lanes:      int(binary.LittleEndian.Uint16(b[18:])),
		maxMessage: int(binary.LittleEndian.Uint32(b[20:])),
		window:     binary.LittleEndian.Uint64(b[24:]),
		interval:   time.Duration(binary.LittleEndian.Uint32(b[32:])) * time.Microsecond,
		timeout:    time.Duration(binary.LittleEndian.Uint32(b[36:])) * time.Microsecond,
	}
	copy(h.id[:], b)
	switch {
	case h.lanes < 1 || h.lanes > maxLanes:
		return hello{}, fmt.Errorf("%w: a session of %d connections, not 1 to %d", ErrBadFrame, h.lanes, maxLanes)
	case h.lane >= h.lanes:
		return hello{}, fmt.Errorf("%w: connection %d of a session of %d", ErrBadFrame, h.lane, h.lanes)
	case h.maxMessage < 1 || h.maxMessage > maxMessageMax:
		return hello{}, fmt.Errorf("%w: messages of up to %d bytes, not 1 to %d", ErrBadFrame, h.maxMessage, maxMessageMax)
	case h.window < 2*uint64(h.maxMessage+messageCost) || h.window > maxWindow:
		return hello{}, fmt.Errorf("%w: a window of %d bytes for messages of up to %d", ErrBadFrame, h.window, h.maxMessage)
	case h.interval <= 0 || h.timeout <= h.interval:
		return hello{}, fmt.Errorf("%w: heartbeats every %v with a timeout of %v", ErrBadFrame, h.interval, h.timeout)
	}
	return h, nil
}

// readSmall reads one frame that is no message, into buf. The payload returned
// is a part of buf.
func readSmall(r io.Reader, buf *[headerSize + maxReason]byte) (header, []byte, error) {
	if _, err := io.ReadFull(r, buf[:headerSize]); err != nil {
		return header{}, nil, err
	}
	h, err := parseHeader(buf[:headerSize], 0)
	if err != nil {
		return header{}, nil, err
	}
	payload := buf[headerSize : headerSize+int(h.length)]
	if _, err := io.ReadFull(r, payload); err != nil {
		return header{}, nil, err
	}
	return h, payload, h.verify(buf[:headerSize], payload)
}
