package exclusion

import (
	"testing"

	"pgregory.net/rapid"

	"understudy/epoch"
)

// A guest that writes, its dirty pages that are collected in one step and made
// known in another, and looks that any of it may come between: what is frozen is
// what the page holds, unless it is dirty again.
func TestWhatIsSeenEqualsTheOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const pages = 8
		s := NewSeen(pages, 7)
		var memory [pages]byte
		print := func(page int, v byte) epoch.Fingerprint { return epoch.Fingerprint{byte(page), v} }
		dirty, on := epoch.NewPageSet(pages), epoch.NewPageSet(pages)
		dirty.Fill()
		onWay := false
		type look struct {
			ticket uint64
			page   int
			v      byte
		}
		var looks []look
		page := rapid.IntRange(0, pages-1)
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				p := page.Draw(t, "page")
				memory[p]++
				dirty.Add(epoch.GFN(p))
			},
			"look": func(t *rapid.T) {
				l := look{ticket: s.Begin(), page: page.Draw(t, "page")}
				l.v = memory[l.page]
				looks = append(looks, l)
			},
			"tell": func(t *rapid.T) {
				if len(looks) > 0 {
					i := rapid.IntRange(0, len(looks)-1).Draw(t, "look")
					l := looks[i]
					looks = append(looks[:i], looks[i+1:]...)
					s.Add(l.ticket, epoch.GFN(l.page), print(l.page, l.v))
				}
			},
			"collect": func(*rapid.T) {
				if !onWay {
					on.Union(dirty)
					dirty.Clear()
					onWay = true
				}
			},
			"written": func(*rapid.T) {
				if !onWay {
					return
				}
				s.Written(on)
				on.Clear()
				onWay = false
				k := s.Freeze()
				for p := range pages {
					if k.Has(epoch.GFN(p)) {
						if k.Prints[p] != print(p, memory[p]) && !dirty.Contains(epoch.GFN(p)) {
							t.Fatalf("page %d is known as %v, it is %d", p, k.Prints[p], memory[p])
						}
					}
				}
				if s.Add(s.Begin(), 0, epoch.Fingerprint{}) {
					t.Fatal("it learns while it is frozen")
				}
				s.Thaw()
			},
		})
	})
}

// What a page of the guest is good for is known again after every new block that
// traffic names for it, and once.
func TestNamedPages(t *testing.T) {
	ix := NewIndex(Config{Pages: 10, Key: 3})
	content := make([]byte, epoch.PageSize)
	content[0] = 1
	set := epoch.NewPageSet(8) // the image may be smaller than what was planned for
	named := func() uint64 {
		set.Clear()
		ix.Named(set)
		return set.Count()
	}
	ix.ReadLanded(ix.ReadBegins(), 0, 8, 4, content)
	ix.ReadLanded(ix.ReadBegins(), 0, 16, 9, content) // outside the image
	ix.ReadLanded(ix.ReadBegins(), 0, 24, epoch.NoPage, content)
	if n := named(); n != 1 || !set.Contains(4) {
		t.Errorf("%d pages named, want page 4", n)
	}
	if n := named(); n != 0 {
		t.Errorf("%d pages are named a second time", n)
	}
	ix.Flushed(0, 8, 4, content)
	if n := named(); n != 1 {
		t.Errorf("%d pages named after a flush", n)
	}
	if n := testing.AllocsPerRun(10, func() {
		ix.Flushed(0, 8, 4, content)
		ix.Named(set)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
