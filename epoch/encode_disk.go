package epoch

import (
	"encoding/binary"

	"github.com/zeebo/xxh3"
)

// What an Encoder says of disks:
//
//	page ── SetExcluder's word ──> reference run, or copy     (instead of its content)
//	Writes ── each write ──> its head, then its data in pieces:
//	          zero? → the same as a page of the image? page data → packed? → raw
//	DiskState → as the device state, behind it
//
// A page that is left out as a reference is forgotten by the delta cache: the
// receiver fills it when it comes to it, and no delta may wait for that.

// SetExcluder lets x decide which pages of the open epoch are left out, from
// the next Pages on. nil, and every Begin, mean none.
//
// x answers for what it says: a reference's block has the page's content, and
// a copy's source, a lower page, has it as the receiver's image is after this
// epoch, and is not itself a reference of this epoch. The decoder sees where
// a copy is untrue, and refuses the epoch.
func (e *Encoder) SetExcluder(x Excluder) { e.leave = x }

// exclude sends what stands for a page; base is what the cache holds of it,
// or nil.
func (e *Encoder) exclude(f GFN, page, base []byte, x Exclusion) error {
	switch x.Kind {
	case ExcludeBlock:
		if err := checkExtent(x.Ref.Disk, x.Ref.Sector, 1); x.Ref.Page != f || err != nil {
			return refuse(ErrMisuse, e.head.Number, "page %d left out as %v: outside every disk, or for another page", f, x.Ref)
		}
		e.stats.ReferencePages++
		e.trail.References++
		e.drop(f)
		return e.name(recordReference, uint64(f), 1, uint64(x.Ref.Disk)<<56|x.Ref.Sector, PageSectors, x.Ref.Print[:])
	case ExcludeCopy:
		if x.Source >= f {
			return refuse(ErrMisuse, e.head.Number, "page %d left out as a copy of page %d, which is no lower one", f, x.Source)
		}
		e.stats.CopyPages++
		switch {
		case base != nil:
			copy(base, page)
		case e.effort == EffortNone:
			e.drop(f)
		case e.cache != nil:
			e.cache.add(f, page)
		}
		var body [copySize + checkSize]byte
		binary.LittleEndian.PutUint64(body[:], uint64(x.Source))
		binary.LittleEndian.PutUint32(body[copySize:], pageCheck(page))
		return e.single(recordCopy, uint64(f), 0, nil, body[:])
	}
	return refuse(ErrMisuse, e.head.Number, "page %d left out for no known reason (%d)", f, x.Kind)
}

// name adds a page to the open run of pages that are named by something
// adjacent: frames and names grow by a step for each page. Or it opens a new
// run, whose body begins with the name.
func (e *Encoder) name(t recordType, frame, frameStep, name, nameStep uint64, body []byte) error {
	r, n := &e.run, uint64(e.run.count)
	if r.kind == t && r.first+n*frameStep == frame && r.body+n*nameStep == name && r.count < maxCount && len(e.chunk)+len(body) <= cap(e.chunk) {
		r.count++
	} else {
		if err := e.room(headSize + 8 + len(body)); err != nil {
			return err
		}
		*r = openRun{kind: t, at: len(e.chunk), first: frame, count: 1, body: name}
		e.chunk = e.chunk[:len(e.chunk)+headSize]
		e.chunk = binary.LittleEndian.AppendUint64(e.chunk, name)
		e.trail.Records++
	}
	putHead(e.chunk[r.at:], t, r.first, r.count)
	e.chunk = append(e.chunk, body...)
	return nil
}

// Writes encodes disk writes, in their order. It is called after the last
// Pages and before DeviceState, as often as need be; the guest's writes have
// ascending Seq over the whole epoch. equal reports whether a page's content,
// as the receiver's image is after this epoch, is piece; it is asked for
// pieces whose page is known (DiskWrite.Pages), which then travel as its name.
// It must say no to a page that is a reference of this epoch. nil: never. Any
// error ends the epoch.
func (e *Encoder) Writes(ws []DiskWrite, equal func(page GFN, piece []byte) bool) error {
	if err := e.ready(); err != nil {
		return err
	}
	if e.part > partWrites {
		return e.fail(refuse(ErrMisuse, e.head.Number, "disk writes after %v", e.part))
	}
	e.part = partWrites
	for i := range ws {
		if err := e.write(&ws[i], equal); err != nil {
			return e.fail(err)
		}
	}
	return nil
}

