// Package cell has what the parts of the comparison with stock Remus have in common:
// what the first domain measures and what the program outside makes a table of
// (cell.go), the page by which the guest is told what to do and shows that it runs
// (page.go), for how long it does not (gap.go), what stock has said of its steps
// (stock.go), and the count of what a libxl stream brings for each checkpoint
// (meter.go). It needs no Xen.
package cell

import "time"

// Side is who protects the guest.
type Side string

// The sides that are compared.
const (
	Stock Side = "stock" // libxl_domain_remus_start
	Ours  Side = "ours"  // package primary with the driver of hypervisor/xen
)

// Load is what the guest does meanwhile.
type Load struct {
	Pages int `json:"pages_per_second"` // distinct pages of Area that it writes; 0: it is idle
	Bytes int `json:"bytes_per_page"`   // that it writes at the beginning of each, random ones
}

// Run is one guest under one load, protected by one side.
type Run struct {
	Side     Side          `json:"side"`
	Interval time.Duration `json:"interval_ns"` // from a resume to the next request to suspend
	Load     Load          `json:"load"`
	Epochs   []Epoch       `json:"epochs"`
	// Gaps are how long each suspend kept a program of the guest from running, in the
	// order of Epochs.
	Gaps []time.Duration `json:"gaps_ns"`
	// Written is how many pages the guest wrote in the time of Epochs.
	Written uint64 `json:"pages_written"`
	// Took is the time of Epochs.
	Took time.Duration `json:"took_ns"`
	// Full is how many bytes the first checkpoint had, or the synchronisation before it.
	Full uint64 `json:"full_bytes"`
}

// Epoch is one checkpoint as the first domain sees it.
type Epoch struct {
	// Stood is a moment at which the guest stood still, in nanoseconds of
	// CLOCK_MONOTONIC.
	Stood   int64         `json:"stood_ns"`
	Suspend time.Duration `json:"suspend_ns"` // request to suspended
	Pause   time.Duration `json:"pause_ns"`   // suspended to resumed
	Pages   uint64        `json:"pages"`
	Bytes   uint64        `json:"bytes"` // that travelled for it
	// Steps of Pause, of our side only.
	Steps *Steps `json:"steps,omitempty"`
}

// Steps are primary.Cost's: Device is beside Scan and Copy.
type Steps struct {
	Scan   time.Duration `json:"scan_ns"`
	Copy   time.Duration `json:"copy_ns"`
	Device time.Duration `json:"device_ns"`
	Resume time.Duration `json:"resume_ns"`
}
