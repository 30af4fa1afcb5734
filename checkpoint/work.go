package checkpoint

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/klauspost/compress/s2"

	"understudy/epoch"
)

// Workers share the pages of one round. Each takes the next run of up to 64
// pages, reads it into a buffer that stays in its processor's cache, decides
// on each page while it is there, and collects those that must be stored:
//
//	cursor → hole? → known by its fingerprint? → ReadPages → zero? → as stored? → as in the parent? → on a disk?
//	→ stored already? → open record, full → s2 → its place at the file's end
//	(output.go)
//
// There is no queue between them and no order to keep: the index says where a
// page is.

// takePages is the longest run a worker takes: 256 KiB.
const takePages = 64

// source is where pages come from.
type source interface {
	ReadPages(first epoch.GFN, dst []byte) error
}

// sparse is a source that knows, without a look at them, that pages are zero:
// they were never touched, or given back.
type sparse interface {
	// Hole returns how many of count pages from first on are known to be zero.
	Hole(first epoch.GFN, count uint64) uint64
}

// memory is a run of pages in memory.
type memory struct {
	first epoch.GFN
	data  []byte
}

func (m memory) ReadPages(first epoch.GFN, dst []byte) error {
	copy(dst, m.data[(first-m.first)*epoch.PageSize:])
	return nil
}

// cursor deals out the pages of a set.
type cursor struct {
	mu       sync.Mutex
	next     epoch.GFN
	end      epoch.GFN
	set      *epoch.PageSet
	done     uint64
	total    uint64
	progress Progress
	err      error // the first one: there is nothing more to take
}

// take returns the next run; count 0 is the end.
func (c *cursor) take() (first epoch.GFN, count int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.err == nil && c.next < c.end {
		if c.set.Contains(c.next) {
			if count == 0 {
				first = c.next
			}
			count++
		} else if count > 0 {
			break
		}
		c.next++
		if count == takePages {
			break
		}
	}
	return first, count
}

// finished notes what came of a run.
func (c *cursor) finished(count int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done += uint64(count)
	if c.err == nil {
		c.err = err
	}
	if c.err == nil && c.progress != nil {
		c.progress(c.done, c.total)
	}
}

// take lets the workers take a round of pages.
func (w *Writer) take(ctx context.Context, from source, set *epoch.PageSet, progress Progress) error {
	if err := w.flush(); err != nil {
		return w.fail(err)
	}
	c := &cursor{end: epoch.GFN(set.Pages()), set: set, total: set.Count(), progress: progress}
	var group sync.WaitGroup
	for _, k := range w.workers {
		group.Go(func() { k.work(ctx, from, c) })
	}
	group.Wait()
	if c.err == nil {
		c.err = w.flush()
	}
	if c.err != nil {
		return w.fail(c.err)
	}
	return nil
}

// flush writes every open record, and collects what the workers have counted.
func (w *Writer) flush() error {
	for _, k := range w.workers {
		if err := k.flush(); err != nil {
			return err
		}
		w.summary.Given += k.given
		w.summary.Repeated += k.repeated
		w.summary.Replaced += k.replaced
		k.given, k.repeated, k.replaced = 0, 0, 0
	}
	return nil
}

// reserve gives a record a number and a place at the end of the file.
func (w *Writer) reserve(size, pages int) (number int, offset uint64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	number, offset = len(w.records), w.end
	if offset+uint64(size) > maxFileSize {
		return 0, 0, fmt.Errorf("it would be larger than %d bytes", uint64(maxFileSize))
	}
	w.records = append(w.records, record{offset: offset, size: uint32(size), pages: uint8(pages)})
	w.end += uint64(size)
	return number, offset, nil
}

// worker is one goroutine's buffers, and what it has open.
type worker struct {
	w    *Writer
	read []byte // takePages

	open  []byte // pages of the open record
	pages [recordPages]epoch.GFN
	count int
	out   []byte // the record as written

	given, repeated, replaced uint64
}

func newWorker(w *Writer) *worker {
	return &worker{
		w:    w,
		read: make([]byte, takePages*epoch.PageSize),
		open: make([]byte, recordPages*epoch.PageSize),
		out:  make([]byte, recordHead+max(s2.MaxEncodedLen(recordPages*epoch.PageSize), maxRecord)),
	}
}

func (k *worker) work(ctx context.Context, from source, c *cursor) {
	for {
		first, count := c.take()
		if count == 0 {
			return
		}
		c.finished(count, k.run(ctx, from, first, count))
	}
}

// run reads and decides on a run of pages.
func (k *worker) run(ctx context.Context, from source, first epoch.GFN, count int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s, ok := from.(sparse); ok {
		n := int(s.Hole(first, uint64(count)))
		for range n {
			k.set(first, entry(kindZero), epoch.Fingerprint{}, Hole)
			first++
		}
		k.given += uint64(n)
		if count -= n; count == 0 {
			return nil
		}
	}
	for end := first + epoch.GFN(count); first < end; {
		unknown := first
		for ; unknown < end && k.w.known.Has(unknown); unknown++ {
			there, err := k.elsewhere(unknown, k.w.known.Prints[unknown], k.w.entries[unknown].kind())
			if err != nil {
				return err
			}
			if !there { // its block was overwritten since
				break
			}
			k.given++
		}
		if first = unknown; first == end {
			return nil
		}
		for unknown++; unknown < end && !k.w.known.Has(unknown); {
			unknown++
		}
		if err := k.look(from, first, int(unknown-first)); err != nil {
			return err
		}
		first = unknown
	}
	return nil
}

