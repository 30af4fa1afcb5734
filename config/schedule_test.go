package config

import (
	"strings"
	"testing"
	"time"
	_ "time/tzdata" // the tests' places are the same everywhere
)

func TestSchedulesAreRead(t *testing.T) {
	for text, want := range map[string]string{
		"Sun 03:00": "Sun 03:00", "sunday 3:00": "Sun 03:00", "WED 23:59": "Wed 23:59", "daily 00:00": "daily 00:00", "Daily 7:05": "daily 07:05",
		"every 6h": "every 6h0m0s", "every 90m": "every 1h30m0s", "  every   24h ": "every 24h0m0s", "": "",
	} {
		s, err := ParseSchedule(text)
		if err != nil || s.String() != want {
			t.Errorf("%q is read as %q, %v; want %q", text, s, err, want)
		}
		again, err := ParseSchedule(s.String())
		if err != nil || again != s {
			t.Errorf("%q does not read what it writes: %v", text, err)
		}
	}
	for text, want := range map[string]string{
		"Sun": "two words", "Sun 03:00 04:00": "two words", "Som 03:00": "no day", "Sun 24:00": "no time of day", "Sun 03:60": "no time of day",
		"Sun 3": "no time of day", "Sun -1:00": "no time of day", "daily 003:00": "no time of day", "daily 03:0": "no time of day",
		"every 1m": "between", "every -6h": "between", "every 100000h": "between", "every day": "between",
		"every " + strings.Repeat("0", 100) + "h": "two words", "d\u00e4ily 03:00": "no day",
	} {
		if s, err := ParseSchedule(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is read as %q, %v; want %s", text, s, err, want)
		}
	}
}

// TestTheNextTime goes over the changes of the clock in Europe (01:00 UTC) and in
// Lord Howe, where it is half an hour.
func TestTheNextTime(t *testing.T) {
	for _, c := range []struct{ name, schedule, place, from, want string }{
		{"an ordinary day", "daily 03:00", "Europe/Berlin", "2026-06-10T12:00:00+02:00", "2026-06-11T03:00:00+02:00"},
		{"today", "daily 03:00", "Europe/Berlin", "2026-06-10T02:59:59+02:00", "2026-06-10T03:00:00+02:00"},
		{"exactly then, the next", "daily 03:00", "Europe/Berlin", "2026-06-10T03:00:00+02:00", "2026-06-11T03:00:00+02:00"},
		{"a day of the week", "Sun 03:00", "Europe/Berlin", "2026-06-10T12:00:00+02:00", "2026-06-14T03:00:00+02:00"},
		{"that day, before", "Sun 03:00", "Europe/Berlin", "2026-06-14T01:00:00+02:00", "2026-06-14T03:00:00+02:00"},
		{"that day, after", "Sun 03:00", "Europe/Berlin", "2026-06-14T03:00:01+02:00", "2026-06-21T03:00:00+02:00"},
		{"over the year", "Fri 12:00", "UTC", "2026-12-30T00:00:00Z", "2027-01-01T12:00:00Z"},
		{"left out in spring: as much later", "daily 02:30", "Europe/Berlin", "2026-03-28T12:00:00+01:00", "2026-03-29T03:30:00+02:00"},
		{"the day after spring", "daily 02:30", "Europe/Berlin", "2026-03-29T04:00:00+02:00", "2026-03-30T02:30:00+02:00"},
		{"twice in autumn: the first", "daily 02:30", "Europe/Berlin", "2026-10-24T12:00:00+02:00", "2026-10-25T02:30:00+02:00"},
		{"twice in autumn: not again", "daily 02:30", "Europe/Berlin", "2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"},
		{"between the two", "daily 02:45", "Europe/Berlin", "2026-10-25T02:50:00+02:00", "2026-10-26T02:45:00+01:00"},
		{"on a Sunday in autumn", "Sun 02:00", "Europe/Berlin", "2026-10-25T00:00:00+02:00", "2026-10-25T02:00:00+02:00"},
		{"after the change", "daily 03:00", "Europe/Berlin", "2026-10-25T02:30:00+01:00", "2026-10-25T03:00:00+01:00"},
		{"New York, spring", "daily 02:15", "America/New_York", "2026-03-08T00:00:00-05:00", "2026-03-08T03:15:00-04:00"},
		{"half an hour", "daily 02:10", "Australia/Lord_Howe", "2026-10-03T12:00:00+10:30", "2026-10-04T02:40:00+11:00"},
		{"midnight is left out", "daily 00:00", "America/Santiago", "2026-09-05T12:00:00-04:00", "2026-09-06T01:00:00-03:00"},
	} {
		t.Run(c.name, func(t *testing.T) {
			place, err := time.LoadLocation(c.place)
			if err != nil {
				t.Fatal(err)
			}
			from, err := time.Parse(time.RFC3339, c.from)
			if err != nil {
				t.Fatal(err)
			}
			s, err := ParseSchedule(c.schedule)
			if err != nil {
				t.Fatal(err)
			}
			if got := s.Next(from.In(place), from).Format(time.RFC3339); got != c.want {
				t.Errorf("after %s comes %s, want %s", c.from, got, c.want)
			}
		})
	}
}

// TestEveryIsCountedFromTheLast: what was missed is not made up for.
func TestEveryIsCountedFromTheLast(t *testing.T) {
	s, err := ParseSchedule("every 6h")
	if err != nil {
		t.Fatal(err)
	}
	began := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct{ after, want time.Duration }{
		{0, 6 * time.Hour}, {5 * time.Hour, 6 * time.Hour}, {6 * time.Hour, 12 * time.Hour}, {20 * time.Hour, 24 * time.Hour}, {1000 * time.Hour, 1002 * time.Hour},
	} {
		if got := s.Next(began.Add(c.after), began).Sub(began); got != c.want {
			t.Errorf("%v after: %v, want %v", c.after, got, c.want)
		}
	}
	if !(Schedule{}).Never() || !(Schedule{}).Next(began, began).IsZero() {
		t.Error("no schedule is never")
	}
}

func FuzzParseSchedule(f *testing.F) {
	for _, s := range []string{"Sun 03:00", "daily 23:59", "every 6h", "every 1h30m", "", "mon  1:1"} {
		f.Add(s)
	}
	now := time.Date(2026, 3, 28, 1, 2, 3, 0, time.UTC)
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSchedule(text)
		if err != nil || s.Never() {
			return
		}
		if again, err := ParseSchedule(s.String()); err != nil || again != s {
			t.Fatalf("%q is written %q, which reads as %q, %v", text, s, again, err)
		}
		if next := s.Next(now, now); !next.After(now) {
			t.Fatalf("%q: after %v comes %v", text, now, next)
		}
	})
}
