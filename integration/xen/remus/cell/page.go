package cell

// This file is the page of the guest's memory in which the first domain says what the
// guest is to do, and the guest shows that it runs: neither costs the guest anything that
// would be measured, as a line on its console would.
//
//	first domain ─ Ask ─> load ─> the guest's loop
//	the guest's loop ─ Tick ─> counters ─> first domain: Ticks, Written

import (
	"bytes"
	"sync/atomic"
	"unsafe"
)

// PageSize is a page's, in bytes.
const PageSize = 4096

// AreaPages is the size of the memory that the guest writes to, in pages.
const AreaPages = 8192

// Places in the page.
const (
	atLoad    = 16 // pages per second << 32 | bytes per page
	atWritten = 24
	atTicks   = 32
)

// mark is what the page begins with, xored so that no program has it in its file.
var mark = [16]byte{'r' ^ 1, 'e' ^ 1, 'm' ^ 1, 'u' ^ 1, 's' ^ 1, 0xfe, 0xdc, 0xba, 0x98, 0x76, 0x54, 0x32, 0x10, 'g' ^ 1, 'a' ^ 1, 'p' ^ 1}

// Page is the page. Both sides see the same memory.
type Page struct{ memory []byte }

// NewPage makes a Page of PageSize bytes, aligned to a page.
func NewPage(memory []byte) Page { return Page{memory[:PageSize:PageSize]} }

// Begin makes it one that IsPage finds.
func (p Page) Begin() {
	for i, b := range mark {
		p.memory[i] = b ^ 1
	}
}

// IsPage reports whether a page of a guest's memory is the one.
func IsPage(memory []byte) bool {
	var want [len(mark)]byte
	for i, b := range mark {
		want[i] = b ^ 1
	}
	return bytes.HasPrefix(memory, want[:])
}

func (p Page) word(at int) *atomic.Uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(&p.memory[at]))
}

// Ask says what the guest is to do.
func (p Page) Ask(l Load) { p.word(atLoad).Store(uint64(l.Pages)<<32 | uint64(uint32(l.Bytes))) }

// Asked is what Ask said.
func (p Page) Asked() Load {
	w := p.word(atLoad).Load()
	return Load{Pages: int(w >> 32), Bytes: int(min(uint32(w), PageSize))}
}

// Tick says that the guest's program runs, and counts the pages that it has written.
func (p Page) Tick(pages uint64) {
	p.word(atWritten).Add(pages)
	p.word(atTicks).Add(1)
}

// Ticks is how often it did.
func (p Page) Ticks() uint64 { return p.word(atTicks).Load() }

// Written is the sum of the pages.
func (p Page) Written() uint64 { return p.word(atWritten).Load() }
