package egress

import (
	"encoding/binary"
	"net"
	"net/netip"
)

// EtherTypes and lengths used here (IEEE 802.3; RFC 826, 791, 903).
const (
	typeIPv4 = 0x0800
	typeARP  = 0x0806
	typeRARP = 0x8035
	typeVLAN = 0x8100

	arpLen     = 28
	ipv4MinLen = 20
	// minFrame is the shortest frame on a wire, without its check sequence.
	minFrame = 60
)

// sourceIPv4 returns the sender's IPv4 address of an ARP or IPv4 frame, with or
// without one VLAN tag. It reads untrusted bytes.
func sourceIPv4(frame []byte) (netip.Addr, bool) {
	if len(frame) < headerLen {
		return netip.Addr{}, false
	}
	kind, body := binary.BigEndian.Uint16(frame[12:]), frame[headerLen:]
	if kind == typeVLAN && len(body) >= 4 {
		kind, body = binary.BigEndian.Uint16(body[2:]), body[4:]
	}
	var addr netip.Addr
	switch {
	case kind == typeIPv4 && len(body) >= ipv4MinLen && body[0]>>4 == 4:
		addr = netip.AddrFrom4([4]byte(body[12:16]))
	case kind == typeARP && len(body) >= arpLen && [6]byte(body[:6]) == arpEthernetIPv4:
		addr = netip.AddrFrom4([4]byte(body[14:18]))
	default:
		return netip.Addr{}, false
	}
	return addr, addr.IsGlobalUnicast() || addr.IsLinkLocalUnicast()
}

// arpEthernetIPv4 is the fixed beginning of an ARP packet for IPv4 on Ethernet.
var arpEthernetIPv4 = [6]byte{0, 1, 8, 0, 6, 4}

// destination and source address of a frame; it has at least headerLen bytes.
func destination(frame []byte) [6]byte { return [6]byte(frame[:6]) }
func source(frame []byte) [6]byte      { return [6]byte(frame[6:12]) }

var broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// arpFrame builds a broadcast ARP or RARP packet from mac.
func arpFrame(kind, operation uint16, mac net.HardwareAddr, sender [4]byte, targetMAC net.HardwareAddr, target [4]byte) []byte {
	f := make([]byte, 0, minFrame)
	f = append(f, broadcast...)
	f = append(f, mac...)
	f = binary.BigEndian.AppendUint16(f, kind)
	f = append(f, arpEthernetIPv4[:]...)
	f = binary.BigEndian.AppendUint16(f, operation)
	f = append(f, mac...)
	f = append(f, sender[:]...)
	f = append(f, targetMAC...)
	f = append(f, target[:]...)
	return f[:minFrame]
}

// announcements returns the frames that tell switches and neighbours where mac
// is: a RARP request, which needs no address and is what switches learn from,
// and for each address a gratuitous ARP request (RFC 5227, section 3).
func announcements(mac net.HardwareAddr, addrs []netip.Addr) [][]byte {
	const request, reverseRequest = 1, 3
	nobody := make(net.HardwareAddr, 6)
	frames := [][]byte{arpFrame(typeRARP, reverseRequest, mac, [4]byte{}, mac, [4]byte{})}
	for _, a := range addrs {
		if a = a.Unmap(); a.Is4() {
			frames = append(frames, arpFrame(typeARP, request, mac, a.As4(), nobody, a.As4()))
		}
	}
	return frames
}
