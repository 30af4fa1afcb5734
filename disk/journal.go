package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"unsafe"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"

	"understudy/epoch"
)

// This file is the memory of the held log: one mapping, of a file on tmpfs that
// survives this process (RULES 11), or of anonymous memory. Everything in
// it is in the machine's own byte order: no other machine reads it.
//
//	0     header: what the file is, and words that change (see word)
//	4096  ring: records, addressed by positions that only grow; a position's
//	      place is position % size, and no record crosses the ring's end
//
// A record is a header of whole sectors, so that its data is aligned for direct
// I/O, and the data:
//
//	0  magic, kind, disk, number of pages   24 sector     40 checksum
//	8  position                             32 sectors    48 done
//	16 seq                                  36 data bytes 64 pages, 8 bytes each
//
// The checksum covers everything but itself and done, and is written last: a
// record that the process died in is seen as the end. The position in it tells
// it from one of an earlier round.

const (
	journalName    = "held"
	journalMagic   = uint64(0x31444c4548444e55) // "UNDHELD1" in little endian
	journalVersion = 1
	// JournalVersion is journalVersion, for who starts another program on a journal.
	JournalVersion = journalVersion
	journalHeader  = 4096

	recordMagic  = uint32(0x31574855) // "UHW1"
	skipMagic    = uint32(0x31534855) // "UHS1": the ring goes on at its start
	recordFixed  = 64
	checksumAt   = 40
	doneAt       = 48
	maxDataPages = epoch.MaxWriteSectors / epoch.PageSectors
)

// maxRecord is the size of the largest record.
const maxRecord = (recordFixed+8*maxDataPages+epoch.SectorSize-1)/epoch.SectorSize*epoch.SectorSize +
	epoch.MaxWriteSectors*epoch.SectorSize

// word names a word of the journal's header that changes, by its offset. Each is
// written in one piece.
type word int

const (
	wordHead       word = 64 // position of the oldest record that is not done
	wordReleased   word = 72 // position before which records may reach the disk
	wordSeq        word = 80 // highest Seq given out
	wordGeneration word = 88 // of the owner that the records are of
)

type journal struct {
	file *os.File // nil: anonymous memory
	mem  []byte
	ring []byte
}

// openJournal maps the journal in dir, or anonymous memory if dir is "". found
// says that the file is a former process's and has the ring size it had.
func openJournal(dir string, size uint64) (j *journal, found bool, err error) {
	if dir == "" {
		mem, err := unix.Mmap(-1, 0, int(journalHeader+size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return nil, false, fmt.Errorf("%d bytes of memory for held writes: %w", size, err)
		}
		j = &journal{mem: mem, ring: mem[journalHeader:]}
		j.format()
		return j, false, nil
	}
	path := filepath.Join(dir, journalName)
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, false, fmt.Errorf("journal of held writes: %w", err)
	}
	j, found, err = mapJournal(file, size)
	if err != nil {
		return nil, false, errors.Join(fmt.Errorf("journal of held writes %s: %w", path, err), file.Close())
	}
	return j, found, nil
}

func mapJournal(file *os.File, size uint64) (*journal, bool, error) {
	// One daemon at a time.
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, false, fmt.Errorf("another process uses it: %w", err)
	}
	info, err := file.Stat()
	if err != nil {
		return nil, false, err
	}
	found := false
	if info.Size() > 0 {
		var head [64]byte
		if _, err := file.ReadAt(head[:], 0); err != nil {
			return nil, false, err
		}
		// A header of zeros is a journal whose making was cut short.
		if head != [64]byte{} {
			old, err := journalSize(head[:], info.Size())
			if err != nil {
				return nil, false, err
			}
			size, found = old, true
		}
	}
	length := int64(journalHeader + size)
	if !found {
		// Memory is taken now: a full tmpfs must be an error here and not a
		// SIGBUS at some write.
		if err := unix.Fallocate(int(file.Fd()), 0, 0, length); err != nil {
			return nil, false, fmt.Errorf("reserving %d bytes: %w", length, err)
		}
	}
	mem, err := unix.Mmap(int(file.Fd()), 0, int(length), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, false, fmt.Errorf("mapping %d bytes: %w", length, err)
	}
	j := &journal{file: file, mem: mem, ring: mem[journalHeader:]}
	if !found {
		j.format()
	}
	return j, found, nil
}

// journalSize checks a header and returns the size of the ring.
func journalSize(head []byte, length int64) (uint64, error) {
	n := binary.NativeEndian
	switch size := n.Uint64(head[16:]); {
	case n.Uint64(head) != journalMagic:
		return 0, errors.New("it is no journal: remove it if it belongs to nothing")
	case n.Uint32(head[8:]) != journalVersion:
		return 0, fmt.Errorf("it has version %d, this program writes %d: end the guest, or run the program that wrote it", n.Uint32(head[8:]), journalVersion)
	case n.Uint64(head[24:]) != xxh3.Hash(head[:24]):
		return 0, errors.New("its header is damaged: end the guest and remove the file")
	case size == 0 || size%epoch.SectorSize != 0 || size > uint64(length) || journalHeader+size > uint64(length):
		return 0, fmt.Errorf("its header says %d bytes, the file has %d: end the guest and remove the file", size, length)
	default:
		return size, nil
	}
}

