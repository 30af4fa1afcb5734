package crash

// This file is the side that stands by, in the order of package backup; what it
// copies is named at each function. Decoder, table and disks are the real ones.

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"understudy/disk/disktest"
	"understudy/epoch"
	"understudy/protocol"
	"understudy/rebuild"
)

type ctx = context.Context

// image is the standby's memory.
type image struct {
	mu  sync.Mutex
	mem []byte
}

func (i *image) read(first epoch.GFN, dst []byte) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	copy(dst, i.mem[first*epoch.PageSize:])
	return nil
}

func (i *image) write(first epoch.GFN, data []byte) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	copy(i.mem[first*epoch.PageSize:], data)
	return nil
}

// standby is backup.Backup and its session.
type standby struct {
	w       *world
	h       *host
	image   *image
	table   *rebuild.Table
	dec     *epoch.Decoder
	at      epoch.Position
	whole   bool
	state   []byte
	session *session
	open    bool // an epoch is being staged
	kind    epoch.Kind
	stop    func() // ends the filler
	spoilt  chan error
}

// renew is backup.renew and fill.
func (b *standby) renew(key epoch.PrintKey) {
	b.end()
	b.w.must(b.h.pumped("stand by", b.h.set.StandBy))
	b.image = &image{mem: make([]byte, pages*epoch.PageSize)}
	b.at, b.whole, b.state = epoch.Position{Image: epoch.NewIncarnation()}, false, nil
	b.table = rebuild.New(rebuild.Config{Pages: pages, Key: key, Blocks: b.h.set, Read: b.image.read, Write: b.image.write, Log: slog.New(slog.DiscardHandler)})
	b.dec = epoch.NewDecoder(pages, epoch.DecoderConfig{}, b.table.ReadPages)
	b.spoilt = make(chan error, 1)
	b.h.gate.reads = true // nothing is on its way
	run, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	table, spoilt := b.table, b.spoilt
	go func() {
		defer close(done)
		if err := table.Run(run); err != nil {
			spoilt <- err
		}
	}()
	b.stop = func() {
		cancel()
		b.h.letGo("end of filling", func() bool {
			select {
			case <-done:
				return true
			default:
				return false
			}
		})
	}
}

func (b *standby) end() {
	if b.stop != nil {
		b.stop()
		b.stop = nil
	}
}

// greet is backup.Core.absorbGreeted and backup.prepare.
func (b *standby) greet(s *session, known []epoch.Position, key epoch.PrintKey) (epoch.Position, error) {
	resumed := !b.at.Image.IsZero() && slices.Contains(known, b.at)
	if !resumed && b.w.inSync && b.whole {
		return epoch.Position{}, fmt.Errorf("the log names %v as in sync, and the owner cannot continue from it", b.at)
	}
	b.drop()
	if !resumed {
		b.renew(key)
	}
	b.session = s
	return b.at, nil
}

// receive is backup.session.message for the next message, if there is one, with
// makeRoom and the loop's Commit.
func (b *standby) receive() bool {
	s := b.session
	if s == nil || !s.open || len(s.toBackup) == 0 {
		return false
	}
	m := s.toBackup[0]
	s.toBackup = s.toBackup[1:]
	var err error
	switch {
	case m.kind == protocol.KindHashes:
		var h epoch.DiskHashes
		h, err = protocol.ParseDiskHashes(m.payload)
		b.w.must(err)
		var d epoch.DiskDiffers
		b.w.must(b.h.pumped("compare", func(ctx) (err error) { d, err = b.h.set.Compare(h); return err }))
		s.toOwner = append(s.toOwner, message{protocol.KindDiffers, protocol.AppendDiskDiffers(nil, d)})
	case m.kind == protocol.KindBegin && !b.open:
		var header []byte
		_, header, err = protocol.ParseBegin(m.payload, pages)
		b.w.must(err)
		var h epoch.Header
		h, err = b.dec.Begin(header, b.at, s.generation)
		b.kind, b.open = h.Kind, true
	case m.kind == protocol.KindChunk && b.open:
		err = b.h.pumped("decode", func(ctx) error { return b.dec.Chunk(m.payload) })
	case m.kind == protocol.KindEnd && b.open:
		var at epoch.Position
		if at, err = b.dec.End(m.payload); err == nil {
			b.open = false
			b.w.at(stepStage)
			b.makeRoom()
			b.commit(at)
		}
	default:
		b.w.violated("message kind %d, an epoch is open: %v", m.kind, b.open)
	}
	if err != nil {
		b.w.violated("the backup refuses what came: %v", err)
	}
	return true
}

