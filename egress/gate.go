package egress

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"understudy/clock"
	"understudy/epoch"
)

// Mode says which of the guest's frames may leave.
type Mode uint8

const (
	// ModeHold: a frame leaves after the epoch it belongs to was released. A
	// Gate starts like this: fail closed.
	ModeHold Mode = iota
	// ModePass: every frame leaves at once, for a guest whose running
	// unprotected is on record.
	ModePass
	// ModeShut: nothing leaves and nothing is let in.
	ModeShut
)

func (m Mode) String() string {
	switch m {
	case ModeHold:
		return "hold"
	case ModePass:
		return "pass"
	case ModeShut:
		return "shut"
	}
	return fmt.Sprintf("mode(%d)", uint8(m))
}

// Config says what a Gate stands between.
type Config struct {
	// Guest and Network are the two links. The Gate closes them.
	Guest, Network Frames
	// Limit, if not nil, is the kernel's own time limit on Network. The Gate
	// closes it.
	Limit Limiter
	// Clock tells when the lease ends.
	Clock clock.Clock
	// MAC is the guest's Ethernet address, for Announce.
	MAC net.HardwareAddr
	// HeldBytes bounds the memory for held frames; zero means
	// DefaultHeldBytes, at least MinHeldBytes. It becomes real memory only as
	// far as frames are held.
	HeldBytes int
	// Guard is how long before the end of the lease the last frame leaves: it
	// has to cover the writing of one batch and, with a Limit, a tick of the
	// kernel's clock. Zero means DefaultGuard.
	Guard time.Duration
	// Log gets what an operator should know; nil means slog.Default.
	Log *slog.Logger
	// Recorder, if not nil, is told what decides what leaves: for tests.
	Recorder Recorder
}

const (
	// DefaultHeldBytes is what a guest at 1 Gbit/s sends in half a second.
	DefaultHeldBytes = 64 << 20
	// MinHeldBytes is room for a few frames of the largest size.
	MinHeldBytes = 4 * minRing
	// DefaultGuard is 2.5 ticks of a kernel at 250 Hz.
	DefaultGuard = 10 * time.Millisecond
	// batch is how many frames move between two looks at the clock, and the
	// longest a Seal waits for the collecting goroutine: some 50 µs.
	batch = 32
	// maxLearned bounds the addresses remembered of one guest.
	maxLearned = 8
)

// Gate stands between a guest and the network. Its three goroutines are
//
//	collect: guest → ring, waits while the ring is full
//	send:    ring → network, as far as mode, epochs and lease allow
//	receive: network → guest
//
// and end with Close. Its locks, taken in this order: in and out are held for
// one batch of frames in a direction, mu for touching the ring. Whoever holds
// out may write to the network or change its time limit, nobody else, so that
// a look at the clock, a change of the limit and a write never interleave.
// Seal, which runs while the guest stands still, takes only mu.
type Gate struct {
	guest, network Frames
	limit          Limiter
	clock          clock.Clock
	guard          time.Duration
	mac            net.HardwareAddr
	log            *slog.Logger
	recorder       Recorder

	in  sync.Mutex
	out sync.Mutex
	// Under out: the end of the lease, the batch that is being written, and who
	// is told of the first frame of it.
	until   clock.Instant
	writing [][]byte
	first   func()

	mu      sync.Mutex
	mode    Mode
	ring    *ring
	sealed  epoch.Number
	pressed bool // pressure was reported since the last seal
	learned [maxLearned]netip.Addr
	nl      int
	shut    atomic.Bool // mode == ModeShut, for the way in

	kick     chan struct{} // there may be something to send
	room     chan struct{} // the ring has got room
	pressure chan struct{}
	failed   chan error
	done     chan struct{}
	closing  sync.Once
	closed   error
	running  sync.WaitGroup
	count    counters
}

type counters struct {
	sent, sentBytes, lost, discarded, late, full atomic.Uint64
	in, inBytes, inLost, inRefused               atomic.Uint64
}

// Stats is what a Gate has done so far. Frames are counted, and bytes of frames.
type Stats struct {
	Mode       Mode   `json:"-"`
	ModeName   string `json:"mode"`
	HeldFrames int    `json:"held_frames"`
	HeldBytes  int64  `json:"held_bytes"`
	Sent       uint64 `json:"sent_frames"`
	SentBytes  uint64 `json:"sent_bytes"`
	// Lost frames were released, but the network did not take them.
	Lost      uint64 `json:"lost_frames"`
	Discarded uint64 `json:"discarded_frames"`
	// Late counts the batches that were due when the lease had run out.
	Late uint64 `json:"late_batches"`
	// Full counts how often the guest had to wait because the ring was full.
	Full            uint64 `json:"full"`
	Received        uint64 `json:"received_frames"`
	ReceivedBytes   uint64 `json:"received_bytes"`
	ReceivedLost    uint64 `json:"received_lost_frames"`    // the guest did not take them
	ReceivedRefused uint64 `json:"received_refused_frames"` // the gate was shut
}

