package stream

import (
	"encoding/json"
	"fmt"
)

// Snapshot is what one whole migration stream says about a machine.
type Snapshot struct {
	// Machine is the machine type named by the configuration section, "" if
	// the stream has none.
	Machine string
	// RAM is the section that carries guest memory.
	RAM Section
	// Blocks lists every migratable RAM block in the stream's order.
	Blocks []Block
	// Devices lists the device sections in the stream's order.
	Devices []Section
	// Described lists the same devices as QEMU's own description at the end of
	// the stream has them, nil if it has none.
	Described []Described
}

// Described is one device of the description QEMU puts after a stream.
type Described struct {
	Name     string `json:"name"`
	Instance uint32 `json:"instance_id"`
}

// PageFunc is called for each page of a RAM section: block is an index into
// Snapshot.Blocks, offset is in bytes. A nil page is a page full of zeros; data
// is only valid during the call. An error ends the parsing.
type PageFunc func(block int, offset uint64, data []byte) error

// ParseSnapshot reads the stream that `migrate` writes with the capability
// x-ignore-shared: header, optional configuration, the RAM section, device
// sections, optional description. It calls page for each page in the RAM
// section. Anything it does not know is an error.
func ParseSnapshot(data []byte, page PageFunc) (*Snapshot, error) {
	c := &cursor{data: data}
	s := &Snapshot{}
	c.header()

	kind := c.u8("section type")
	if kind == typeConfiguration && c.err == nil {
		s.Machine = c.configuration()
		kind = c.u8("section type")
	}
	if c.err == nil && kind != typeStart {
		c.fail("the first section has type %#x; want the start of RAM (%#x): early sections are not known here", kind, typeStart)
	}
	s.RAM = c.section()
	if c.err == nil && s.RAM.Name != ramName {
		c.fail("section %q of type %#x before RAM: devices that are saved in several steps are not supported", s.RAM.Name, typeStart)
	}
	s.Blocks = c.blocks()
	records := ramRecords{blocks: s.Blocks, current: -1, page: page}
	records.parse(c)
	c.footer(s.RAM.ID)

	for ended := false; !ended && c.err == nil; {
		kind = c.u8("section type")
		if c.err == nil && kind != typePart && kind != typeEnd {
			c.fail("a section of type %#x inside RAM", kind)
		}
		if id := c.u32("section id"); c.err == nil && id != s.RAM.ID {
			c.fail("section %d inside RAM (section %d): devices that are saved in several steps are not supported", id, s.RAM.ID)
		}
		records.parse(c)
		c.footer(s.RAM.ID)
		ended = kind == typeEnd
	}
	if c.err != nil {
		return nil, c.err
	}

	sections, end, err := splitSections(data, c.at, true)
	if err != nil {
		return nil, err
	}
	s.Devices, c.at = sections, end
	if s.Described, err = c.description(); err != nil {
		return nil, err
	}
	return s, nil
}

// configuration reads the body of a configuration section and returns the
// machine's name.
func (c *cursor) configuration() string {
	n := c.u32("machine name length")
	if c.err == nil && n > maxMachine {
		c.fail("a machine name of %d bytes, at most %d are allowed", n, maxMachine)
	}
	machine := c.bytes(int(min(n, maxMachine)), "machine name")
	for c.err == nil && c.at < len(c.data) && c.data[c.at] == typeSubsection {
		c.u8("subsection")
		name := c.name("subsection name")
		c.u32("subsection version")
		switch name {
		case "configuration/target-page-bits":
			c.u32("target page bits")
		case "configuration/uuid":
			c.bytes(16, "machine uuid")
		case "configuration/capabilities":
			count := c.u32("number of capabilities")
			if c.err == nil && count > maxCaps {
				c.fail("%d capabilities, at most %d are allowed", count, maxCaps)
			}
			for i := uint32(0); i < count && c.err == nil; i++ {
				c.name("capability")
			}
		default:
			c.fail("unknown subsection %q", name)
		}
	}
	return string(machine)
}

