package backup

// References at the backup: what a page is filled from, and when; and an epoch
// that does not say what became of the disks.

import (
	"bytes"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"understudy/epoch"
	"understudy/ownership"
	"understudy/protocol"
)

// blocks are disks of one block. What was kept of it is read instead of what is
// there, until the next epoch is committed.
type blocks struct {
	noDisks
	mu          sync.Mutex
	kept, there []byte
	fails       bool
}

func (b *blocks) ReadSectors(_ epoch.DiskID, _ uint64, dst []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.fails:
		return errors.New("input/output error")
	case b.kept != nil:
		copy(dst, b.kept)
	default:
		copy(dst, b.there)
	}
	return nil
}

func (b *blocks) Commit(epoch.Number, []epoch.DiskWrite, []byte) error {
	b.mu.Lock()
	keeps := b.kept != nil
	b.mu.Unlock()
	if keeps {
		synctest.Wait() // whoever can read a block by now has done so
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.kept = nil
	return nil
}

// leaves leaves every page out for the block.
type leaves struct{ print epoch.Fingerprint }

func (l leaves) Exclude(page epoch.GFN, _ []byte, _ bool) (epoch.Exclusion, bool) {
	return epoch.Exclusion{Kind: epoch.ExcludeBlock, Ref: epoch.Reference{Page: page, Print: l.print}}, true
}

// refer sends an epoch of a synchronisation with one page, left out for the
// block, and takes its acknowledgement.
func (f *feed) refer(page epoch.GFN, content []byte) {
	f.r.t.Helper()
	enc := epoch.NewEncoder(imagePages, epoch.EncoderConfig{})
	h := epoch.Header{Kind: epoch.KindSync, Number: f.at.Number + 1, Parent: f.at, Generation: f.gen, Pages: imagePages}
	f.send(protocol.KindBegin, protocol.AppendBegin(nil, protocol.Verify{}, h.AppendTo(nil)))
	err := enc.Begin(h, func(chunk []byte) error {
		f.send(protocol.KindChunk, bytes.Clone(chunk))
		return nil
	})
	if err == nil {
		enc.SetExcluder(leaves{epoch.PrintKey(0).Of(content)})
		err = enc.Pages(page, content)
	}
	if err != nil {
		f.r.t.Fatal(err)
	}
	trailer, next, _, err := enc.End()
	if err != nil {
		f.r.t.Fatal(err)
	}
	f.send(protocol.KindEnd, trailer.AppendTo(nil))
	m, err := f.end.Receive(f.r.ctx)
	if err != nil || m.Kind != protocol.KindAck {
		f.r.t.Fatalf("kind %d %s, %v", m.Kind, m.Payload, err)
	}
	f.at = next
}

// TestAReferenceIsNotFilledFromWhatItsEpochDrops: the disks keep a write of an
// epoch before; the primary has overwritten its block, alone, and leaves a page
// out for what is there now. The disks forget the write with that epoch: before
// they have, nobody may fill the page.
func TestAReferenceIsNotFilledFromWhatItsEpochDrops(t *testing.T) {
	inBubble(t, func(r *rig) {
		there := bytes.Repeat([]byte{2}, epoch.PageSize)
		synctest.Wait() // its loop stands still
		r.b.Disks = &blocks{kept: bytes.Repeat([]byte{1}, epoch.PageSize), there: there}
		f := r.open()
		f.refer(5, there)
		f.good(protocol.Verify{}) // a checkpoint on top of it is taken
		synctest.Wait()
		if err := r.b.table.Bad(); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, epoch.PageSize)
		if err := r.standby.last.ReadPages(5, got); err != nil || !bytes.Equal(got, there) {
			t.Errorf("page 5 is %v…, want %v… (%v)", got[:4], there[:4], err)
		}
	})
}

// TestALoadInVainHarmsNobody: the backup last heard that it is in sync. Its
// primary has since gone on alone, by the log, and overwritten a block that the
// image still lacks. Asking, the backup loads, and cannot; it is refused. The
// session that comes then goes on from where the image stands, and brings the page.
func TestALoadInVainHarmsNobody(t *testing.T) {
	inBubble(t, func(r *rig) {
		synctest.Wait() // its loop stands still
		disk := &blocks{there: bytes.Repeat([]byte{1}, epoch.PageSize), fails: true}
		r.b.Disks, r.b.cfg.Lazy = disk, false
		f := r.open()
		f.refer(2, disk.there)
		f.good(protocol.Verify{})
		synctest.Wait()

		truth := r.b.core.Log()
		stale := truth
		stale.Revision, stale.InSync, stale.Backup = truth.Revision+1, true, ownership.Backup{Host: "b", Image: f.at.Image, Epoch: f.at.Number}
		truth.Revision += 2
		r.b.Log = stillLog{truth}
		r.b.events <- LogApplied{stale}
		synctest.Wait()
		if !r.b.core.InSync() {
			t.Fatal("it does not hold itself for in sync")
		}
		disk.mu.Lock()
		disk.there, disk.fails = bytes.Repeat([]byte{9}, epoch.PageSize), false
		disk.mu.Unlock()
		_ = f.end.Close()
		time.Sleep(2 * time.Second) // of the bubble
		synctest.Wait()
		if r.b.table.Bad() == nil || r.b.core.asking || r.b.outcome != 0 {
			t.Fatalf("bad %v, asking %v, outcome %v", r.b.table.Bad(), r.b.core.asking, r.b.outcome)
		}

		next := r.open(f.at)
		if next.welcome.At != f.at || !next.welcome.Whole {
			t.Fatalf("the next session begins at %+v, not at %v", next.welcome, f.at)
		}
		next.page = 1
		next.good(protocol.Verify{}) // with page 2
		next.good(protocol.Verify{})
		synctest.Wait()
		if st := r.b.Status(); st.Epoch != next.at.Number || !st.Whole || r.b.table.Len() != 0 {
			t.Errorf("the backup stands at %+v, and lacks %d pages", st, r.b.table.Len())
		}
	})
}

// TestACheckpointWithoutItsDisksIsRefused: to the disks it would look like an epoch
// of a synchronisation, and they would forget what they keep.
func TestACheckpointWithoutItsDisksIsRefused(t *testing.T) {
	inBubble(t, func(r *rig) {
		f := r.open()
		f.good(protocol.Verify{}) // this guest has no disks
		synctest.Wait()
		r.b.cfg.Disks = []protocol.DiskSpec{{Sectors: 8, Store: "shared"}}
		ms, _ := f.epoch(f.at, f.gen, protocol.Verify{})
		for _, m := range ms {
			f.send(m.kind, m.payload)
		}
		m, err := f.end.Receive(r.ctx)
		if said := protocol.ParseRefuse(m.Payload); err != nil || m.Kind != protocol.KindRefuse || !strings.Contains(said, "without the state of the guest's disks") {
			t.Errorf("it answers with kind %d, %q, %v", m.Kind, said, err)
		}
		synctest.Wait()
		if st := r.b.Status(); st.Epoch != f.at.Number || !st.Whole {
			t.Errorf("the backup stands at %+v", st)
		}
	})
}
