package epoch

import (
	"encoding/binary"

	"github.com/klauspost/compress/s2"
	"github.com/zeebo/xxh3"
)

// What a Decoder makes of the records about disks:
//
//	references ──> Stage.References            (nothing is read: the block may not be there yet)
//	copied page ──> source's content ──> Stage (as any other page)
//	write ──> Stage.Writes, its memory open ──> data records fill it, in order
//
// Where a record names a page of the image, it means the page as it is after
// this epoch. Pages come before writes, and a copy's source is a lower page, so
// it is in the stage already if this epoch brings it; else it is read from the
// committed image.

// references stages a run of references.
func (d *Decoder) references(first GFN, body []byte) error {
	name := binary.LittleEndian.Uint64(body)
	r := Reference{Page: first, Disk: DiskID(name >> 56), Sector: name << 8 >> 8}
	body = body[extentSize:]
	n := len(body) / len(r.Print)
	if err := checkExtent(r.Disk, r.Sector, uint64(n)); err != nil {
		return d.malformed("references at page %d: %v", first, err)
	}
	d.seen.References += uint64(n)
	for ; len(body) > 0; body = body[len(r.Print):] {
		r.Print = Fingerprint(body)
		if !d.stage.reference(r) {
			return d.tooLarge()
		}
		r.Page, r.Sector = r.Page+1, r.Sector+PageSectors
	}
	return nil
}

// copied stages a page that is the copy of a lower one.
func (d *Decoder) copied(f GFN, body []byte) error {
	source, check := binary.LittleEndian.Uint64(body), binary.LittleEndian.Uint32(body[copySize:])
	if source >= uint64(f) {
		return d.malformed("page %d is a copy of page %d, want a lower one", f, source)
	}
	dst, ok := d.stage.take(f, 1)
	if !ok {
		return d.tooLarge()
	}
	if err := d.content(GFN(source), dst); err != nil {
		return err
	}
	if got := pageCheck(dst); got != check {
		return refuse(ErrBase, d.head.Number, "page %d, copied from page %d, comes out with check %08x, the sender has %08x", f, source, got, check)
	}
	return nil
}

// content reads a page of the image as it is after this epoch.
func (d *Decoder) content(f GFN, dst []byte) error {
	if uint64(f) >= d.pages {
		return d.malformed("a copy of page %d, outside the image of %d", f, d.pages)
	}
	if d.stage.refers(f) {
		return d.malformed("a copy of page %d, which is a reference of this epoch", f)
	}
	if d.stage.read(f, dst) {
		return nil
	}
	return d.former(f, dst)
}

// write stages a write and opens its memory for data.
func (d *Decoder) write(disk uint64, kind int, body []byte) error {
	if disk >= MaxDisks {
		return d.malformed("a write to disk %d, want one below %d", disk, MaxDisks)
	}
	w := DiskWrite{
		Disk:    DiskID(disk),
		Kind:    WriteKind(kind),
		Seq:     binary.LittleEndian.Uint64(body),
		Sector:  binary.LittleEndian.Uint64(body[8:]),
		Sectors: binary.LittleEndian.Uint32(body[16:]),
	}
	if err := w.check(d.seq); err != nil {
		return d.malformed("%v", err)
	}
	n := w.dataBytes()
	data, ok := d.stage.write(w, n)
	if !ok {
		return d.tooLarge()
	}
	if w.Kind != WriteSync {
		d.seq = w.Seq
	}
	d.data, d.filled = data, 0
	d.seen.Writes++
	d.seen.WriteBytes += uint64(n)
	return nil
}

// piece fills the next part of the open write.
func (d *Decoder) piece(t recordType, sector uint64, n int, body []byte) error {
	if sector != uint64(d.filled/SectorSize) {
		return d.malformed("data for sector %d of a write, want sector %d of %d", sector, d.filled/SectorSize, len(d.data)/SectorSize)
	}
	size := n * SectorSize
	switch t {
	case recordPackedData:
		var err error
		if size, err = s2.DecodedLen(body); err != nil || size < SectorSize || size > maxCount || size%SectorSize != 0 {
			return d.malformed("data decompresses to %d bytes, want whole sectors, at most %d bytes", size, maxCount)
		}
	case recordPageData:
		size = n * PageSize
	}
	if size > len(d.data)-d.filled {
		return d.malformed("%d bytes of data for a write that wants %d more", size, len(d.data)-d.filled)
	}
	dst := d.data[d.filled : d.filled+size]
	d.filled += size
	switch t {
	case recordRawData:
		copy(dst, body)
	case recordZeroData:
		clear(dst)
	case recordPackedData:
		if _, err := s2.Decode(dst, body); err != nil {
			return d.malformed("decompressing data of a write: %v", err)
		}
	case recordPageData:
		return d.pageData(dst, body)
	}
	return nil
}

// pageData fills a part of the open write from pages of the image.
func (d *Decoder) pageData(dst, body []byte) error {
	f, checks := binary.LittleEndian.Uint64(body), body[pageDataSize:]
	if count := uint64(len(dst) / PageSize); f >= d.pages || count > d.pages-f {
		return d.malformed("data of a write from pages %d+%d, outside the image of %d", f, count, d.pages)
	}
	for ; len(dst) > 0; f, dst, checks = f+1, dst[PageSize:], checks[pageDataCheck:] {
		if err := d.content(GFN(f), dst[:PageSize]); err != nil {
			return err
		}
		if got, want := xxh3.Hash(dst[:PageSize]), binary.LittleEndian.Uint64(checks); got != want {
			return refuse(ErrBase, d.head.Number, "data of a write comes out of page %d with check %016x, the sender has %016x", f, got, want)
		}
	}
	return nil
}
