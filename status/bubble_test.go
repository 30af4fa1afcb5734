package status

// A bubble over the endpoint: its stages come as they happen, then its result.

import (
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"understudy/bubble"
)

func TestABubbleIsAskedForFollowedAndEnded(t *testing.T) {
	f := newFake()
	path := filepath.Join(shortDir(t), "sock")
	stop := serve(t, f, path)
	c := NewClient(path)
	spec := bubble.Spec{Check: []string{"/bin/true", "-x"}, Timeout: time.Second, Hold: time.Minute, Address: "192.0.2.1/24"}
	var stages []string
	r, err := c.Bubble(t.Context(), "web", spec, func(stage string, done, total uint64) { stages = append(stages, stage) })
	if err != nil || r.Guest != "web" || r.Epoch != 7 || r.Check == nil || !reflect.DeepEqual(r.Check.Command, spec.Check) {
		t.Errorf("%+v, %v", r, err)
	}
	if !reflect.DeepEqual(stages, []string{bubble.StageCopy}) {
		t.Errorf("told of %v", stages)
	}
	if err := c.EndBubble(t.Context(), "web"); err != nil {
		t.Error(err)
	}
	if a, b := <-f.asked, <-f.asked; a != "bubble [/bin/true -x] web" || b != "bubble ends web" {
		t.Errorf("the host was asked %q and %q", a, b)
	}
	f.err = bubble.ErrTakeover
	if _, err := c.Bubble(t.Context(), "web", spec, nil); err == nil || !strings.Contains(err.Error(), "comes first") {
		t.Errorf("a bubble that made room: %v", err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}
