package protocol

// This file is a primary's word that it will be away: its daemon ends in order to
// be started anew, and the guest stands still meanwhile. A backup that has said
// that it waits does not take the silence for a failure before that time is over.

import (
	"encoding/binary"
	"fmt"
	"time"
)

// MaxPatience bounds how long a backup can be asked to wait.
const MaxPatience = time.Minute

// PatienceSize is the size of a Patience and of a Patient: nanoseconds, u64.
const PatienceSize = 8

// AppendPatience appends the payload of a Patience or a Patient; 0 takes an
// earlier one back.
func AppendPatience(dst []byte, wait time.Duration) []byte {
	return binary.LittleEndian.AppendUint64(dst, uint64(wait))
}

// ParsePatience reads it.
func ParsePatience(b []byte) (time.Duration, error) {
	if len(b) != PatienceSize {
		return 0, fmt.Errorf("patience: %d bytes, want %d", len(b), PatienceSize)
	}
	n := binary.LittleEndian.Uint64(b)
	if n > uint64(MaxPatience) {
		return 0, fmt.Errorf("patience: %d ns, at most %v", n, MaxPatience)
	}
	return time.Duration(n), nil
}
