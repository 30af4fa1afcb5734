package vhost

// This file is the device as a capture sees it: what is in flight while the
// guest stands still, and the same on the host where it goes on.

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// AppendInFlight implements disk.Frontend. It takes at most 33 KiB, and a few
// bytes if nothing is in flight.
func (s *Server) AppendInFlight(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint16(dst, stateMagic)
	dst = append(dst, stateVersion, byte(s.wce.Load()), 0)
	count := len(dst) - 1
	for _, r := range s.rings {
		r.mu.Lock()
		if r.restored != nil { // not started yet on this host
			dst = appendState(dst, r.index, *r.restored)
			dst[count]++
		} else if r.inFlight > 0 {
			dst = r.appendInFlight(dst)
			dst[count]++
		}
		r.mu.Unlock()
	}
	return dst
}

func (r *ring) appendInFlight(dst []byte) []byte {
	r.sorted = r.sorted[:0]
	for _, q := range r.flight {
		if q != nil {
			r.sorted = append(r.sorted, q)
		}
	}
	slices.SortFunc(r.sorted, func(a, b *work) int { return cmp.Compare(a.order, b.order) })
	dst = appendState(dst, r.index, flightState{shape: r.shape, last: r.lastAvail})
	binary.LittleEndian.PutUint16(dst[len(dst)-2:], uint16(len(r.sorted)))
	for _, q := range r.sorted {
		dst = binary.LittleEndian.AppendUint16(dst, q.head)
	}
	clear(r.sorted)
	return dst
}

// Resubmit implements disk.Frontend. Each ring begins with these requests when
// it is started the first time, if it is the ring that the state tells of.
func (s *Server) Resubmit(state []byte) error {
	if state == nil {
		return nil
	}
	if !s.Stopped() {
		return errors.New("submit requests in flight anew: the guest runs already")
	}
	wce, rings, err := parseState(state, len(s.rings))
	if err != nil {
		return fmt.Errorf("submit requests anew: %w", err)
	}
	s.wce.Store(uint32(wce))
	for i, r := range s.rings {
		r.mu.Lock()
		r.restored = rings[i]
		r.mu.Unlock()
	}
	return nil
}
