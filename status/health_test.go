package status

// What load balancers are told, fact by fact: each that is missing turns yes
// into no, or into unknown, and the answer says which it was.

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"understudy/host"
	"understudy/ownership"
	"understudy/primary"
)

func TestServesIsToldByTheLeaseTheLogAndTheGate(t *testing.T) {
	for about, c := range map[string]struct {
		spoil func(g *host.GuestStatus)
		want  Verdict
	}{
		"all well":          {func(*host.GuestStatus) {}, Verdict{Yes, "runs here, protected; lease for another 750ms"}},
		"alone":             {func(g *host.GuestStatus) { g.Primary.Mode = primary.ModeAlone }, Verdict{Yes, "unprotected (alone)"}},
		"syncing":           {func(g *host.GuestStatus) { g.Primary.Mode = primary.ModeSyncing }, Verdict{Yes, "unprotected (syncing)"}},
		"entering":          {func(g *host.GuestStatus) { g.Primary.Mode = primary.ModeEntering }, Verdict{Yes, "entering"}},
		"another role":      {func(g *host.GuestStatus) { *g = standing() }, Verdict{No, "not the primary: it is backup"}},
		"starting":          {func(g *host.GuestStatus) { *g = host.GuestStatus{Name: "web"} }, Verdict{No, "it is starting"}},
		"lease over":        {func(g *host.GuestStatus) { g.Primary.LeaseLeft = 0 }, Verdict{No, "holds no lease in generation 3"}},
		"newer generation":  {func(g *host.GuestStatus) { g.Log.Generation++ }, Verdict{No, "in generation 4"}},
		"another owner":     {func(g *host.GuestStatus) { g.Log.Owner = "beta" }, Verdict{No, "names beta the owner"}},
		"activating":        {func(g *host.GuestStatus) { g.Log.Phase = ownership.PhaseActivating }, Verdict{No, "not active in the log: activating"}},
		"surrendered":       {func(g *host.GuestStatus) { g.Log.Phase = ownership.PhaseSurrendered }, Verdict{No, "surrendered"}},
		"to stop":           {func(g *host.GuestStatus) { g.Log.Desired = ownership.Stopped }, Verdict{No, "is to stop"}},
		"paused":            {func(g *host.GuestStatus) { g.Primary.Running = false }, Verdict{No, "stands still"}},
		"backup lost":       {func(g *host.GuestStatus) { g.Primary.Mode = primary.ModeDetaching }, Verdict{No, "output waits: detaching"}},
		"leaving":           {func(g *host.GuestStatus) { g.Primary.Mode = primary.ModeLeaving }, Verdict{No, "output waits: leaving"}},
		"yielded":           {func(g *host.GuestStatus) { g.Primary.Mode = primary.ModeYielded }, Verdict{No, "output waits: yielded"}},
		"not yet in a mode": {func(g *host.GuestStatus) { g.Primary.Mode = 0 }, Verdict{No, "output waits: starting"}},
	} {
		g := running()
		c.spoil(&g)
		if got := serves(g); got.Answer != c.want.Answer || !strings.Contains(got.Why, c.want.Why) {
			t.Errorf("%s: %+v, want %+v", about, got, c.want)
		}
	}
}

func TestInSyncIsToldByALogThatIsYoungEnough(t *testing.T) {
	for about, c := range map[string]struct {
		spoil func(g *host.GuestStatus, f *facts)
		lag   *time.Duration
		want  Verdict
	}{
		"all well":          {func(*host.GuestStatus, *facts) {}, nil, Verdict{Yes, "epoch 99 was committed 30ms ago; the log was heard of 40ms ago"}},
		"young enough":      {func(*host.GuestStatus, *facts) {}, ptr(30 * time.Millisecond), Verdict{Yes, "in sync"}},
		"too old":           {func(*host.GuestStatus, *facts) {}, ptr(29 * time.Millisecond), Verdict{No, "epoch 99, is 30ms old, more than 29ms"}},
		"never committed":   {func(g *host.GuestStatus, _ *facts) { g.Backup.Epoch = 0 }, ptr(time.Second), Verdict{Unknown, "nothing was committed here"}},
		"another role":      {func(g *host.GuestStatus, _ *facts) { *g = running() }, nil, Verdict{No, "not the backup: it is primary"}},
		"never heard":       {func(_ *host.GuestStatus, f *facts) { f.log.Contact = nil }, nil, Verdict{Unknown, "has not heard"}},
		"heard long ago":    {func(_ *host.GuestStatus, f *facts) { f.log.Contact = ptr(1001 * time.Millisecond) }, nil, Verdict{Unknown, "for 1.001s: what the log says of it may be over"}},
		"no lease":          {func(_ *host.GuestStatus, f *facts) { f.lease = 0 }, nil, Verdict{Unknown, "no lease length"}},
		"out of sync":       {func(g *host.GuestStatus, _ *facts) { g.Log.InSync = false }, nil, Verdict{No, "does not name this host in sync"}},
		"another host":      {func(g *host.GuestStatus, _ *facts) { g.Log.Backup.Host = "beta" }, nil, Verdict{No, "does not name this host in sync"}},
		"another image":     {func(g *host.GuestStatus, _ *facts) { g.Backup.InSync = false }, nil, Verdict{No, "another image"}},
		"image not whole":   {func(g *host.GuestStatus, _ *facts) { g.Backup.Whole = false }, nil, Verdict{No, "not whole"}},
		"the primary alone": {func(g *host.GuestStatus, _ *facts) { g.Backup.State = "waiting" }, nil, Verdict{Yes, "in sync"}}, // it may yet take over
	} {
		g, f := standing(), facts{time.Second, known()}
		c.spoil(&g, &f)
		if got := inSync(g, f, c.lag); got.Answer != c.want.Answer || !strings.Contains(got.Why, c.want.Why) {
			t.Errorf("%s: %+v, want %+v", about, got, c.want)
		}
	}
}

