package primary

import (
	"bytes"
	"context"
	"sync"
	"testing"
	"time"

	"understudy/epoch"
	"understudy/hypervisor/sim"
)

// everyBlock is a disk that has every content that was ever read from the guest,
// whose traffic names every page all the time, and that is read into the guest's
// memory (dma).
type everyBlock struct {
	guest *sim.Guest
	key   epoch.PrintKey

	mu     sync.Mutex
	had    map[epoch.Fingerprint][]byte
	landed map[epoch.GFN]byte
	unsaid []epoch.GFN
}

func trace(r *rig) *everyBlock {
	b := &everyBlock{guest: r.guest, key: r.cfg.PrintKey, had: map[epoch.Fingerprint][]byte{}, landed: map[epoch.GFN]byte{}}
	r.p.Guest, r.p.Disks, r.p.Blocks = everyGuest{r.guest, b}, everyDisks{b: b}, b
	r.p.seen = newSeen(r.cfg, r.p.Deps)
	return b
}

func (b *everyBlock) Named(set *epoch.PageSet) { set.Fill() }

func (b *everyBlock) FindPrint(page epoch.GFN, print epoch.Fingerprint) (epoch.Reference, bool, bool) {
	return epoch.Reference{Page: page, Print: print}, true, b.content(print) != nil
}

func (b *everyBlock) content(print epoch.Fingerprint) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.had[print]
}

// dma has our own back end write to a page, which the guest's tracking does not see.
func (b *everyBlock) dma(page epoch.GFN, v byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.landed[page] = v
	b.unsaid = append(b.unsaid, page)
}

type everyDisks struct {
	noDisks
	b *everyBlock
}

func (everyDisks) Sealed(epoch.Number) ([]epoch.DiskWrite, []byte) { return nil, []byte{1} }

func (d everyDisks) CollectDirty(set *epoch.PageSet) {
	b := d.b
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, page := range b.unsaid {
		set.Add(page)
	}
	b.unsaid = nil
}

// everyGuest is the guest's memory with what was read into it.
type everyGuest struct {
	*sim.Guest
	b *everyBlock
}

func (g everyGuest) ReadPages(first epoch.GFN, dst []byte) error {
	b := g.b
	if err := g.Guest.ReadPages(first, dst); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := 0; i < len(dst); i += epoch.PageSize {
		page := dst[i:][:epoch.PageSize]
		if v, ok := b.landed[first+epoch.GFN(i/epoch.PageSize)]; ok {
			page[0] = v
		}
		if print := b.key.Of(page); b.had[print] == nil {
			b.had[print] = bytes.Clone(page)
		}
	}
	return nil
}

// Pages that were looked at are not read when the guest is saved, and yet the file
// is the guest's memory: whatever the guest, and our own disks, wrote before the
// save and during it.
func TestASaveNeedNotReadWhatWasSeen(t *testing.T) {
	for _, protected := range []bool{true, false} {
		inBubble(t, func(c *Config, machine *sim.Config) { c.VerifyAll, machine.DirtyPages = true, 1 }, func(r *rig) {
			b := trace(r)
			r.start(protected)
			r.wait("running", 5*time.Second, r.runs)
			if protected {
				r.wait("protected", 5*time.Second, r.protected)
			}
			for i := range epoch.GFN(60) {
				time.Sleep(50 * time.Millisecond)
				b.dma(i, byte(i)+1)
				b.dma(500, byte(i)+1)
			}
			time.Sleep(2 * time.Second)
			if n := r.p.seen.Count(); n < r.guest.Pages()/2 {
				t.Errorf("%d of %d pages are known", n, r.guest.Pages())
			}
			b.dma(7, 77) // nobody has been told of it yet
			s := newCopySaver(r)
			s.blocks = b
			s.during = func() { b.dma(11, 111) }
			if _, err := r.p.Save(r.t.Context(), s, func(Moment) error {
				now := make([]byte, len(s.memory))
				r.must(r.p.Guest.ReadPages(0, now))
				for i := 0; i < len(now); i += epoch.PageSize {
					if !bytes.Equal(now[i:i+epoch.PageSize], s.memory[i:i+epoch.PageSize]) {
						t.Errorf("protected %v: page %d is not what was saved", protected, i/epoch.PageSize)
					}
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			if s.spared < r.guest.Pages()/2 {
				t.Errorf("%d of %d pages were not read", s.spared, r.guest.Pages())
			}
			known := r.p.seen.Count()
			if b.dma(900, 9); known == 0 {
				t.Error("a save forgets what was known")
			}
			r.wait("it learns again after a save", 5*time.Second, func() bool { return r.p.seen.Count() > known/2 })
		})
	}
}

// Once nothing is known of a failed collection's pages, nothing is known at all.
func TestAFailedCollectionIsNotBuiltUpon(t *testing.T) {
	inBubble(t, nil, func(r *rig) {
		trace(r)
		r.start(false)
		r.wait("pages are known", 10*time.Second, func() bool { return r.p.seen.Count() > 0 })
		r.faults.FailCollect(1)
		r.must(r.p.errand(r.t.Context(), func(ctx context.Context) error {
			if err := r.p.collectPending(ctx); err == nil {
				r.t.Error("the collection does not fail")
			}
			if n := r.p.seen.Count(); n != 0 {
				r.t.Errorf("%d pages are known still", n)
			}
			return nil
		}))
	})
}
