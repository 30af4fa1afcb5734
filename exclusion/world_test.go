package exclusion

import (
	"fmt"
	"slices"

	"understudy/epoch"
)

// This file is the oracle: a small world of one disk, a guest, a primary that
// captures and encodes epochs, and a backup that commits them and fills
// references, in which everything that takes time happens in steps that any
// other step may come between. After each step check asks what a takeover at
// this instant would give.

const (
	worldPages   = 4
	worldSectors = 20
	worldValues  = 3 // what a sector may hold: 0 (zeros) to 2
)

// block is a page's or an extent's content: one value for each sector.
type block [epoch.PageSectors]byte

// contents holds the bytes of every block there may be.
var contents = func() map[block][]byte {
	m := map[block][]byte{}
	for i := range 6561 { // 3^8
		var b block
		for k, n := 0, i; k < len(b); k, n = k+1, n/worldValues {
			b[k] = byte(n % worldValues)
		}
		page := make([]byte, 0, epoch.PageSize)
		for _, v := range b {
			page = append(page, slices.Repeat([]byte{v}, epoch.SectorSize)...)
		}
		m[b] = page
	}
	return m
}()

// write is a change of the disk on its way: passing, or held.
type write struct {
	seq     int
	sector  int
	data    []byte // a value for each sector
	page    epoch.GFN
	passing bool
	ticket  uint64
	epoch   epoch.Number // sealed in; 0: not yet
	free    bool         // held, and released
	done    int          // sectors that have reached the disk
}

func (w *write) over(sector, sectors int) bool {
	return w.sector < sector+sectors && sector < w.sector+len(w.data)
}

// read is a read on its way.
type read struct {
	sector  int
	page    epoch.GFN
	ticket  uint64
	got     block
	overlay map[int]byte // what held writes said as it began
	done    int
}

// capture is an epoch from its pause on.
type capture struct {
	n       epoch.Number
	whole   bool // a checkpoint, not a step of a synchronisation
	mem     [worldPages]block
	pages   []epoch.GFN
	writes  []write
	flushed int // every write up to this seq is durable
	asking  epoch.Excluder
	asked   int
	out     map[epoch.GFN]epoch.Exclusion
}

type ack struct{ n, filled epoch.Number }

// pending is a reference at the backup.
type pending struct {
	ref epoch.Reference
	n   epoch.Number
}

type world struct {
	choose func(n int) int
	broken string // the rule that is not kept
	ix     *Index

	// The primary's host and the disk.
	disk     [worldSectors]byte
	mem      [worldPages]block
	dirty    *epoch.PageSet
	hold     bool
	flying   []*write // passing, straight to the disk
	log      []*write // held, or passing behind held ones
	reads    []*read
	seq      int
	next     epoch.Number
	captures []*capture // not acknowledged; the first `sent` are at the backup
	sent     int
	acks     []ack

	// The backup.
	image     [worldPages]block
	pending   map[epoch.GFN]pending
	bad       map[epoch.GFN]bool
	overlay   []write // committed, not reported flushed
	committed epoch.Number
	truth     [worldPages]block // the guest's memory at the last commit
	insync    bool              // a takeover is possible

	references, copies int
}

func newWorld(choose func(int) int, broken string, blocks, outstanding int) *world {
	w := &world{
		choose: choose, broken: broken, next: 1,
		ix:      NewIndex(Config{Pages: worldPages, Key: 42, MaxBlocks: blocks, MaxOutstanding: outstanding}),
		dirty:   epoch.NewPageSet(worldPages),
		pending: map[epoch.GFN]pending{}, bad: map[epoch.GFN]bool{},
	}
	for i := range w.disk {
		w.disk[i] = byte(1 + i/8%2)
	}
	w.dirty.Fill()
	return w
}

// step does one thing that can be done now. Steps stand in this list more than
// once to come more often.
func (w *world) step() {
	steps := []func(){
		w.cpu, w.beginRead, w.beginRead, w.beginWrite, w.capture, w.capture, w.capture,
		w.progressRead, w.progressRead, w.progressRead, w.progressWrite, w.progressWrite, w.progressWrite,
		w.flush, w.flush, w.flush, w.flush, w.flush, w.flush, w.encode, w.encode, w.encode, w.encode, w.encode, w.encode, w.encode, w.encode, w.encode,
		w.deliver, w.deliver, w.acknowledged, w.acknowledged, w.fill, w.switchMode,
	}
	if w.choose(150) == 0 {
		w.lose()
		return
	}
	steps[w.choose(len(steps))]()
}

// page picks a page, mostly one of two, so that things meet.
func (w *world) page() epoch.GFN { return epoch.GFN(w.choose(worldPages)) }

// sector picks where an extent begins; at sectors that are not aligned, too.
func (w *world) sector() int {
	return []int{0, 0, 8, 8, 4, 12, 3}[w.choose(7)]
}

func (w *world) cpu() {
	p := w.page()
	w.mem[p][w.choose(epoch.PageSectors)] = byte(w.choose(worldValues))
	w.dirty.Add(p)
}

