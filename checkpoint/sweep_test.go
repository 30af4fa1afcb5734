package checkpoint

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"

	"understudy/epoch"
	"understudy/hypervisor"
)

// A sweep brings all that is missing, the disk's blocks in few reads, and leaves to
// Content what was overwritten: with a word before, and without.
func TestSweepBringsTheRest(t *testing.T) {
	const pages = 600
	rng := rand.New(rand.NewPCG(4, 4))
	d := newDisk(pages, rng)
	m := newImage(pages)
	for i := range pages {
		if i%100 < 90 { // the others are in records
			copy(m.page(epoch.GFN(i)), d.block((i+pages/2)%pages))
		} else {
			scribble(m.page(epoch.GFN(i)), rng)
		}
	}
	path := filepath.Join(t.TempDir(), "web")
	save(t, path, m, d, Options{})
	p, err := newPending(mustOpen(t, path), d, nil)
	if err != nil {
		t.Fatal(err)
	}
	block := func(page int) int { return (page + pages/2) % pages }
	if err := p.Overwrite(2, uint64(block(7)*epoch.PageSectors), epoch.PageSectors); err != nil {
		t.Fatal(err)
	}
	d.overwrite(block(7), rng)
	d.overwrite(block(8), rng) // without a word
	d.reads = 0
	put := func(first epoch.GFN, content []byte) error {
		for i := range epoch.GFN(len(content) / epoch.PageSize) {
			if !bytes.Equal(content[i*epoch.PageSize:][:epoch.PageSize], m.page(first+i)) {
				t.Errorf("page %d came with other content", first+i)
			}
			p.Filled(first + i)
		}
		return nil
	}
	if err := p.Sweep(t.Context(), put); err != nil {
		t.Fatal(err)
	}
	if d.reads > 10 {
		t.Errorf("%d reads for %d pages", d.reads, pages)
	}
	left := epoch.NewPageSet(pages)
	p.Missing(left)
	if left.Count() != 2 || !left.Contains(7) || !left.Contains(8) {
		t.Errorf("%d pages are missing after the sweep, want pages 7 and 8", left.Count())
	}
	got := make([]byte, epoch.PageSize)
	if err := p.Content(7, got); err != nil || !bytes.Equal(got, m.page(7)) {
		t.Errorf("the page that was set aside: %v", err)
	}
	if err := p.Content(8, got); !errors.Is(err, ErrStale) {
		t.Errorf("the page whose block is another: %v", err)
	}
	enough := errors.New("enough")
	p, err = newPending(mustOpen(t, path), d, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Sweep(t.Context(), func(epoch.GFN, []byte) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("a sweep that was told to end: %v", err)
	}
}

// slowly is a Beginner whose machine is made once its image is written to, or
// cannot be made.
type slowly struct {
	hypervisor.Driver
	image *early
	fail  error
}

func (s *slowly) BeginStandby(context.Context, hypervisor.Spec) (hypervisor.Standby, func() error, error) {
	return s.image, func() error { <-s.image.written; return s.fail }, nil
}

// early is an image that tells when it is written to.
type early struct {
	*image
	first   sync.Once
	written chan struct{}
}

func (e *early) WritePages(first epoch.GFN, data []byte) error {
	e.first.Do(func() { close(e.written) })
	return e.image.WritePages(first, data)
}

// A file is restored while the machine is made; without a machine nothing is.
func TestRestoresWhileTheMachineIsMade(t *testing.T) {
	const pages = 300
	rng := rand.New(rand.NewPCG(5, 5))
	m := newImage(pages)
	for i := range pages {
		scribble(m.page(epoch.GFN(i)), rng)
	}
	path := filepath.Join(t.TempDir(), "web")
	save(t, path, m, nil, Options{})
	for _, fail := range []error{nil, errors.New("no such machine")} {
		driver := &slowly{image: &early{image: newImage(pages), written: make(chan struct{})}, fail: fail}
		_, _, err := Restore(t.Context(), mustOpen(t, path), driver, nil, RestoreOptions{})
		switch {
		case !errors.Is(err, fail):
			t.Errorf("the machine: %v, the restore: %v", fail, err)
		case fail == nil && !bytes.Equal(driver.image.bytes, m.bytes):
			t.Error("the image is not what was saved")
		case driver.image.dead != (fail != nil) || (driver.image.device != nil) != (fail == nil):
			t.Errorf("the machine: %v, and its standby was destroyed: %t, was given a state: %t", fail, driver.image.dead, driver.image.device != nil)
		}
	}
}

// What is on disks is left for later if it is much, and fetched at once if not.
func TestFewReferencesAreReadAtOnce(t *testing.T) {
	for _, pages := range []int{fewReferences, fewReferences + 1} {
		rng := rand.New(rand.NewPCG(6, 6))
		d := newDisk(pages, rng)
		m := newImage(pages)
		for i := range pages {
			copy(m.page(epoch.GFN(i)), d.block(i))
		}
		path := filepath.Join(t.TempDir(), "web")
		save(t, path, m, d, Options{})
		s, pending, err := Restore(t.Context(), mustOpen(t, path), &driver{}, d, RestoreOptions{Lazy: true})
		if err != nil {
			t.Fatal(err)
		}
		few := pages <= fewReferences
		if got := pending.Remaining() == 0; got != few {
			t.Errorf("of %d references %d are missing", pages, pending.Remaining())
		}
		if few && !bytes.Equal(s.(*image).bytes, m.bytes) {
			t.Error("the image is not what was saved")
		}
	}
}
