package qemu

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"

	"understudy/epoch"
	"understudy/hypervisor"
	"understudy/hypervisor/qemu/dirty"
	"understudy/hypervisor/qemu/stream"
)

// Beside its main memory a machine has other RAM blocks: firmware, ACPI
// tables, option ROMs, video memory. They are private memory of the QEMU
// process. Their pages follow main memory in the image; where they lie is
// found out once, by size and content, while the guest stands still.

// mainBlock is the name of main memory: the id of its back end.
const mainBlock = "ram"

// block is one RAM block of the machine. Side blocks take Total bytes of the
// image, so that the image's size stays the same when one grows or shrinks.
type block struct {
	stream.Block
	// Total is the most the block can grow to, in bytes.
	Total uint64 `json:"total"`
}

// resizable reports whether the block may change its length: QEMU's tables for
// the firmware do when they are made anew.
func (b block) resizable() bool { return b.Total > b.Used || strings.HasPrefix(b.Name, "/rom@") }

// ramBlockLine matches a line of `info ramblock`: name, page size, offset,
// used, total; QEMU 8.2 and later append address and access.
var ramBlockLine = regexp.MustCompile(`^\s*(\S+)\s+\d+ \S+\s+0x[0-9a-f]+\s+0x([0-9a-f]+)\s+0x([0-9a-f]+)(\s+0x[0-9a-f]+\s+\S+)?\s*$`)

// parseRAMBlocks reads the text of `info ramblock` and returns each block's
// used and total length in bytes.
func parseRAMBlocks(text string) (map[string][2]uint64, error) {
	blocks := map[string][2]uint64{}
	lines := bufio.NewScanner(strings.NewReader(text))
	for first := true; lines.Scan(); first = false {
		line := lines.Text()
		if strings.TrimSpace(line) == "" || first && strings.Contains(line, "Block Name") {
			continue
		}
		m := ramBlockLine.FindStringSubmatch(line)
		if m == nil {
			return nil, fmt.Errorf("RAM block line %.120q is not understood", line)
		}
		var size [2]uint64
		for i := range size {
			n, err := strconv.ParseUint(m[2+i], 16, 64)
			if err != nil {
				return nil, fmt.Errorf("RAM block line %.120q: %w", line, err)
			}
			size[i] = n
		}
		if size[0] == 0 || size[0] > size[1] || size[0]%epoch.PageSize != 0 || size[1]%epoch.PageSize != 0 {
			return nil, fmt.Errorf("RAM block %s uses %d of %d bytes", m[1], size[0], size[1])
		}
		if _, twice := blocks[m[1]]; twice {
			return nil, fmt.Errorf("RAM block %s is listed twice", m[1])
		}
		blocks[m[1]] = size
	}
	if len(blocks) == 0 {
		return nil, fmt.Errorf("no RAM blocks in %.80q", text)
	}
	return blocks, lines.Err()
}

// sideBlock is a block inside a QEMU process, as part of the image.
type sideBlock struct {
	index int // in the spec's block list
	addr  uint64
	first uint64 // page of the image
	pages uint64
}

// layout places the side blocks behind main memory. It returns them without
// addresses, and the size of the image in pages.
func layout(blocks []block) (side []sideBlock, pages uint64) {
	for _, b := range blocks {
		if b.Name == mainBlock {
			pages += b.Total / epoch.PageSize
		}
	}
	for i, b := range blocks {
		if b.Name != mainBlock {
			n := b.Total / epoch.PageSize
			side = append(side, sideBlock{index: i, first: pages, pages: n})
			pages += n
		}
	}
	return side, pages
}

