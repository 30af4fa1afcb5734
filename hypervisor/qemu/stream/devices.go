package stream

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
)

// ParseDevices reads the file that `xen-save-devices-state` writes and returns
// its device sections in order. A section does not tell its length; its end is
// found by its footer followed by another section's start or by the end of the
// stream. A guest that puts such bytes into a device can only make its own
// section list look changed, which is reported and not acted upon.
func ParseDevices(data []byte) ([]Section, error) {
	c := &cursor{data: data}
	c.header()
	if c.err != nil {
		return nil, c.err
	}
	sections, end, err := splitSections(data, c.at, false)
	if err != nil {
		return nil, err
	}
	if end != len(data) {
		return nil, fmt.Errorf("QEMU device state: %d bytes after its end", len(data)-end)
	}
	return sections, nil
}

// splitSections finds the full sections of data[at:] and returns them with the
// offset after the end-of-stream byte. If described is set, a description may
// follow the end.
func splitSections(data []byte, at int, described bool) ([]Section, int, error) {
	var sections []Section
	c := &cursor{data: data, at: at}
	for {
		kind := c.u8("section type")
		switch {
		case c.err != nil:
			return nil, 0, c.err
		case kind == typeEOF:
			return sections, c.at, nil
		case kind != typeFull:
			c.fail("a section of type %#x among the devices", kind)
			return nil, 0, c.err
		case len(sections) == maxSections:
			c.fail("more than %d sections", maxSections)
			return nil, 0, c.err
		}
		s := c.section()
		if c.err != nil {
			return nil, 0, c.err
		}
		sections = append(sections, s)
		end := findFooter(data, c.at, s.ID, described)
		if end < 0 {
			c.fail("section %q (%d) has no footer", s.Name, s.ID)
			return nil, 0, c.err
		}
		c.at = end
	}
}

// findFooter returns the offset after the footer of section id, or -1.
func findFooter(data []byte, at int, id uint32, described bool) int {
	var footer [5]byte
	footer[0] = typeFooter
	binary.BigEndian.PutUint32(footer[1:], id)
	for {
		i := bytes.Index(data[at:], footer[:])
		if i < 0 {
			return -1
		}
		at += i
		if next := at + len(footer); startsSection(data[next:], described) {
			return next
		}
		at++
	}
}

// startsSection reports whether rest is what may follow a footer: another full
// section, or the end.
func startsSection(rest []byte, described bool) bool {
	if len(rest) == 0 {
		return false
	}
	switch rest[0] {
	case typeEOF:
		if len(rest) == 1 {
			return true
		}
		return described && len(rest) >= 6 && rest[1] == typeVMDescription &&
			uint64(binary.BigEndian.Uint32(rest[2:])) == uint64(len(rest)-6)
	case typeFull:
		const fixed = 1 + 4 + 1 // type, id, length of the name
		if len(rest) < fixed {
			return false
		}
		n := int(rest[5])
		return len(rest) >= fixed+n+8 && validName(rest[fixed:fixed+n])
	}
	return false
}

// Checker tells whether a saved device state still has the sections it had at
// first, at the cost of one search per section and no allocation. A device
// that came or went (hotplug) shows there and nowhere else.
type Checker struct {
	sections []Section
	first    []byte   // how the state starts: header and first section
	bounds   [][]byte // each section's footer with what follows it
}

// NewChecker returns a Checker for the given section list.
func NewChecker(sections []Section) *Checker {
	k := &Checker{sections: slices.Clone(sections)}
	k.first = appendHeader(nil)
	for i, s := range sections {
		if i == 0 {
			k.first = appendSection(k.first, typeFull, s)
		}
		bound := appendFooter(nil, s.ID)
		if i+1 < len(sections) {
			bound = appendSection(bound, typeFull, sections[i+1])
		} else {
			bound = append(bound, typeEOF)
		}
		k.bounds = append(k.bounds, bound)
	}
	return k
}

// Sections returns the list the Checker was made for.
func (k *Checker) Sections() []Section { return slices.Clone(k.sections) }

// Check returns nil if state, as written by xen-save-devices-state, has
// exactly the expected sections, and otherwise says what differs.
func (k *Checker) Check(state []byte) error {
	if k.matches(state) {
		return nil
	}
	got, err := ParseDevices(state)
	if err != nil {
		return err
	}
	for _, s := range got {
		if !slices.Contains(k.sections, s) {
			return fmt.Errorf("QEMU device state: section %q (instance %d, version %d) is new", s.Name, s.Instance, s.Version)
		}
	}
	for _, s := range k.sections {
		if !slices.Contains(got, s) {
			return fmt.Errorf("QEMU device state: section %q (instance %d) is gone", s.Name, s.Instance)
		}
	}
	if !slices.Equal(got, k.sections) {
		return fmt.Errorf("QEMU device state: its %d sections are in another order", len(got))
	}
	return nil
}

func (k *Checker) matches(state []byte) bool {
	if !bytes.HasPrefix(state, k.first) {
		return false
	}
	at := len(k.first)
	for i, bound := range k.bounds {
		if i == len(k.bounds)-1 { // the end is at the end and nowhere else
			return len(state)-at >= len(bound) && bytes.HasSuffix(state, bound)
		}
		j := bytes.Index(state[at:], bound)
		if j < 0 {
			return false
		}
		at += j + len(bound)
	}
	return len(state) == at+1 && state[at] == typeEOF
}
