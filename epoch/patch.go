package epoch

import (
	"encoding/binary"
	"errors"
)

// A patch says how one page differs from its former content, in words of
// wordSize bytes:
//
//	encode: skip equal words → count differing words → copy them → again
//	apply:  the same walk over the former content, in place
//
// Byte layout, repeated until the patch ends; an empty patch means "the same":
//
//	offset size field
//	0      1    skip: words to leave as they are
//	1      1    take: words that follow here
//	2      8n   the n = take words, new content
//
// A group of skip 255, take 0 stands inside a longer gap; any other group
// takes at least one word. What no group reaches stays as it is.
//
// The literals are the new words, not their XOR with the old ones: the skips
// already are the zero runs of that XOR, and applying a patch twice does no
// harm. BenchmarkDelta compares this with s2 over the XOR.

const (
	wordSize = 8
	maxGroup = 255
)

var errPatch = errors.New("malformed patch")

// appendPatch appends to dst what turns base into page, both PageSize long. It
// gives up, reporting false, once the patch would grow beyond limit bytes; dst
// must have room for them.
func appendPatch(dst, page, base []byte, limit int) ([]byte, bool) {
	p, b := (*[PageSize]byte)(page), (*[PageSize]byte)(base)
	start := len(dst)
	at, done := 0, 0 // offsets into the page: looked at, described
	for {
		at = nextDifference(p, b, at)
		if at == PageSize {
			return dst, true
		}
		end := nextEqual(p, b, at)
		for (at-done)/wordSize > maxGroup {
			if len(dst)-start+2 > limit {
				return dst[:start], false
			}
			dst = append(dst, maxGroup, 0)
			done += maxGroup * wordSize
		}
		for done < end {
			take := min((end-at)/wordSize, maxGroup)
			if len(dst)-start+2+take*wordSize > limit {
				return dst[:start], false
			}
			dst = append(dst, byte((at-done)/wordSize), byte(take))
			dst = append(dst, p[at:at+take*wordSize]...)
			at += take * wordSize
			done = at
		}
	}
}

// nextDifference returns the offset of the first word at or after at in which
// the pages differ, or PageSize.
func nextDifference(p, b *[PageSize]byte, at int) int {
	for ; at <= PageSize-4*wordSize; at += 4 * wordSize {
		x, y := p[at:at+32:at+32], b[at:at+32:at+32]
		if (word(x, 0)^word(y, 0))|(word(x, 8)^word(y, 8))|(word(x, 16)^word(y, 16))|(word(x, 24)^word(y, 24)) != 0 {
			break
		}
	}
	for ; at < PageSize; at += wordSize {
		if word(p[:], at) != word(b[:], at) {
			break
		}
	}
	return at
}

// nextEqual returns the offset of the first word after at in which the pages
// are equal, or PageSize.
func nextEqual(p, b *[PageSize]byte, at int) int {
	for at += wordSize; at < PageSize; at += wordSize {
		if word(p[:], at) == word(b[:], at) {
			break
		}
	}
	return at
}

func word(b []byte, at int) uint64 { return binary.LittleEndian.Uint64(b[at : at+wordSize]) }

// applyPatch turns page, the former content, into the new one. After an error
// the page is neither.
func applyPatch(page, patch []byte) error {
	at := 0
	for len(patch) > 0 {
		if len(patch) < 2 {
			return errPatch
		}
		skip, take := int(patch[0]), int(patch[1])*wordSize
		patch = patch[2:]
		at += skip * wordSize
		if take == 0 && skip != maxGroup || take > len(patch) || at+take > PageSize {
			return errPatch
		}
		copy(page[at:at+take], patch)
		patch, at = patch[take:], at+take
	}
	return nil
}
