package qemu

import (
	"encoding/binary"
	"encoding/hex"
)

// trialWord is what the trial guest writes to its serial port when it is done.
const trialWord = "understudy-ok"

// trialCode is the trial guest, assembled for address 0x100000 from testdata/trial.S
// (as --32; ld -m elf_i386 -Ttext 0x100000 --oformat binary): it builds page
// tables for one GiB, enters 64-bit mode, makes 20 million turns that write to
// 4 MiB, writes its word to port 0x3f8 and ends by port 0xf4.
const trialCode = "" +
	"fabf0000200031c0b9000c0000f3abc7050000200003102000c7050010200003" +
	"202000bf00202000b883000000b9000200008907050000200083c708e2f4b800" +
	"0020000f22d80f20e083c8200f22e0b9800000c00f320d000100000f300f20c0" +
	"0d000000800f22c00f0115d8001000ea760010000800b8100000008ed88ed08e" +
	"c0b9002d310189c825ffff0f00890c8500004000ffc975eebeb1001000baf803" +
	"0000ac84c07403eeebf831c0e6f4f4ebfd756e64657273747564792d6f6b0090" +
	"0000000000000000ffff0000009aaf00ffff00000092cf001700c0001000"

func trialKernel() []byte {
	code, err := hex.DecodeString(trialCode)
	if err != nil {
		panic(err) // a constant
	}
	return pvhKernel(code)
}

// pvhKernel wraps code for address 0x100000 into the smallest kernel that QEMU
// boots directly: an ELF file with a note that gives its 32-bit entry point
// (xen/docs/misc/pvh.pandoc).
func pvhKernel(code []byte) []byte {
	const (
		base       = 0x100000
		headerSize = 52
		phdrSize   = 32
		noteAt     = headerSize + 2*phdrSize
		noteSize   = 12 + 4 + 4
		codeAt     = noteAt + noteSize

		machine386        = 3
		loadSegment       = 1
		noteSegment       = 4
		notePhysicalEntry = 18 // XEN_ELFNOTE_PHYS32_ENTRY
	)
	le := binary.LittleEndian
	b := append([]byte("\x7fELF"), 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	for _, half := range []uint16{2, machine386} {
		b = le.AppendUint16(b, half)
	}
	for _, word := range []uint32{1, base, headerSize, 0, 0} { // version, entry, program headers, sections, flags
		b = le.AppendUint32(b, word)
	}
	for _, half := range []uint16{headerSize, phdrSize, 2, 0, 0, 0} {
		b = le.AppendUint16(b, half)
	}
	size := uint32(len(code))
	for _, word := range []uint32{
		loadSegment, codeAt, base, base, size, size, 7, 1,
		noteSegment, noteAt, 0, 0, noteSize, noteSize, 4, 4,
	} {
		b = le.AppendUint32(b, word)
	}
	for _, word := range []uint32{4, 4, notePhysicalEntry} { // lengths of name and value, type
		b = le.AppendUint32(b, word)
	}
	b = append(b, "Xen\x00"...)
	b = le.AppendUint32(b, base)
	return append(b, code...)
}
