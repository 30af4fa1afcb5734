// Package egress is the network half of output commit: the guest's only way to
// the network leads through a Gate, which holds every frame until the epoch
// that caused it is committed (DESIGN guarantees 2 and 7) and lets nothing out
// after the owner's lease (RULES 8).
//
//	guest ─ Datagram ─> Gate: ring of held frames ─ Release ─> TAP ─ KernelGate ─> bridge
//	guest <─ Datagram ─ Gate <──────────────────────────────── TAP <────────────── bridge
//
// The files, in the order of the way out: datagram.go (the guest's side),
// ring.go (frames held in one piece of memory), gate.go and send.go (who may
// pass and when), tap.go (the network's side), kernelgate.go and nft.go (the
// kernel's own time limit), announce.go and frame.go (telling the network
// where the guest is now). segment.go and switch.go replace TAP and bridge
// where there is no root, pipe.go where there is only one process.
package egress

import (
	"errors"
	"time"
)

const (
	// MaxFrame is the largest Ethernet frame carried, in bytes: a 65535-byte
	// payload behind a 14-byte header with one VLAN tag. QEMU's limit for one
	// packet is 68 KiB (net/net.h, NET_BUFSIZE), reached only with offloads,
	// which its dgram netdev does not offer.
	MaxFrame = 65535 + headerLen + 4
	// headerLen is the length of an Ethernet header without a VLAN tag; a
	// shorter datagram is no frame.
	headerLen = 14
)

var (
	// ErrEmpty is returned by ReadFrame when no frame is waiting.
	ErrEmpty = errors.New("no frame waiting")
	// ErrNotTaken is returned by WriteFrame when the other side did not take
	// the frame: it is full, not there yet, or gone. As on a wire, the frame is
	// lost and the link goes on.
	ErrNotTaken = errors.New("frame not taken by the other side")
	// ErrFrameSize is returned by WriteFrame for a frame shorter than an
	// Ethernet header or longer than MaxFrame.
	ErrFrameSize = errors.New("not the size of an Ethernet frame")
)

// Frames is one end of a link that carries Ethernet frames without their frame
// check sequence. ReadFrame and WriteFrame never wait and allocate nothing. All
// methods may be called from several goroutines.
type Frames interface {
	// Wait returns nil when ReadFrame may have a frame, and an error that
	// is net.ErrClosed once the link is closed.
	Wait() error
	// ReadFrame moves the next frame into buf, which must have room for
	// MaxFrame+1 bytes, and returns its length. Without one it returns
	// ErrEmpty; any other error means that the link is of no more use.
	ReadFrame(buf []byte) (int, error)
	// WriteFrame passes one frame on. After an error that is ErrNotTaken or
	// ErrFrameSize the link goes on; the frame is lost.
	WriteFrame(frame []byte) error
	// Close ends the link and wakes Wait. A second call does nothing.
	Close() error
}

// Limiter is a time limit on the way out that holds without this process, such
// as KernelGate. A Gate calls it from one goroutine at a time.
type Limiter interface {
	// Open lets frames out for at most d from the moment of the call, whatever
	// an earlier call allowed.
	Open(d time.Duration) error
	// Shut lets nothing out from now on.
	Shut() error
	// Close removes the limit's traces; the way out must be closed by then.
	Close() error
}
