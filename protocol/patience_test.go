package protocol

import (
	"testing"
	"time"
)

func TestPatienceIsBounded(t *testing.T) {
	for _, d := range []time.Duration{0, 1, 5 * time.Second, MaxPatience} {
		if got, err := ParsePatience(AppendPatience(nil, d)); err != nil || got != d {
			t.Errorf("%v is read as %v, %v", d, got, err)
		}
	}
	for _, b := range [][]byte{nil, {1}, make([]byte, 9), AppendPatience(nil, MaxPatience+1), AppendPatience(nil, -1)} {
		if d, err := ParsePatience(b); err == nil {
			t.Errorf("% x is taken for %v", b, d)
		}
	}
}
