package main

// This file is the guest as its clients see it: one TCP connection on which it counts
// from the first round to the last, and what it is asked to do.

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"understudy/config"
	"understudy/demo/world"
	"understudy/guest"
	"understudy/guest/client"
)

// met is a guest that is up.
type met struct {
	world.Reach
	lines *world.Client
}

// diskWork and memoryWork leave room for the rest, in an emulation.
var (
	diskWork   = client.DiskWork{Files: 24, Size: 64 << 10, Workers: 1, Every: 50 * time.Millisecond}
	memoryWork = client.Dirty{Pages: 50, Every: 50 * time.Millisecond, Random: true, AreaMiB: 8}
)

// reach is the way to it.
func reach() world.Reach { return reachAt(guestAddress) }

// reachAt is the way to a guest with another address.
func reachAt(address netip.Prefix) world.Reach {
	return world.Reach{Limit: patience, Dial: func(ctx context.Context, port int) (net.Conn, error) { return dialAt(ctx, address, port) }}
}

// meet waits until the guest is up, and has it count and use its memory.
func (s *story) meet(ctx context.Context) (*met, error) {
	g := &met{Reach: reach()}
	conn, err := dialGuest(ctx, guest.CounterPort)
	if err != nil {
		return nil, err
	}
	if g.lines, err = world.Follow(ctx, conn); err != nil {
		return nil, err
	}
	s.tell("the guest is up, and takes a connection")
	if err := g.Control(ctx, func(ctx context.Context, c *client.Control) error { return c.Dirty(ctx, memoryWork) }); err != nil {
		g.lines.Close()
		return nil, err
	}
	return g, nil
}

// dialGuest connects to a service of the guest's, which may not be there yet.
func dialGuest(ctx context.Context, port int) (net.Conn, error) {
	return dialAt(ctx, guestAddress, port)
}

func dialAt(ctx context.Context, address netip.Prefix, port int) (net.Conn, error) {
	ctx, cancel := within(ctx, patience)
	defer cancel()
	at := net.JoinHostPort(address.Addr().String(), strconv.Itoa(port))
	for {
		conn, err := (&net.Dialer{Timeout: 3 * time.Second}).DialContext(ctx, "tcp", at)
		if err == nil {
			return conn, nil
		}
		if pass(ctx, 100*time.Millisecond) != nil {
			return nil, fmt.Errorf("the guest takes no connection: %w", err)
		}
	}
}

// checkMemory has the guest compare its memory with what it has written there, and
// returns how many pages that were.
func (g *met) checkMemory(ctx context.Context) (pages int64, err error) {
	err = g.Control(ctx, func(ctx context.Context, c *client.Control) error {
		pages, err = c.Check(ctx)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("the guest's memory: %w", err)
	}
	return pages, nil
}

// The guest's addresses in the world's network.
var (
	guestAddress = netip.MustParsePrefix("10.77.0.20/24")
	guestMAC     = config.MAC{0x52, 0x54, 0, 0x77, 0, 0x20}
)
