package config

// The file's values that have a unit or a form of their own. Each has a string
// in the file and reads what it writes.

import (
	"fmt"
	"math"
	"net"
	"strconv"
	"strings"
	"time"
)

// Duration is a length of time, written like "25ms", "1.5s", "2m".
type Duration time.Duration

// Std is the duration as the standard library has it.
func (d Duration) Std() time.Duration { return time.Duration(d) }

func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText writes it as it is written in the file.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads it; negative times are refused.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%.40q is not a duration like \"25ms\" or \"1.5s\"", text)
	}
	if v < 0 {
		return fmt.Errorf("duration %s is negative", v)
	}
	*d = Duration(v)
	return nil
}

// Size is a number of bytes, written like "512MiB". Units are B, KiB, MiB, GiB
// and TiB, powers of 1024; a unit has to be there.
type Size int64

// Units of Size, in bytes.
const (
	KiB Size = 1 << 10
	MiB Size = 1 << 20
	GiB Size = 1 << 30
	TiB Size = 1 << 40
)

// sizeUnits are the units of the file, the longest names first, so that "MiB"
// is not read as "B".
var sizeUnits = []struct {
	name  string
	bytes Size
}{{"TiB", TiB}, {"GiB", GiB}, {"MiB", MiB}, {"KiB", KiB}, {"B", 1}}

func (s Size) String() string {
	for _, u := range sizeUnits {
		if s != 0 && s%u.bytes == 0 {
			return strconv.FormatInt(int64(s/u.bytes), 10) + u.name
		}
	}
	return "0B"
}

// MarshalText writes it as it is written in the file.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads a whole number and its unit.
func (s *Size) UnmarshalText(text []byte) error {
	for _, u := range sizeUnits {
		digits, ok := strings.CutSuffix(string(text), u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(strings.TrimSpace(digits), 10, 63)
		if err != nil {
			break
		}
		if n > math.MaxInt64/uint64(u.bytes) {
			return fmt.Errorf("size %.40q is too large", text)
		}
		*s = Size(n) * u.bytes
		return nil
	}
	return fmt.Errorf("%.40q is not a size like \"512MiB\" (units: B, KiB, MiB, GiB, TiB)", text)
}

// Epoch is the time from one checkpoint to the next: 0 for adaptive.
type Epoch Duration

// adaptive is how an adaptive epoch is written.
const adaptive = "adaptive"

// Fixed returns the fixed length, or false if the epoch is adaptive.
func (e Epoch) Fixed() (time.Duration, bool) { return time.Duration(e), e != 0 }

func (e Epoch) String() string {
	if e == 0 {
		return adaptive
	}
	return time.Duration(e).String()
}

// MarshalText writes it as it is written in the file.
func (e Epoch) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

// UnmarshalText reads "adaptive" or a duration.
func (e *Epoch) UnmarshalText(text []byte) error {
	if string(text) == adaptive {
		*e = 0
		return nil
	}
	var d Duration
	if err := d.UnmarshalText(text); err != nil {
		return fmt.Errorf("%w, nor %q", err, adaptive)
	}
	if d == 0 {
		return fmt.Errorf("an epoch of no length; to let it adapt write %q", adaptive)
	}
	*e = Epoch(d)
	return nil
}

// MAC is an Ethernet address of 6 bytes.
type MAC [6]byte

// Hardware is the address as package net has it.
func (m MAC) Hardware() net.HardwareAddr { return m[:] }

func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// MarshalText writes it as it is written in the file.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads six hexadecimal bytes with colons or dashes.
func (m *MAC) UnmarshalText(text []byte) error {
	hw, err := net.ParseMAC(string(text))
	if err != nil || len(hw) != len(m) {
		return fmt.Errorf("%.40q is not a MAC address like \"52:54:00:12:34:56\"", text)
	}
	*m = MAC(hw)
	return nil
}
