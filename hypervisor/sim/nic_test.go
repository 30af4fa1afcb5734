package sim_test

import (
	"context"
	"testing"
	"time"

	"understudy/egress"
	"understudy/hypervisor/sim"
)

func frame(dst, src byte) []byte {
	f := make([]byte, 60)
	f[0], f[1], f[6], f[7] = 2, dst, 2, src
	if dst == 0xff {
		for i := range 6 {
			f[i] = 0xff
		}
	}
	return f
}

func TestNetworkLearnsWhereEverybodyIs(t *testing.T) {
	n := sim.NewNetwork()
	a, b, c := n.Plug(), n.Plug(), n.Plug()
	arrived := func(want ...int) {
		t.Helper()
		for i, p := range []*sim.Port{a, b, c} {
			if len(p.Receive()) != want[i] {
				t.Errorf("at port %d %d frames have arrived, want %d", i, len(p.Receive()), want[i])
			}
			for len(p.Receive()) > 0 {
				<-p.Receive()
			}
		}
	}
	a.Send(frame(2, 1)) // nobody knows where 2 is
	arrived(0, 1, 1)
	b.Send(frame(1, 2))
	arrived(1, 0, 0)
	a.Send(frame(2, 1))
	arrived(0, 1, 0)
	c.Send(frame(0xff, 2)) // 2 has moved to c and says so
	arrived(1, 1, 0)
	a.Send(frame(2, 1))
	arrived(0, 0, 1)
	c.Pull(true)
	a.Send(frame(2, 1))
	arrived(0, 0, 0)
	c.Pull(false)
	a.Send([]byte("short"))
	if a.Dropped() != 1 || c.Dropped() != 1 {
		t.Errorf("dropped %d at a and %d at c, want 1 and 1", a.Dropped(), c.Dropped())
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	a.Send(frame(2, 1)) // 2 is unknown again
	arrived(0, 1, 0)
}

// The guest's card can be one end of the pipe that the real gate reads.
func TestLinkJoinsAGuestToItsGate(t *testing.T) {
	guestEnd, gateEnd := egress.NewPipe(64)
	link := sim.NewLink(guestEnd, egress.ErrEmpty)
	cfg := sim.DefaultConfig("guest")
	cfg.Pages, cfg.Interval, cfg.NIC = 64, time.Millisecond, link
	host := sim.NewHost("anna")
	d, err := sim.NewDriver(host, cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	g, err := d.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Resume(ctx); err != nil {
		t.Fatal(err)
	}

	card := sim.NewLink(gateEnd, egress.ErrEmpty)
	client, err := sim.NewClient(sim.ClientConfig{Guest: cfg.MAC, MAC: sim.MACFor("client"), NIC: card})
	if err != nil {
		t.Fatal(err)
	}
	running, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- client.Run(running) }()
	if err := client.WaitLine(ctx, 100); err != nil {
		t.Error(err)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	host.Kill()
	for _, l := range []*sim.Link{link, card} {
		for range 2 { // a second Close does nothing
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	if _, ok := <-link.Receive(); ok {
		for range link.Receive() { // what was on the way; the channel has an end
		}
	}
}
