package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// This file is the disks' own state, which travels with each epoch: for each
// disk, in the order of configuration, little endian,
//
//	1  version
//	1  number of disks
//	   8 × disks  Seq of the last write that is durable
//	   for each disk: 4 length, requests in flight (Frontend.AppendInFlight)

const stateVersion = 1

// ErrState is returned for a state of the disks that cannot be read.
var ErrState = errors.New("state of the disks")

func appendStateHead(dst []byte, disks int) []byte {
	dst = append(dst, stateVersion, byte(disks))
	for range disks {
		dst = append(dst, 0, 0, 0, 0, 0, 0, 0, 0)
	}
	return dst
}

func putFlushed(state []byte, disk int, seq uint64) {
	binary.LittleEndian.PutUint64(state[2+8*disk:], seq)
}

func appendInFlight(dst []byte, disk int, f Frontend) ([]byte, error) {
	at := len(dst)
	dst = append(dst, 0, 0, 0, 0)
	if f == nil {
		return dst, nil
	}
	dst = f.AppendInFlight(dst)
	n := len(dst) - at - 4
	if n < 0 || n > MaxInFlight {
		return nil, fmt.Errorf("the front end of disk %d describes its requests in flight in %d bytes: at most %d", disk, n, MaxInFlight)
	}
	binary.LittleEndian.PutUint32(dst[at:], uint32(n))
	return dst, nil
}

// diskState is one disk's part of a state. inFlight points into the state.
type diskState struct {
	flushed  uint64
	inFlight []byte
}

// parseState reads what Seal made. No bytes at all are a state that says
// nothing: an epoch made without disks' state.
func parseState(state []byte, disks int) ([]diskState, error) {
	if len(state) == 0 {
		return nil, nil
	}
	if len(state) < 2 || state[0] != stateVersion {
		return nil, fmt.Errorf("%w: version %d, this program knows %d", ErrState, state[0], stateVersion)
	}
	if int(state[1]) != disks {
		return nil, fmt.Errorf("%w: of %d disks, the configuration here has %d", ErrState, state[1], disks)
	}
	rest := state[2:]
	if len(rest) < 8*disks {
		return nil, fmt.Errorf("%w: ends in the head, after %d bytes", ErrState, len(state))
	}
	all := make([]diskState, disks)
	for i := range all {
		all[i].flushed, rest = binary.LittleEndian.Uint64(rest), rest[8:]
	}
	for i := range all {
		if len(rest) < 4 {
			return nil, fmt.Errorf("%w: disk %d: ends before the requests in flight", ErrState, i)
		}
		n := binary.LittleEndian.Uint32(rest)
		rest = rest[4:]
		if n > MaxInFlight || int(n) > len(rest) {
			return nil, fmt.Errorf("%w: disk %d: %d bytes of requests in flight: %d follow, at most %d are allowed", ErrState, i, n, len(rest), MaxInFlight)
		}
		all[i].inFlight, rest = rest[:n:n], rest[n:]
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("%w: %d bytes too many", ErrState, len(rest))
	}
	return all, nil
}
