package status

// The past of a guest over the endpoint: to whom it is told, and how it is asked.

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"understudy/status/samples"
)

func TestThePastOfAGuestIsTold(t *testing.T) {
	const pattern = "GET /api/v1/guests/{guest}/samples"
	r := newRig(t, Health)
	ask := func(path, token string) (int, samples.Series, string) {
		t.Helper()
		a := r.ask(r.caller(""), pattern, http.MethodGet, path, token, "")
		var s samples.Series
		if a.code == http.StatusOK {
			if err := json.Unmarshal([]byte(a.body), &s); err != nil {
				t.Fatal(err)
			}
		}
		return a.code, s, a.body
	}
	if code, _, _ := ask("/api/v1/guests/web/samples", ""); code != http.StatusUnauthorized {
		t.Errorf("to somebody: %d", code)
	}
	code, s, _ := ask("/api/v1/guests/web/samples", r.reader)
	if code != http.StatusOK || !s.Whole || len(s.Age) != 2 || s.Values["held_bytes"][1] != 4500 || s.Values["pause_ns"][0].Known() {
		t.Errorf("%d, %+v", code, s)
	}
	if code, more, _ := ask("/api/v1/guests/web/samples?ring=fine&since="+s.Next, r.reader); code != http.StatusOK || more.Whole || len(more.Age) != 0 {
		t.Errorf("what is new: %d, %+v", code, more)
	}
	if code, all, _ := ask("/api/v1/guests/db/samples?ring=coarse", r.reader); code != http.StatusOK || len(all.Age) != 1 || all.Generation[0] != 0 {
		t.Errorf("of a guest that runs elsewhere: %d, %+v", code, all)
	}
	for path, want := range map[string]string{"web/samples?ring=x": "fine and coarse", "web/samples?since=x": "gave as next", "nobody/samples": "no samples of this guest"} {
		code, _, body := ask("/api/v1/guests/"+path, r.reader)
		if code/100 != 4 || !strings.Contains(body, want) {
			t.Errorf("%s: %d, %s", path, code, body)
		}
	}
}