// locate finds the address of each side block in a process whose guest stands
// still. content returns the bytes that a block holds, its used part.
func locate(pid int, mem *os.File, blocks []block, side []sideBlock, content func(index int) []byte) error {
	maps, err := dirty.ReadMaps(pid)
	if err != nil {
		return err
	}
	taken := map[uint64]bool{}
	for i := range side {
		s, b := &side[i], blocks[side[i].index]
		want := content(s.index)
		var found []uint64
		for _, at := range candidates(maps, b.Total) {
			equal, err := holds(mem, at, want)
			if err != nil {
				return fmt.Errorf("look for RAM block %s: %w", b.Name, err)
			}
			if equal && !taken[at] {
				found = append(found, at)
			}
		}
		if len(found) != 1 {
			return &hypervisor.Refusal{
				What:   fmt.Sprintf("RAM block %s (%d KiB) of QEMU matches %d of its mappings, so that writes to it could not be seen", b.Name, b.Total>>10, len(found)),
				Remedy: "leave out the extra device that owns it",
			}
		}
		s.addr = found[0]
		taken[s.addr] = true
	}
	return nil
}

// candidates returns where a block of the given size may lie. QEMU maps each
// alone, aligned to 2 MiB, with a guard page behind it.
func candidates(maps []dirty.Mapping, size uint64) []uint64 {
	const alignment = 2 * mib
	var found []uint64
	for i, m := range maps {
		guarded := i+1 < len(maps) && maps[i+1].Start == m.End && !maps[i+1].Read && !maps[i+1].Write
		if m.Inode == 0 && m.Path == "" && m.Read && m.Write && !m.Shared && guarded &&
			m.End-m.Start == size && m.Start%alignment == 0 {
			found = append(found, m.Start)
		}
	}
	return found
}

// holds reports whether a process's memory at an address equals want.
func holds(mem *os.File, addr uint64, want []byte) (bool, error) {
	buf := make([]byte, min(len(want), 1<<20))
	for len(want) > 0 {
		part := buf[:min(len(buf), len(want))]
		if _, err := mem.ReadAt(part, int64(addr)); err != nil {
			return false, err
		}
		if !bytes.Equal(part, want[:len(part)]) {
			return false, nil
		}
		addr, want = addr+uint64(len(part)), want[len(part):]
	}
	return true, nil
}

// openMemory opens another process's memory (proc_pid_mem(5)), which needs
// the right to trace it.
func openMemory(pid int) (*os.File, error) {
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return nil, fmt.Errorf("open QEMU's memory: %w: it needs CAP_SYS_PTRACE", err)
	}
	return mem, nil
}

// readSide copies pages of a side block out of its process.
func (s *sideBlock) read(mem *os.File, page uint64, dst []byte) error {
	if _, err := mem.ReadAt(dst, int64(s.addr+(page-s.first)*epoch.PageSize)); err != nil {
		return fmt.Errorf("read QEMU's RAM block at %#x: %w", s.addr, err)
	}
	return nil
}

// written reports whether any present page of the range is not under write
// protection, that is, whether it was written since the last scan, or the
// range is not tracked at all (Documentation/admin-guide/mm/pagemap.rst).
func written(pagemap *os.File, addr, pages uint64, buf []byte) (bool, error) {
	const (
		entry     = 8
		protected = 1 << 57
		present   = 1 << 63
		swapped   = 1 << 62
	)
	for pages > 0 {
		n := min(pages, uint64(len(buf)/entry))
		part := buf[:n*entry]
		if _, err := pagemap.ReadAt(part, int64(addr/epoch.PageSize*entry)); err != nil {
			return false, fmt.Errorf("read page table of QEMU: %w", err)
		}
		for i := 0; i < len(part); i += entry {
			e := le64(part[i:])
			if e&(present|swapped) != 0 && e&protected == 0 {
				return true, nil
			}
		}
		addr, pages = addr+n*epoch.PageSize, pages-n
	}
	return false, nil
}

func le64(b []byte) uint64 {
	return uint64(b[0]) | uint64(b[1])<<8 | uint64(b[2])<<16 | uint64(b[3])<<24 |
		uint64(b[4])<<32 | uint64(b[5])<<40 | uint64(b[6])<<48 | uint64(b[7])<<56
}
