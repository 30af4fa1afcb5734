package sim

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// The wire format of the guest's stream service: one message per Ethernet
// frame, all of one size, big endian.
//
//	 0  destination address   6     14  "USIM"              4
//	 6  source address        6     18  version, 1          1
//	12  0x88B5 (experimental) 2     19  kind                1
//	                                20  flags               2
//	22  connection            8     70  sent                8
//	30  boot id              16     78  acked               8
//	46  line                  8     86  seen                8
//	54  token                 8     94  stamp               8
//	62  previous token        8    102  step                8
//	                               110  CRC-32C of 0…109    4
const (
	// FrameSize is the length of every frame of the stream, in bytes.
	FrameSize = 114
	// MaxFrame is the longest Ethernet frame without its checksum, in bytes.
	MaxFrame = 1514

	etherType    = 0x88B5 // IEEE 802 local experimental
	frameMagic   = "USIM"
	frameVersion = 1
)

type kind uint8

const (
	kindOpen    kind = iota + 1 // client: open this connection
	kindWelcome                 // guest: it is open; also the answer to a repeated open
	kindLine                    // guest: one line of the stream
	kindAck                     // client: what it has; flagProbe asks for an answer
	kindStatus                  // guest: the answer to a probe
	kindReset                   // guest: there is no such connection, or no room for one
	kindClose                   // client: forget this connection
	kindEnd
)

const flagProbe = 1

// message is what a frame says. A field that a kind has no use for is 0.
type message struct {
	dst, src [6]byte
	kind     kind
	flags    uint16
	conn     uint64
	boot     [16]byte
	line     uint64 // number of the line, from 1
	token    uint64 // what makes this line this line
	prev     uint64 // token of the line before
	sent     uint64 // last line said (guest)
	acked    uint64 // every line up to here has arrived (client says, guest repeats)
	seen     uint64 // highest line that has arrived (client says, guest repeats)
	stamp    uint64 // client's clock; the guest mixes it into its randomness and returns it
	step     uint64 // step in which the line was said
}

// errForeign marks a frame that is not of this protocol: on a shared network
// that is no error.
var errForeign = errors.New("not a frame of the stream service")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// put writes m into b, which is FrameSize bytes long.
func (m *message) put(b []byte) {
	_ = b[FrameSize-1]
	copy(b, m.dst[:])
	copy(b[6:], m.src[:])
	binary.BigEndian.PutUint16(b[12:], etherType)
	copy(b[14:], frameMagic)
	b[18], b[19] = frameVersion, byte(m.kind)
	binary.BigEndian.PutUint16(b[20:], m.flags)
	binary.BigEndian.PutUint64(b[22:], m.conn)
	copy(b[30:], m.boot[:])
	for i, v := range [...]uint64{m.line, m.token, m.prev, m.sent, m.acked, m.seen, m.stamp, m.step} {
		binary.BigEndian.PutUint64(b[46+8*i:], v)
	}
	binary.BigEndian.PutUint32(b[110:], crc32.Checksum(b[:110], castagnoli))
}

// parse reads a frame. It keeps nothing of b and allocates only for errors.
func (m *message) parse(b []byte) error {
	if len(b) < FrameSize || len(b) > MaxFrame ||
		binary.BigEndian.Uint16(b[12:]) != etherType || string(b[14:18]) != frameMagic {
		return errForeign
	}
	if got, want := binary.BigEndian.Uint32(b[110:]), crc32.Checksum(b[:110], castagnoli); got != want {
		return fmt.Errorf("stream frame: checksum %#x, content makes %#x", got, want)
	}
	if b[18] != frameVersion {
		return fmt.Errorf("stream frame: version %d, want %d", b[18], frameVersion)
	}
	if kind(b[19]) == 0 || kind(b[19]) >= kindEnd {
		return fmt.Errorf("stream frame: unknown kind %d", b[19])
	}
	m.dst, m.src = [6]byte(b[0:]), [6]byte(b[6:])
	m.kind = kind(b[19])
	m.flags = binary.BigEndian.Uint16(b[20:])
	m.conn = binary.BigEndian.Uint64(b[22:])
	m.boot = [16]byte(b[30:])
	for i, p := range [...]*uint64{&m.line, &m.token, &m.prev, &m.sent, &m.acked, &m.seen, &m.stamp, &m.step} {
		*p = binary.BigEndian.Uint64(b[46+8*i:])
	}
	return nil
}
