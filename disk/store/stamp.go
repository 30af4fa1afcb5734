package store

// This file is the disk's write stamp: a random name for "nothing was written
// since". Whoever records it (a checkpoint file) calls Stamp; the first write
// afterwards replaces it, durably, before the write goes to the disk. Later
// writes cost the look at one flag.

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
)

// Stamp names a state of the disk: as long as it is the same, nothing was
// written.
type Stamp [16]byte

func newStamp() (s Stamp) {
	_, _ = rand.Read(s[:]) // never fails (crypto/rand)
	return s
}

func (s Stamp) String() string { return hex.EncodeToString(s[:]) }

// MarshalText encodes the stamp in hexadecimal.
func (s Stamp) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (s *Stamp) UnmarshalText(text []byte) error {
	return parseHex16((*[16]byte)(s), text, "write stamp")
}

// Stamp returns the disk's write stamp. If this host is the writer, writes that
// have begun are over, and the next one replaces the stamp before it reaches the
// disk. Otherwise the stamp is read from the record, and the disk's writer may be
// about to replace it.
func (f *File) Stamp() (Stamp, error) {
	f.gate.Lock()
	defer f.gate.Unlock()
	if f.closed {
		return Stamp{}, ErrClosed
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.known {
		f.pristine.Store(true)
		return f.record.Stamp, nil
	}
	r, err := f.side.load()
	if err != nil {
		return Stamp{}, fmt.Errorf("write stamp: %w", err)
	}
	return r.Stamp, nil
}

// replaceStamp draws a new stamp. The gate is held for reading.
func (f *File) replaceStamp() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.pristine.Load() {
		return nil // another write has
	}
	next := f.record
	next.Stamp = newStamp()
	if err := f.saveLocked(next); err != nil {
		return fmt.Errorf("note that the disk was written since its stamp was given out: %w", err)
	}
	f.pristine.Store(false)
	return nil
}
