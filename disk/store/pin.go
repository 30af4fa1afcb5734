package store

import (
	"encoding/hex"
	"fmt"
)

// PinID names a pin.
type PinID [16]byte

func (id PinID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText encodes the name in hexadecimal.
func (id PinID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (id *PinID) UnmarshalText(text []byte) error {
	return parseHex16((*[16]byte)(id), text, "pin's name")
}

// Pin is an armed pin.
type Pin struct{}

func (p *Pin) close() {}

func (f *File) keep(*Pin, uint64, uint64) error { return nil }

// resumePins refuses a disk with pins: they cannot be kept up yet.
func (f *File) resumePins() error {
	if n := len(f.record.Pins); n > 0 {
		return fmt.Errorf("%d pins are armed, which this program cannot keep up", n)
	}
	return nil
}
