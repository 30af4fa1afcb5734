package integration

import (
	"slices"
	"testing"
	"time"

	"understudy/config"
	"understudy/demo/world"
)

// wire is what leaves hosts by their cables, for a test.
type wire struct{ *world.Wire }

// since returns the frames of a guest since t, in the order of their times.
func (w wire) since(t *testing.T, mac config.MAC, from time.Time) []world.Frame {
	t.Helper()
	frames, err := w.Since(mac, from)
	if err != nil {
		t.Error(err)
	}
	return frames
}

// handedOver checks that no frame of the guest left the old host after the
// first one from the new host since a point in time. It returns when the old
// host's last and the new host's first one left; the former is zero if none did.
func (w wire) handedOver(t *testing.T, mac config.MAC, from time.Time, old, now string) (last, first time.Time) {
	t.Helper()
	var late int
	for _, f := range w.since(t, mac, from) {
		switch f.Host {
		case old:
			if f.At.After(last) {
				last = f.At
			}
		case now:
			if first.IsZero() || f.At.Before(first) {
				first = f.At
			}
		}
	}
	if first.IsZero() {
		t.Errorf("no frame of %s has left host %s", mac, now)
		return last, first
	}
	for _, f := range w.since(t, mac, first) {
		if f.Host == old {
			late++
		}
	}
	if late > 0 {
		t.Errorf("%d frames of %s left host %s after host %s had begun to speak for it, the last %v later", late, mac, old, now, last.Sub(first))
	}
	return last, first
}

// turns lists which hosts spoke for the guest since a point in time, in turn.
func (w wire) turns(t *testing.T, mac config.MAC, from time.Time) []string {
	t.Helper()
	frames := w.since(t, mac, from)
	slices.SortStableFunc(frames, func(a, b world.Frame) int { return a.At.Compare(b.At) })
	var hosts []string
	for _, f := range frames {
		if len(hosts) == 0 || hosts[len(hosts)-1] != f.Host {
			hosts = append(hosts, f.Host)
		}
	}
	return hosts
}
