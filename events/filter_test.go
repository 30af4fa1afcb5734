package events

import "testing"

func TestFilters(t *testing.T) {
	e := Event{Guest: "web", Kind: DrillPrefix + "begun"}
	for _, c := range []struct {
		f    Filter
		want bool
	}{
		{Filter{}, true}, {Filter{Guest: "web"}, true}, {Filter{Guest: "db"}, false},
		{Filter{Kinds: []Kind{DrillPrefix}}, true}, {Filter{Kinds: []Kind{"drill"}}, false},
		{Filter{Kinds: []Kind{KindProtected, "drill-begun"}}, true}, {Filter{Guest: "web", Kinds: []Kind{KindProtected}}, false},
	} {
		if got := c.f.Match(&e); got != c.want {
			t.Errorf("%+v: %v", c.f, got)
		}
	}
}