func TestLoadBalancersAreToldByStatusAndWhyByBody(t *testing.T) {
	r := newRig(t, Health)
	asker := r.caller("")
	for _, c := range []struct {
		path string
		want int
		says string
	}{
		{"/primary/web", 200, `"answer":"yes","why":"runs here, protected; lease`},
		{"/primary/web", 200, `"lease_left_ns":750000000,"peer_age_ns":5000000`},
		{"/primary/db", 503, `"answer":"no","why":"this host is not the primary: it is backup"`},
		{"/primary", 503, `"guest":"db"`},
		{"/primary/nobody", 404, `no guest \"nobody\" on host alpha`},
		{"/backup/db", 200, `"answer":"yes"`},
		{"/backup/db?lag_ms=30", 200, `"commit_age_ns":30000000`},
		{"/backup/db?lag_ms=10", 503, "more than 10ms"},
		{"/backup/web", 503, "not the backup"},
		{"/backup", 503, `"log_age_ns":40000000`},
		{"/backup?lag_ms=", 400, "lag_ms"},
		{"/backup?lag_ms=-1", 400, "lag_ms"},
		{"/backup?lag_ms=1&lag_ms=2", 400, "lag_ms"},
		{"/backup/db?lag_ms=86400001", 400, "lag_ms"},
		{"/livez", 200, "ok\n"},
		{"/livez?verbose", 200, "[+]daemon ok: has run for"},
		{"/readyz", 200, "ok\n"},
		{"/readyz?verbose", 200, "[+]ownership-log ok: witness leads; the last contact was 40ms ago\n[+]guest/db ok: this host is its backup\n"},
	} {
		path, _, _ := strings.Cut(c.path, "?")
		a := r.ask(asker, patternOf(r, path), http.MethodGet, c.path, "", "")
		if a.code != c.want || !strings.Contains(a.body, c.says) {
			t.Errorf("%s: %d %s; want %d with %s", c.path, a.code, a.body, c.want, c.says)
		}
	}
	a := r.ask(asker, "GET /readyz", http.MethodGet, "/readyz", "", "", "Accept", "application/json")
	var checks Checks
	if err := json.Unmarshal([]byte(a.body), &checks); err != nil || !checks.OK || len(checks.Checks) != 3 {
		t.Errorf("as JSON: %s, %v", a.body, err)
	}
}

func TestNotReadySaysWhy(t *testing.T) {
	stuck, fresh := running(), standing()
	stuck.Problem, fresh.Role, fresh.Backup = "boot the guest: no such file", "booting", nil
	f := newFake()
	f.guests = []host.GuestStatus{stuck, fresh}
	r := newRigOf(t, f, Health)
	a := r.ask(r.caller(""), "GET /readyz", http.MethodGet, "/readyz", "", "")
	for _, want := range []string{"[-]guest/web failed: boot the guest: no such file\n", "[-]guest/db failed: booting\n", "[+]ownership-log ok", "readyz check failed"} {
		if a.code != 503 || !strings.Contains(a.body, want) {
			t.Errorf("%d %s; want 503 with %s", a.code, a.body, want)
		}
	}
	for about, spoil := range map[string]func(c *Cluster){
		"no leader":      func(c *Cluster) { c.Leader = "" },
		"has not been":   func(c *Cluster) { c.Contact = nil },
		"more than a le": func(c *Cluster) { c.Contact = ptr(2 * time.Second) },
	} {
		c := known()
		spoil(&c)
		if check := logCheck(time.Second, c); check.OK || !strings.Contains(check.Why, about) {
			t.Errorf("%s: %+v", about, check)
		}
	}
	if logCheck(0, known()).OK {
		t.Error("ready without a lease length")
	}
}

func FuzzParseLag(f *testing.F) {
	f.Add("100")
	f.Add("-0")
	f.Add("1e3")
	f.Fuzz(func(t *testing.T, value string) {
		lag, err := parseLag([]string{value})
		if err == nil && (lag == nil || *lag < 0 || *lag > maxLag || *lag%time.Millisecond != 0) {
			t.Errorf("%q is a lag of %v", value, lag)
		}
	})
}
