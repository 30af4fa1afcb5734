package xen

// This file is the way between a domain's frames and the pages of its image.
//
//	type of each frame ─> Builder ─> Frames: runs of frames with content, ascending
//	log-dirty bitmap (a bit per frame) ─> Frames.Dirty ─> set of the image's pages

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"sort"

	"understudy/epoch"
)

// Bounds of what another host may say of a domain.
const (
	// MaxFrame bounds a frame's number: 2^36 frames, 256 TiB.
	MaxFrame = 1 << 36
	// maxRuns bounds how many pieces a domain's memory may be in. A PVH domain has
	// three or four, an HVM domain some ten, and ballooning makes more.
	maxRuns = 1 << 16
)

// Run is adjacent frames that have content.
type Run struct {
	First uint64 `json:"first"` // the first frame
	Count uint64 `json:"count"`
}

// Frames says which frames of a domain are the pages of its image: those with
// content, in ascending order. The zero value has none.
type Frames struct {
	runs  []Run
	pages []uint64 // of the image, before each run
	total uint64
}

// NewFrames makes Frames of runs that are ascending and apart.
func NewFrames(runs []Run) (*Frames, error) {
	if len(runs) == 0 || len(runs) > maxRuns {
		return nil, fmt.Errorf("memory in %d pieces, want 1 to %d", len(runs), maxRuns)
	}
	f := &Frames{}
	end := uint64(0)
	for i, r := range runs {
		if r.Count == 0 || r.First >= MaxFrame || r.Count > MaxFrame-r.First || i > 0 && r.First <= end {
			return nil, fmt.Errorf("memory at frame %d, %d frames: it has to be ascending, apart, and below frame %d", r.First, r.Count, uint64(MaxFrame))
		}
		end = r.First + r.Count
		f.add(r)
	}
	if f.total > epoch.MaxPages {
		return nil, fmt.Errorf("%d pages of memory, at most %d are supported", f.total, uint64(epoch.MaxPages))
	}
	return f, nil
}

func (f *Frames) add(r Run) {
	f.runs = append(f.runs, r)
	f.pages = append(f.pages, f.total)
	f.total += r.Count
}

// Builder makes Frames of frames in ascending order.
type Builder struct{ runs []Run }

// Add says that a frame, above every one before, has content.
func (b *Builder) Add(frame uint64) {
	if n := len(b.runs); n > 0 && b.runs[n-1].First+b.runs[n-1].Count == frame {
		b.runs[n-1].Count++
		return
	}
	b.runs = append(b.runs, Run{frame, 1})
}

// Frames returns what was added.
func (b *Builder) Frames() (*Frames, error) { return NewFrames(b.runs) }

// Runs returns the frames as runs. It is the Frames' own.
func (f *Frames) Runs() []Run { return f.runs }

// Pages returns the size of the image, in pages.
func (f *Frames) Pages() uint64 { return f.total }

// Equal reports whether two domains have the same frames.
func (f *Frames) Equal(g *Frames) bool {
	if len(f.runs) != len(g.runs) {
		return false
	}
	for i, r := range f.runs {
		if r != g.runs[i] {
			return false
		}
	}
	return true
}

// Page returns the page of the image that a frame is, and false for a frame that
// is none.
func (f *Frames) Page(frame uint64) (epoch.GFN, bool) {
	i := sort.Search(len(f.runs), func(i int) bool { return f.runs[i].First > frame }) - 1
	if i < 0 || frame-f.runs[i].First >= f.runs[i].Count {
		return 0, false
	}
	return epoch.GFN(f.pages[i] + frame - f.runs[i].First), true
}

// Frame returns the frame that a page of the image is. The page must be one.
func (f *Frames) Frame(page epoch.GFN) uint64 {
	i := sort.Search(len(f.pages), func(i int) bool { return f.pages[i] > uint64(page) }) - 1
	return f.runs[i].First + uint64(page) - f.pages[i]
}

// Dirty adds to set the pages whose frames have their bit set in a bitmap of
// Xen's: bit n%64 of word n/64 is frame n. Frames behind the bitmap's end are
// not dirty. It allocates nothing, and costs a look at each word of RAM.
func (f *Frames) Dirty(bitmap []uint64, set *epoch.PageSet) error {
	if set.Pages() != f.total {
		return fmt.Errorf("a set over %d pages, the image has %d", set.Pages(), f.total)
	}
	for i, r := range f.runs {
		end := min(r.First+r.Count, uint64(len(bitmap))*64)
		for frame := r.First; frame < end; {
			word := bitmap[frame/64] >> (frame % 64)
			if word == 0 {
				frame += 64 - frame%64
				continue
			}
			frame += uint64(bits.TrailingZeros64(word))
			word = bitmap[frame/64] >> (frame % 64)
			count := min(uint64(bits.TrailingZeros64(^word)), 64-frame%64)
			if frame >= end {
				break
			}
			count = min(count, end-frame)
			set.AddRange(epoch.GFN(f.pages[i]+frame-r.First), count)
			frame += count
		}
	}
	return nil
}

// Bitmap makes words of the bytes of a log-dirty bitmap, as Xen fills them in. It
// uses dst's memory.
func Bitmap(dst []uint64, b []byte) ([]uint64, error) {
	if len(b)%8 != 0 {
		return nil, errors.New("a log-dirty bitmap has whole words")
	}
	dst = dst[:0]
	for ; len(b) > 0; b = b[8:] {
		dst = append(dst, binary.LittleEndian.Uint64(b))
	}
	return dst, nil
}
