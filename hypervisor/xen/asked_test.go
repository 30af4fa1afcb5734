package xen

import (
	"encoding/binary"
	"testing"

	"understudy/epoch"
)

// paged is a guest's memory with page tables in it, frame by frame.
type paged map[uint64][]byte

func (m paged) page(frame uint64) []byte { return m[frame] }

// at returns a frame of it.
func (m paged) at(frame uint64) []byte {
	if m[frame] == nil {
		m[frame] = make([]byte, epoch.PageSize)
	}
	return m[frame]
}

// maps writes the tables by which an address is at the byte to, the upmost at frame 1;
// the tables end at the level last.
func (m paged) maps(levels, last int, address, to uint64) {
	table := uint64(1)
	for level := levels - 1; ; level-- {
		shift := 12 + 9*level
		entry := m.at(table)[address>>shift%512*8:]
		if level == last {
			flags := uint64(1<<63 | entryPresent)
			if level > 0 {
				flags |= entryLarge | 1<<12 // its memory type
			}
			binary.LittleEndian.PutUint64(entry, to>>shift<<shift|flags)
			return
		}
		table = 0x100*uint64(levels) + uint64(level)
		binary.LittleEndian.PutUint64(entry, table*epoch.PageSize|entryPresent|0x26)
	}
}

// processor is a CPU record with what a hypercall is asked by.
func processor(operation, argument, cr4 uint64) []byte {
	cpu := make([]byte, 1024)
	binary.LittleEndian.PutUint64(cpu[cpuRDI:], operation)
	binary.LittleEndian.PutUint64(cpu[cpuRSI:], argument)
	binary.LittleEndian.PutUint64(cpu[cpuCR3:], 1*epoch.PageSize|0x3) // with a process' number
	binary.LittleEndian.PutUint64(cpu[cpuCR4:], cr4)
	binary.LittleEndian.PutUint32(cpu[cpuCode:], codeLong|0x9b)
	return cpu
}

// What each operation can leave at a place, where its argument says so.
func TestWhatAProcessorHasAskedFor(t *testing.T) {
	const address, to = 0xffffc90000123e48, 0x40000000 + 0x123e48
	five := uint64(cr4Levels5)
	put := func(space uint32) []byte { // struct xen_add_to_physmap: domid, size, space, index, frame
		arg := binary.LittleEndian.AppendUint16(nil, 0x7ff0)
		arg = binary.LittleEndian.AppendUint16(arg, 1)
		arg = binary.LittleEndian.AppendUint32(arg, space)
		return binary.LittleEndian.AppendUint64(arg, 7)
	}
	for _, try := range []struct {
		what         string
		cpu          []byte
		levels, last int
		argument     []byte
		takes        bool
	}{
		{"its grant table is put into its place", processor(7, address, 0), 4, 0, put(1), true},
		{"the same, by a large page", processor(7, address, 0), 4, 1, put(1), true},
		{"by a huge one", processor(7, address, 0), 4, 2, put(1), true},
		{"by tables of five levels", processor(7, address, five), 5, 0, put(1), true},
		{"by tables of five levels, as if there were four", processor(7, address, 0), 5, 0, put(1), false},
		{"the frame shared with Xen", processor(7, address, 0), 4, 0, put(0), true},
		{"memory of its own is put elsewhere", processor(7, address, 0), 4, 0, put(2), false},
		{"memory of another domain", processor(7, address, 0), 4, 0, put(4), false},
		{"an argument that is not aligned", processor(7, address+4, 0), 4, 0, put(1), false},
		{"an argument that is nowhere", processor(7, address+epoch.PageSize, 0), 4, 0, put(1), false},
		{"memory is taken", processor(1, 0, 0), 4, 0, nil, true},
		{"the rest of much memory is taken", processor(1|512<<6, 0, 0), 4, 0, nil, true},
		{"a place is left without memory", processor(15, 0, 0), 4, 0, nil, true},
		{"memory is given", processor(6, 0, 0), 4, 0, nil, false},
		{"memory is exchanged", processor(11, 0, 0), 4, 0, nil, false},
		{"something else", processor(29, address, 0), 4, 0, put(1), false},
		{"less of a record", processor(1, 0, 0)[:cpuCodeEnd-1], 4, 0, nil, false},
		{"a 32-bit guest", append(processor(1, 0, 0)[:cpuCode], make([]byte, 8)...), 4, 0, nil, false},
	} {
		m := paged{}
		m.maps(try.levels, try.last, address, to)
		copy(m.at(to / epoch.PageSize)[to%epoch.PageSize:], try.argument)
		if got := TakesOnly(try.cpu, m.page); got != try.takes {
			t.Errorf("%s: %v, want %v", try.what, got, try.takes)
		}
	}
}

// What a guest has in its registers and in its memory is its own affair.
func FuzzTakesOnly(f *testing.F) {
	m := paged{}
	m.maps(4, 0, 0xffffc90000123e48, 2*epoch.PageSize)
	f.Add(processor(7, 0xffffc90000123e48, 0), m[1])
	f.Add(processor(7, 0, cr4Levels5), []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, cpu, table []byte) {
		all := make([]byte, epoch.PageSize)
		copy(all, table)
		TakesOnly(cpu, func(frame uint64) []byte {
			if frame%2 == 0 {
				return nil
			}
			return all
		})
	})
}
