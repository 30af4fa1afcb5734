package exclusion

import (
	"slices"
	"sort"
)

// unverified are the sectors of one disk that the other host's copy is not
// known to have equal: sorted intervals that neither overlap nor touch.
type unverified []interval

type interval struct{ from, to uint64 }

// maxIntervals bounds unverified. Past it a piece that would split an interval
// stays unverified, until more around it is verified: exclusion is lost, never
// truth.
const maxIntervals = 1 << 16

// set notes that the sectors from..to are verified or not.
func (u *unverified) set(from, to uint64, verified bool) {
	if from >= to {
		return
	}
	s := *u
	// s[i:j] are the intervals that overlap from..to or touch it.
	i := sort.Search(len(s), func(i int) bool { return s[i].to >= from })
	j := i + sort.Search(len(s)-i, func(j int) bool { return s[i+j].from > to })
	var left []interval
	if !verified {
		whole := interval{from, to}
		if i < j {
			whole.from, whole.to = min(from, s[i].from), max(to, s[j-1].to)
		}
		left = []interval{whole}
	} else if i < j {
		if s[i].from < from {
			left = append(left, interval{s[i].from, min(s[i].to, from)})
		}
		if s[j-1].to > to {
			left = append(left, interval{max(s[j-1].from, to), s[j-1].to})
		}
	}
	if len(s)-(j-i)+len(left) > maxIntervals {
		if verified {
			return
		}
		// One more hole does not fit: join it with a neighbour.
		near := min(i, len(s)-1)
		s[near].from, s[near].to = min(from, s[near].from), max(to, s[near].to)
		return
	}
	*u = slices.Replace(s, i, j, left...)
}

// any reports whether a sector of from..to is not verified.
func (u unverified) any(from, to uint64) bool {
	i := sort.Search(len(u), func(i int) bool { return u[i].to > from })
	return i < len(u) && u[i].from < to
}
