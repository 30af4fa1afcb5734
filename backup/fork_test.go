package backup

// A bubble's fork at the backup: whatever is committed, filled, lost and taken over
// while it is copied, it is what image and disks were at its commit. The oracle is
// the guest itself, which keeps what it was after each epoch.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zeebo/xxh3"
	"pgregory.net/rapid"

	"understudy/bubble"
	"understudy/clock"
	"understudy/disk"
	"understudy/disk/disktest"
	"understudy/epoch"
	"understudy/ownership"
	"understudy/protocol"
)

// copied is the image that a fork goes into.
type copied struct {
	mu    sync.Mutex
	bytes []byte
	fails error
}

func (c *copied) Pages() uint64 { return uint64(len(c.bytes)) / epoch.PageSize }

func (c *copied) ReadPages(first epoch.GFN, dst []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	copy(dst, c.bytes[uint64(first)*epoch.PageSize:])
	return nil
}

func (c *copied) WritePages(first epoch.GFN, data []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	copy(c.bytes[uint64(first)*epoch.PageSize:], data)
	return c.fails
}

// hard are disks that cannot be read by who fills pages, when a test wants it so.
type hard struct {
	*disk.Set
	fails atomic.Bool
}

func (h *hard) ReadSectors(id epoch.DiskID, sector uint64, dst []byte) error {
	if h.fails.Load() {
		return errors.New("input/output error")
	}
	return h.Set.ReadSectors(id, sector, dst)
}

// past is what the guest was after an epoch.
type past struct{ memory, disk []byte }

const (
	forkBlocks  = 64
	forkSectors = forkBlocks*epoch.PageSectors + 4 // the last block is a short one
)

// forked is a guest with a disk, its backup, and maybe a fork.
type forked struct {
	*rig
	random *rand.Rand
	feed   *feed
	now    past
	then   map[epoch.Number]past
	own    *disk.Set
	media  *disktest.Media // the owner's
	disks  *hard

	fork *bubble.Fork
	into *copied
	over error // what ended it, if the test did
}

