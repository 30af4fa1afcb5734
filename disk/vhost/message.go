package vhost

// This file is the wire format of vhost-user: a header, a payload of fixed
// layout in the host's byte order (little-endian here), and descriptors beside
// it. Parsing touches nothing but the bytes it is given.

import (
	"encoding/binary"
	"fmt"
)

// request is a message type ("Front-end message types").
type request uint32

const (
	getFeatures         request = 1
	setFeatures         request = 2
	setOwner            request = 3
	resetOwner          request = 4
	setMemTable         request = 5
	setLogBase          request = 6
	setLogFD            request = 7
	setVringNum         request = 8
	setVringAddr        request = 9
	setVringBase        request = 10
	getVringBase        request = 11
	setVringKick        request = 12
	setVringCall        request = 13
	setVringErr         request = 14
	getProtocolFeatures request = 15
	setProtocolFeatures request = 16
	getQueueNum         request = 17
	setVringEnable      request = 18
	getConfig           request = 24
	setConfig           request = 25
	getInflightFD       request = 31
	setInflightFD       request = 32
)

var requestNames = map[request]string{
	getFeatures: "GET_FEATURES", setFeatures: "SET_FEATURES", setOwner: "SET_OWNER", resetOwner: "RESET_OWNER",
	setMemTable: "SET_MEM_TABLE", setLogBase: "SET_LOG_BASE", setLogFD: "SET_LOG_FD", setVringNum: "SET_VRING_NUM",
	setVringAddr: "SET_VRING_ADDR", setVringBase: "SET_VRING_BASE", getVringBase: "GET_VRING_BASE",
	setVringKick: "SET_VRING_KICK", setVringCall: "SET_VRING_CALL", setVringErr: "SET_VRING_ERR",
	getProtocolFeatures: "GET_PROTOCOL_FEATURES", setProtocolFeatures: "SET_PROTOCOL_FEATURES",
	getQueueNum: "GET_QUEUE_NUM", setVringEnable: "SET_VRING_ENABLE", getConfig: "GET_CONFIG", setConfig: "SET_CONFIG",
	getInflightFD: "GET_INFLIGHT_FD", setInflightFD: "SET_INFLIGHT_FD",
}

func (r request) String() string {
	if name, ok := requestNames[r]; ok {
		return name
	}
	return fmt.Sprintf("message %d", uint32(r))
}

// Protocol features that we offer.
const (
	protocolMQ       = 1 << 0
	protocolLogShmFD = 1 << 1
	protocolReplyAck = 1 << 3
	protocolConfig   = 1 << 9
	protocolInflight = 1 << 12

	protocolOffered = protocolMQ | protocolLogShmFD | protocolReplyAck | protocolConfig | protocolInflight
)

const (
	headerSize     = 12
	maxPayload     = 1024
	maxRegions     = 8 // VHOST_MEMORY_BASELINE_NREGIONS
	maxFDs         = maxRegions
	flagVersion    = 0x1
	flagsVersion   = 0x3
	flagReply      = 0x4
	flagNeedReply  = 0x8
	vringIndexMask = 0xff
	vringNoFD      = 0x100
)

type header struct {
	request request
	flags   uint32
	size    int
}

func parseHeader(p []byte) (header, error) {
	h := header{request: request(binary.LittleEndian.Uint32(p)), flags: binary.LittleEndian.Uint32(p[4:])}
	size := binary.LittleEndian.Uint32(p[8:])
	if h.flags&flagsVersion != flagVersion {
		return h, fmt.Errorf("%v has version %d, want 1", h.request, h.flags&flagsVersion)
	}
	if h.flags&flagReply != 0 {
		return h, fmt.Errorf("%v is marked as a reply", h.request)
	}
	if size > maxPayload {
		return h, fmt.Errorf("%v has a payload of %d bytes, at most %d are allowed", h.request, size, maxPayload)
	}
	h.size = int(size)
	return h, nil
}