// look reads and decides on pages.
func (k *worker) look(from source, first epoch.GFN, count int) error {
	b := k.read[:count*epoch.PageSize]
	if err := from.ReadPages(first, b); err != nil {
		return fmt.Errorf("reading pages %d+%d: %w", first, count, err)
	}
	for f := first; len(b) > 0; f, b = f+1, b[epoch.PageSize:] {
		if err := k.page(f, b[:epoch.PageSize:epoch.PageSize]); err != nil {
			return err
		}
	}
	return nil
}

// page decides on one page.
func (k *worker) page(f epoch.GFN, page []byte) error {
	w := k.w
	k.given++
	if isZero(page) {
		k.set(f, entry(kindZero), epoch.Fingerprint{}, Zero)
		return nil
	}
	print := w.head.Key.Of(page)
	is := w.entries[f].kind()
	if is == kindRecord && w.prints[f] == print {
		k.repeated++
		return nil
	}
	if there, err := k.elsewhere(f, print, is); there || err != nil {
		return err
	}
	if e, ok := w.copies.find(print); ok {
		k.set(f, e, print, Copy)
		return nil
	}
	k.set(f, entry(kindOpen), print, reasonAbsent)
	copy(k.open[k.count*epoch.PageSize:], page)
	k.pages[k.count] = f
	k.count++
	if k.count == recordPages {
		return k.flush()
	}
	return nil
}

// elsewhere leaves out a page that is in the parent, or on a disk. is is what the
// page was so far.
func (k *worker) elsewhere(f epoch.GFN, print epoch.Fingerprint, is kind) (there bool, err error) {
	w := k.w
	var inParent resolved
	if w.opts.Parent != nil {
		if inParent, err = w.opts.Parent.resolve(f); err != nil {
			return false, fmt.Errorf("reading the parent: %w", err)
		}
		if inParent.print == print && inParent.entry.kind() == kindRecord {
			if is == kindParent {
				k.repeated++
			}
			k.set(f, entry(kindParent), print, Unchanged)
			return true, nil
		}
	}
	at, mapped, ok := w.find(f, print)
	if !ok {
		return false, nil
	}
	e, reason := blockEntry(at), Content
	switch {
	case inParent.entry == e && inParent.print == print:
		e, reason = entry(kindParent), Unchanged
	case mapped:
		reason = Mapped
	}
	if w.entries[f] == e && w.prints[f] == print {
		k.repeated++
	}
	k.set(f, e, print, reason)
	return true, nil
}

// set notes what a page is now.
func (k *worker) set(f epoch.GFN, e entry, print epoch.Fingerprint, reason Reason) {
	w := k.w
	if w.entries[f].kind() == kindRecord {
		k.replaced++
	}
	w.entries[f], w.prints[f], w.reasons[f] = e, print, reason
}

// flush writes the open record.
func (k *worker) flush() error {
	if k.count == 0 {
		return nil
	}
	w := k.w
	b, packed := k.pack()
	number, offset, err := w.reserve(len(b), k.count)
	if err != nil {
		return err
	}
	signRecord(b, w.salt, offset)
	if err := w.out.put(b, offset); err != nil {
		return err
	}
	reason := Raw
	if packed {
		reason = Packed
	}
	for slot, f := range k.pages[:k.count] {
		e := recordNumber(slot, number)
		w.entries[f], w.reasons[f] = e, reason
		w.copies.add(w.prints[f], e)
	}
	k.count = 0
	return nil
}

// pack makes a record of the open pages, without its checksum.
func (k *worker) pack() (b []byte, packed bool) {
	raw := k.open[:k.count*epoch.PageSize]
	body := s2.Encode(k.out[recordHead:], raw)
	if packed = len(body) <= len(raw)/8*7; !packed {
		body = append(k.out[:recordHead], raw...)[recordHead:]
	}
	return layRecord(k.out[:recordHead+len(body)], k.count, packed), packed
}

// recordNumber is the entry of a page in a record of a writer, by number.
func recordNumber(slot, number int) entry {
	return entry(kindRecord) | entry(slot)<<4 | entry(number)<<24
}

func (e entry) number() int { return int(e >> 24) }

// copyTable knows stored pages by their content. It has one place for each
// fingerprint and forgets what was there before: it is bounded, and what it
// forgets is only stored once more.
type copyTable struct {
	mask  uint64
	rows  []copyRow
	locks [64]sync.Mutex
}

type copyRow struct {
	print epoch.Fingerprint
	entry entry // 0: none
}

// maxCopies bounds a copyTable: 24 MiB, which is 4 GiB of distinct pages.
const maxCopies = 1 << 20

func newCopyTable(pages uint64) *copyTable {
	size := uint64(64)
	for size < pages && size < maxCopies {
		size *= 2
	}
	return &copyTable{mask: size - 1, rows: make([]copyRow, size)}
}

func (t *copyTable) row(print epoch.Fingerprint) (*copyRow, *sync.Mutex) {
	i := binary.LittleEndian.Uint64(print[:]) & t.mask
	return &t.rows[i], &t.locks[i%uint64(len(t.locks))]
}

func (t *copyTable) find(print epoch.Fingerprint) (entry, bool) {
	row, lock := t.row(print)
	lock.Lock()
	defer lock.Unlock()
	return row.entry, row.entry != 0 && row.print == print
}

func (t *copyTable) add(print epoch.Fingerprint, e entry) {
	row, lock := t.row(print)
	lock.Lock()
	defer lock.Unlock()
	row.print, row.entry = print, e
}

// zeroPage is what a page is compared with. Nothing writes to it.
var zeroPage [epoch.PageSize]byte

// isZero reports whether every byte of page is zero. Its first word decides
// for most pages.
func isZero(page []byte) bool {
	return binary.LittleEndian.Uint64(page) == 0 && bytes.Equal(page, zeroPage[:])
}

var errIncomplete = errors.New("pages are missing")
