package exclusion

import (
	"sync"

	"understudy/epoch"
)

// Seen knows the content of pages that were looked at and have not been written
// since. A checkpoint file then need not read them: this is what the map of
// pages and blocks is exact for (VEE 2011, section 3).
//
//	Begin → read pages → Add, each with its fingerprint
//	dirty pages are collected → Written: what is known of them is void
//	… → Written → Freeze: what was known then, unchanged until Thaw
//
// Why it is true: a page that was written after it was read is in a set that is
// collected after Begin. If that set has come to Written already when the page
// comes to Add, Add refuses it; if not, Written voids it. So what is frozen right
// after Written is what the pages held as that set was collected, but for pages in
// sets that are still to come, and whoever saves takes those again.
//
// Two promises of its callers make it so: every page written by whatever part of
// the machine is in a set that is given to Written, before anybody builds on that
// set; and nobody freezes between a collection and its Written.
//
// It costs 16 bytes a page, and allocates nothing but what Freeze returns.
type Seen struct {
	key epoch.PrintKey

	mu     sync.Mutex
	pages  *epoch.PageSet
	prints []epoch.Fingerprint // of pages; unchanged while frozen
	serial uint64              // of the last Written
	frozen bool
}

// NewSeen returns a Seen that knows nothing of an image of so many pages. The
// fingerprints will have this key.
func NewSeen(pages uint64, key epoch.PrintKey) *Seen {
	return &Seen{key: key, pages: epoch.NewPageSet(pages), prints: make([]epoch.Fingerprint, pages)}
}

// Begin is called before pages are read that Add is to be told of.
func (s *Seen) Begin() (ticket uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.serial
}

// Add says that a page, read after Begin, had this content. It reports false, and
// takes nothing, if pages were collected since, or if it is frozen.
func (s *Seen) Add(ticket uint64, page epoch.GFN, print epoch.Fingerprint) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ticket != s.serial || s.frozen {
		return false
	}
	s.pages.Add(page)
	s.prints[page] = print
	return true
}

// Written says that these pages were written at some time since the last call.
func (s *Seen) Written(set *epoch.PageSet) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serial++
	for first, count := range set.Runs {
		s.pages.RemoveRange(first, count)
	}
}

// Freeze returns what is known now. It stays what it is until Thaw, and nothing
// is learnt until then.
func (s *Seen) Freeze() epoch.Known {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frozen = true
	pages := epoch.NewPageSet(s.pages.Pages())
	pages.Union(s.pages)
	return epoch.Known{Key: s.key, Pages: pages, Prints: s.prints}
}

// Thaw ends Freeze, whose result must not be used any more.
func (s *Seen) Thaw() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frozen = false
}

// Count returns how many pages are known.
func (s *Seen) Count() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pages.Count()
}