// write encodes one write: its head, and its data.
func (e *Encoder) write(w *DiskWrite, equal func(page GFN, piece []byte) bool) error {
	err := w.check(e.seq)
	switch {
	case err != nil:
		return refuse(ErrMisuse, e.head.Number, "%v", err)
	case w.dataBytes() != len(w.Data):
		return refuse(ErrMisuse, e.head.Number, "a %v of %d sectors with %d bytes of data", w.Kind, w.Sectors, len(w.Data))
	}
	if w.Kind == WriteSync {
		e.stats.SyncBytes += uint64(len(w.Data))
	} else {
		e.seq = w.Seq
		e.stats.Writes++
		e.stats.WriteBytes += uint64(len(w.Data))
	}
	e.trail.Writes++
	e.trail.WriteBytes += uint64(len(w.Data))
	var head [writeSize]byte
	binary.LittleEndian.PutUint64(head[:], w.Seq)
	binary.LittleEndian.PutUint64(head[8:], w.Sector)
	binary.LittleEndian.PutUint32(head[16:], w.Sectors)
	if err := e.single(recordWrite, uint64(w.Disk), int(w.Kind), nil, head[:]); err != nil {
		return err
	}
	return e.data(w, equal)
}

// data encodes a write's data. Pieces are as long as a page, and those that
// are sent alike go together.
func (e *Encoder) data(w *DiskWrite, equal func(page GFN, piece []byte) bool) error {
	most := min(maxCount, cap(e.chunk)-headSize) / PageSize * PageSize
	var open recordType // of the bytes from … at that wait; 0: none do
	from := 0
	for at := 0; ; {
		piece := w.Data[at:min(at+PageSize, len(w.Data))]
		t := e.dataType(w, at/PageSize, piece, equal)
		if open != 0 && (t != open || t == recordRawData && at-from+len(piece) > most) {
			var err error
			if open == recordZeroData {
				err = e.single(recordZeroData, uint64(from/SectorSize), (at-from)/SectorSize, nil, nil)
			} else {
				err = e.piece(recordRawData, recordPackedData, uint64(from/SectorSize), w.Data[from:at])
			}
			if err != nil {
				return err
			}
			open = 0
		}
		switch {
		case t == 0:
			return nil
		case t == recordPageData:
			var check [pageDataCheck]byte
			binary.LittleEndian.PutUint64(check[:], xxh3.Hash(piece))
			if err := e.name(recordPageData, uint64(at/SectorSize), PageSectors, uint64(w.Pages[at/PageSize]), 1, check[:]); err != nil {
				return err
			}
			e.stats.WritePageBytes += PageSize
		case open == 0:
			open, from = t, at
		}
		at += len(piece)
	}
}

// dataType says how the i-th piece of a write travels; 0 is the end.
func (e *Encoder) dataType(w *DiskWrite, i int, piece []byte, equal func(page GFN, piece []byte) bool) recordType {
	switch {
	case len(piece) == 0:
		return 0
	case isZero(piece):
		return recordZeroData
	case equal != nil && len(piece) == PageSize && i < len(w.Pages) && uint64(w.Pages[i]) < e.pages && equal(w.Pages[i], piece):
		return recordPageData
	}
	return recordRawData
}

// DiskState encodes what the receiver is told of the disks beside their
// writes, of 1 to MaxDiskState bytes. It is called once at most, as the last
// thing before End. Any error ends the epoch.
func (e *Encoder) DiskState(state []byte) error {
	if err := e.ready(); err != nil {
		return err
	}
	switch {
	case e.part >= partDisk:
		return e.fail(refuse(ErrMisuse, e.head.Number, "a second disk state"))
	case len(state) == 0 || len(state) > MaxDiskState:
		return e.fail(refuse(ErrMisuse, e.head.Number, "a disk state of %d bytes, want 1 to %d", len(state), MaxDiskState))
	}
	e.part = partDisk
	e.trail.DiskBytes = uint64(len(state))
	return e.pieces(recordDiskState, recordPackedDiskState, state)
}
