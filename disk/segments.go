package disk

import (
	"math/bits"
	"sync"
	"unsafe"

	"understudy/epoch"
)

// This file moves a request's bytes: out of guest memory, and through buffers
// that a store can do direct I/O with.

// copySegments copies guest memory into dst, which is as long as all segments.
func copySegments(dst []byte, segments []Segment) {
	for i := range segments {
		dst = dst[copy(dst, segments[i].Data):]
	}
}

// pageWalk goes through segments in steps of a page.
type pageWalk struct {
	segments []Segment
	i, off   int
}

// next steps over epoch.PageSize bytes and returns the guest page that they are,
// whole and in order, or NoPage.
func (w *pageWalk) next() epoch.GFN {
	page, whole, done := epoch.NoPage, true, 0
	for done < epoch.PageSize && w.i < len(w.segments) {
		s := &w.segments[w.i]
		if w.off == len(s.Data) {
			w.i, w.off = w.i+1, 0
			continue
		}
		n := min(epoch.PageSize-done, len(s.Data)-w.off)
		here, at := s.Page+epoch.GFN((s.At+w.off)/epoch.PageSize), (s.At+w.off)%epoch.PageSize
		if done == 0 {
			page = here
		}
		whole = whole && here == page && at == done
		w.off, done = w.off+n, done+n
	}
	if !whole || done < epoch.PageSize {
		return epoch.NoPage
	}
	return page
}

// bounce keeps buffers of up to 4 MiB, aligned to pages, for reuse.
type bounce struct {
	pools [11]sync.Pool // of *buffer, each of 4 KiB << i
}

type buffer struct {
	room []byte // aligned
	b    []byte // as long as asked for
	pool int
}

func (p *bounce) get(n int) *buffer {
	i := max(0, bits.Len(uint(n-1))-12)
	buf, _ := p.pools[i].Get().(*buffer)
	if buf == nil {
		size := epoch.PageSize << i
		room := make([]byte, size+epoch.PageSize)
		skip := -int(uintptr(unsafe.Pointer(&room[0]))) & (epoch.PageSize - 1)
		buf = &buffer{room: room[skip : skip+size], pool: i}
	}
	buf.b = buf.room[:n]
	return buf
}

func (p *bounce) put(buf *buffer) { p.pools[buf.pool].Put(buf) }
