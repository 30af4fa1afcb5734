package crash

// This file is the oracle: what the guest wrote, in order, and what follows from
// it for memory and disks.
//
//	history  every change of a disk and every barrier, in the guest's order; how
//	         much of it may have reached the real disk
//	truth    the guest at each epoch's pause: memory, disks, place in the history

import (
	"bytes"
	"fmt"

	"understudy/epoch"
)

// version is a change of a disk, or a barrier.
type version struct {
	barrier bool
	sector  uint64
	data    []byte
}

// history is what became of one disk, from its base on.
type history struct {
	base     []byte
	versions []version
	allowed  int  // versions before it may be on the real disk …
	all      bool // … or all may: the guest runs unprotected, and that is on record
}

func (h *history) limit() int {
	if h.all {
		return len(h.versions)
	}
	return h.allowed
}

// content returns what a version says of a sector.
func (v *version) content(sector uint64) ([]byte, bool) {
	if v.barrier || sector < v.sector || sector >= v.sector+uint64(len(v.data)/512) {
		return nil, false
	}
	return v.data[(sector-v.sector)*512:][:512], true
}

// match returns the lowest and the highest place in the history at which the
// sector had this content: 0 is the base, i+1 version i.
func (h *history) match(sector uint64, content []byte) (lowest, highest int, ok bool) {
	lowest, highest = -1, -1
	if bytes.Equal(h.base[sector*512:][:512], content) {
		lowest, highest = 0, 0
	}
	for i := range h.limit() {
		if c, touches := h.versions[i].content(sector); touches && bytes.Equal(c, content) {
			if lowest < 0 {
				lowest = i + 1
			}
			highest = i + 1
		}
	}
	return lowest, highest, lowest >= 0
}

// checkDurable says what is wrong with a disk after a loss of power, if
// anything is: it holds what was never written or not allowed yet, or something
// from behind a barrier and not all from before it (RULES 13).
func (h *history) checkDurable(durable []byte, barriers bool) error {
	var high [sectors]int
	newest := 0
	for s := range uint64(sectors) {
		lo, hi, ok := h.match(s, durable[s*512:][:512])
		if !ok {
			return fmt.Errorf("sector %d holds %x, which must not be there: of %d changes %d may be on the disk", s, durable[s*512:][:8], len(h.versions), h.limit())
		}
		high[s], newest = hi, max(newest, lo)
	}
	if !barriers {
		return nil
	}
	barrier := 0
	for i := range max(newest-1, 0) {
		if h.versions[i].barrier {
			barrier = i + 1
		}
	}
	for s := range uint64(sectors) {
		need := 0
		for i := range barrier {
			if _, touches := h.versions[i].content(s); touches {
				need = i + 1
			}
		}
		if high[s] < need {
			return fmt.Errorf("change %d is on the disk, and change %d of sector %d, which lies before a barrier before it, is not", newest, need, s)
		}
	}
	return nil
}

// truth is the guest at the pause of an epoch.
type truth struct {
	number   epoch.Number
	mem      []byte
	disk     [disks][]byte
	cpu      uint64
	at       [disks]int // in the history
	inFlight [disks]string
	open     []*reading // that a Xen guest's driver waits for
}

func differ(a, b []byte, unit int) string {
	for i := 0; i < len(a); i += unit {
		if !bytes.Equal(a[i:i+unit], b[i:i+unit]) {
			for k := i; k < i+unit; k++ {
				if a[k] != b[k] {
					return fmt.Sprintf("unit %d, byte %d: %x, want %x", i/unit, k%unit, a[k:min(k+8, i+unit)], b[k:min(k+8, i+unit)])
				}
			}
		}
	}
	return "equal"
}
