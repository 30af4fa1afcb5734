package main

// What must not leave the host with a support bundle: private keys and tokens,
// whatever file they have got into. The bundle takes no file that is meant to
// hold one; this is the second line, over every byte of it.

import "regexp"

// removed stands for what was.
const removed = "[removed]"

// secrets are what is removed, in this order. Each keeps its first group, which
// says what it was.
var secrets = []*regexp.Regexp{
	// PEM, as it is and inside JSON or a log's quotes; also one that lost its end.
	regexp.MustCompile(`()-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----(?s:.*?)(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\z)`),
	// Our tokens (status.NewToken).
	regexp.MustCompile(`()\bus_[A-Za-z0-9_-]{20,}`),
	// Anybody's, in a header.
	regexp.MustCompile(`(?i)(\b(?:bearer|basic)[ \t]+)[A-Za-z0-9._~+/=-]{8,}`),
	// In URLs.
	regexp.MustCompile(`([a-z][a-z0-9+.-]*://[^/\s:@"']*:)[^/\s@"']+(?:@)`),
	// In settings, in environments and on command lines, quoted or not.
	regexp.MustCompile(`(?i)(` + secretWord + `\\?["']?[ \t]*[=:][ \t]*\\?")(?:[^"\\\n]|\\[^"])+`),
	regexp.MustCompile(`(?i)(--?[\w-]*` + secretWord + `[ \t]+)[^\s"',;\\-][^\s"',;\\]*`),
	regexp.MustCompile(`(?i)(` + secretWord + `["']?[ \t]*[=:][ \t]*')[^'\n]+`),
	regexp.MustCompile(`(?i)(` + secretWord + `[ \t]*[=:][ \t]*)[^\s"',;\\]+`),
}

// secretWord ends the name of what is secret.
const secretWord = `(?:passw(?:or)?d|passphrase|secret|token|api[_-]?key|private[_-]?key)`

// scrub removes secrets from text and returns how many.
func scrub(text []byte) ([]byte, int) {
	n := 0
	for _, s := range secrets {
		text = s.ReplaceAllFunc(text, func(found []byte) []byte {
			n++
			first := s.FindSubmatch(found)
			if len(first) < 2 {
				return []byte(removed)
			}
			return append(append([]byte{}, first[1]...), removed...)
		})
	}
	return text, n
}
