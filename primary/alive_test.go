package primary

import (
	"context"
	"strings"
	"testing"
	"time"
)

// TestALoopThatIsStuckIsNotAlive: a primary that protects its guest answers, one
// whose loop waits for something that does not come is found out, and one that
// has ended is nobody's trouble.
func TestALoopThatIsStuckIsNotAlive(t *testing.T) {
	inBubble(t, nil, func(r *rig) {
		r.start(true)
		r.wait("protected", 5*time.Second, r.protected)
		ask := func() error {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			return r.p.Alive(ctx)
		}
		if err := ask(); err != nil {
			t.Errorf("it protects its guest: %v", err)
		}
		free := make(chan struct{})
		r.p.errands <- func(context.Context) { <-free }
		if err := ask(); err == nil || !strings.Contains(err.Error(), "stuck") {
			t.Errorf("it is stuck: %v", err)
		}
		close(free)
		if err := ask(); err != nil {
			t.Errorf("it goes on: %v", err)
		}
		r.stop()
		if err := ask(); err != nil {
			t.Errorf("it has ended: %v", err)
		}
	})
}