func newSet(t *testing.T, m *disktest.Media) *disk.Set {
	t.Helper()
	s, err := disk.NewSet(disk.SetConfig{Pages: imagePages, HeldBytes: disk.MinHeldBytes, Clock: clock.Go{Start: time.Now()},
		Disks: []disk.DiskConfig{{Store: m.Open()}}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newForked(r *rig, seed uint64, shared bool) *forked {
	w := &forked{rig: r, random: rand.New(rand.NewPCG(seed, 1)), then: map[epoch.Number]past{}, media: disktest.NewMedia(forkSectors, shared)}
	w.now = past{make([]byte, imagePages*epoch.PageSize), make([]byte, forkSectors*epoch.SectorSize)}
	w.own = newSet(r.t, w.media)
	w.own.Own(1)
	w.must(w.own.Allow(1 << 62))
	w.own.Hold()
	theirs := w.media
	if !shared {
		theirs = disktest.NewMedia(forkSectors, false)
	}
	w.disks = &hard{Set: newSet(r.t, theirs)}
	synctest.Wait() // the backup's loop stands still
	r.b.Disks = w.disks
	w.feed = r.open()
	return w
}

func (w *forked) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *forked) close() {
	if w.fork != nil {
		w.fork.End(errors.New("the test is over"))
	}
	w.end() // the backup may be about to commit to them
	w.must(w.own.Close())
	w.must(w.disks.Close())
}

// named leaves pages out for blocks of the disk.
type named map[epoch.GFN]epoch.Reference

func (n named) Exclude(page epoch.GFN, _ []byte, _ bool) (epoch.Exclusion, bool) {
	ref, ok := n[page]
	return epoch.Exclusion{Kind: epoch.ExcludeBlock, Ref: ref}, ok
}

// commit lets the guest live for an epoch and commits that.
func (w *forked) commit() {
	w.t.Helper()
	w.must(w.own.Drain(w.ctx)) // so that what is not written now is on the disk
	touched := map[uint64]bool{}
	for range w.random.IntN(6) {
		w.write(touched)
	}
	n := w.feed.at.Number + 1
	w.must(w.own.Seal(n))
	writes, state := w.own.Sealed(n)
	if len(writes) > 0 {
		w.disks.fails.Store(false) // what they overwrite must be saved first
	}

	var pages []epoch.GFN
	refs := named{}
	for range w.random.IntN(40) {
		pages = append(pages, epoch.GFN(w.random.IntN(imagePages)))
	}
	slices.Sort(pages)
	pages = slices.Compact(pages)
	for _, f := range pages {
		page := w.now.memory[f*epoch.PageSize:][:epoch.PageSize]
		block := w.random.Uint64N(forkBlocks)
		switch content := w.now.disk[block*epoch.PageSize:][:epoch.PageSize]; {
		case w.random.IntN(3) == 0 && !touched[block]:
			copy(page, content)
			refs[f] = epoch.Reference{Page: f, Sector: block * epoch.PageSectors, Print: epoch.PrintKey(0).Of(content)}
		case w.random.IntN(5) == 0:
			clear(page)
		default:
			w.scribble(page)
		}
	}
	enc := epoch.NewEncoder(imagePages, epoch.EncoderConfig{})
	h := epoch.Header{Kind: epoch.KindCheckpoint, Number: n, Parent: w.feed.at, Generation: w.feed.gen, Pages: imagePages}
	w.feed.send(protocol.KindBegin, protocol.AppendBegin(nil, protocol.Verify{}, h.AppendTo(nil)))
	w.must(enc.Begin(h, func(chunk []byte) error { w.feed.send(protocol.KindChunk, bytes.Clone(chunk)); return nil }))
	enc.SetExcluder(refs)
	for _, f := range pages {
		w.must(enc.Pages(f, w.now.memory[f*epoch.PageSize:][:epoch.PageSize]))
	}
	w.must(enc.Writes(writes, nil))
	w.must(enc.DeviceState(fmt.Append(nil, "registers of epoch ", n)))
	w.must(enc.DiskState(state))
	trailer, next, _, err := enc.End()
	w.must(err)
	w.feed.send(protocol.KindEnd, trailer.AppendTo(nil))
	m, err := w.feed.end.Receive(w.ctx)
	if err != nil || m.Kind != protocol.KindAck {
		w.t.Fatalf("epoch %d: kind %d %s, %v", n, m.Kind, m.Payload, err)
	}
	w.feed.at = next
	w.own.Release(n)
	w.then[n] = past{bytes.Clone(w.now.memory), bytes.Clone(w.now.disk)}
}

func (w *forked) scribble(b []byte) {
	for i := range b {
		b[i] = byte(w.random.Uint32())
	}
}

// write makes the guest write to its disk.
func (w *forked) write(touched map[uint64]bool) {
	sectors := 1 + w.random.Uint64N(20)
	sector := w.random.Uint64N(forkSectors - sectors)
	for b := sector / epoch.PageSectors; b <= (sector+sectors-1)/epoch.PageSectors; b++ {
		touched[b] = true
	}
	on := w.now.disk[sector*epoch.SectorSize:][:sectors*epoch.SectorSize]
	r := &disk.Request{Op: disk.OpDiscard, Sector: sector, Sectors: uint32(sectors)}
	if w.random.IntN(4) > 0 {
		w.scribble(on)
		r.Op, r.Segments = disk.OpWrite, []disk.Segment{{Data: bytes.Clone(on)}}
	} else {
		clear(on)
	}
	if taken, err := w.own.Disk(0).Accept(r); !taken || err != nil {
		w.t.Fatalf("a write was taken: %v, %v", taken, err)
	}
	if w.random.IntN(3) == 0 {
		_, err := w.own.Disk(0).Accept(&disk.Request{Op: disk.OpFlush})
		w.must(err)
	}
}

// begin forks the last commit, unless there is a fork.
func (w *forked) begin() {
	w.t.Helper()
	if w.fork != nil || w.feed.at.Number == 0 {
		return
	}
	w.into = &copied{bytes: make([]byte, imagePages*epoch.PageSize)}
	w.fork = bubble.NewFork(w.ctx, w.into)
	err := w.b.Fork(w.ctx, w.fork, func() (bubble.Disks, error) { return w.disks.Fork(1 << 30) })
	w.must(err)
	if w.fork.At != w.feed.at || string(w.fork.State) != fmt.Sprint("registers of epoch ", w.feed.at.Number) {
		w.t.Errorf("forked at %v with %q, the guest stands at %v", w.fork.At, w.fork.State, w.feed.at)
	}
}

// look compares the fork's disk with what it was, here and there.
func (w *forked) look() {
	w.t.Helper()
	if w.fork == nil {
		return
	}
	n := 1 + w.random.Uint64N(40)
	sector := w.random.Uint64N(forkSectors - n)
	got := make([]byte, n*epoch.SectorSize)
	err := w.fork.Disks.ReadSectors(0, sector, got)
	switch {
	case w.fork.Over():
		if err == nil {
			w.t.Error("the disk of a fork that is over can be read")
		}
	case err != nil:
		w.t.Error(err)
	case !bytes.Equal(got, w.then[w.fork.At.Number].disk[sector*epoch.SectorSize:][:len(got)]):
		w.t.Errorf("sectors %d+%d of the fork of epoch %d are not what they were then", sector, n, w.fork.At.Number)
	}
}

// finish copies the rest, and compares all of it.
func (w *forked) finish() {
	w.t.Helper()
	f := w.fork
	if f == nil || f.Over() {
		return
	}
	for done := false; !done; {
		var err error
		if done, err = f.Step(); err != nil {
			w.t.Fatal(err)
		}
	}
	page := make([]byte, epoch.PageSize)
	for _, ref := range f.Missing {
		w.must(f.Disks.ReadSectors(ref.Disk, ref.Sector, page))
		if f.Key.Of(page) != ref.Print {
			w.t.Errorf("%v is not true of the disk as of epoch %d", ref, f.At.Number)
		}
		w.must(w.into.WritePages(ref.Page, page))
	}
	was := w.then[f.At.Number]
	if got, want := xxh3.Hash128(w.into.bytes), xxh3.Hash128(was.memory); got != want {
		for p := range uint64(imagePages) {
			if !bytes.Equal(w.into.bytes[p*epoch.PageSize:][:epoch.PageSize], was.memory[p*epoch.PageSize:][:epoch.PageSize]) {
				w.t.Errorf("page %d of the fork is not what it was at epoch %d", p, f.At.Number)
			}
		}
	}
	all := make([]byte, forkSectors*epoch.SectorSize)
	w.must(f.Disks.ReadSectors(0, 0, all))
	if xxh3.Hash128(all) != xxh3.Hash128(was.disk) {
		w.t.Errorf("the fork's disk is not what it was at epoch %d", f.At.Number)
	}
}

// play does one thing.
func (w *forked) play(step byte) {
	w.t.Helper()
	shared := w.media.Open().Shared()
	switch step % 16 {
	default:
		w.commit()
	case 8, 9:
		w.begin()
	case 10, 11:
		if w.fork != nil && !w.fork.Over() {
			_, err := w.fork.Step()
			w.must(err)
		}
	case 12:
		w.disks.fails.Store(!w.disks.fails.Load()) // nothing is filled meanwhile
	case 13:
		time.Sleep(2 * time.Second) // of the bubble: what could not be filled is tried again
		synctest.Wait()
	case 14:
		w.look()
	case 15: // the session is lost, and goes on
		if w.feed.at.Number == 0 {
			return
		}
		synctest.Wait()
		_ = w.feed.end.Close()
		synctest.Wait()
		if w.fork != nil && w.fork.Over() != (shared || w.over != nil) {
			w.t.Errorf("the session is lost: the fork is over: %v, the disk is shared: %v", w.fork.Over(), shared)
		}
		if w.fork != nil && shared && w.over == nil {
			w.over = bubble.ErrNotFed
			if why := context.Cause(w.fork.Context()); !errors.Is(why, w.over) {
				w.t.Errorf("it is over since %v", why)
			}
		}
		at := w.feed.at
		w.feed = w.open(at)
		if w.feed.at != at {
			w.t.Fatalf("the session goes on at %v, not at %v", w.feed.at, at)
		}
		w.own.Hold() // what was sealed goes with the next epochs
	}
}

func TestAForkIsWhatItWasAtItsCommit(t *testing.T) {
	for _, shared := range []bool{false, true} {
		t.Run(fmt.Sprintf("shared=%v", shared), func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				seed := rapid.Uint64().Draw(rt, "seed")
				steps := rapid.SliceOfN(rapid.Byte(), 10, 60).Draw(rt, "steps")
				inBubble(t, func(r *rig) {
					w := newForked(r, seed, shared)
					defer w.close()
					w.commit()
					for _, s := range steps {
						w.play(s)
					}
					w.begin()
					w.disks.fails.Store(false)
					w.commit()
					w.finish()
				})
				if t.Failed() {
					rt.Fatalf("it is not")
				}
			})
		})
	}
}

