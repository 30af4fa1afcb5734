package config

// When a drill runs by itself: "Sun 03:00", "daily 03:00", "every 6h". Days and
// hours are local time, as a wall clock shows it.

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Schedule says when; the zero value is never.
type Schedule struct {
	// every, or at hour and minute of each day, or of one.
	every        time.Duration
	daily        bool
	weekly       bool
	day          time.Weekday
	hour, minute int
}

const (
	// A drill moves or strikes a guest: nobody wants that more often.
	minEvery    = 10 * time.Minute
	maxEvery    = 366 * 24 * time.Hour
	maxSchedule = 40 // bytes
)

// ParseSchedule reads "every DURATION", "daily HH:MM" or "WEEKDAY HH:MM", with a
// day like Sun or Sunday. "" is never.
func ParseSchedule(text string) (Schedule, error) {
	if text == "" {
		return Schedule{}, nil
	}
	bad := func(why string) (Schedule, error) {
		return Schedule{}, fmt.Errorf("schedule %.60q: %s; want like \"Sun 03:00\", \"daily 03:00\" or \"every 6h\"", text, why)
	}
	words := strings.Fields(text)
	if len(text) > maxSchedule || len(words) != 2 {
		return bad("it is not two words")
	}
	if strings.EqualFold(words[0], "every") {
		d, err := time.ParseDuration(words[1])
		if err != nil || d < minEvery || d > maxEvery {
			return bad(fmt.Sprintf("the second is not a time between %v and %v", minEvery, maxEvery))
		}
		return Schedule{every: d}, nil
	}
	var s Schedule
	if s.daily = strings.EqualFold(words[0], "daily"); !s.daily {
		for d := time.Sunday; d <= time.Saturday; d++ {
			if strings.EqualFold(words[0], d.String()) || strings.EqualFold(words[0], d.String()[:3]) {
				s.weekly, s.day = true, d
			}
		}
		if !s.weekly {
			return bad("the first is no day of the week, \"daily\" nor \"every\"")
		}
	}
	h, m, ok := strings.Cut(words[1], ":")
	hour, badHour := strconv.ParseUint(h, 10, 8)
	minute, badMinute := strconv.ParseUint(m, 10, 8)
	if !ok || badHour != nil || badMinute != nil || len(h) > 2 || len(m) != 2 || hour > 23 || minute > 59 {
		return bad("the second is no time of day between 00:00 and 23:59")
	}
	s.hour, s.minute = int(hour), int(minute)
	return s, nil
}

// Never reports whether there is no next time.
func (s Schedule) Never() bool { return s == Schedule{} }

// Next returns the first time after t, in t's location; began is when the drill
// was last begun, or when its daemon was. A time of day that the change to summer
// time leaves out comes as much later as the clock was put forward; one that the
// change to winter time brings twice counts once, the first time.
func (s Schedule) Next(t, began time.Time) time.Time {
	switch {
	case s.every > 0:
		next := began.Add(s.every)
		for !next.After(t) {
			missed := int64(t.Sub(next) / s.every)
			next = next.Add(time.Duration(missed+1) * s.every) //nolint:durationcheck // a number of times
		}
		return next
	case !s.daily && !s.weekly:
		return time.Time{}
	}
	year, month, day := t.Date()
	for ahead := -1; ; ahead++ {
		next := wall(year, month, day+ahead, s.hour, s.minute, t.Location())
		noon := time.Date(year, month, day+ahead, 12, 0, 0, 0, t.Location())
		if next.After(t) && (s.daily || noon.Weekday() == s.day) {
			return next
		}
	}
}

// wall is the first moment at which a clock shows the time; see Next.
func wall(year int, month time.Month, day, hour, minute int, at *time.Location) time.Time {
	t := time.Date(year, month, day, hour, minute, 0, 0, at)
	if t.Hour() != hour || t.Minute() != minute {
		// The time is left out. time.Date has taken either of the two offsets;
		// that of before the change leads to after it.
		_, before := t.Add(-24 * time.Hour).Zone()
		return time.Date(year, month, day, hour, minute, 0, 0, time.FixedZone("", before)).In(at)
	}
	// If it comes twice, the earlier moment shows the same.
	_, offset := t.Zone()
	_, before := t.Add(-6 * time.Hour).Zone()
	if earlier := t.Add(time.Duration(offset-before) * time.Second); before > offset && earlier.Hour() == hour && earlier.Minute() == minute {
		return earlier
	}
	return t
}

// MarshalText writes it as it is written in the file.
func (s Schedule) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads it.
func (s *Schedule) UnmarshalText(text []byte) (err error) {
	*s, err = ParseSchedule(string(text))
	return err
}

// String is the schedule as it is written.
func (s Schedule) String() string {
	switch {
	case s.every > 0:
		return "every " + s.every.String()
	case s.daily:
		return fmt.Sprintf("daily %02d:%02d", s.hour, s.minute)
	case s.weekly:
		return fmt.Sprintf("%s %02d:%02d", s.day.String()[:3], s.hour, s.minute)
	}
	return ""
}
