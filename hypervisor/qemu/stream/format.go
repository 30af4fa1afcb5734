// Package stream reads and writes QEMU's migration stream, as far as a standby
// needs it. The layout is QEMU's own (docs/devel/migration.rst; the writers are
// migration/savevm.c and migration/ram.c); every number is big endian.
//
// Data flows through the package in the order of its files:
//
//	migrate with x-ignore-shared, once   ── ParseSnapshot (snapshot.go) ─> RAM block list and the blocks' pages
//	xen-save-devices-state, each epoch   ── ParseDevices (devices.go)  ─> device sections
//	block list + pages + device sections ── Compose (compose.go)       ─> what a standby's `migrate-incoming` reads
//
// Everything that comes in is bounded before it is believed; what is not known
// is refused, because a section carries no length and nothing after an unknown
// one can be found again.
package stream

import (
	"encoding/binary"
	"fmt"
)

const (
	magic   = 0x5145564d // "QEVM"
	version = 3

	// HeaderSize is the length in bytes of the magic and the version that
	// every stream and every saved device state starts with.
	HeaderSize = 8

	// PageSize is the size of a page in a RAM section, in bytes.
	PageSize = 4096
)

// Section types: the byte that starts a section.
const (
	typeEOF           = 0x00
	typeStart         = 0x01
	typePart          = 0x02
	typeEnd           = 0x03
	typeFull          = 0x04
	typeSubsection    = 0x05
	typeVMDescription = 0x06
	typeConfiguration = 0x07
	typeCommand       = 0x08
	typeFooter        = 0x7e
)

// Flags in the low bits of a RAM record's address.
const (
	flagZero     = 0x02
	flagMemSize  = 0x04
	flagPage     = 0x08
	flagEOS      = 0x10
	flagContinue = 0x20

	flagMask = PageSize - 1
)

// Limits on what a stream may claim. They are far above what stock machines
// have (about ten blocks and sixty sections) and far below what hurts.
const (
	maxBlocks   = 256
	maxSections = 4096
	maxRAM      = 1 << 46 // bytes in all blocks together
	maxMachine  = 255     // bytes in the machine's name
	maxCaps     = 256     // capabilities in a configuration section
)

const ramName = "ram" // the section name of guest memory

// Block is one RAM block of the machine as the stream lists it.
type Block struct {
	// Name is QEMU's name of the block, 1 to 255 bytes.
	Name string `json:"name"`
	// Used is the block's length in bytes, a multiple of PageSize. Firmware
	// tables may grow up to a larger size that the stream does not tell.
	Used uint64 `json:"used"`
	// Addr is the offset of the block in its memory region. QEMU compares it
	// at load for the blocks that x-ignore-shared leaves out.
	Addr uint64 `json:"addr"`
}

// cursor reads a byte slice from front to back. The first error sticks, and
// every later read returns zero, so that a parser checks once per record.
type cursor struct {
	data []byte
	at   int
	err  error
}

func (c *cursor) fail(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf("QEMU stream, byte %d: %w", c.at, fmt.Errorf(format, args...))
	}
}

// bytes returns the next n bytes without copying them, or nil.
func (c *cursor) bytes(n int, what string) []byte {
	if c.err != nil {
		return nil
	}
	if n < 0 || n > len(c.data)-c.at {
		c.fail("%s needs %d bytes, %d are left", what, n, len(c.data)-c.at)
		return nil
	}
	b := c.data[c.at : c.at+n]
	c.at += n
	return b
}

func (c *cursor) u8(what string) byte {
	if b := c.bytes(1, what); b != nil {
		return b[0]
	}
	return 0
}

func (c *cursor) u32(what string) uint32 {
	if b := c.bytes(4, what); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (c *cursor) u64(what string) uint64 {
	if b := c.bytes(8, what); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// name reads a byte of length and that many bytes of a name.
func (c *cursor) name(what string) string {
	n := c.u8(what + " length")
	b := c.bytes(int(n), what)
	if c.err == nil && !validName(b) {
		c.fail("%s %q is not a name", what, b)
	}
	return string(b)
}

// validName reports whether b could be a name QEMU gives a block or a device:
// printable ASCII, not empty.
func validName(b []byte) bool {
	for _, ch := range b {
		if ch < 0x20 || ch > 0x7e {
			return false
		}
	}
	return len(b) > 0 && len(b) <= 255
}

func (c *cursor) header() {
	if m := c.u32("magic"); c.err == nil && m != magic {
		c.fail("magic %#x, want %#x", m, uint32(magic))
	}
	if v := c.u32("version"); c.err == nil && v != version {
		c.fail("version %d, want %d", v, version)
	}
}

// Section names one section of a stream: a device's registration.
type Section struct {
	ID       uint32 `json:"id"`
	Name     string `json:"name"`
	Instance uint32 `json:"instance"`
	Version  uint32 `json:"version"`
}

// section reads what follows the type byte of a start or full section.
func (c *cursor) section() Section {
	return Section{
		ID:       c.u32("section id"),
		Name:     c.name("section name"),
		Instance: c.u32("section instance"),
		Version:  c.u32("section version"),
	}
}

func (c *cursor) footer(id uint32) {
	if t := c.u8("section footer"); c.err == nil && t != typeFooter {
		c.fail("section %d ends in %#x, not in a footer", id, t)
	}
	if got := c.u32("section footer"); c.err == nil && got != id {
		c.fail("the footer of section %d names section %d", id, got)
	}
}

func appendSection(dst []byte, kind byte, s Section) []byte {
	dst = append(dst, kind)
	dst = binary.BigEndian.AppendUint32(dst, s.ID)
	dst = append(dst, byte(len(s.Name)))
	dst = append(dst, s.Name...)
	dst = binary.BigEndian.AppendUint32(dst, s.Instance)
	return binary.BigEndian.AppendUint32(dst, s.Version)
}

func appendFooter(dst []byte, id uint32) []byte {
	return binary.BigEndian.AppendUint32(append(dst, typeFooter), id)
}