func (w *world) beginRead() {
	if len(w.reads) == 2 {
		return
	}
	r := &read{sector: w.sector(), page: w.page(), ticket: w.ix.ReadBegins(), overlay: map[int]byte{}}
	for _, h := range w.log {
		for i, v := range h.data {
			if s := h.sector + i - r.sector; s >= 0 && s < epoch.PageSectors {
				r.overlay[s] = v
			}
		}
	}
	w.reads = append(w.reads, r)
}

func (w *world) progressRead() {
	if len(w.reads) == 0 {
		return
	}
	i := w.choose(len(w.reads))
	r := w.reads[i]
	if r.done < epoch.PageSectors {
		for range 4 { // a read is not atomic
			r.got[r.done] = w.disk[r.sector+r.done]
			r.done++
		}
		return
	}
	w.reads = slices.Delete(w.reads, i, i+1)
	content := r.got
	for s, v := range r.overlay {
		content[s] = v
	}
	w.mem[r.page] = content
	w.dirty.Add(r.page)
	if w.broken == "a read is believed although a write ran beside it" {
		r.ticket = w.ix.ReadBegins()
	}
	if len(r.overlay) == 0 || w.broken == "a read of held writes is believed" {
		w.ix.ReadLanded(r.ticket, 0, uint64(r.sector), r.page, contents[content])
	}
}

func (w *world) beginWrite() {
	if len(w.flying) == 2 || len(w.log) == 5 {
		return
	}
	w.seq++
	o := &write{seq: w.seq, sector: w.sector(), page: w.page()}
	discard := w.choose(4) == 0
	switch {
	case discard:
		o.page, o.data = epoch.NoPage, make([]byte, 1+w.choose(10))
		o.data = o.data[:min(len(o.data), worldSectors-o.sector)]
	default:
		o.data = slices.Clone(w.mem[o.page][:])
	}
	o.passing = !w.hold
	kills := o.passing
	if w.broken == "a passing write makes no page dirty" {
		kills = false
	}
	if !discard || w.broken != "a discard is not accepted" {
		o.ticket = w.ix.Accepted(0, uint64(o.sector), uint32(len(o.data)), kills)
	}
	if w.broken == "a write counts as over when it is accepted" && o.passing {
		w.ix.Landed(o.ticket)
	}
	if w.broken == "a held write counts as on the disk" && !discard && w.hold {
		w.ix.Flushed(0, uint64(o.sector), o.page, contents[block(o.data)])
	}
	if !w.hold && len(w.log) == 0 {
		w.flying = append(w.flying, o)
		return
	}
	o.free = o.passing || w.broken == "a held write reaches the disk at once"
	w.log = append(w.log, o)
}

// advance brings some more of a write to the disk and says whether it is all.
func (w *world) advance(o *write) bool {
	for range 4 {
		if o.done == len(o.data) {
			return true
		}
		w.disk[o.sector+o.done] = o.data[o.done]
		o.done++
	}
	return false
}

func (w *world) progressWrite() {
	if len(w.flying) == 0 {
		return
	}
	i := w.choose(len(w.flying))
	o := w.flying[i]
	if !w.advance(o) {
		return
	}
	w.flying = slices.Delete(w.flying, i, i+1)
	if o.page != epoch.NoPage {
		w.ix.WriteDone(o.ticket, 0, uint64(o.sector), o.page, contents[block(o.data)])
	}
	w.landed(o)
}

func (w *world) landed(o *write) {
	if w.broken != "a write counts as over when it is accepted" && w.broken != "a passing write makes no page dirty" {
		w.ix.Landed(o.ticket)
	}
}

func (w *world) flush() {
	if len(w.log) == 0 || !w.log[0].free {
		return
	}
	o := w.log[0]
	if !w.advance(o) {
		return
	}
	w.log = w.log[1:]
	newer := slices.ContainsFunc(append(slices.Clone(w.log), w.flying...), func(x *write) bool { return x.over(o.sector, len(o.data)) })
	if o.page != epoch.NoPage && (!newer || w.broken == "a flush is believed although newer writes were accepted") {
		w.ix.Flushed(0, uint64(o.sector), o.page, contents[block(o.data)])
	}
	if o.passing {
		w.landed(o)
	}
}

func (w *world) settled() bool {
	return len(w.flying) == 0 && !slices.ContainsFunc(w.log, func(o *write) bool { return o.passing })
}

func (w *world) capture() {
	if len(w.captures) >= 2 || w.hold && !w.settled() && w.broken != "a checkpoint is taken before passing writes have settled" {
		return
	}
	w.ix.Redirtied(w.dirty)
	c := &capture{n: w.next, whole: w.hold, mem: w.mem, out: map[epoch.GFN]epoch.Exclusion{}}
	w.next++
	for first, count := range w.dirty.Runs {
		for p := first; p < first+epoch.GFN(count); p++ {
			c.pages = append(c.pages, p)
		}
	}
	w.dirty.Clear()
	c.flushed = w.seq
	for _, o := range w.log {
		c.flushed = min(c.flushed, o.seq-1)
		if o.epoch == 0 && !o.passing {
			o.epoch = c.n
			c.writes = append(c.writes, *o)
		}
	}
	for _, o := range w.flying {
		c.flushed = min(c.flushed, o.seq-1)
	}
	w.captures = append(w.captures, c)
}

