// Package samples keeps what each guest's primary on this host did over the last
// hours, so that a plot has a past when somebody begins to look at it:
//
//	host.Status, every second → Keeper.Take → between two looks → rings → Series
//
// There are two rings for each guest, a fine and a coarse one (Rings). Together
// they take less than 320 KiB a guest, and a configuration has at most 64 guests.
// What was not known is unknown in a sample, never 0; where this host did not run
// the guest, or did not look, there is a sample of which everything is unknown.
package samples

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"understudy/clock"
	"understudy/host"
	"understudy/ownership"
)

// Ring is samples of one length.
type Ring struct {
	Name string
	Step time.Duration // between two samples
	Span time.Duration // how far back they go
}

// Rings are what is kept of each guest.
var Rings = [...]Ring{
	{Name: "fine", Step: time.Second, Span: 15 * time.Minute},
	{Name: "coarse", Step: 10 * time.Second, Span: 6 * time.Hour},
}

// MaxGuests is of how many guests samples are kept; of more there are none.
const MaxGuests = 64

// Errors of Series.
var (
	ErrGuest = errors.New("no samples of this guest are kept here")
	ErrRing  = errors.New("there are the rings fine and coarse")
	ErrSince = errors.New("since is not what an answer gave as next")
)

// Value is one value of a sample; NaN is unknown, and null in JSON.
type Value float32

// Unknown is the value of what is not known.
func Unknown() Value { return Value(math.NaN()) }

// Known tells a value from one that is not known.
func (v Value) Known() bool { return !math.IsNaN(float64(v)) }

// MarshalJSON writes a value as a whole number, or as null.
func (v Value) MarshalJSON() ([]byte, error) {
	if !v.Known() || math.IsInf(float64(v), 0) {
		return []byte("null"), nil
	}
	return strconv.AppendFloat(nil, math.Round(float64(v)), 'f', 0, 32), nil
}

// UnmarshalJSON reads it.
func (v *Value) UnmarshalJSON(text []byte) error {
	if string(text) == "null" {
		*v = Unknown()
		return nil
	}
	f, err := strconv.ParseFloat(string(text), 32)
	*v = Value(f)
	return err
}

// Series are the samples of one ring of one guest, the oldest first.
type Series struct {
	Guest string           `json:"guest"`
	Host  ownership.HostID `json:"host"` // who has sampled
	Ring  string           `json:"ring"`
	Step  time.Duration    `json:"step_ns"`
	Span  time.Duration    `json:"span_ns"`
	// Next is what to give as since, for what comes after these.
	Next string `json:"next"`
	// Whole: these are all there are, and not those after since alone.
	Whole bool `json:"whole"`
	// Age is how long before the answer each sample was taken, in milliseconds.
	Age []int64 `json:"age_ms"`
	// Generation is that of the guest's ownership; 0 in a sample of which nothing
	// is known.
	Generation []uint64 `json:"generation"`
	// Values are, by the name of a column (Columns), one for each sample.
	Values map[string][]Value `json:"values"`
}

// sample is one moment. What is a sum is that since the sample before.
type sample struct {
	n          uint64 // numbers, from 1
	at         clock.Instant
	generation uint64 // 0: nothing is known
	values     [columns]Value
}

// ring is the samples of one length of one guest.
type ring struct {
	Ring
	all    []sample // of a fixed capacity
	oldest int
	last   look // the newest that was taken
	n      uint64
}

// Keeper keeps samples of a host's guests.
type Keeper struct {
	self ownership.HostID
	run  string // names this keeper, so that another one's numbers are not taken for its own

	mu     sync.Mutex
	guests map[string]*[len(Rings)]*ring
}

// NewKeeper returns one without samples.
func NewKeeper(self ownership.HostID) *Keeper {
	return &Keeper{self: self, run: strings.ToLower(rand.Text()[:8]), guests: map[string]*[len(Rings)]*ring{}}
}

