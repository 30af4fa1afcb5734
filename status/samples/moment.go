package samples

import (
	"sort"
	"time"
)

// Moment is a sample of a Series.
type Moment struct {
	of *Series
	i  int
}

// At returns what several hosts' series of one guest, answered at one time, say of
// the moment that was so long ago: the newest sample before it, of the latest
// generation, that is not older by more than within. It is not known where there is
// none.
func At(all []Series, ago, within time.Duration) (m Moment, known bool) {
	for s := range all {
		one := &all[s]
		// The ages fall; the first that is younger comes after the one looked for.
		i := sort.Search(len(one.Age), func(i int) bool { return one.Age[i] < ago.Milliseconds() }) - 1
		if i < 0 || i >= len(one.Generation) || one.Generation[i] == 0 || one.Age[i]-ago.Milliseconds() > within.Milliseconds() {
			continue
		}
		if !known || one.Generation[i] > m.of.Generation[m.i] {
			m, known = Moment{one, i}, true
		}
	}
	return m, known
}

// Value is that of a column, unknown where there is none.
func (m Moment) Value(column string) Value {
	if v := m.of.Values[column]; m.i < len(v) {
		return v[m.i]
	}
	return Unknown()
}
