package crash

// This file is the owner's side, thread by thread in the order of package
// primary; what it copies is named at each function. The disks, the index and
// the encoder are the real ones.

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"

	"understudy/disk"
	"understudy/epoch"
	"understudy/protocol"
)

type message struct {
	kind    uint8
	payload []byte
}

// session is what two hosts say to each other.
type session struct {
	open       bool
	toBackup   []message
	toOwner    []message
	generation epoch.Generation
}

var errSession = errors.New("the session is closed")

func (s *session) send(kind uint8, b []byte) error {
	if s == nil || !s.open {
		return errSession
	}
	s.toBackup = append(s.toBackup, message{kind, bytes.Clone(b)})
	return nil
}

type mode uint8

const (
	alone     mode = iota // recorded: the guest runs unprotected
	syncing               // still so
	entering              // output waits, the backup is not recorded as in sync
	protected             // it is
)

// flight is one captured epoch: primary.job and primary.flight.
type flight struct {
	number epoch.Number
	kind   epoch.Kind
	pages  *epoch.PageSet
	slabs  []slab
	device []byte
}

type slab struct {
	first epoch.GFN
	data  []byte
}

// owner is primary.Primary, its core and its link.
type owner struct {
	w          *world
	h          *host
	g          *guest
	mode       mode
	enc        *epoch.Encoder
	pending    *epoch.PageSet
	inflight   []*flight
	jobs       []*flight // captured, not sent
	link       *session
	at         epoch.Position // of what was encoded last on this link
	known      []epoch.Position
	sent       []epoch.Position
	sealed     epoch.Number
	acked      epoch.Number
	firstWhole epoch.Number
	sources    sources
	flushed    [disks]uint64
}

func newOwner(w *world, h *host, g *guest) *owner {
	o := &owner{w: w, h: h, g: g, pending: epoch.NewPageSet(pages),
		enc: epoch.NewEncoder(pages, epoch.EncoderConfig{DeltaCacheBytes: 1 << 20, ChunkBytes: epoch.MinChunkBytes})}
	o.pending.Fill()
	return o
}

// holds is primary.Core.holds.
func (o *owner) holds() bool { return o.mode == entering || o.mode == protected }

// capture is primary.capture, pauseAndCopy, collect, copyPages and finishJob.
func (o *owner) capture() {
	if o.link == nil || !o.holds() || int(o.sealed-o.acked) >= o.w.cfg.window {
		return
	}
	if !o.h.set.Settled() && o.w.broken != "a checkpoint is taken before the disks have settled" {
		o.w.flushSome(4)
		return
	}
	n := o.sealed + 1
	o.sealed = n
	if o.firstWhole == 0 {
		o.firstWhole = n
	}
	o.g.run(false)
	f := &flight{number: n, kind: epoch.KindCheckpoint, pages: epoch.NewPageSet(pages), device: binary.LittleEndian.AppendUint64(nil, o.g.cpu|1<<63)}
	o.w.truths[n] = o.w.truth(n)
	o.w.must(o.h.set.Seal(n))
	o.w.at(stepSeal)
	if o.w.broken == "a write reaches the disk before its epoch is acknowledged" {
		o.h.set.Sealed(n)
		o.h.set.Release(n)
		o.w.flushSome(20)
	}
	if s := o.h.set.Status(); slices.ContainsFunc(s.Disks, func(d disk.DiskStatus) bool { return d.Flushed > o.flushed[0]+o.flushed[1] }) {
		o.flushed[0], o.flushed[1] = s.Disks[0].Flushed, s.Disks[1].Flushed
		o.w.at(stepReported)
	}
	o.collect(f.pages)
	o.w.at(stepCollect)
	if o.w.cfg.xen && n%2 == 0 {
		o.h.endReads() // the device has them, and keeps them until the guest runs
	}
	o.copy(f)
	o.w.at(stepCopy)
	o.g.run(true)
	o.inflight = append(o.inflight, f)
	o.jobs = append(o.jobs, f)
}

func (o *owner) collect(set *epoch.PageSet) {
	set.Union(o.pending)
	o.pending.Clear()
	set.Union(o.g.dirty)
	o.g.dirty.Clear()
	switch o.w.broken {
	case "pages that we wrote ourselves are not reported":
		o.h.set.CollectDirty(epoch.NewPageSet(pages))
		return
	case "an overtaken reference does not make its page dirty":
		o.h.index.Redirtied(epoch.NewPageSet(pages))
	}
	o.h.set.CollectDirty(set)
}

func (o *owner) copy(f *flight) {
	for first, count := range f.pages.Runs {
		for p := first; p < first+epoch.GFN(count); p++ {
			o.w.must(o.g.touch(p, 1)) // hypervisor.Image.ReadPages fills what is missing
		}
		f.slabs = append(f.slabs, slab{first, bytes.Clone(o.g.mem[first*epoch.PageSize:][:count*epoch.PageSize])})
	}
}

