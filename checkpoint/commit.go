package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"

	"understudy/epoch"
)

// Commit turns what a Writer has into a file under its name:
//
//	the rest of the records → what counts of each → copied without the rest, if that is much
//	→ leaves, states, directory, summary, head → table, trailer → fsync
//	→ rename → fsync of the directory

// Commit completes the file and gives it its name. After an error the name is
// as it was before, except when only the last fsync of the directory failed.
func (w *Writer) Commit(progress Progress) (Info, error) {
	if w.err != nil {
		return Info{}, w.err
	}
	if w.final == nil {
		return Info{}, w.fail(errors.New("it has no final round"))
	}
	if err := w.commit(progress); err != nil {
		return Info{}, errors.Join(w.fail(err), w.Abort())
	}
	w.err = errDone
	f, err := Open(w.path)
	if err != nil {
		return Info{}, err
	}
	info := f.Inspect()
	return info, f.Close()
}

func (w *Writer) commit(progress Progress) error {
	if err := w.flush(); err != nil {
		return err
	}
	w.head.Disks = w.final.Disks
	if err := w.weigh(); err != nil {
		return err
	}
	began := time.Now()
	if err := w.out.drain(w.end); err != nil {
		return err
	}
	w.synced = time.Since(began)
	if progress == nil {
		progress = func(uint64, uint64) {}
	}
	if w.summary.Wasted*100 > uint64(w.opts.MaxWaste)*(w.end-prefaceSize) {
		// The first half of the way; the index is the second.
		whole, half := progress, w.head.Pages/2
		if err := w.compact(func(done, total uint64) { whole(half*done/total, w.head.Pages) }); err != nil {
			return fmt.Errorf("removing replaced pages: %w", err)
		}
		progress = func(done, total uint64) { whole(half+(total-half)*done/total, total) }
	}
	if err := w.close(progress); err != nil {
		return err
	}
	began = time.Now()
	defer func() { w.synced += time.Since(began) }()
	if err := w.temp.Sync(); err != nil {
		return err
	}
	return w.publish()
}

// weigh finds what counts: of each page, of each record.
func (w *Writer) weigh() error {
	var missing uint64
	first := 0
	for i, e := range w.entries {
		switch e.kind() {
		case kindAbsent:
			if missing == 0 {
				first = i
			}
			missing++
			continue
		case kindRecord:
			w.records[e.number()].used |= 1 << e.slot()
		case kindBlock:
			if err := onDisk(w.head.Disks, e.place()); err != nil {
				return fmt.Errorf("page %d is referenced as %w", i, err)
			}
		}
		*w.summary.Pages.of(w.reasons[i])++
	}
	if missing > 0 {
		return fmt.Errorf("%w: %d of them have not been given, the first is page %d", errIncomplete, missing, first)
	}
	for _, r := range w.records {
		dead := uint64(r.pages) - uint64(bits.OnesCount16(r.used))
		w.summary.Wasted += uint64(r.size) * dead / uint64(r.pages)
	}
	return nil
}

// onDisk refuses a place that is on none of the disks.
func onDisk(disks []Disk, at Place) error {
	for _, d := range disks {
		if d.ID == at.Disk {
			if at.Sector > d.Sectors || d.Sectors-at.Sector < epoch.PageSectors {
				return fmt.Errorf("disk %d sector %d, which has %d sectors", at.Disk, at.Sector, d.Sectors)
			}
			return nil
		}
	}
	return fmt.Errorf("disk %d sector %d, there is no such disk", at.Disk, at.Sector)
}

