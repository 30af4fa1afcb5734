package integration

// A bubble of a simulated guest, in one process: the backup's copy runs in a network
// of its own while the guest's own client notices nothing; and it makes room at once
// when its host has to take the guest over.

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"understudy/bubble"
	"understudy/hypervisor"
	"understudy/hypervisor/sim"
)

// simGround is where bubbles of the pair's guest are.
type simGround struct{ p *pair }

// Begin makes a network with two ports: the copy's, and the check's.
func (g *simGround) Begin(context.Context, string) (bubble.Place, error) {
	network := sim.NewNetwork()
	place := &simPlace{guest: network.Plug(), check: network.Plug(), host: sim.NewHost("bubble")}
	cfg := pairGuest()
	cfg.NIC = place.guest
	driver, err := sim.NewDriver(place.host, cfg)
	place.driver = driver
	return place, err
}

func (g *simGround) Clean(context.Context) error { return nil }

type simPlace struct {
	guest, check *sim.Port
	host         *sim.Host
	driver       *sim.Driver
}

func (p *simPlace) Driver() hypervisor.Driver        { return p.driver }
func (p *simPlace) ForkDisks() (bubble.Disks, error) { return nil, nil }
func (p *simPlace) Loaded() error                    { return nil }
func (p *simPlace) Written() uint64                  { return 0 }
func (p *simPlace) Name() string                     { return "" }

func (p *simPlace) Close() error {
	if left := p.host.Machines(); len(left) > 0 {
		return fmt.Errorf("%v are left", left)
	}
	return errors.Join(p.guest.Close(), p.check.Close())
}

// Check follows the copy's lines until it has said as many as the command asks for.
func (p *simPlace) Check(ctx context.Context, argv, _ []string) (c bubble.Check) {
	c = bubble.Check{Command: argv, Exit: -1}
	began := time.Now()
	defer func() { c.Took = time.Since(began) }()
	var lines uint64
	if _, err := fmt.Sscanf(strings.Join(argv, " "), "hear %d lines", &lines); err != nil {
		c.Error = err.Error()
		return c
	}
	client, err := sim.NewClient(sim.ClientConfig{Guest: guestMAC, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 0xbb}, NIC: p.check})
	if err != nil {
		c.Error = err.Error()
		return c
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); _ = client.Run(ctx) }()
	err = client.WaitLine(ctx, lines)
	cancel()
	<-done
	if err = errors.Join(err, client.Report().Err()); err == nil {
		c.Exit = 0
	}
	c.Output = fmt.Sprintf("%d lines, %v", client.Report().Lines, err)
	return c
}

func TestABubbleOfASimulatedGuest(t *testing.T) {
	p := newPair(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	owner := p.protected(20 * time.Second)
	backup := map[string]string{"a": "b", "b": "a"}[owner]
	c := p.client(ctx)
	p.must(c.WaitLine(ctx, 20))

	if _, err := p.nodes[owner].host.Bubble(ctx, "web", bubble.Spec{}, nil); err == nil || !strings.Contains(err.Error(), "does not stand by") {
		t.Errorf("a bubble at the owner: %v", err)
	}
	before := c.Report()
	stages := map[string]bool{}
	r, err := p.nodes[backup].host.Bubble(ctx, "web", bubble.Spec{Check: []string{"hear", "50", "lines"}},
		func(stage string, _, _ uint64) { stages[stage] = true })
	p.must(err)
	after := c.Report()
	if r.Check == nil || !r.Well() || r.Pages != 2048 || r.Commits == 0 || r.Epoch == 0 {
		t.Errorf("%+v, check %+v", r, r.Check)
	}
	for _, s := range []string{bubble.StagePrepare, bubble.StageFork, bubble.StageCopy, bubble.StageStart, bubble.StageCheck, bubble.StageEnd} {
		if !stages[s] {
			t.Errorf("nobody was told of the stage %q", s)
		}
	}
	if after.Lines <= before.Lines || p.protected(time.Second) != owner {
		t.Errorf("the guest said %d lines before, %d after", before.Lines, after.Lines)
	}
	p.must(after.Err())
	t.Logf("%+v; its check: %+v; the guest's own client: longest gap %v", r, *r.Check, after.LongestGap)

	// Held for somebody to look at, until that is enough.
	held := make(chan error, 1)
	holding := make(chan struct{}, 1)
	go func() {
		_, err := p.nodes[backup].host.Bubble(ctx, "web", bubble.Spec{Hold: time.Minute}, func(stage string, _, _ uint64) {
			if stage == bubble.StageHold {
				select {
				case holding <- struct{}{}:
				default:
				}
			}
		})
		held <- err
	}()
	<-holding
	if _, err := p.nodes[backup].host.Bubble(ctx, "web", bubble.Spec{}, nil); err == nil || !strings.Contains(err.Error(), "has a bubble already") {
		t.Errorf("a second bubble: %v", err)
	}
	p.must(p.nodes[backup].host.EndBubble(ctx, "web"))
	p.must(<-held)
	if err := p.nodes[backup].host.EndBubble(ctx, "web"); err == nil {
		t.Error("a bubble that is not there is ended")
	}

	// A takeover comes first.
	gone := make(chan error, 1)
	go func() {
		_, err := p.nodes[backup].host.Bubble(ctx, "web", bubble.Spec{Hold: time.Minute}, func(stage string, _, _ uint64) {
			if stage == bubble.StageHold {
				select {
				case holding <- struct{}{}:
				default:
				}
			}
		})
		gone <- err
	}()
	<-holding
	lines := c.Report().Lines
	p.kill(owner)
	killed := time.Now()
	if err := <-gone; !errors.Is(err, bubble.ErrTakeover) {
		t.Errorf("the bubble ended with: %v", err)
	}
	t.Logf("the bubble was gone %v after the primary's host", time.Since(killed))
	p.must(c.WaitLine(ctx, lines+20))
	t.Logf("the guest went on %v after it; longest gap %v", time.Since(killed), c.Report().LongestGap)
	p.must(c.Report().Err())
	p.up(owner)
	if now := p.protected(20 * time.Second); now != backup {
		t.Errorf("%s runs the guest", now)
	}
	cancel()
}