func (j *journal) format() {
	n := binary.NativeEndian
	clear(j.mem[:journalHeader])
	n.PutUint32(j.mem[8:], journalVersion)
	n.PutUint64(j.mem[16:], uint64(len(j.ring)))
	// The magic last: see mapJournal.
	var sum [24]byte
	copy(sum[:], j.mem[:24])
	n.PutUint64(sum[:], journalMagic)
	n.PutUint64(j.mem[24:], xxh3.Hash(sum[:]))
	j.word(0).Store(journalMagic)
}

func (j *journal) word(w word) *atomic.Uint64 { return (*atomic.Uint64)(unsafe.Pointer(&j.mem[w])) }

// place returns what the ring has from a position to its end.
func (j *journal) place(pos uint64) []byte { return j.ring[pos%uint64(len(j.ring)):] }

func (j *journal) done(pos uint64) *atomic.Uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(&j.place(pos)[doneAt]))
}

// begin writes the head of a record at e.pos; the caller fills in pages and data
// and then calls seal.
func (j *journal) begin(e *entry) {
	n, b := binary.NativeEndian, j.place(e.pos)
	n.PutUint64(b[checksumAt:], 0)
	n.PutUint32(b, recordMagic)
	b[4], b[5] = byte(e.kind), byte(e.disk)
	n.PutUint16(b[6:], uint16(e.pages))
	n.PutUint64(b[8:], e.pos)
	n.PutUint64(b[16:], e.seq)
	n.PutUint64(b[24:], e.sector)
	n.PutUint32(b[32:], e.sectors)
	n.PutUint32(b[36:], e.dataBytes())
	n.PutUint64(b[doneAt:], 0)
}

func (j *journal) seal(e *entry) {
	b := j.place(e.pos)[:e.size]
	(*atomic.Uint64)(unsafe.Pointer(&b[checksumAt])).Store(sumRecord(b, e))
}

func sumRecord(b []byte, e *entry) uint64 {
	sum := xxh3.Hash(b[:checksumAt])
	if e.pages > 0 {
		sum = xxh3.HashSeed(b[recordFixed:recordFixed+8*e.pages], sum)
	}
	if n := e.dataBytes(); n > 0 {
		sum = xxh3.HashSeed(b[e.header:e.header+n], sum)
	}
	return sum | 1 // 0 is "not written"
}

// skip says at pos that the next record is at the start of the ring.
func (j *journal) skip(pos uint64) {
	n, b := binary.NativeEndian, j.place(pos)
	if len(b) == 0 || pos%uint64(len(j.ring)) == 0 {
		return
	}
	n.PutUint32(b, skipMagic)
	n.PutUint64(b[8:], pos)
	n.PutUint64(b[checksumAt:], xxh3.Hash(b[:16]))
}

// load reads the record at pos. ok is false where there is none; wrap: go on at
// the start of the ring.
func (j *journal) load(pos uint64) (e entry, wrap, ok bool) {
	n, b := binary.NativeEndian, j.place(pos)
	if len(b) < epoch.SectorSize || n.Uint64(b[8:]) != pos {
		return entry{}, false, false
	}
	if n.Uint32(b) == skipMagic {
		ok := n.Uint64(b[checksumAt:]) == xxh3.Hash(b[:16])
		return entry{}, ok, ok
	}
	if n.Uint32(b) != recordMagic {
		return entry{}, false, false
	}
	e = entry{
		pos: pos, kind: epoch.WriteKind(b[4]), disk: epoch.DiskID(b[5]), pages: uint32(n.Uint16(b[6:])),
		seq: n.Uint64(b[16:]), sector: n.Uint64(b[24:]), sectors: n.Uint32(b[32:]), done: n.Uint64(b[doneAt:]) != 0,
	}
	if !e.layout() || n.Uint32(b[36:]) != e.dataBytes() || uint64(e.size) > uint64(len(b)) ||
		n.Uint64(b[checksumAt:]) != sumRecord(b[:e.size], &e) {
		return entry{}, false, false
	}
	return e, false, true
}

func (j *journal) close() error {
	err := unix.Munmap(j.mem)
	j.mem, j.ring = nil, nil
	if j.file != nil {
		err = errors.Join(err, j.file.Close())
	}
	if err != nil {
		return fmt.Errorf("closing the journal of held writes: %w", err)
	}
	return nil
}

func (j *journal) closed() bool { return j.mem == nil }