// compact copies the records that count into another file. Those of which only
// some pages count are packed anew.
func (w *Writer) compact(progress Progress) error {
	next, err := w.newTemp()
	if err != nil {
		return err
	}
	at := uint64(prefaceSize)
	err = func() error {
		in := make([]byte, maxRecord)
		pages := make([]byte, recordPages*epoch.PageSize)
		k := newWorker(w)
		for i := range w.records {
			r := &w.records[i]
			if r.used == 0 {
				continue
			}
			b := in[:r.size]
			if _, err := w.temp.ReadAt(b, int64(r.offset)); err != nil {
				return err
			}
			raw, err := openRecord(pages, b, w.salt, r.offset)
			if err != nil {
				return err
			}
			k.count = 0
			for slot := range int(r.pages) {
				if r.used&(1<<slot) != 0 {
					copy(k.open[k.count*epoch.PageSize:], raw[slot*epoch.PageSize:(slot+1)*epoch.PageSize])
					k.count++
				}
			}
			b, _ = k.pack()
			signRecord(b, w.salt, at)
			if _, err := next.WriteAt(b, int64(at)); err != nil {
				return err
			}
			r.offset, r.size = at, uint32(len(b))
			at += uint64(len(b))
			progress(uint64(i), uint64(len(w.records)))
		}
		return nil
	}()
	if err != nil {
		return errors.Join(err, discard(next))
	}
	old := w.temp
	w.temp, w.end = next, at
	w.summary.Wasted, w.summary.Compacted = 0, true
	for i, e := range w.entries {
		if e.kind() == kindRecord {
			used := w.records[e.number()].used
			w.entries[i] = recordNumber(bits.OnesCount16(used&(1<<e.slot()-1)), e.number())
		}
	}
	return discard(old)
}

// close writes everything that follows the records.
func (w *Writer) close(progress Progress) error {
	var t table
	*t.of(sectionRecords) = tableEntry{offset: prefaceSize, stored: w.end - prefaceSize, size: w.end - prefaceSize}

	begin := w.end
	var dir, buf, scratch []byte
	entries := make([]entry, leafPages)
	for first := 0; first < len(w.entries); first += leafPages {
		n := copy(entries, w.entries[first:])
		for i, e := range entries[:n] {
			if e.kind() == kindRecord {
				r := w.records[e.number()]
				entries[i] = recordEntry(e.slot(), uint64(r.size), r.offset)
			}
		}
		buf, dir = appendLeaf(buf[:0], dir, uint64(first/leafPages), entries[:n], w.prints[first:first+n], w.salt, &scratch)
		if err := w.append(buf); err != nil {
			return err
		}
		progress(uint64(first), w.head.Pages)
	}
	*t.of(sectionLeaves) = tableEntry{offset: begin, stored: w.end - begin, size: w.end - begin}

	summary, err := json.Marshal(w.summary)
	if err != nil {
		return err
	}
	head, err := json.Marshal(w.head)
	if err != nil {
		return err
	}
	for _, p := range []struct {
		section
		content []byte
	}{
		{sectionMachine, w.head.Machine}, {sectionDevice, w.final.DeviceState}, {sectionDisk, w.final.DiskState},
		{sectionDirectory, dir}, {sectionSummary, summary}, {sectionHead, head},
	} {
		stored := p.content
		if p.packs() && len(stored) > 0 {
			stored = s2.Encode(nil, stored)
		}
		*t.of(p.section) = tableEntry{offset: w.end, stored: uint64(len(stored)), size: uint64(len(p.content)), sum: xxh3.Hash128(stored).Bytes()}
		if err := w.append(stored); err != nil {
			return err
		}
	}
	tail, _ := appendTail(nil, appendPreface(nil, w.salt), &t, w.end)
	if err := w.append(tail); err != nil {
		return err
	}
	progress(w.head.Pages, w.head.Pages)
	return nil
}

func (w *Writer) append(b []byte) error {
	_, err := w.temp.WriteAt(b, int64(w.end))
	w.end += uint64(len(b))
	return err
}

// publish gives the file its name.
func (w *Writer) publish() error {
	if err := w.temp.Close(); err != nil {
		return err
	}
	flags := uint(unix.RENAME_NOREPLACE)
	if w.opts.Replace {
		flags = 0
	}
	from := w.temp.Name()
	if err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, w.path, flags); err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: w.path, Err: err}
	}
	w.temp = nil
	dir, err := os.Open(filepath.Dir(w.path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
