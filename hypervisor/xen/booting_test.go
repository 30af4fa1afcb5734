package xen

import (
	"errors"
	"testing"
)

// A guest that boots cannot be paused yet, which is asked for until it can.
func TestAGuestThatBoots(t *testing.T) {
	f := newFake()
	f.boots = true
	g := newTestGuest(t, f)
	must(t, g.Resume(t.Context()))
	if err := g.Ready(); !errors.Is(err, ErrBooting) {
		t.Errorf("while it boots: %v", err)
	}
	f.looked = errors.New("Xen says nothing")
	if err := g.Ready(); !errors.Is(err, f.looked) || errors.Is(err, ErrBooting) {
		t.Errorf("asked in vain: %v", err)
	}
	f.boots, f.looked = false, nil
	must(t, g.Ready())
	f.boots = true // nobody is asked again
	must(t, g.Ready())
	must(t, g.Detach())
	if err := newTestGuest(t, newFake()).Ready(); err != nil {
		t.Error(err)
	}
}
