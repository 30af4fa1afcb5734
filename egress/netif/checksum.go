package netif

// This file makes checksums that a guest's driver has left to us.

import "encoding/binary"

const (
	typeIPv4 = 0x0800
	typeVLAN = 0x8100
	protoTCP = 6
	protoUDP = 17
)

// fillChecksum writes the checksum of a TCP or UDP packet in IPv4, with or without
// one VLAN tag. It reports false for any other frame, and for one that is shorter
// than it says.
func fillChecksum(frame []byte) bool {
	if len(frame) < headerLen {
		return false
	}
	kind, packet := binary.BigEndian.Uint16(frame[12:]), frame[headerLen:]
	if kind == typeVLAN && len(packet) >= 4 {
		kind, packet = binary.BigEndian.Uint16(packet[2:]), packet[4:]
	}
	if kind != typeIPv4 || len(packet) < 20 || packet[0]>>4 != 4 {
		return false
	}
	head, size := int(packet[0]&15)*4, int(binary.BigEndian.Uint16(packet[2:]))
	const fragment = 0x3fff // more of them, or not the first
	if head < 20 || size < head || size > len(packet) || binary.BigEndian.Uint16(packet[6:])&fragment != 0 {
		return false
	}
	protocol, body := packet[9], packet[head:size]
	var at int
	switch {
	case protocol == protoTCP && len(body) >= 20:
		at = 16
	case protocol == protoUDP && len(body) >= 8:
		at = 6
	default:
		return false
	}
	body[at], body[at+1] = 0, 0
	sum := add(add(uint64(protocol)+uint64(len(body)), packet[12:20]), body)
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	value := ^uint16(sum)
	if value == 0 && protocol == protoUDP {
		value = 0xffff // 0 says that there is none
	}
	binary.BigEndian.PutUint16(body[at:], value)
	return true
}

// add adds 16-bit words, big-endian, and a last byte as if a zero followed.
func add(sum uint64, b []byte) uint64 {
	for ; len(b) >= 4; b = b[4:] {
		sum += uint64(binary.BigEndian.Uint32(b))
	}
	if len(b) >= 2 {
		sum += uint64(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		sum += uint64(b[0]) << 8
	}
	return sum
}