// blocks reads the block list that starts a RAM section.
func (c *cursor) blocks() []Block {
	total := c.u64("size of RAM")
	if c.err == nil && total&flagMask != flagMemSize {
		c.fail("RAM starts with flags %#x, want %#x", total&flagMask, flagMemSize)
	}
	total &^= flagMask
	if c.err == nil && total > maxRAM {
		c.fail("%d bytes of RAM, at most %d are supported", total, uint64(maxRAM))
	}
	var blocks []Block
	for left := total; left > 0 && c.err == nil; {
		b := Block{Name: c.name("RAM block name"), Used: c.u64("RAM block length"), Addr: c.u64("RAM block address")}
		switch {
		case c.err != nil:
		case len(blocks) == maxBlocks:
			c.fail("more than %d RAM blocks", maxBlocks)
		case b.Used == 0 || b.Used%PageSize != 0 || b.Used > left:
			c.fail("RAM block %q has %d bytes, %d are left of the total", b.Name, b.Used, left)
		case blockIndex(blocks, b.Name) >= 0:
			c.fail("RAM block %q is listed twice", b.Name)
		default:
			blocks = append(blocks, b)
			left -= b.Used
		}
	}
	if c.err == nil && len(blocks) == 0 {
		c.fail("no RAM block")
	}
	return blocks
}

func blockIndex(blocks []Block, name string) int {
	for i := range blocks {
		if blocks[i].Name == name {
			return i
		}
	}
	return -1
}

// ramRecords reads page records. The current block outlives a section: QEMU
// may continue it in the next.
type ramRecords struct {
	blocks  []Block
	current int
	page    PageFunc
}

// parse reads page records up to the end-of-section record.
func (r *ramRecords) parse(c *cursor) {
	for c.err == nil {
		word := c.u64("RAM record")
		addr, flags := word&^flagMask, word&flagMask
		if c.err != nil {
			return
		}
		if flags == flagEOS {
			if addr != 0 {
				c.fail("an end-of-section record with address %#x", addr)
			}
			return
		}
		kind := flags &^ flagContinue
		if kind != flagZero && kind != flagPage {
			c.fail("a RAM record with flags %#x: only plain pages and zero pages are known", flags)
			return
		}
		if flags&flagContinue == 0 {
			name := c.name("RAM block name")
			r.current = blockIndex(r.blocks, name)
			if c.err == nil && r.current < 0 {
				c.fail("a page of RAM block %q, which is not listed", name)
			}
		} else if r.current < 0 {
			c.fail("a page that continues no RAM block")
		}
		if c.err != nil {
			return
		}
		if addr >= r.blocks[r.current].Used {
			c.fail("page %#x of RAM block %q, which has %#x bytes", addr, r.blocks[r.current].Name, r.blocks[r.current].Used)
			return
		}
		var data []byte
		if kind == flagPage {
			data = c.bytes(PageSize, "page")
		} else if fill := c.u8("zero page"); c.err == nil && fill != 0 {
			c.fail("a zero page filled with %#x", fill)
		}
		if c.err != nil {
			return
		}
		if err := r.page(r.current, addr, data); err != nil {
			c.fail("page %#x of RAM block %q: %w", addr, r.blocks[r.current].Name, err)
		}
	}
}

// description reads what may follow the end of a stream: QEMU's own account of
// the devices in it, as JSON.
func (c *cursor) description() ([]Described, error) {
	if c.at == len(c.data) {
		return nil, nil
	}
	if t := c.u8("description"); t != typeVMDescription {
		c.fail("type %#x after the end of the devices", t)
	}
	size := c.u32("description length")
	raw := c.bytes(int(size), "description")
	if c.err == nil && c.at != len(c.data) {
		c.fail("%d bytes after the description", len(c.data)-c.at)
	}
	if c.err != nil {
		return nil, c.err
	}
	var doc struct {
		PageSize uint64      `json:"page_size"`
		Devices  []Described `json:"devices"`
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, fmt.Errorf("QEMU stream: description: %w", err)
	}
	if doc.PageSize != 0 && doc.PageSize != PageSize {
		return nil, fmt.Errorf("QEMU stream: pages of %d bytes, only %d are supported", doc.PageSize, PageSize)
	}
	return doc.Devices, nil
}
