package primary

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"understudy/epoch"
	"understudy/hypervisor"
	"understudy/hypervisor/sim"
	"understudy/protocol"
)

func verifyAll(c *Config, _ *sim.Config) { c.VerifyAll = true }

// TestImagesStayEqual: whatever the guest does, both images are equal after
// every epoch, and every buffer comes back.
func TestImagesStayEqual(t *testing.T) {
	inBubble(t, verifyAll, func(r *rig) {
		r.start(true)
		r.wait("protected", 5*time.Second, r.protected)
		before := r.commits()
		r.wait("epochs", 10*time.Second, func() bool { return r.commits() > before+40 })
		if n := r.sessions(); n != 1 {
			t.Errorf("%d sessions: one was enough", n)
		}
		r.stop()
		r.p.memory.free()
	})
}

// TestLargeEpochsStayWhole: an epoch that is larger than the capture memory is
// still one epoch. The guest stands still meanwhile.
func TestLargeEpochsStayWhole(t *testing.T) {
	inBubble(t, func(c *Config, m *sim.Config) {
		verifyAll(c, m)
		c.Effort = CompressNone                                             // it is the size that matters
		m.Pages, m.DirtyPages, m.Interval = 2048, 2000, 10*time.Millisecond // some 6 MB, the capture memory is 4 MB
	}, func(r *rig) {
		largest := 0
		size := 0
		r.onWire(func(kind uint8, payload []byte) error {
			switch kind {
			case protocol.KindBegin:
				size = 0
			case protocol.KindChunk:
				size += len(payload)
			case protocol.KindEnd:
				largest = max(largest, size)
			}
			return nil
		})
		r.start(true)
		r.wait("protected", 20*time.Second, r.protected)
		r.wait("some epochs", 20*time.Second, func() bool { return r.commits() > 12 })
		if d := r.p.Status().Dirty; d < uint64(r.cfg.CaptureBytes/epoch.PageSize)*5/4 {
			t.Fatalf("epochs of %d pages are no test of %d bytes of capture memory", d, r.cfg.CaptureBytes)
		}
		r.stop()
	})
}

// TestSessionDiesInTheMiddleOfALargeEpoch: at each of many points of it. The
// guest is not left standing, and protection comes back.
func TestSessionDiesInTheMiddleOfALargeEpoch(t *testing.T) {
	inBubble(t, func(c *Config, m *sim.Config) {
		verifyAll(c, m)
		c.Effort = CompressNone // it is the size that matters
		m.Pages, m.DirtyPages, m.Interval = 2048, 2000, 10*time.Millisecond
	}, func(r *rig) {
		r.start(true)
		for _, at := range []int{1, 9, 18} {
			r.wait("protected", 20*time.Second, r.protected)
			left := at
			r.onWire(func(uint8, []byte) error {
				if left--; left <= 0 {
					return errors.New("the cable was pulled")
				}
				return nil
			})
			was := r.sessions()
			r.wait("the session breaks", 20*time.Second, func() bool { return r.p.Status().LinkError != "" })
			r.onWire(nil)
			r.wait("another session", 20*time.Second, func() bool { return r.sessions() > was })
			before := r.commits()
			r.wait("epochs again", 20*time.Second, func() bool { return r.commits() > before+3 })
		}
	})
}

// TestPeerThatTakesNothing: the backup stays connected and stops reading in
// the middle of an epoch that fills the capture memory. The guest stands still
// for no longer than an acknowledgement may take, and not again: it goes on
// unprotected, which the log records first.
func TestPeerThatTakesNothing(t *testing.T) {
	inBubble(t, func(c *Config, m *sim.Config) {
		c.Effort = CompressNone // it is the size that matters
		m.Pages, m.DirtyPages, m.Interval = 2048, 2000, 10*time.Millisecond
	}, func(r *rig) {
		r.start(true)
		r.wait("protected", 20*time.Second, r.protected)
		stalled := make(chan struct{})
		r.onWire(func(kind uint8, _ []byte) error {
			if kind == protocol.KindChunk {
				r.mu.Lock()
				dead := r.wire[len(r.wire)-1].Dead()
				r.mu.Unlock()
				select {
				case <-stalled:
				case <-dead:
				}
			}
			return nil
		})
		time.Sleep(2 * r.cfg.AckTimeout)
		for range 4 {
			if !r.runs() {
				t.Fatalf("the guest stands again after %v", 2*r.cfg.AckTimeout)
			}
		}
		if r.log.now().InSync {
			t.Error("the log still names the backup in sync")
		}
		r.onWire(nil)
		close(stalled)
		before := r.commits()
		r.wait("epochs again", 20*time.Second, func() bool { return r.commits() > before+3 })
	})
}

