package backup

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"understudy/protocol"
	"understudy/protocol/protocoltest"
)

// TestALoopThatIsStuckIsNotAlive: see the test of the same name in package
// primary. What it is stuck in here is a
// machine that does not come up.
func TestALoopThatIsStuckIsNotAlive(t *testing.T) {
	inBubble(t, func(r *rig) {
		ask := func() error {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			return r.b.Alive(ctx)
		}
		synctest.Wait()
		if err := ask(); err != nil {
			t.Errorf("it waits for a session: %v", err)
		}
		free := make(chan struct{})
		r.standby.before = func() { <-free }
		here, there := protocoltest.Pair()
		defer func() { _ = here.Close() }()
		r.sessions <- Opened{Session: there, Hello: protocol.Hello{Version: protocol.Version, Guest: "web", Host: "a", Generation: 3, Spec: r.spec}}
		if err := ask(); err == nil || !strings.Contains(err.Error(), "stuck") {
			t.Errorf("it is stuck: %v", err)
		}
		close(free)
		if err := ask(); err != nil {
			t.Errorf("it goes on: %v", err)
		}
	})
}
