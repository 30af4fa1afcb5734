package service

// The memory that the control service keeps: a static area that nothing writes
// after it was filled, and a dirty area that a writer walks through.
//
// What either must contain can be computed from a page's number (static) or
// from the number of visits so far (dirty). So a check needs no second copy,
// which a broken failover would break in step.

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"

	"golang.org/x/sys/unix"
)

const pageSize = 4096

// area is memory of its own mapping: the garbage collector never moves or
// touches it, and it is page aligned.
type area []byte

func newArea(pages int) (area, error) {
	m, err := unix.Mmap(-1, 0, pages*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("get %d MiB of memory: %w", pages*pageSize>>20, err)
	}
	return m, nil
}

func (a area) pages() int        { return len(a) / pageSize }
func (a area) page(n int) []byte { return a[n*pageSize : (n+1)*pageSize : (n+1)*pageSize] }

func (a area) close() {
	_ = unix.Munmap(a) // fails only for memory that is not mapped
}

// mix spreads x over 64 bits and is never the same for two values (splitmix64).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// writeStamp fills b, a multiple of 8 bytes, with words that follow from seed.
func writeStamp(b []byte, seed uint64) {
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], mix(seed+uint64(i)<<40))
	}
}

// hasStamp reports whether b is what writeStamp wrote for seed.
func hasStamp(b []byte, seed uint64) bool {
	for i := 0; i < len(b); i += 8 {
		if binary.LittleEndian.Uint64(b[i:]) != mix(seed+uint64(i)<<40) {
			return false
		}
	}
	return true
}

// damage is what a check found: the first bad page of an area and how many.
type damage struct {
	area             string
	page, total, bad int
}

func (d *damage) Error() string {
	return fmt.Sprintf("corrupt area=%s page=%d of=%d bad=%d", d.area, d.page, d.total, d.bad)
}

// verify runs ok over pages 0 to total-1.
func verify(name string, total int, ok func(page int) bool) error {
	var found *damage
	for n := range total {
		if ok(n) {
			continue
		}
		if found == nil {
			found = &damage{area: name, page: n, total: total}
		}
		found.bad++
	}
	if found != nil {
		return found
	}
	return nil
}

// newStaticArea returns an area in which page n is filled with stamp ^n.
func newStaticArea(pages int) (area, error) {
	a, err := newArea(pages)
	if err != nil {
		return nil, err
	}
	for n := range pages {
		writeStamp(a.page(n), ^uint64(n))
	}
	return a, nil
}

func verifyStatic(a area) error {
	return verify("static", a.pages(), func(n int) bool { return hasStamp(a.page(n), ^uint64(n)) })
}

// dirtyArea is an area walked through in a fixed order of its pages, over and
// over. Visit v, counted from 0, writes stamp v to page order[v mod pages]. A
// whole round was made before the area is used, so after `visits` visits the
// page at place i of the order carries the largest v < visits with v ≡ i.
type dirtyArea struct {
	area   area
	order  []int32 // nil for in sequence
	stamp  int     // bytes written per visit
	visits uint64
}

func newDirtyArea(pages, stamp int, random bool) (*dirtyArea, error) {
	a, err := newArea(pages)
	if err != nil {
		return nil, err
	}
	d := &dirtyArea{area: a, stamp: stamp}
	if random {
		d.order = make([]int32, pages)
		for i, p := range rand.New(rand.NewPCG(1, 2)).Perm(pages) {
			d.order[i] = int32(p)
		}
	}
	d.visit(pages)
	return d, nil
}

// place is the page at place i of the walk.
func (d *dirtyArea) place(i int) int {
	if d.order == nil {
		return i
	}
	return int(d.order[i])
}

// visit writes to the next n pages of the walk. They are distinct, as n is at
// most the number of pages.
func (d *dirtyArea) visit(n int) {
	pages := uint64(d.area.pages())
	for range n {
		writeStamp(d.area.page(d.place(int(d.visits % pages)))[:d.stamp], d.visits)
		d.visits++
	}
}

func (d *dirtyArea) verify() error {
	pages := uint64(d.area.pages())
	return verify("dirty", int(pages), func(i int) bool {
		round := d.visits - 1 - (d.visits-1-uint64(i))%pages // the last visit to place i
		return hasStamp(d.area.page(d.place(i))[:d.stamp], round)
	})
}
