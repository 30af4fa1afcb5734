package egress

import (
	"errors"
	"net/netip"
	"time"
)

// The announcement is repeated, since the first one may meet a port that is
// just coming up: after 50 ms, then each time 100 ms later than the time
// before, as QEMU does it (migration/options, announce-*).
const (
	announceRounds = 5
	announceFirst  = 50 * time.Millisecond
	announceStep   = 100 * time.Millisecond
)

// ErrNoMAC is returned by Announce when the Gate was not told the guest's address.
var ErrNoMAC = errors.New("announcing a guest: its MAC is not configured")

// Announce tells the network that the guest is here: by its MAC, and by each
// IPv4 address given or seen in its frames. The first round leaves before
// Announce returns if the lease allows it, the others from a goroutine that
// ends with them or with Close. It waits for no epoch, as it says nothing the
// guest has said, but it does obey lease and ModeShut.
func (g *Gate) Announce(addrs ...netip.Addr) error {
	if len(g.mac) == 0 {
		return ErrNoMAC
	}
	frames := announcements(g.mac, append(g.Addresses(), addrs...))
	g.inject(frames)
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.done:
		return nil
	default:
	}
	g.running.Go(func() {
		wait := announceFirst
		timer := time.NewTimer(wait)
		defer timer.Stop()
		for range announceRounds - 1 {
			select {
			case <-timer.C:
			case <-g.done:
				return
			}
			g.inject(frames)
			wait += announceStep
			timer.Reset(wait)
		}
	})
	return nil
}

// inject writes frames of our own, under the rules of sendBatch.
func (g *Gate) inject(frames [][]byte) {
	g.out.Lock()
	defer g.out.Unlock()
	if g.shut.Load() || !g.inTime() {
		return
	}
	g.note(Note{What: NoteAnnounce, Frames: len(frames)})
	for _, f := range frames {
		if err := g.network.WriteFrame(f); err != nil {
			g.count.lost.Add(1)
		}
	}
}
