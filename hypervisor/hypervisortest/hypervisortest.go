// Package hypervisortest is the conformance suite of package hypervisor. Every
// adapter runs it: hypervisor/sim on a simulated guest, hypervisor/qemu on real
// ones. It assumes nothing of a guest's speed: it waits for conditions, with
// the harness's deadline.
//
// Each story (stories.go, takeover.go, events.go) gets two fresh hosts from the
// Harness and leaves nothing on them.
package hypervisortest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/zeebo/xxh3"

	"understudy/epoch"
	"understudy/hypervisor"
)

// Harness is what an adapter provides for the suite.
type Harness struct {
	// NewPair returns the drivers of two fresh hosts for one and the same guest
	// configuration. It is called once for each story; what has to be cleaned
	// up on the hosts themselves goes to t.Cleanup.
	NewPair func(t testing.TB) (a, b hypervisor.Driver)
	// WaitUp waits until a running guest does its work, so that its counter
	// counts and its memory gets dirty.
	WaitUp func(ctx context.Context, g hypervisor.Guest) error
	// Counter reads a counter that the guest keeps counting up while it runs,
	// from the image of a guest that is up or of a standby that has been given
	// one. It may be called while the guest runs.
	Counter func(ctx context.Context, image hypervisor.Image) (uint64, error)

	// Stir, if not nil, makes a running guest write memory in ways it does not
	// by itself: devices, new pages, freed pages.
	Stir func(ctx context.Context, g hypervisor.Guest) error
	// Leftovers, if not nil, lists what a guest has left on the hosts: its
	// processes, files, sockets, machines. Nothing may be left after Destroy.
	Leftovers func() []string
	// PowerOff, Reboot and Panic make a running guest do that by itself; Crash
	// ends its hypervisor from outside. A nil one is a story the adapter is not
	// asked to tell.
	PowerOff, Reboot, Panic, Crash func(ctx context.Context, g hypervisor.Guest) error
	// ForeignSpecs, if not nil, returns variants of a spec that the driver must
	// refuse with *hypervisor.Refusal, beside those the suite makes itself.
	ForeignSpecs func(spec hypervisor.Spec) []hypervisor.Spec

	// NoAdopt says that the adapter cannot adopt a guest.
	NoAdopt bool
	// StateVaries says that two device states of the same pause may differ in
	// bytes, although either can be loaded.
	StateVaries bool
	// Rounds is how many checkpoints the long stories take; 0 means 5.
	Rounds int
	// Deadline bounds each story; 0 means a minute.
	Deadline time.Duration
}

// Story is one promise of package hypervisor, told to an adapter.
type Story struct {
	Name string
	Tell func(t testing.TB, h Harness)
}

// Stories are all stories, in the order they are told.
func Stories() []Story {
	return []Story{
		{"a started guest stands still", startsPaused},
		{"a guest runs and pauses", runsAndPauses},
		{"the first collect reports every page and a paused guest dirties none", collectsAllThenNothing},
		{"every changed page is reported", reportsEveryChange},
		{"reads stay inside the image", readsInBounds},
		{"a device state can be taken again and writes nothing", deviceStateRepeats},
		{"a takeover goes on from the last checkpoint and fails back", takesOverAndFailsBack},
		{"a garbled device state is refused and the next attempt works", refusesGarbage},
		{"a reset standby keeps its image", resetKeepsImage},
		{"a takeover with missing pages finds each of them", takesOverWithMissingPages},
		{"a load in vain leaves missing pages missing", resetsWithMissingPages},
		{"destroy leaves nothing and can be repeated", destroys},
		{"a detached guest is adopted", adopts},
		{"an owner hears of a power-off", hearsPowerOff},
		{"an owner hears of a reboot", hearsReboot},
		{"an owner hears of a panic", hearsPanic},
		{"an owner hears of a crash", hearsCrash},
		{"clean removes what a dead process left", cleans},
		{"a foreign machine is refused", refusesForeignSpec},
		{"a cancelled context stops each call", honoursContext},
	}
}

// Run tells every story as a subtest.
func Run(t *testing.T, h Harness) {
	for _, s := range Stories() {
		t.Run(s.Name, func(t *testing.T) { s.Tell(t, h) })
	}
}

// stage is where one story is told. Its methods end the story on the first
// failure.
type stage struct {
	testing.TB
	Harness
	ctx  context.Context
	a, b hypervisor.Driver
}