// makeRoom is backup.session.makeRoom.
func (b *standby) makeRoom() {
	var size uint64
	for _, w := range b.dec.Stage().Writes() {
		size += uint64(len(w.Data))
		switch w.Kind {
		case epoch.WriteData, epoch.WriteZeroes, epoch.WriteDiscard:
			if b.w.broken == "the backup acknowledges before it has filled what the epoch overwrites" {
				continue
			}
			before := b.table.Len()
			b.w.at(stepRoom)
			b.w.must(b.h.pumped("fill before an overwrite", func(ctx) error { return b.table.BeforeOverwrite(w.Disk, w.Sector, w.Sectors) }))
			if b.table.Len() < before {
				b.w.count.forced += uint64(before - b.table.Len())
				b.w.at(stepFilledBefore)
			}
		}
	}
	b.w.must(b.h.pumped("room in the table", b.table.Room))
	b.w.must(b.h.pumped("room for writes", func(c ctx) error { return b.h.set.Room(c, size) }))
}

// commit is backup.Core.absorbStaged and backup.commit.
func (b *standby) commit(at epoch.Position) {
	stage := b.dec.Stage()
	b.at, b.whole = at, b.kind == epoch.KindCheckpoint
	if b.w.broken != "newer content does not supersede a reference" {
		stage.EachRun(b.table.Supersede)
		for _, r := range stage.References() {
			b.table.Supersede(r.Page, 1)
		}
	}
	if err := b.table.Bad(); err != nil && b.whole {
		b.w.violated("the backup gives up at %v: %w", at, err)
	}
	if b.whole {
		b.w.committed(at.Number)
	}
	ack := protocol.Ack{At: at, Materialised: min(b.table.Through(), at.Number)}
	if b.session.open {
		b.session.toOwner = append(b.session.toOwner, message{protocol.KindAck, protocol.AppendAck(nil, ack)})
	}
	b.w.at(stepAckSent)
	b.w.must(stage.Apply(b.image.write))
	b.w.at(stepApply)
	before := b.h.set.Status().Writes
	b.w.must(b.h.pumped("commit writes", func(ctx) error { return b.h.set.Commit(at.Number, stage.Writes(), stage.DiskState()) }))
	b.w.at(stepCommit)
	if b.w.cfg.shared && b.h.set.Status().Writes < before+uint64(len(stage.Writes())) {
		b.w.at(stepDropped)
	}
	b.table.Add(stage.References(), at.Number)
	b.w.at(stepAdd)
	b.table.Committed(b.whole)
	if d := stage.DeviceState(); len(d) > 0 {
		b.state = bytes.Clone(d)
	}
	b.w.rest()
}

// fillOne lets one read of the background's go on.
func (b *standby) fillOne() {
	if c := b.h.gate.first(disktest.Read); c != nil {
		b.w.at(stepFillBegun)
		if !b.h.up {
			return
		}
		b.h.gate.give(c, goOn)
		b.w.at(stepFillEnded)
	}
	select {
	case err := <-b.spoilt:
		b.w.violated("a page cannot be rebuilt: %v", err)
	default:
	}
}

// drop is backup.drop.
func (b *standby) drop() {
	if b.session == nil {
		return
	}
	b.session.open = false
	b.session, b.open = nil, false
	b.dec.Reset()
	b.table.Committed(false)
}