// TestFailedCapturesLoseNothing: what was dirty in a capture that failed is in
// the next one (guarantee 5).
func TestFailedCapturesLoseNothing(t *testing.T) {
	for name, fail := range map[string]func(*sim.Faults){
		"device state": func(f *sim.Faults) { f.FailDeviceState(3) },
		"dirty pages":  func(f *sim.Faults) { f.FailCollect(3) },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, verifyAll, func(r *rig) {
				r.start(true)
				r.wait("protected", 5*time.Second, r.protected)
				for range 2 {
					fail(r.faults)
					before, image := r.commits(), r.p.Status().Image
					r.wait("epochs again", 5*time.Second, func() bool { return r.commits() > before+5 })
					if now := r.p.Status(); now.Image != image || now.Mode != ModeProtected {
						t.Fatalf("the failure cost the image: %+v", now)
					}
				}
				if n := r.sessions(); n != 1 {
					t.Errorf("%d sessions: the failures had nothing to do with it", n)
				}
			})
		})
	}
}

// TestSlabsComeBack: after many broken sessions no capture memory is missing.
func TestSlabsComeBack(t *testing.T) {
	inBubble(t, verifyAll, func(r *rig) {
		r.start(true)
		for i := range 20 {
			r.wait("protected", 10*time.Second, r.protected)
			time.Sleep(time.Duration(i) * 3 * time.Millisecond)
			r.cut()
			was := r.sessions()
			r.wait("another session", 10*time.Second, func() bool { return r.sessions() > was })
		}
		r.wait("protected", 10*time.Second, r.protected)
		r.refuseDials()
		r.cut()
		r.wait("no session", 10*time.Second, func() bool { return !r.protected() })
		r.allSlabsBack()
	})
}

// TestResumeSendsWhatIsMissing: a session that breaks and comes back goes on
// with the next epoch, and sends again no more than the lost epochs' pages.
func TestResumeSendsWhatIsMissing(t *testing.T) {
	inBubble(t, func(c *Config, m *sim.Config) {
		verifyAll(c, m)
		m.DirtyPages = 4
	}, func(r *rig) {
		r.start(true)
		r.wait("protected", 5*time.Second, r.protected)
		image := r.p.Status().Image
		for range 10 {
			before, was := r.p.Status(), r.sessions()
			r.cut()
			r.wait("another session", 5*time.Second, func() bool { return r.sessions() > was })
			r.wait("epochs again", 5*time.Second, func() bool { return r.commits() > before.Totals.Commits+5 })
			now := r.p.Status()
			if now.Image != image {
				t.Fatalf("image %s instead of %s", now.Image, image)
			}
			if raw := now.Totals.RawBytes - before.Totals.RawBytes; raw > r.guest.Pages()*epoch.PageSize/2 {
				t.Errorf("%d bytes were sent after a break: that is no resumption", raw)
			}
		}
	})
}

// TestMismatchGivesTheImageUp: a hypervisor that forgets to report pages is
// found out by a verification, and the image is made anew.
func TestMismatchGivesTheImageUp(t *testing.T) {
	inBubble(t, nil, func(r *rig) {
		r.start(true)
		r.wait("protected", 5*time.Second, r.protected)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		good, err := r.p.Verify(ctx)
		if err != nil || !good.Identical || good.Pages != r.guest.Pages() {
			t.Fatalf("an honest guest: %+v, %v", good, err)
		}
		image := r.p.Status().Image
		r.faults.Lie(sim.LieForgetDirty)
		time.Sleep(200 * time.Millisecond)
		bad, err := r.p.Verify(ctx)
		r.faults.Lie(0)
		if err != nil || bad.Identical {
			t.Fatalf("a lying guest: %+v, %v", bad, err)
		}
		r.wait("another image", 10*time.Second, func() bool { return r.protected() && r.p.Status().Image != image })
		if again, err := r.p.Verify(ctx); err != nil || !again.Identical {
			t.Fatalf("the new image: %+v, %v", again, err)
		}
	})
}

// booting is a guest that cannot be paused yet.
type booting struct {
	hypervisor.Guest
	up atomic.Bool
}

var errBoots = errors.New("it boots")

func (b *booting) Ready() error {
	if !b.up.Load() {
		return errBoots
	}
	return nil
}

// TestAGuestThatBootsIsLeftAlone: no backup is called before the guest can be paused,
// and the status says why.
func TestAGuestThatBootsIsLeftAlone(t *testing.T) {
	inBubble(t, nil, func(r *rig) {
		guest := &booting{Guest: r.guest}
		r.p.Guest = guest
		r.start(true)
		r.wait("the status says so", 5*time.Second, func() bool { return r.p.Status().LinkError == errBoots.Error() })
		time.Sleep(30 * time.Second)
		if n := r.sessions(); n != 0 || r.protected() {
			t.Errorf("%d sessions while it boots, protected: %v", n, r.protected())
		}
		guest.up.Store(true)
		r.wait("protected", 20*time.Second, r.protected)
	})
}
