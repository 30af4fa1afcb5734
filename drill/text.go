package drill

import (
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"understudy/events"
)

// clip returns at most limit bytes of s as valid text: what is no character
// becomes U+FFFD, and what a terminal would obey becomes a space.
func clip(s string, limit int) string {
	cut := len(s) > limit
	if cut {
		s = s[:limit]
	}
	s = strings.ToValidUTF8(s, "\uFFFD")
	s = strings.Map(func(r rune) rune {
		if r != '\n' && r != '\t' && (unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r)) {
			return ' '
		}
		return r
	}, s)
	for len(s) > limit { // a replacement is longer than what it replaces
		_, n := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-n]
	}
	return s
}

// about is a duration for people.
func about(d time.Duration) string { return events.About(d).String() }
