package status

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
)

// upgrades is the part of a fake host that is upgraded.
type upgrades struct{ *fake }

func (u upgrades) Upgrade(ctx context.Context, binary string) (Upgrade, error) {
	return Upgrade{From: "1.0.0", To: "1.1.0", PID: 42, Binary: binary}, u.do(ctx, "upgrade to", binary)
}

func TestAnUpgradeIsAskedFor(t *testing.T) {
	const route = "POST /api/v1/upgrade"
	r := newRig(t, Nothing)
	c := r.root()
	for body, want := range map[string]string{"": "upgrade to ", `{"binary":"/opt/understudyd"}`: "upgrade to /opt/understudyd"} {
		a := r.ask(c, route, http.MethodPost, "/api/v1/upgrade", "", body)
		if a.code != http.StatusOK || <-r.host.asked != want {
			t.Errorf("%s: %d %s", body, a.code, a.body)
		}
	}
	if a := r.ask(c, route, http.MethodPost, "/api/v1/upgrade", "", `{"binary":7}`); a.code != http.StatusBadRequest {
		t.Errorf("a body that is none: %d %s", a.code, a.body)
	}
	r.host.err = errors.New("the new daemon refuses")
	if a := r.ask(c, route, http.MethodPost, "/api/v1/upgrade", "", ""); a.code != http.StatusConflict || !strings.Contains(a.body, "refuses") {
		t.Errorf("an upgrade that is refused: %d %s", a.code, a.body)
	}
	<-r.host.asked
	r.server.Upgrades = nil
	if a := r.ask(c, route, http.MethodPost, "/api/v1/upgrade", "", ""); a.code != http.StatusConflict || !strings.Contains(a.body, "start it anew") {
		t.Errorf("a daemon that cannot be upgraded: %d %s", a.code, a.body)
	}
}
