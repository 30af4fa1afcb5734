package epoch

import (
	"fmt"

	"github.com/zeebo/xxh3"
)

// HashPages returns the xxh3-128 of count pages of an image, starting at
// first. read fills dst with pages of the image, len(dst)/PageSize of them; it
// is called with at most 1 MiB at a time, in ascending order. An error of read
// ends the walk.
func HashPages(read func(first GFN, dst []byte) error, first GFN, count uint64) (Hash, error) {
	const piece = (1 << 20) / PageSize
	if count > MaxPages || uint64(first) > MaxPages-count {
		return Hash{}, fmt.Errorf("hashing pages %d+%d: no image is larger than %d pages", first, count, uint64(MaxPages))
	}
	var h xxh3.Hasher
	buf := make([]byte, min(count, piece)*PageSize)
	for count > 0 {
		b := buf[:min(count, piece)*PageSize]
		if err := read(first, b); err != nil {
			return Hash{}, fmt.Errorf("hashing pages %d+%d: %w", first, len(b)/PageSize, err)
		}
		_, _ = h.Write(b) // a hash's Write never fails
		n := uint64(len(b) / PageSize)
		first, count = first+GFN(n), count-n
	}
	return h.Sum128().Bytes(), nil
}
