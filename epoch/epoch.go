// Package epoch holds the words every other package speaks: epochs and their
// numbers, page frames and sets of them, checkpoints, and the record format a
// checkpoint travels in. It imports nothing of this project.
//
// Data flows through the package in this order: a PageSet (pageset.go) says
// what changed; an Encoder (encoder.go, encode_disk.go) turns the pages, and
// what the guest wrote to its disks (disk.go), into records (record.go), some
// pages as patches (patch.go) of what it remembers having sent (cache.go); a
// Decoder (decoder.go, decode_disk.go) turns records back into pages and
// writes, kept in a Stage (stage.go, stage_disk.go) until the epoch has proven
// whole. HashPages (hash.go) compares two images.
package epoch

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
)

// PageSize is the size in bytes of one guest page, on every supported guest.
const PageSize = 4096

// Number counts the epochs of one image, from 1. Zero means "none yet".
type Number uint64

// GFN is a guest frame number: the index of a 4096-byte page in the guest's
// image. For QEMU the image is the main RAM back end in file order, followed
// by every other RAM block of the machine (firmware, ACPI tables, option
// ROMs, video memory) in the order of the machine's Spec.
type GFN uint64

// Generation is the fencing token of a guest: it grows by one at every change
// of owner and at every start. See package ownership.
type Generation uint64

// Incarnation names one image at a backup. It is random and new for every
// image, so that an image that was lost can never be mistaken for another.
type Incarnation [16]byte

// NewIncarnation draws a fresh incarnation from the system's random source.
func NewIncarnation() Incarnation {
	var i Incarnation
	rand.Read(i[:]) // never fails, see crypto/rand
	return i
}

// IsZero reports whether i names no image.
func (i Incarnation) IsZero() bool { return i == Incarnation{} }

// String returns the first 8 bytes in hexadecimal, enough for logs.
func (i Incarnation) String() string { return hex.EncodeToString(i[:8]) }

// MarshalText encodes all 16 bytes in hexadecimal.
func (i Incarnation) MarshalText() ([]byte, error) {
	return []byte(hex.EncodeToString(i[:])), nil
}

// UnmarshalText is the inverse of MarshalText.
func (i *Incarnation) UnmarshalText(text []byte) error {
	if hex.DecodedLen(len(text)) != len(i) {
		return fmt.Errorf("incarnation: want %d hexadecimal digits, got %d", 2*len(i), len(text))
	}
	if _, err := hex.Decode(i[:], text); err != nil {
		return fmt.Errorf("incarnation %q: %w", text, err)
	}
	return nil
}

// Hash is a 128-bit xxh3 hash, big endian. It finds accidents (a torn, lost,
// reordered or foreign epoch, memory that differs); an attacker is kept out by
// the mutual TLS of the session, not by this hash.
type Hash [16]byte

// String returns the hash in hexadecimal.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText encodes the hash in hexadecimal.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (h *Hash) UnmarshalText(text []byte) error {
	if hex.DecodedLen(len(text)) != len(h) {
		return fmt.Errorf("hash: want %d hexadecimal digits, got %d", 2*len(h), len(text))
	}
	if _, err := hex.Decode(h[:], text); err != nil {
		return fmt.Errorf("hash %q: %w", text, err)
	}
	return nil
}

// Position is a point in an image's history: which image, the last epoch in
// it, and the running hash over every epoch up to that one. An epoch names its
// parent's Position, so that nothing but the next epoch of the same history is
// ever applied.
type Position struct {
	Image   Incarnation `json:"image"`
	Number  Number      `json:"number"`
	Running Hash        `json:"running"`
}

func (p Position) String() string {
	return fmt.Sprintf("epoch %d of image %s", p.Number, p.Image)
}

// Kind says what an epoch makes of the image.
type Kind uint8

const (
	// KindSync is one step of an initial synchronisation: pages copied while
	// the guest ran. After it the image is not yet a state the guest was in.
	KindSync Kind = 1
	// KindCheckpoint is a whole checkpoint taken while the guest stood still:
	// after it the image, with its device state, can be activated.
	KindCheckpoint Kind = 2
)

func (k Kind) String() string {
	switch k {
	case KindSync:
		return "sync"
	case KindCheckpoint:
		return "checkpoint"
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}