// appendReply appends a whole reply to a message.
func appendReply(dst []byte, r request, payload []byte) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, uint32(r))
	dst = binary.LittleEndian.AppendUint32(dst, flagVersion|flagReply)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(payload)))
	return append(dst, payload...)
}

// message is a parsed payload; which fields count depends on the request.
type message struct {
	value   uint64     // features, and the vring and descriptor of *_KICK, _CALL, _ERR
	index   int        // of a vring
	noFD    bool       // *_KICK, _CALL, _ERR: none comes with it
	num     uint32     // SET_VRING_NUM, _BASE, _ENABLE
	addr    vringAddr  // SET_VRING_ADDR
	regions []region   // SET_MEM_TABLE
	log     span       // SET_LOG_BASE
	config  configPart // GET_CONFIG, SET_CONFIG
	shared  inflightAt // GET_INFLIGHT_FD, SET_INFLIGHT_FD
}

// vringAddr is where a ring lies in the hypervisor's own address space.
type vringAddr struct {
	flags             uint32
	desc, used, avail uint64
	log               uint64 // guest physical address under which writes to the used ring are logged
}

const vringFlagLog = 1

// region is a piece of guest memory: size bytes at guest physical address gpa
// and at user in the hypervisor's address space, from offset off of a file on.
type region struct{ gpa, size, user, off uint64 }

type span struct{ size, off uint64 }

type configPart struct {
	off, size, flags uint32
	data             []byte
}

type inflightAt struct {
	size, off     uint64
	queues, depth uint16
}

// parse reads a payload.
func parse(r request, p []byte) (m message, err error) {
	le := binary.LittleEndian
	need := func(n int) bool {
		if len(p) < n && err == nil {
			err = fmt.Errorf("%v has %d bytes, want %d", r, len(p), n)
		}
		return err == nil
	}
	switch r {
	case setFeatures, setProtocolFeatures:
		if need(8) {
			m.value = le.Uint64(p)
		}
	case setVringKick, setVringCall, setVringErr:
		if need(8) {
			m.value = le.Uint64(p)
			m.index, m.noFD = int(m.value&vringIndexMask), m.value&vringNoFD != 0
		}
	case setVringNum, setVringBase, getVringBase, setVringEnable:
		if need(8) {
			m.index, m.num = int(le.Uint32(p)), le.Uint32(p[4:])
		}
	case setVringAddr:
		if need(40) {
			m.index = int(le.Uint32(p))
			m.addr = vringAddr{flags: le.Uint32(p[4:]), desc: le.Uint64(p[8:]), used: le.Uint64(p[16:]), avail: le.Uint64(p[24:]), log: le.Uint64(p[32:])}
		}
	case setMemTable:
		if !need(8) {
			break
		}
		n := le.Uint32(p)
		if n == 0 || n > maxRegions {
			return m, fmt.Errorf("%v has %d regions, want 1 to %d", r, n, maxRegions)
		}
		if !need(8 + 32*int(n)) {
			break
		}
		for p := p[8:]; len(m.regions) < int(n); p = p[32:] {
			m.regions = append(m.regions, region{gpa: le.Uint64(p), size: le.Uint64(p[8:]), user: le.Uint64(p[16:]), off: le.Uint64(p[24:])})
		}
	case setLogBase:
		if need(16) {
			m.log = span{size: le.Uint64(p), off: le.Uint64(p[8:])}
		}
	case getConfig, setConfig:
		if !need(12) {
			break
		}
		m.config = configPart{off: le.Uint32(p), size: le.Uint32(p[4:]), flags: le.Uint32(p[8:]), data: p[12:]}
		if uint64(len(m.config.data)) != uint64(m.config.size) {
			return m, fmt.Errorf("%v names %d bytes and carries %d", r, m.config.size, len(m.config.data))
		}
	case getInflightFD, setInflightFD:
		if need(20) {
			m.shared = inflightAt{size: le.Uint64(p), off: le.Uint64(p[8:]), queues: le.Uint16(p[16:]), depth: le.Uint16(p[18:])}
		}
	}
	return m, err
}