// TestATakeoverEndsAFork: before anything is loaded.
func TestATakeoverEndsAFork(t *testing.T) {
	inBubble(t, func(r *rig) {
		w := newForked(r, 7, false)
		w.commit()
		w.commit()
		synctest.Wait()
		w.begin()
		state := w.b.core.Log()
		state.Revision, state.Phase, state.InSync = state.Revision+1, ownership.PhaseSurrendered, true
		state.Backup = ownership.Backup{Host: "b", Image: w.feed.at.Image, Epoch: w.feed.at.Number}
		r.b.Log = stillLog{state}
		r.b.events <- LogApplied{state}
		synctest.Wait()
		if why := context.Cause(w.fork.Context()); !errors.Is(why, bubble.ErrTakeover) {
			t.Errorf("the fork is over since %v", why)
		}
		if _, err := w.fork.Step(); !errors.Is(err, bubble.ErrTakeover) {
			t.Errorf("its copy goes on: %v", err)
		}
		if !r.b.core.asking {
			t.Error("no takeover is asked for")
		}
		w.close()
	})
}

// TestAForkThatFailsHarmsNobody: what goes wrong with the copy ends the copy.
func TestAForkThatFailsHarmsNobody(t *testing.T) {
	inBubble(t, func(r *rig) {
		w := newForked(r, 9, false)
		defer w.close()
		w.commit()
		synctest.Wait()
		w.begin()
		full := errors.New("no space left on device")
		w.into.fails = full
		for range 5 {
			w.commit()
		}
		synctest.Wait()
		if why := context.Cause(w.fork.Context()); !errors.Is(why, full) {
			t.Errorf("the fork is over since %v", why)
		}
		if st := r.b.Status(); st.Epoch != w.feed.at.Number {
			t.Errorf("the backup stands at %+v", st)
		}
		// And another one may begin.
		w.fork.End(full)
		w.fork = nil
		w.begin()
		w.commit()
		w.finish()
	})
}

// TestWithoutAForkACommitPaysNothing: one look at a pointer.
func TestWithoutAForkACommitPaysNothing(t *testing.T) {
	b := &Backup{}
	s := &session{b: b}
	stage := &epoch.Stage{}
	if n := testing.AllocsPerRun(100, func() {
		s.spared = b.setAside(stage)
		if f, _ := b.fork(s, stage); f != nil {
			t.Error("there is a fork")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestThereIsNothingToFork: what is said before there is an image.
func TestThereIsNothingToFork(t *testing.T) {
	inBubble(t, func(r *rig) {
		if _, err := r.b.Machine(); err == nil {
			t.Error("a machine without an image")
		}
		f := bubble.NewFork(r.ctx, &copied{bytes: make([]byte, imagePages*epoch.PageSize)})
		defer f.End(errors.New("the test is over"))
		if err := r.b.Fork(r.ctx, f, nil); err == nil {
			t.Error("a fork of nothing")
		}
	})
}
