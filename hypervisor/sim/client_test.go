package sim

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func mustClient(t testing.TB, guest Config, nic NIC, onLine func(Line)) *Client {
	t.Helper()
	c, err := NewClient(ClientConfig{Guest: guest.MAC, MAC: MACFor("client"), NIC: nic, OnLine: onLine})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// run runs a client until the test ends.
func run(t testing.TB, c *Client) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the client ended with: %v", err)
		}
	})
}

// The host dies, the guest goes on elsewhere from its last checkpoint, whose
// later output nobody has seen: the client's connection lives, and the outage
// it reports is the one there was.
func TestConnectionOutlivesTheHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := live()
		lan := NewNetwork()
		annaPort := lan.Plug()
		cfg.NIC = annaPort
		g, anna := boot(t, cfg)
		c := mustClient(t, cfg, lan.Plug(), nil)
		run(t, c)
		if err := c.WaitLine(t.Context(), 50); err != nil {
			t.Fatal(err)
		}

		s := save(t, g)
		annaPort.Pull(true) // output after the checkpoint is held, and never gets out
		resume(t, g)
		time.Sleep(20 * time.Millisecond)
		anna.Kill()
		time.Sleep(time.Second)

		boris := NewHost("boris")
		t.Cleanup(boris.Kill)
		cfg.NIC = lan.Plug()
		restore(t, boris, cfg, s)
		before := c.Report()
		if err := c.WaitLine(t.Context(), before.Lines+200); err != nil {
			t.Fatal(err)
		}
		r := c.Report()
		if err := r.Err(); err != nil || r.Boot != before.Boot {
			t.Errorf("after the takeover: %v; boot id %s, was %s", err, r.Boot, before.Boot)
		}
		if r.LongestGap < 1020*time.Millisecond || r.LongestGap > 1030*time.Millisecond || r.Gap.Number != before.Lines+1 {
			t.Errorf("the client reports an outage of %v ended by line %d, it was 1.02 s to 1.03 s, ended by line %d",
				r.LongestGap, r.Gap.Number, before.Lines+1)
		}
	})
}

// The same with the output of after the checkpoint let out: the client sees it.
func TestBrokenOutputCommitIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := live()
		lan := NewNetwork()
		cfg.NIC = lan.Plug()
		g, anna := boot(t, cfg)
		c := mustClient(t, cfg, lan.Plug(), nil)
		run(t, c)
		if err := c.WaitLine(t.Context(), 50); err != nil {
			t.Fatal(err)
		}
		s := save(t, g)
		resume(t, g)
		if err := c.WaitLine(t.Context(), c.Report().Lines+1); err != nil {
			t.Fatal(err)
		}
		anna.Kill()

		boris := NewHost("boris")
		t.Cleanup(boris.Kill)
		cfg.NIC = lan.Plug()
		restore(t, boris, cfg, s)
		if err := c.WaitLine(t.Context(), 200); err == nil {
			t.Fatal("nothing was reported")
		}
		if r := c.Report(); r.Violations[0].Fault != FaultTakenBack {
			t.Errorf("reported: %v", r.Err())
		}
	})
}

func TestClientNeedsItsCard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := Cable()
		c := mustClient(t, live(), a, nil)
		ended := make(chan error, 1)
		go func() { ended <- c.Run(t.Context()) }()
		synctest.Wait()
		if len(b.Receive()) == 0 {
			t.Error("the client did not try to open a connection")
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err == nil {
			t.Error("the client ended without an error although its card was gone")
		}
		if _, err := NewClient(ClientConfig{}); err == nil {
			t.Error("a client without anything was made")
		}
	})
}

// A client measures how long its probes take: the hold of the guest's output.
func TestClientMeasuresTheRoundTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := live()
		cfg.LineEvery = 20 // 40 ms, so that the client has to probe
		gate, outside := Cable()
		guest, inside := Cable()
		cfg.NIC = guest
		boot(t, cfg)
		ctx, cancel := context.WithCancel(t.Context())
		var passing sync.WaitGroup
		defer passing.Wait()
		defer cancel()
		pass := func(from, to *Port, hold time.Duration) {
			for {
				select {
				case f := <-from.Receive():
					time.Sleep(hold)
					to.Send(f)
				case <-ctx.Done():
					return
				}
			}
		}
		passing.Go(func() { pass(inside, gate, 5*time.Millisecond) })
		passing.Go(func() { pass(gate, inside, 0) })
		c := mustClient(t, cfg, outside, nil)
		run(t, c)
		if err := c.WaitLine(t.Context(), 10); err != nil {
			t.Fatal(err)
		}
		if rtt := c.Report().RoundTrip; rtt < 5*time.Millisecond || rtt > 20*time.Millisecond {
			t.Errorf("a hold of 5 ms makes a round trip of %v", rtt)
		}
	})
}
