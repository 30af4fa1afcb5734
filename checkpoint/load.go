package checkpoint

import (
	"fmt"
	"sync"

	"understudy/epoch"
)

// What a page is, and its content, in any order:
//
//	page → leaf (kept in memory, up to keptLeaves) → entry; of the parent: the
//	same there → record (the last ones are kept) → content → fingerprint

// keptLeaves bounds the index in memory: 1024 × 96 KiB, all of 16 GiB of guest.
const keptLeaves = 1024

// resolved says where a page's content is: never in "the parent".
type resolved struct {
	file  *File
	entry entry
	print epoch.Fingerprint
}

// resolve finds a page of the image.
func (f *File) resolve(page epoch.GFN) (resolved, error) {
	for {
		l, err := f.leaf(uint64(page) / leafPages)
		if err != nil {
			return resolved{}, err
		}
		if e := l.entries[page%leafPages]; e.kind() != kindParent {
			return resolved{f, e, l.prints[page%leafPages]}, nil
		}
		f = f.parent // checked in parse: there is one
	}
}

// leaf returns a leaf of this file's own index.
func (f *File) leaf(number uint64) (*leaf, error) {
	if l := f.leaves[number].Load(); l != nil {
		return l, nil
	}
	l, err := f.parse(number)
	if err != nil {
		return nil, &leafError{fmt.Errorf("checkpoint file %s: %w", f.path, err), number}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.leaves[number].Swap(l) == nil {
		f.kept = append(f.kept, int(number))
	}
	if len(f.kept) > keptLeaves {
		f.leaves[f.kept[0]].Store(nil)
		f.kept = f.kept[1:]
	}
	return l, nil
}

// leafError is that of a damaged piece of an index.
type leafError struct {
	error
	number uint64
}

func (e *leafError) Unwrap() error { return e.error }

// parse reads and checks a leaf.
func (f *File) parse(number uint64) (*leaf, error) {
	count := int(min(leafPages, f.head.Pages-number*leafPages))
	row := f.dir[number*dirSize : (number+1)*dirSize]
	b := make([]byte, f.starts[number+1]-f.starts[number])
	if err := f.readAt(b, f.table.of(sectionLeaves).offset+f.starts[number]); err != nil {
		return nil, err
	}
	l := new(leaf)
	if err := parseLeaf(l, b, row, make([]byte, count*entrySize), number, count, f.salt); err != nil {
		return nil, err
	}
	records := f.table.of(sectionRecords)
	for i, e := range l.entries[:count] {
		var err error
		switch e.kind() {
		case kindZero:
			if e != 0 {
				err = errLeaf
			}
		case kindRecord:
			if e.offset() < records.offset || e.size() < recordHead || e.size() > maxRecord || e.offset()+e.size() > records.offset+records.size {
				err = fmt.Errorf("it names a record at %d+%d, which is outside the records", e.offset(), e.size())
			}
		case kindBlock:
			if e != blockEntry(e.place()) {
				err = errLeaf
			} else {
				err = onDisk(f.head.Disks, e.place())
			}
		case kindParent:
			if e != entry(kindParent) || f.head.Parent == nil {
				err = errLeaf
			}
		default:
			err = errLeaf
		}
		if err != nil {
			return nil, fmt.Errorf("%w: index of page %d: %w", ErrDamaged, number*leafPages+uint64(i), err)
		}
	}
	return l, nil
}

// Records that were read last are kept unpacked: neighbours of a page are often
// wanted next.
const (
	cacheShards = 8
	cacheWays   = 8
)

type recordCache [cacheShards]cacheShard

type cacheShard struct {
	mu   sync.Mutex
	next int
	in   []byte
	ways [cacheWays]cachedRecord
}

type cachedRecord struct {
	file   *File
	offset uint64
	buf    []byte
	pages  []byte // of buf; nil: empty
}

func newRecordCache() *recordCache { return new(recordCache) }

// content puts the content of a page that is in a record into dst and checks
// it.
func (r *resolved) content(page epoch.GFN, dst []byte) error {
	offset := r.entry.offset()
	s := &r.file.records[offset/unit%cacheShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	record, err := s.open(r)
	if err != nil {
		return err
	}
	b, err := r.in(page, record)
	if err != nil {
		return err
	}
	copy(dst, b)
	return nil
}

// in finds the page in its record and checks it.
func (r *resolved) in(page epoch.GFN, record []byte) ([]byte, error) {
	at := r.entry.slot() * epoch.PageSize
	if at >= len(record) {
		return nil, fmt.Errorf("checkpoint file %s: page %d: %w: its record has no place %d", r.file.path, page, ErrDamaged, r.entry.slot())
	}
	b := record[at : at+epoch.PageSize : at+epoch.PageSize]
	if r.file.head.Key.Of(b) != r.print {
		return nil, fmt.Errorf("checkpoint file %s: page %d: %w: its record has other content than its index says", r.file.path, page, ErrDamaged)
	}
	return b, nil
}

// open returns the pages of the record a page is in, until the next call.
func (s *cacheShard) open(r *resolved) ([]byte, error) {
	f, offset := r.file, r.entry.offset()
	for i := range s.ways {
		if c := &s.ways[i]; c.file == f && c.offset == offset && c.pages != nil {
			return c.pages, nil
		}
	}
	c := &s.ways[s.next]
	s.next = (s.next + 1) % cacheWays
	if s.in == nil {
		s.in = make([]byte, maxRecord)
	}
	if c.buf == nil {
		c.buf = make([]byte, recordPages*epoch.PageSize)
	}
	c.file, c.offset, c.pages = f, offset, nil
	b := s.in[:r.entry.size()]
	err := f.readAt(b, offset)
	if err == nil {
		c.pages, err = openRecord(c.buf, b, f.salt, offset)
	}
	if err != nil {
		return nil, fmt.Errorf("checkpoint file %s: %w", f.path, err)
	}
	return c.pages, nil
}
