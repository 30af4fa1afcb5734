package xen

// This file reads the HVM context: the state of processors and of the devices
// that Xen itself emulates, as a list of records. It is Xen's and goes to Xen as
// it came; here only what decides whether it can is looked at.
//
// Source: Xen's public/hvm/save.h and public/arch-x86/hvm/save.h.

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The types of records that are looked at.
const (
	contextEnd    = 0
	contextHeader = 1
	contextCPU    = 2
)

const (
	contextMagic   = 0x54381286
	contextVersion = 1
	// MaxContext bounds an HVM context, in bytes: 8192 processors of some 10 KiB.
	MaxContext = 96 << 20
)

// ContextEntry is one record of an HVM context.
type ContextEntry struct {
	Type, Instance uint16
	Data           []byte
}

// Context is what an HVM context says of its domain.
type Context struct {
	// CPUID is what CPUID leaf 1 gave in eax at the host that saved it.
	CPUID uint32
	// KHz is the frequency of the guest's time stamp counter.
	KHz uint32
	// VCPUs is how many processors have their state in it.
	VCPUs int
	// Entries is the list of its records; their data is the context's own.
	Entries []ContextEntry

	last uint16 // processor
}

// ParseContext reads an HVM context. One that Xen would refuse for its shape is
// an error.
func ParseContext(b []byte) (*Context, error) {
	if len(b) > MaxContext {
		return nil, fmt.Errorf("an HVM context of %d bytes, at most %d are allowed", len(b), MaxContext)
	}
	c := &Context{}
	for at := 0; ; {
		if len(b)-at < 8 {
			return nil, fmt.Errorf("an HVM context without an end: it stops at byte %d", at)
		}
		e := ContextEntry{Type: binary.LittleEndian.Uint16(b[at:]), Instance: binary.LittleEndian.Uint16(b[at+2:])}
		length := binary.LittleEndian.Uint32(b[at+4:])
		at += 8
		if uint64(length) > uint64(len(b)-at) {
			return nil, fmt.Errorf("record %d of an HVM context (type %d) has %d bytes, and %d are left", len(c.Entries), e.Type, length, len(b)-at)
		}
		if e.Type == contextEnd {
			if length != 0 || at != len(b) {
				return nil, fmt.Errorf("an HVM context ends at byte %d of %d", at, len(b))
			}
			return c, c.check()
		}
		e.Data = b[at : at+int(length) : at+int(length)]
		at += int(length)
		if err := c.add(e); err != nil {
			return nil, err
		}
	}
}

func (c *Context) add(e ContextEntry) error {
	if (len(c.Entries) == 0) != (e.Type == contextHeader) {
		return errors.New("an HVM context begins with a header, and has no other")
	}
	c.Entries = append(c.Entries, e)
	switch e.Type {
	case contextHeader:
		if len(e.Data) != 24 || binary.LittleEndian.Uint32(e.Data) != contextMagic || binary.LittleEndian.Uint32(e.Data[4:]) != contextVersion {
			return fmt.Errorf("the header of an HVM context is %.24x: it is not one of this version of Xen", e.Data)
		}
		c.CPUID, c.KHz = binary.LittleEndian.Uint32(e.Data[16:]), binary.LittleEndian.Uint32(e.Data[20:])
	case contextCPU:
		// Processors that are off are left out.
		if c.VCPUs > 0 && e.Instance <= c.last {
			return fmt.Errorf("processor %d of an HVM context comes behind processor %d", e.Instance, c.last)
		}
		c.last = e.Instance
		c.VCPUs++
	}
	return nil
}

func (c *Context) check() error {
	if c.VCPUs == 0 {
		return errors.New("an HVM context without a processor")
	}
	return nil
}