func newStage(t testing.TB, h Harness) *stage {
	t.Helper()
	if h.Rounds == 0 {
		h.Rounds = 5
	}
	if h.Deadline == 0 {
		h.Deadline = time.Minute
	}
	ctx, cancel := context.WithTimeout(context.Background(), h.Deadline)
	t.Cleanup(cancel)
	s := &stage{TB: t, Harness: h, ctx: ctx}
	s.a, s.b = h.NewPair(t)
	return s
}

func (s *stage) must(err error, what string, args ...any) {
	s.Helper()
	if err != nil {
		s.Fatalf("%s: %v", fmt.Sprintf(what, args...), err)
	}
}

// actor is a guest whose events are read, as its owner has to.
type actor struct {
	hypervisor.Guest
	events   chan hypervisor.Event // what the guest did; closed when it is gone
	detached bool                  // not ours to destroy any more
}

// own reads a guest's events from now on and destroys it when the story ends.
func (s *stage) own(g hypervisor.Guest) *actor {
	a := &actor{Guest: g, events: make(chan hypervisor.Event, 64)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(a.events)
		for e := range g.Events() {
			select {
			case a.events <- e:
			default: // a story that does not care
			}
		}
	}()
	s.Cleanup(func() {
		if !a.detached {
			if err := g.Destroy(); err != nil {
				s.Errorf("destroy the guest at the end of the story: %v", err)
			}
		}
		select {
		case <-done:
		case <-time.After(s.Deadline):
			s.Errorf("the guest's event channel is still open %v after Destroy", s.Deadline)
		}
	})
	return a
}

func (s *stage) start(d hypervisor.Driver) *actor {
	s.Helper()
	g, err := d.Start(s.ctx)
	s.must(err, "start a guest")
	return s.own(g)
}

// startUp starts a guest and lets it run until it is up.
func (s *stage) startUp(d hypervisor.Driver) *actor {
	s.Helper()
	g := s.start(d)
	s.resume(g)
	s.must(s.WaitUp(s.ctx, g.Guest), "wait until the guest is up")
	return g
}

func (s *stage) standby(d hypervisor.Driver, spec hypervisor.Spec) hypervisor.Standby {
	s.Helper()
	sb, err := d.Standby(s.ctx, spec)
	s.must(err, "prepare a standby")
	if sb.Pages() != spec.Pages {
		s.Fatalf("the standby has %d pages, the guest %d", sb.Pages(), spec.Pages)
	}
	return sb
}

// dropStandby destroys a standby that has not become a guest.
func (s *stage) dropStandby(sb hypervisor.Standby) {
	s.Cleanup(func() {
		if err := sb.Destroy(); err != nil {
			s.Errorf("destroy the standby at the end of the story: %v", err)
		}
	})
}

func (s *stage) detach(g *actor) {
	s.Helper()
	s.must(g.Detach(), "detach from the guest")
	g.detached = true
	s.gone(g)
}

func (s *stage) pause(g hypervisor.Guest) {
	s.Helper()
	s.must(g.Pause(s.ctx), "pause the guest")
}

func (s *stage) resume(g hypervisor.Guest) {
	s.Helper()
	s.must(g.Resume(s.ctx), "resume the guest")
}

func (s *stage) counter(image hypervisor.Image) uint64 {
	s.Helper()
	if a, ok := image.(*actor); ok {
		image = a.Guest
	}
	n, err := s.Counter(s.ctx, image)
	s.must(err, "read the guest's counter")
	return n
}

// awaitCounter waits until a running guest has counted past n.
func (s *stage) awaitCounter(g *actor, n uint64) {
	s.Helper()
	var now uint64
	err := s.poll(func() (bool, error) {
		var err error
		now, err = s.Counter(s.ctx, g.Guest)
		return now > n, err
	})
	s.must(err, "wait until the guest counts past %d (it is at %d)", n, now)
}

// poll asks again and again until the answer is yes or the story's time is over.
func (s *stage) poll(ask func() (bool, error)) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := ask(); ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-s.ctx.Done():
			return s.ctx.Err()
		}
	}
}

// workOn lets a paused guest run until it has counted on, and stirs it.
func (s *stage) workOn(g *actor) {
	s.Helper()
	before := s.counter(g)
	s.resume(g)
	s.awaitCounter(g, before)
	if s.Stir != nil {
		s.must(s.Stir(s.ctx, g.Guest), "stir the guest")
	}
}

func (s *stage) collect(g hypervisor.Guest) *epoch.PageSet {
	s.Helper()
	set := epoch.NewPageSet(g.Pages())
	s.must(g.CollectDirty(set), "collect dirty pages")
	return set
}

