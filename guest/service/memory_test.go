package service

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// TestEachVisitDirtiesDistinctPages compares the memory before and after.
func TestEachVisitDirtiesDistinctPages(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pages := rapid.IntRange(1, 40).Draw(t, "pages")
		stamp := 8 * rapid.IntRange(1, pageSize/8).Draw(t, "stamp words")
		d, err := newDirtyArea(pages, stamp, rapid.Bool().Draw(t, "random"))
		if err != nil {
			t.Fatal(err)
		}
		defer d.area.close()
		for _, n := range rapid.SliceOfN(rapid.IntRange(0, pages), 1, 10).Draw(t, "visits") {
			before := bytes.Clone(d.area)
			d.visit(n)
			changed := 0
			for p := range pages {
				if !bytes.Equal(d.area.page(p), area(before).page(p)) {
					changed++
				}
			}
			if changed != n {
				t.Fatalf("a visit of %d pages changed %d", n, changed)
			}
			if err := d.verify(); err != nil {
				t.Fatalf("after a visit of %d pages: %v", n, err)
			}
		}
	})
}

// TestCheckSeesALostPage puts back one page as it was some visits ago, which is
// what a failover does that misses a dirty page.
func TestCheckSeesALostPage(t *testing.T) {
	for _, random := range []bool{false, true} {
		d, err := newDirtyArea(32, 8, random)
		if err != nil {
			t.Fatal(err)
		}
		before := bytes.Clone(d.area)
		d.visit(5)
		lost := d.place(3)
		copy(d.area.page(lost), area(before).page(lost))
		var found *damage
		if err := d.verify(); !errors.As(err, &found) || found.bad != 1 {
			t.Errorf("random %v: a lost page is reported as %v", random, err)
		}
		d.area.close()
	}
}

// TestCheckSeesAPageOfTheFuture rolls the count back, as if the memory were of
// a later epoch than the writer's own state.
func TestCheckSeesAPageOfTheFuture(t *testing.T) {
	d, err := newDirtyArea(32, 8, false)
	if err != nil {
		t.Fatal(err)
	}
	defer d.area.close()
	d.visit(7)
	d.visits -= 2
	var found *damage
	if err := d.verify(); !errors.As(err, &found) || found.bad != 2 {
		t.Errorf("two pages of the future are reported as %v", err)
	}
}

func TestStaticAreaShowsASingleFlippedBit(t *testing.T) {
	a, err := newStaticArea(8)
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	if err := verifyStatic(a); err != nil {
		t.Fatal(err)
	}
	a[5*pageSize+4095] ^= 1
	if err := verifyStatic(a); err == nil || err.Error() != "corrupt area=static page=5 of=8 bad=1" {
		t.Errorf("a flipped bit is reported as %v", err)
	}
}

func TestVisitAllocatesNothing(t *testing.T) {
	d, err := newDirtyArea(1024, 8, true)
	if err != nil {
		t.Fatal(err)
	}
	defer d.area.close()
	if n := testing.AllocsPerRun(10, func() { d.visit(1000) }); n != 0 {
		t.Errorf("a visit of 1000 pages allocates %v times", n)
	}
}

func FuzzParseDirty(f *testing.F) {
	for _, seed := range []string{
		"pages=1000 every=50ms pattern=seq", "pages=0 every=1ms pattern=random area=1 bytes=8",
		"pages=9223372036854775807 area=65536", "pages= every= pattern=", "area=-1 =x bytes=4096",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, line string) {
		r, err := parseDirty(strings.Fields(line))
		if err != nil {
			return
		}
		if r.pages < 0 || r.pages > r.area || r.area > maxAreaMiB<<20/pageSize || r.stamp < 8 || r.stamp > pageSize || r.stamp%8 != 0 || r.every <= 0 {
			t.Errorf("%q is accepted as %+v", line, r)
		}
	})
}