// Run looks every second until ctx ends.
func (k *Keeper) Run(ctx context.Context, now clock.Clock, status func() []host.GuestStatus) {
	t := time.NewTicker(Rings[0].Step)
	defer t.Stop()
	for {
		k.Take(now.Now(), status())
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// Take notes what the host says of its guests at a moment.
func (k *Keeper) Take(at clock.Instant, all []host.GuestStatus) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for name := range k.guests {
		if !slices.ContainsFunc(all, func(g host.GuestStatus) bool { return g.Name == name }) {
			delete(k.guests, name) // it is not in the configuration any more
		}
	}
	for _, g := range all {
		rings := k.guests[g.Name]
		if rings == nil {
			if len(k.guests) == MaxGuests {
				continue
			}
			rings = &[len(Rings)]*ring{}
			for i, r := range Rings {
				rings[i] = &ring{Ring: r, all: make([]sample, 0, int(r.Span/r.Step))}
			}
			k.guests[g.Name] = rings
		}
		l := lookAt(at, g)
		for _, r := range rings {
			r.take(l)
		}
	}
}

// late is how much later than a step a look may come and still be compared with
// the one before: on a busy machine the mean is then that of a longer time.
const late = 10 * time.Second

// take makes a sample of a look, if one is due.
func (r *ring) take(l look) {
	before := r.last
	if l.generation == 0 {
		if before.generation != 0 || r.n == 0 { // one says it for as long as it lasts
			r.add(sample{at: l.at, values: nothing()})
		}
		r.last = l
		return
	}
	since := l.at.Sub(before.at)
	if before.generation != 0 && since < r.Step-Rings[0].Step/2 {
		return
	}
	r.last = l
	comparable := before.generation == l.generation && l.totals.Checkpoints >= before.totals.Checkpoints && since <= r.Step+late
	if !comparable && before.generation != 0 {
		r.add(sample{at: before.at.Add(since / 2), values: nothing()})
	}
	s := sample{at: l.at, generation: l.generation, values: l.now}
	if comparable {
		between(before, l, &s.values)
	}
	r.add(s)
}

// add puts the newest in, for which the oldest goes.
func (r *ring) add(s sample) {
	r.n++
	s.n = r.n
	if len(r.all) < cap(r.all) {
		r.all = append(r.all, s)
		return
	}
	r.all[r.oldest] = s
	r.oldest = (r.oldest + 1) % len(r.all)
}

// Series returns a guest's samples as of now, of the ring that is called so; since
// is what an earlier answer gave as Next, "" for all.
func (k *Keeper) Series(guest, ringName, since string, now clock.Instant) (Series, error) {
	run, after, err := parseSince(since)
	if err != nil {
		return Series{}, err
	}
	which := slices.IndexFunc(Rings[:], func(r Ring) bool { return r.Name == ringName })
	if which < 0 {
		return Series{}, fmt.Errorf("ring %.20q: %w", ringName, ErrRing)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	rings := k.guests[guest]
	if rings == nil {
		return Series{}, fmt.Errorf("guest %.40q: %w", guest, ErrGuest)
	}
	r := rings[which]
	whole := run != k.run || after > r.n
	if whole {
		after = 0
	}
	s := Series{Guest: guest, Host: k.self, Ring: r.Name, Step: r.Step, Span: r.Span, Next: fmt.Sprintf("%s-%d", k.run, r.n), Whole: whole,
		Age: []int64{}, Generation: []uint64{}, Values: map[string][]Value{}}
	for _, c := range Columns {
		s.Values[c] = []Value{}
	}
	for i := range r.all {
		if one := &r.all[(r.oldest+i)%len(r.all)]; one.n > after && now.Sub(one.at) <= r.Span {
			s.Age = append(s.Age, max(0, now.Sub(one.at).Milliseconds()))
			s.Generation = append(s.Generation, one.generation)
			for c, v := range one.values {
				s.Values[Columns[c]] = append(s.Values[Columns[c]], v)
			}
		}
	}
	return s, nil
}

// parseSince reads what Series has given as Next.
func parseSince(text string) (run string, n uint64, err error) {
	if text == "" {
		return "", 0, nil
	}
	run, number, found := strings.Cut(text, "-")
	n, err = strconv.ParseUint(number, 10, 64)
	if !found || err != nil || len(run) > 8 {
		return "", 0, fmt.Errorf("since=%.40q: %w", text, ErrSince)
	}
	return run, n, nil
}