// NewGate starts a gate in ModeHold with no lease. On an error the links and
// the limit stay the caller's.
func NewGate(c Config) (*Gate, error) {
	if c.Guest == nil || c.Network == nil || c.Clock == nil {
		return nil, errors.New("egress gate: a guest link, a network link and a clock are needed")
	}
	if c.HeldBytes == 0 {
		c.HeldBytes = DefaultHeldBytes
	}
	if c.HeldBytes < MinHeldBytes {
		return nil, fmt.Errorf("egress gate: %d bytes for held frames: want at least %d", c.HeldBytes, MinHeldBytes)
	}
	if c.Guard == 0 {
		c.Guard = DefaultGuard
	}
	if c.Guard < 0 {
		return nil, fmt.Errorf("egress gate: a guard of %v: want more than nothing", c.Guard)
	}
	if len(c.MAC) != 0 && len(c.MAC) != 6 {
		return nil, fmt.Errorf("egress gate: %s is no Ethernet address", c.MAC)
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	g := &Gate{
		guest: c.Guest, network: c.Network, limit: c.Limit, clock: c.Clock, guard: c.Guard, mac: c.MAC, log: c.Log, recorder: c.Recorder,
		writing: make([][]byte, 0, batch), ring: newRing(c.HeldBytes),
		kick: make(chan struct{}, 1), room: make(chan struct{}, 1), pressure: make(chan struct{}, 1),
		failed: make(chan error, 1), done: make(chan struct{}),
	}
	g.running.Go(g.collect)
	g.running.Go(g.send)
	g.running.Go(g.receive)
	return g, nil
}

// collect moves the guest's frames into the ring until the gate is closed.
func (g *Gate) collect() {
	for {
		if err := g.guest.Wait(); err != nil {
			g.fail("guest", err)
			return
		}
		g.mu.Lock()
		full, err := g.takeLocked(batch)
		g.mu.Unlock()
		if err != nil {
			g.fail("guest", err)
			return
		}
		if !full {
			continue
		}
		g.count.full.Add(1)
		select {
		case <-g.room:
		case <-g.done:
			return
		}
	}
}

// takeLocked moves up to max frames from the guest into the ring. The epoch a
// frame belongs to is decided here, which is why reading and adding are one
// step under mu.
func (g *Gate) takeLocked(max int) (full bool, err error) {
	before := g.ring.next
	for range max {
		slot := g.ring.slot()
		if slot == nil {
			full = true
			break
		}
		var n int
		if n, err = g.guest.ReadFrame(slot); err != nil {
			break
		}
		g.learn(slot[:n])
		g.ring.add(n)
	}
	if errors.Is(err, ErrEmpty) {
		err = nil
	}
	if g.mode == ModePass && g.ring.next != before {
		g.ring.releaseAll()
		signal(g.kick)
	}
	if high := int64(len(g.ring.buf)) / 4 * 3; (full || g.ring.used > high) && !g.pressed {
		g.pressed = true
		signal(g.pressure)
	}
	return full, err
}

// signal leaves a token in a channel that has room for one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Seal ends epoch n: every frame the guest has sent belongs to n or to an
// epoch before it. The guest must stand still. Frames for which the ring has no
// room stay in the guest's socket and so belong to a later epoch, which holds
// them for longer, never for less. n must be
// above the n of every Seal since the last Hold, Pass or Discard.
func (g *Gate) Seal(n epoch.Number) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if n <= g.sealed {
		return fmt.Errorf("sealing the frames of epoch %d: epoch %d is sealed already", n, g.sealed)
	}
	// The ring bounds the loop.
	if _, err := g.takeLocked(int(^uint(0) >> 1)); err != nil {
		return fmt.Errorf("sealing the frames of epoch %d: %w", n, err)
	}
	g.sealed = n
	g.pressed = false
	g.ring.seal(n)
	g.note(Note{What: NoteSeal, Epoch: n, Position: g.ring.next})
	return nil
}

// Release lets the frames of epochs up to through leave, in the order in which
// the guest sent them, as soon as mode and lease allow. It does not wait for
// them. Epochs not sealed are not released.
func (g *Gate) Release(through epoch.Number) {
	g.mu.Lock()
	g.note(Note{What: NoteRelease, Epoch: through, Position: g.ring.next})
	g.ring.release(through)
	g.mu.Unlock()
	signal(g.kick)
}

// Hold holds every frame that has not been released, whatever was sealed, for
// the next epoch to be sealed: the beginning of an image's history, in which
// epochs are counted from 1 again.
func (g *Gate) Hold() { g.enter(ModeHold) }

// Pass lets every held frame leave, in order, and from now on each at once.
// The caller has seen it recorded that the guest runs unprotected.
func (g *Gate) Pass() { g.enter(ModePass) }

