package simulation

// What a backup holds: pages, and the account of those that were left out.
//
//	epoch applied ── fill, in the background ── a block that is something else ─> Spoilt
//	                                                     (nothing else failed: guarantee 4)

import (
	"time"

	"understudy/backup"
	"understudy/disk"
	"understudy/epoch"
	"understudy/primary"
	"understudy/rebuild"
)

// image is what a backup holds.
type image struct {
	id      epoch.Incarnation
	memory  memory
	at      epoch.Position
	device  state
	whole   bool
	table   *rebuild.Table // references that are not filled
	missing bits           // pages that are not in memory: the table has them
	truth   memory         // what the guest's memory was: for the oracle
	request *request       // in flight,
	disk    content        // and its disk,
	known   bits           // as far as it knew
	bad     bool           // the primary has been told that it differs
	corrupt bool           // damaged by a fault
	filling bool           // in the background,
	lazy    bool           // but not now: a machine that is loaded fills it
	feeding bool           // the last epoch applied was a checkpoint, and its session lives

	from    [pages]int   // the block that each page was left out for
	misread [blocks]bool // those of which the image gets something else
	damaged bool         // by such a block
	spoilt  bool         // the filler has found one
}

// open makes the account of what is missing in a new image.
func (im *image) open(d *daemon, key epoch.PrintKey) {
	im.table = rebuild.New(rebuild.Config{Pages: pages, Key: key, Blocks: misreader{d.set, im},
		Read: func(first epoch.GFN, dst []byte) error {
			for i := 0; len(dst) > 0; i, dst = i+1, dst[epoch.PageSize:] {
				pageOf(dst[:epoch.PageSize], im.memory[int(first)+i])
			}
			return nil
		},
		Write: func(first epoch.GFN, data []byte) error {
			for p := int(first); len(data) > 0; p, data = p+1, data[epoch.PageSize:] {
				im.memory[p] = valueOf(data)
				im.missing &^= 1 << p
				d.w.at(d, stepMaterialise)
			}
			return nil
		}})
}

// misreader reads a host's disk for an image.
type misreader struct {
	set *disk.Set
	im  *image
}

// ReadSectors implements rebuild.Blocks.
func (r misreader) ReadSectors(id epoch.DiskID, sector uint64, dst []byte) error {
	if err := r.set.ReadSectors(id, sector, dst); err != nil {
		return err
	}
	for b := sector / epoch.PageSectors; len(dst) > 0; b, dst = b+1, dst[epoch.PageSize:] {
		if r.im.misread[b] {
			dst[7] ^= 0x10
		}
	}
	return nil
}

// misreads lets a block that a page of the image was left out for read as
// something else from now on, if there is one.
func (im *image) misreads(w *world) bool {
	for p := pages - 1; p >= 0; p-- { // the last ones are not soon superseded
		if im.missing&(1<<p) == 0 || im.misread[im.from[p]] {
			continue
		}
		im.misread[im.from[p]], im.damaged = true, true
		if w.breach == printIgnored {
			im.table.Supersede(epoch.GFN(p), 1)
			im.memory[p], im.missing = 1<<60, im.missing&^(1<<p)
		}
		return true
	}
	return false
}

// committed is the end of an epoch, or of the session that brought it.
func (im *image) committed(whole bool) {
	im.feeding = whole
	im.table.Committed(whole)
}

// fill fills references in the background, one after the other.
func (b *backupShell) fill(im *image) {
	if im.filling || im.spoilt || im.missing == 0 {
		return
	}
	im.filling = true
	wait := 40 * time.Millisecond
	if b.w.disk.slow {
		wait = time.Second
	}
	b.d.after(b.w.between(wait/80, wait), func() {
		im.filling = false
		if b.ended || b.image != im || b.looks() {
			return
		}
		var page [epoch.PageSize]byte
		first := b.w.dice.IntN(pages)
		for i := range pages {
			if p := (first + i) % pages; im.missing&(1<<p) != 0 && !im.lazy {
				_ = im.table.ReadPages(epoch.GFN(p), page[:]) // else later
				break
			}
		}
		b.looks()
		b.fill(im)
	})
}

// looks is the end of the filler, if it has found that the image cannot be made
// whole, which it tells. A page that cannot be filled while nothing has failed is
// a guest that is lost with its host.
func (b *backupShell) looks() (ended bool) {
	im := b.image
	if im == nil || im.spoilt || !im.feeding {
		return im != nil && im.spoilt
	}
	err := im.table.Bad()
	if err == nil {
		return false
	}
	if b.shouldFill() {
		b.w.violated("guarantee 4: the image of %s cannot be made whole: %v", b.d.h.name, err)
	}
	im.spoilt = true
	if b.w.breach != spoiltKept {
		b.d.after(b.w.between(0, time.Millisecond), func() {
			if !b.ended && !b.w.at(b.d, stepSpoilt) {
				b.post(backup.Spoilt{Err: err})
			}
		})
	}
	return true
}

// shouldFill reports whether a page of the image that cannot be filled breaks
// guarantee 4: nothing has failed, and the log would let the image take over, or
// has, or its primary is about to say so. A primary that has gone on alone overwrites
// blocks that the image still lacks: what it sent last, and a load for a takeover
// that a backup asks for from an old log, may then be in vain.
func (b *backupShell) shouldFill() bool {
	log, im := b.w.ledger.state, b.image
	fed := false
	if d := b.d.h.peer.daemon; d != nil && d.primary != nil && b.session != nil && b.session.e.other.open {
		fed = d.primary.core.Mode() == primary.ModeEntering
	}
	return !im.damaged && (fed || log.Owner == b.d.h.id || log.InSync && log.Backup.Image == im.id)
}