// syncStep is primary.syncStep, at most 5 pages at a time.
func (o *owner) syncStep() {
	f := &flight{number: o.sealed + 1, kind: epoch.KindSync, pages: epoch.NewPageSet(pages)}
	o.sealed++
	o.collect(f.pages)
	o.pending.Union(f.pages)
	f.pages.Clear()
	o.pending.TakeInto(f.pages, 5)
	o.copy(f)
	o.inflight = append(o.inflight, f)
	o.jobs = append(o.jobs, f)
}

// send is primary.link.sendLoop for one job.
func (o *owner) send() {
	if len(o.jobs) == 0 {
		return
	}
	f := o.jobs[0]
	o.jobs = o.jobs[1:]
	if o.link == nil {
		return
	}
	at, err := o.sendEpoch(f)
	if err != nil {
		o.enc.Abort()
		o.disconnect()
		return
	}
	o.at = at
}

// sendEpoch is primary.link.sendEpoch.
func (o *owner) sendEpoch(f *flight) (epoch.Position, error) {
	h := epoch.Header{Kind: f.kind, Number: f.number, Parent: o.at, Generation: o.w.generation, Pages: pages}
	if err := o.link.send(protocol.KindBegin, protocol.AppendBegin(nil, protocol.Verify{}, h.AppendTo(nil))); err != nil {
		return o.at, err
	}
	err := o.enc.Begin(h, func(chunk []byte) error {
		o.w.at(stepChunk)
		return o.link.send(protocol.KindChunk, chunk)
	})
	if err != nil {
		return o.at, err
	}
	var sealed []epoch.DiskWrite
	var state []byte
	if f.kind == epoch.KindCheckpoint {
		sealed, state = o.h.set.Sealed(f.number)
	}
	if o.w.broken == "B forgets a write before it is flushed" && len(state) > 0 {
		for d := range disks {
			binary.LittleEndian.PutUint64(state[2+8*d:], 1<<62)
		}
	}
	excluder := o.h.set.Encoding(f.number)
	if o.w.broken == "a page is left out for a write that is held" {
		excluder = heldExcluder{o, excluder}
	}
	o.sources.begin(excluder, f.pages, sealed)
	o.enc.SetExcluder(&o.sources)
	o.w.at(stepEncode)
	for _, s := range f.slabs {
		o.sources.keep(s.first, s.data)
		if err := o.enc.Pages(s.first, s.data); err != nil {
			return o.at, err
		}
	}
	limit := uint64(epoch.HashChunk)
	if f.kind == epoch.KindCheckpoint {
		limit = 0
	}
	var sync []epoch.DiskWrite
	err = o.h.pumped("read what differs", func(_ ctx) error {
		var err error
		sync, err = o.h.set.SyncWrites(f.number, limit)
		return err
	})
	if err != nil {
		return o.at, err
	}
	equal := o.sources.equal
	if o.w.broken == "a write names a page that has changed since" {
		equal = func(epoch.GFN, []byte) bool { return true }
	}
	if err := o.enc.Writes(append(sync, sealed...), equal); err != nil {
		return o.at, err
	}
	if f.kind == epoch.KindCheckpoint {
		if err := o.enc.DeviceState(f.device); err != nil {
			return o.at, err
		}
	}
	if len(state) > 0 {
		if err := o.enc.DiskState(state); err != nil {
			return o.at, err
		}
	}
	trailer, next, stats, err := o.enc.End()
	if err != nil {
		return o.at, err
	}
	o.w.count.references += stats.ReferencePages
	o.w.count.copies += stats.CopyPages
	o.w.count.named += stats.WritePageBytes / epoch.PageSize
	o.sent = append(o.sent, next)
	o.w.at(stepEnd)
	return next, o.link.send(protocol.KindEnd, trailer.AppendTo(nil))
}

// sources is primary.sources.
type sources struct {
	next  epoch.Excluder
	dirty *epoch.PageSet
	want  map[epoch.GFN][]byte
}

func (s *sources) begin(next epoch.Excluder, dirty *epoch.PageSet, writes []epoch.DiskWrite) {
	s.next, s.dirty, s.want = next, dirty, map[epoch.GFN][]byte{}
	for i := range writes {
		for _, page := range writes[i].Pages {
			if page != epoch.NoPage && dirty.Contains(page) {
				s.want[page] = nil
			}
		}
	}
}

func (s *sources) keep(first epoch.GFN, data []byte) {
	for f := first; len(data) > 0; f, data = f+1, data[epoch.PageSize:] {
		if _, ok := s.want[f]; ok {
			s.want[f] = bytes.Clone(data[:epoch.PageSize])
		}
	}
}

func (s *sources) equal(page epoch.GFN, piece []byte) bool {
	return !s.dirty.Contains(page) || bytes.Equal(s.want[page], piece)
}

func (s *sources) Exclude(page epoch.GFN, content []byte, delta bool) (epoch.Exclusion, bool) {
	if _, ok := s.want[page]; ok || s.next == nil {
		return epoch.Exclusion{}, false
	}
	return s.next.Exclude(page, content, delta)
}

