package primary

import (
	"errors"
	"testing"
	"time"
)

// TestWhatIsAskedIsTakenOrRefused: nobody waits for what will not be done. A
// request used to be put into a queue, and was forgotten with it.
func TestWhatIsAskedIsTakenOrRefused(t *testing.T) {
	inBubble(t, nil, func(r *rig) {
		r.start(true)
		r.wait("protected", 5*time.Second, r.protected)
		r.must(r.p.Ask(r.t.Context(), RequestSwitchover))
		for range 3 { // while it is under way, and when the guest is nobody's here
			if err := r.p.Ask(r.t.Context(), RequestStop); !errors.Is(err, ErrBusy) {
				t.Errorf("a stop during a switchover: %v", err)
			}
			time.Sleep(10 * time.Millisecond)
		}
		r.stop()
		if err := r.p.Ask(r.t.Context(), RequestStop); !errors.Is(err, ErrEnded) {
			t.Errorf("a stop of what has ended: %v", err)
		}
	})
}

// TestTheSameIsAskedTwice: whoever asks second waits for the same end.
func TestTheSameIsAskedTwice(t *testing.T) {
	inBubble(t, nil, func(r *rig) {
		r.start(true)
		r.wait("protected", 5*time.Second, r.protected)
		r.must(r.p.Ask(r.t.Context(), RequestStop))
		if err := r.p.Ask(r.t.Context(), RequestStop); err != nil && !errors.Is(err, ErrEnded) {
			t.Error(err)
		}
	})
}