func (g *Gate) enter(m Mode) {
	g.out.Lock()
	defer g.out.Unlock()
	g.mu.Lock()
	wasShut := g.mode == ModeShut
	g.note(Note{What: What(m.String()), Position: g.ring.next})
	g.mode, g.sealed, g.pressed = m, 0, false
	if m == ModePass {
		g.ring.releaseAll()
	} else {
		g.ring.unseal()
	}
	g.shut.Store(false)
	g.mu.Unlock()
	if wasShut {
		// The lease goes on, so does its kernel side.
		if err := g.refresh(g.until); err != nil {
			g.log.Warn("the kernel's gate stays shut until the next renewal", "error", err)
		}
	}
	signal(g.kick)
}

// Shut lets nothing out and nothing in. When it returns, no frame is on its
// way through any more. Frames are held on, as far as there is room.
func (g *Gate) Shut() {
	g.in.Lock()
	defer g.in.Unlock()
	g.out.Lock()
	defer g.out.Unlock()
	g.mu.Lock()
	g.mode = ModeShut
	g.shut.Store(true)
	g.mu.Unlock()
	if g.limit != nil {
		if err := g.limit.Shut(); err != nil {
			// It runs out by itself, and nothing is written to it any more.
			g.log.Warn("the kernel's gate shuts only with the lease", "error", err)
		}
	}
	g.mu.Lock()
	g.note(Note{What: NoteShut, Position: g.ring.next})
	g.mu.Unlock()
}

// Discard forgets every frame the guest has sent and that has not left.
func (g *Gate) Discard() {
	g.out.Lock()
	defer g.out.Unlock()
	g.mu.Lock()
	defer g.mu.Unlock()
	for {
		g.count.discarded.Add(uint64(g.ring.frames()))
		g.ring.discard()
		before := g.ring.next
		if _, err := g.takeLocked(batch); err != nil || g.ring.next == before {
			break // a broken link is reported by collect
		}
	}
	g.note(Note{What: NoteDiscard, Position: g.ring.next})
	g.sealed, g.pressed = 0, false
	signal(g.room)
}

// Held returns how many frames, and bytes of frames, have not left.
func (g *Gate) Held() (frames int, bytes int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.ring.frames(), g.ring.bytes
}

// Pressure tells that three quarters of the room for held frames are used, at
// most once per sealed epoch: a checkpoint is due now. Past that the guest's
// frames wait in its socket and then in the guest.
func (g *Gate) Pressure() <-chan struct{} { return g.pressure }

// Failed gets the error that ended one direction for good, such as a TAP that
// was deleted by hand. The Gate still has to be closed.
func (g *Gate) Failed() <-chan error { return g.failed }

func (g *Gate) fail(side string, err error) {
	if errors.Is(err, net.ErrClosed) {
		return
	}
	err = fmt.Errorf("the %s's side of the egress gate: %w", side, err)
	g.log.Error("one direction of the guest's network has ended for good: restart the daemon", "error", err)
	select {
	case g.failed <- err:
	default:
	}
}

// Addresses returns the IPv4 addresses seen as the guest's own in what it
// sent: at most the first 8.
func (g *Gate) Addresses() []netip.Addr {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]netip.Addr(nil), g.learned[:g.nl]...)
}

// learn notes the guest's address in one of its frames.
func (g *Gate) learn(frame []byte) {
	if g.nl == maxLearned {
		return
	}
	addr, ok := sourceIPv4(frame)
	if !ok {
		return
	}
	for _, known := range g.learned[:g.nl] {
		if known == addr {
			return
		}
	}
	g.learned[g.nl] = addr
	g.nl++
}

// Stats returns a snapshot.
func (g *Gate) Stats() Stats {
	g.mu.Lock()
	defer g.mu.Unlock()
	return Stats{
		Mode: g.mode, ModeName: g.mode.String(), HeldFrames: g.ring.frames(), HeldBytes: g.ring.bytes,
		Sent: g.count.sent.Load(), SentBytes: g.count.sentBytes.Load(), Lost: g.count.lost.Load(),
		Discarded: g.count.discarded.Load(), Late: g.count.late.Load(), Full: g.count.full.Load(),
		Received: g.count.in.Load(), ReceivedBytes: g.count.inBytes.Load(),
		ReceivedLost: g.count.inLost.Load(), ReceivedRefused: g.count.inRefused.Load(),
	}
}

// Close shuts the gate, closes both links and the limit, and returns after the
// gate's goroutines have ended. A second call returns the same.
func (g *Gate) Close() error {
	g.closing.Do(func() {
		g.Shut()
		g.mu.Lock()
		close(g.done)
		g.mu.Unlock()
		err := errors.Join(g.guest.Close(), g.network.Close())
		g.running.Wait()
		if g.limit != nil {
			err = errors.Join(err, g.limit.Close())
		}
		if err != nil {
			g.closed = fmt.Errorf("closing the egress gate: %w", err)
		}
	})
	return g.closed
}