func (w *world) encode() {
	for _, c := range w.captures[w.sent:] {
		if c.asked == len(c.pages) {
			continue
		}
		if c.asking == nil {
			c.asking = w.ix.Encoding(c.n)
		}
		p := c.pages[c.asked]
		c.asked++
		content := c.mem[p]
		if w.broken == "the page's bytes are those of now, not of the pause" {
			content = w.mem[p]
		}
		if content == (block{}) {
			return
		}
		if x, ok := c.asking.Exclude(p, contents[content], w.choose(3) == 0); ok {
			c.out[p] = x
		}
		return
	}
}

func (w *world) deliver() {
	if w.sent == len(w.captures) || w.captures[w.sent].asked < len(w.captures[w.sent].pages) {
		return
	}
	c := w.captures[w.sent]
	w.sent++
	for _, o := range c.writes {
		for p, r := range w.pending {
			if o.over(int(r.ref.Sector), epoch.PageSectors) && w.broken != "the backup does not fill before it acknowledges" {
				w.fillPage(p)
			}
		}
	}
	for _, p := range c.pages {
		delete(w.pending, p)
		delete(w.bad, p)
		switch x := c.out[p]; x.Kind {
		case epoch.ExcludeBlock:
			w.pending[p] = pending{x.Ref, c.n}
			w.references++
		case epoch.ExcludeCopy:
			w.image[p] = w.image[x.Source] // ascending: the source is there
			w.copies++
		default:
			w.image[p] = c.mem[p]
		}
	}
	w.overlay = append(w.overlay, c.writes...)
	w.overlay = slices.DeleteFunc(w.overlay, func(o write) bool { return o.seq <= c.flushed })
	w.committed, w.truth, w.insync = c.n, c.mem, c.whole
	w.acks = append(w.acks, ack{c.n, w.filled()})
}

// filled returns the newest epoch up to which every reference is filled.
func (w *world) filled() epoch.Number {
	n := w.committed
	for _, r := range w.pending {
		n = min(n, r.n-1)
	}
	return n
}

// asOfCommit returns what the backup reads.
func (w *world) asOfCommit(sector uint64) block {
	disk := w.disk
	for _, o := range w.overlay {
		copy(disk[o.sector:], o.data)
	}
	return block(disk[sector : sector+epoch.PageSectors])
}

func (w *world) fillPage(p epoch.GFN) {
	r := w.pending[p]
	delete(w.pending, p)
	w.image[p] = w.asOfCommit(r.ref.Sector)
	if epoch.PrintKey(42).Of(contents[w.image[p]]) != r.ref.Print {
		w.bad[p] = true
	}
}

func (w *world) fill() {
	if p := w.page(); w.pending[p].n != 0 {
		w.fillPage(p)
	}
}

func (w *world) acknowledged() {
	if len(w.acks) == 0 {
		return
	}
	a := w.acks[0]
	w.acks = w.acks[1:]
	w.captures, w.sent = w.captures[1:], w.sent-1
	w.release(a.n)
	w.ix.Materialised(a.filled)
}

func (w *world) release(n epoch.Number) {
	for _, o := range w.log {
		if o.epoch != 0 && o.epoch <= n {
			o.free = true
		}
	}
}

func (w *world) switchMode() {
	if !w.hold {
		w.hold = true
	}
}

// lose ends the session: what was not delivered is lost, and what was not
// acknowledged is dirty again. The primary resumes with the same image, holding
// on, or has the backup recorded as out of sync and goes on alone.
func (w *world) lose() {
	for _, c := range w.captures {
		for _, p := range c.pages {
			w.dirty.Add(p)
		}
	}
	w.captures, w.sent, w.acks, w.next = nil, 0, nil, w.committed+1
	if w.broken != "a lost session voids nothing" {
		w.ix.Void()
	}
	if w.hold && w.choose(2) == 0 {
		w.release(w.committed)
		for _, o := range w.log {
			if o.epoch > w.committed {
				o.epoch = 0
			}
		}
		return
	}
	w.hold, w.insync = false, false
	for _, o := range w.log {
		o.free = true
		if !o.passing {
			o.passing, o.ticket = true, w.ix.Accepted(0, 0, 0, true)
		}
	}
}

// check says what is wrong with a takeover at this instant, "" if nothing is.
func (w *world) check() string {
	if !w.insync {
		return ""
	}
	for p, want := range w.truth {
		have := w.image[p]
		r, missing := w.pending[epoch.GFN(p)]
		if missing {
			have = w.asOfCommit(r.ref.Sector)
		}
		if have != want || w.bad[epoch.GFN(p)] {
			return fmt.Sprintf("after epoch %d page %d is %v, in the guest it was %v (reference %v outstanding: %v, of epoch %d; found bad: %v)",
				w.committed, p, have, want, r.ref, missing, r.n, w.bad[epoch.GFN(p)])
		}
	}
	return ""
}