// heldExcluder leaves a page out for a block that only a held write has.
type heldExcluder struct {
	o    *owner
	next epoch.Excluder
}

func (x heldExcluder) Exclude(page epoch.GFN, content []byte, delta bool) (epoch.Exclusion, bool) {
	for d := range x.o.g.disk {
		for s := uint64(0); s+8 <= sectors; s++ {
			if bytes.Equal(x.o.g.disk[d][s*512:][:epoch.PageSize], content) {
				return epoch.Exclusion{Kind: epoch.ExcludeBlock,
					Ref: epoch.Reference{Page: page, Disk: epoch.DiskID(d), Sector: s, Print: x.o.h.key.Of(content)}}, true
			}
		}
	}
	return x.next.Exclude(page, content, delta)
}

// receive is primary.link.receive, and absorbAcked with its actions.
func (o *owner) receive() {
	if o.link == nil || !o.link.open || len(o.link.toOwner) == 0 {
		return
	}
	m := o.link.toOwner[0]
	o.link.toOwner = o.link.toOwner[1:]
	switch m.kind {
	case protocol.KindRefuse:
		o.w.violated("the backup refused: %s", m.payload)
	case protocol.KindDiffers:
		d, err := protocol.ParseDiskDiffers(m.payload)
		o.w.must(err)
		o.w.must(o.h.set.Differ(d))
	case protocol.KindAck:
		ack, err := protocol.ParseAck(m.payload)
		o.w.must(err)
		if len(o.sent) < 2 || o.sent[1] != ack.At {
			o.w.violated("%v acknowledged, in flight are %v", ack.At, o.sent)
		}
		o.sent = o.sent[1:]
		o.h.set.Materialised(ack.Materialised)
		o.w.at(stepAckReceived)
		o.acknowledged(ack.At.Number)
	}
}

func (o *owner) acknowledged(n epoch.Number) {
	if n <= o.acked && n != 0 || n > o.sealed {
		return
	}
	o.acked = n
	for len(o.inflight) > 0 && o.inflight[0].number <= n { // Forget
		o.inflight = o.inflight[1:]
	}
	o.h.set.Synced(n)
	if o.holds() && o.firstWhole != 0 && n >= o.firstWhole {
		o.h.set.Release(n)
		o.w.rest()
		o.w.at(stepRelease)
		if o.mode == entering {
			o.mode = protected // InSync was proposed and applied
			o.w.inSync = o.link != nil
		}
	}
}

// disconnect is primary.disconnect and Core.unlink.
func (o *owner) disconnect() {
	if o.link == nil {
		return
	}
	o.link.open = false
	o.link = nil
	o.jobs = nil
	o.known = slices.Clone(o.sent)
	if o.mode == syncing {
		o.pass()
	}
}

// pass is ModeAlone: it is on record that the guest runs unprotected.
func (o *owner) pass() {
	o.mode, o.firstWhole = alone, 0
	o.w.record(true)
	o.h.set.Pass()
	o.w.rest()
}

// restore is primary.restore.
func (o *owner) restore() {
	if o.w.broken == "an epoch that was lost is not sent again" {
		o.inflight = nil
	}
	for _, f := range o.inflight {
		o.pending.Union(f.pages)
	}
	o.inflight = nil
}

// adopt is primary.adopt, absorbLinkUp and its actions, up to the state from
// which epochs are taken again.
func (o *owner) adopt(s *session, at epoch.Position) {
	resumed := slices.Contains(o.known, at)
	if !resumed && (at.Number != 0 || at.Running != epoch.Hash{}) {
		o.w.violated("the backup stands at %v, known are %v", at, o.known)
	}
	o.link, o.at, o.known, o.sent = s, at, nil, []epoch.Position{at}
	o.enc.Forget()
	if resumed {
		o.sealed = max(at.Number, o.acked)
		o.acknowledged(at.Number)
		o.restore()
		o.h.set.Void()
		if _, compare := o.h.set.Unsynced(); compare > 0 {
			o.h.set.SyncAll()
		}
		if o.holds() {
			o.h.set.Hold()
		}
		return
	}
	if o.holds() { // the image that the log names is gone
		o.w.inSync = false
		o.pass()
	}
	o.sealed, o.acked, o.firstWhole = 0, 0, 0
	o.restore()
	o.pending.Fill()
	o.h.set.Void()
	o.h.set.SyncAll()
}

// compare is primary.link.compareLoop for one message.
func (o *owner) compare() bool {
	if _, compare := o.h.set.Unsynced(); compare == 0 {
		return false
	}
	var h epoch.DiskHashes
	o.w.must(o.h.pumped("hash", func(_ ctx) (err error) {
		h, _, err = o.h.set.NextHashes(1)
		return err
	}))
	if len(h.Hashes) > 0 {
		_ = o.link.send(protocol.KindHashes, protocol.AppendDiskHashes(nil, h)) // a closed session is seen by the next send
	}
	return true
}
