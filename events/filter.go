package events

import "strings"

// Filter says which events a reader wants; its zero value wants all.
type Filter struct {
	Guest string // "" for all, and for those of the host
	// Kinds; none for all. One that ends in a hyphen, as DrillPrefix does,
	// stands for all that begin with it.
	Kinds []Kind
}

// Match reports whether the filter is about an event.
func (f Filter) Match(e *Event) bool {
	if f.Guest != "" && f.Guest != e.Guest {
		return false
	}
	for _, k := range f.Kinds {
		if k == e.Kind || strings.HasSuffix(string(k), "-") && strings.HasPrefix(string(e.Kind), string(k)) {
			return true
		}
	}
	return len(f.Kinds) == 0
}