func (s *stage) state(g hypervisor.Guest) []byte {
	s.Helper()
	prefix := []byte("what is there stays")
	b, err := g.AppendDeviceState(s.ctx, bytes.Clone(prefix))
	s.must(err, "take the device state")
	if !bytes.HasPrefix(b, prefix) || len(b) == len(prefix) {
		s.Fatalf("the device state was not appended to what was there (%d bytes before, %d after)", len(prefix), len(b))
	}
	return b[len(prefix):]
}

// readChunk is how many pages are read or compared at a time.
const readChunk = 512

// chunks calls f with every part of an image of the given size.
func chunks(pages uint64, f func(first epoch.GFN, count uint64) error) error {
	for first := uint64(0); first < pages; first += readChunk {
		if err := f(epoch.GFN(first), min(readChunk, pages-first)); err != nil {
			return err
		}
	}
	return nil
}

// hash is the hash of a whole image.
func (s *stage) hash(image hypervisor.Image) epoch.Hash {
	s.Helper()
	h, buf := xxh3.New128(), make([]byte, readChunk*epoch.PageSize)
	err := chunks(image.Pages(), func(first epoch.GFN, count uint64) error {
		b := buf[:count*epoch.PageSize]
		if err := image.ReadPages(first, b); err != nil {
			return err
		}
		_, err := h.Write(b)
		return err
	})
	s.must(err, "hash an image")
	return h.Sum128().Bytes()
}

// changed compares an image with a copy of it, brings the copy up to date and
// returns the pages that differed. It is the oracle for CollectDirty.
func (s *stage) changed(image hypervisor.Image, mirror []byte) *epoch.PageSet {
	s.Helper()
	set, buf := epoch.NewPageSet(image.Pages()), make([]byte, readChunk*epoch.PageSize)
	err := chunks(image.Pages(), func(first epoch.GFN, count uint64) error {
		b := buf[:count*epoch.PageSize]
		if err := image.ReadPages(first, b); err != nil {
			return err
		}
		for i := range count {
			f := first + epoch.GFN(i)
			now, was := b[i*epoch.PageSize:(i+1)*epoch.PageSize], mirror[uint64(f)*epoch.PageSize:(uint64(f)+1)*epoch.PageSize]
			if !bytes.Equal(now, was) {
				set.Add(f)
				copy(was, now)
			}
		}
		return nil
	})
	s.must(err, "compare an image with its copy")
	return set
}

// copyPages copies the pages of set from a guest into a standby.
func (s *stage) copyPages(from hypervisor.Image, to hypervisor.Standby, set *epoch.PageSet) {
	s.Helper()
	buf := make([]byte, readChunk*epoch.PageSize)
	for first, count := range set.Runs {
		for count > 0 {
			n := min(count, readChunk)
			b := buf[:n*epoch.PageSize]
			s.must(from.ReadPages(first, b), "read pages %d+%d of the guest", first, n)
			s.must(to.WritePages(first, b), "write pages %d+%d of the standby", first, n)
			first, count = first+epoch.GFN(n), count-n
		}
	}
}

// checkpoint pauses the guest, copies what is dirty into the standby and
// returns the device state. The guest stays paused. It ends the story if the
// standby's image is not the guest's afterwards.
func (s *stage) checkpoint(g hypervisor.Guest, to hypervisor.Standby) []byte {
	s.Helper()
	s.pause(g)
	state := s.state(g)
	s.copyPages(g, to, s.collect(g))
	if got, want := s.hash(to), s.hash(g); got != want {
		s.Fatalf("after the checkpoint the standby's image is %v, the guest's is %v", got, want)
	}
	return state
}

// nothingLeft ends the story if the guest has left something on the hosts.
func (s *stage) nothingLeft(after string) {
	s.Helper()
	if s.Leftovers == nil {
		return
	}
	if left := s.Leftovers(); len(left) != 0 {
		s.Fatalf("after %s the hosts still hold %q", after, left)
	}
}

// refused ends the story unless err is an error.
func (s *stage) refused(err error, what string, args ...any) {
	s.Helper()
	if err == nil {
		s.Fatalf("%s: no error", fmt.Sprintf(what, args...))
	}
}

// refusal ends the story unless err is a hypervisor.Refusal that says what was
// found and what to do.
func (s *stage) refusal(err error, what string, args ...any) {
	s.Helper()
	var r *hypervisor.Refusal
	if !errors.As(err, &r) {
		s.Fatalf("%s: %v (%T), want a *hypervisor.Refusal", fmt.Sprintf(what, args...), err, err)
	} else if r.What == "" || r.Remedy == "" {
		s.Fatalf("%s: the refusal %+v does not say what was found and what would help", fmt.Sprintf(what, args...), *r)
	}
}
