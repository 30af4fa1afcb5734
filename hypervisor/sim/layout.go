package sim

import (
	"encoding/binary"

	"github.com/zeebo/xxh3"

	"understudy/epoch"
)

// Where the guest keeps what it knows, little endian. Page 0 is the header,
// pages 1 to maxConns hold one connection each, every further page is heap.
// The registers (state.go) travel in the device state.
const (
	magic = "UNDERSTUDY-SIM-1" // 16 bytes at 0

	atBoot       = 16 // boot id, 16 bytes
	atBoots      = 32 // how often this guest has booted
	atCounter    = 40 // steps since the boot: the guest-visible counter
	atMAC        = 48 // 6 bytes
	atDirty      = 56 // Config.DirtyPages
	atPattern    = 64 // Config.Pattern
	atLineEvery  = 72
	atRetransmit = 80
	atDiskEvery  = 88
	atCursor     = 96  // next heap page of PatternSequential
	atDiskNext   = 104 // number of the next disk record
	atDiskLast   = 112 // checksum of the last disk record
	headerEnd    = 120
)

// A connection's page.
const (
	maxConns = 8 // connections at a time

	connUsed  = 0  // 1 if the slot is taken
	connID    = 8  // the client's random number
	connMAC   = 16 // the client's address, 6 bytes
	connSent  = 24 // number of the last line said
	connAcked = 32 // every line up to this one is acknowledged
	connSeen  = 40 // highest line that the client says it has seen
	connToken = 48 // token of line connSent
	connHeard = 56 // step of the client's last frame
	connTold  = 64 // step of the last line sent or sent again
	connRing  = 128

	// Window is how many lines the guest says ahead of an acknowledgement.
	Window   = 64
	ringLine = 24 // token, previous token, step
)

// memory is the image: its bytes, and which pages were written since they were
// collected. It is guarded by its machine's lock, so the dirty set is exact:
// a step is either wholly before a CollectDirty or wholly after it.
type memory struct {
	bytes []byte
	dirty *epoch.PageSet
}

func newMemory(pages uint64) memory {
	m := memory{bytes: make([]byte, pages*epoch.PageSize), dirty: epoch.NewPageSet(pages)}
	m.dirty.Fill()
	return m
}

func (m *memory) pages() uint64 { return m.dirty.Pages() }

func (m *memory) get(at uint64) uint64 { return binary.LittleEndian.Uint64(m.bytes[at:]) }

func (m *memory) put(at, v uint64) {
	binary.LittleEndian.PutUint64(m.bytes[at:], v)
	m.dirty.Add(epoch.GFN(at / epoch.PageSize))
}

// store writes b, which must not cross the end of a page.
func (m *memory) store(at uint64, b []byte) {
	copy(m.bytes[at:], b)
	m.dirty.Add(epoch.GFN(at / epoch.PageSize))
}

// hash returns the hash of one page, its place included.
func (m *memory) hash(f epoch.GFN) uint64 {
	return xxh3.HashSeed(pageOf(m.bytes, f), uint64(f)+1)
}

// sum adds up the hashes of count pages. A sum can be kept up to date page by
// page: take the old hash off, add the new one.
func (m *memory) sum(first epoch.GFN, count uint64) (sum uint64) {
	for f := first; f < first+epoch.GFN(count); f++ {
		sum += m.hash(f)
	}
	return sum
}

// mix is one step of the splitmix64 generator over two words.
func mix(a, b uint64) uint64 {
	z := a + 0x9e3779b97f4a7c15 + b*0xd1342543de82ef95
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}
