package dashboard_test

// Whole stories of a real pair, three daemons with a simulated guest, as the one sees
// them who looks at the page of the host that is left.

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy/config"
	"understudy/demo/world"
	"understudy/status"
)

// prefix begins the names of what the pair makes on the machine.
const prefix = "usdash"

// realPair is a pair whose hosts have the endpoint on loopback.
func realPair(t *testing.T) (s *world.Sim, url map[string]string, token string) {
	t.Helper()
	programs, err := world.Programs()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(programs) })
	s, err = world.NewSim(world.Options{Daemon: filepath.Join(programs, "understudyd"), Prefix: prefix,
		Guests: []world.Guest{{Name: "web", Home: world.HostA, Memory: 256 << 20}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if left, err := world.Leftovers(prefix); err != nil || len(left) > 0 {
			t.Errorf("left behind: %q, %v", left, err)
		}
	})
	token, line, err := status.NewToken("eve", status.Operate)
	if err != nil {
		t.Fatal(err)
	}
	tokens := filepath.Join(s.Dir, "tokens")
	if err := os.WriteFile(tokens, []byte(line.Line()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	url = map[string]string{}
	s.Config.API = config.API{Tokens: tokens, Cert: shown.cert, Key: shown.key}
	for i, h := range s.Config.Hosts {
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s.Config.Hosts[i].API = config.API{Listen: l.Addr().String()}
		url[h.Name] = "https://" + l.Addr().String() + "/ui/"
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// The backup asks at once and is granted the guest when the lease is over: so
	// long can a person see it ask.
	s.Config.Lease = config.Duration(4 * time.Second)
	if err := os.WriteFile(s.ConfigFile(), s.Config.Render(), 0o600); err != nil {
		t.Fatal(err)
	}
	return s, url, token
}

// watched has the page remember each headline it showed.
func (p *page) watched() {
	p.t.Helper()
	p.must(p.Eval(p.ctx, `(() => {
		window.heads = [];
		const note = () => { const h = document.querySelector('.guestpage h1').textContent.replace(/[0-9.]+ (µs|ms|s) behind/, 'behind').replace(/[0-9]+%/, 'N%'); if (heads.at(-1) !== h) heads.push(h); };
		new MutationObserver(note).observe(document.querySelector('.guestpage h1'), { childList: true, characterData: true, subtree: true });
		note();
	})()`, nil))
}

func TestAFailoverAndAFailbackAsTheyAreSeen(t *testing.T) {
	s, url, token := realPair(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.StartAll(ctx))
	_, err := s.Protected(ctx, "web", world.HostA, time.Minute)
	must(err)
	client, _, err := s.Connect(ctx, "web") // so that there is output to be held
	must(err)
	defer client.Close()

	p := open(t, url[world.HostB], token)
	p.reads("h1", "web is protected: runs on a, b stands by,")
	p.reads(".picture", "checkpoints, epoch")
	p.reads(".picture", "web runs here")
	p.reads(".events", "a · web")
	p.reads(".events", "b · web")
	p.watched()
	p.within(20*time.Second, "plotting what the primary counts", "document.querySelectorAll('.plots .panel:last-child path.area').length === 6 && document.querySelector('.plots path.line.a').getAttribute('d').includes('L')")
	p.picture("1-protected")
	p.clean(url[world.HostB], refused)

	must(s.Kill(world.HostA))
	p.reads("h1", "web is failing over: b does not hear from a, and asks for the guest.")
	p.hears("web: failing over, owned by a")
	p.picture("2-failing-over")
	p.reads("h1", "web is NOT protected: runs on b alone")
	p.reads(".notes", "Taken over from a, which fell silent, at")
	p.reads(".events", "first-output")
	p.picture("3-unprotected")

	must(s.Start(ctx, world.HostA))
	// That a is synchronised first is over too soon to be sure that the page shows it:
	// TestEveryStateIsToldInWords has that state.
	p.reads("h1", "web is protected: runs on b, a stands by,")
	p.hears("web: protected, runs on b, a stands by")
	p.picture("4-protected-the-other-way-round")

	p.button("Bring home to a…")
	p.reads("dialog[open]", "web goes back from b to a, the host that the configuration names for it.")
	p.agrees()
	p.reads(".actions .result", "web is home: it runs on a (generation 3).")
	p.reads("h1", "web is protected: runs on a, b stands by,")
	p.reads(".notes", "Handed over from b at")
	p.picture("5-after-failback")
	p.clean(url[world.HostB], refused)

	var heads []string
	p.must(p.Eval(p.ctx, "heads", &heads))
	t.Logf("what was read:\n%s", strings.Join(heads, "\n"))

	// The witness runs no guest, and its page tells the same; its plots begin with what
	// both hosts remember, the failover among it.
	w := open(t, url[world.Witness], token)
	w.reads("h1", "web is protected: runs on a, b stands by,")
	w.within(testTime, "plotting what was before it was opened", "document.querySelector('.plots path.line.a').getAttribute('d').split('L').length > 3 && document.querySelector('.plot .unprotected').getBoundingClientRect().width > 0")
	w.reads(".events", "a · web")
	w.picture("6-from-the-witness")
	w.clean(url[world.Witness], refused)
}

// TestMaintenanceThatGoesWrongAsItIsSeen: the protection is paused, the host dies, and
// an operator takes the guest by force, knowing what is lost; then all is mended.
func TestMaintenanceThatGoesWrongAsItIsSeen(t *testing.T) {
	s, url, token := realPair(t)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.StartAll(ctx))
	_, err := s.Protected(ctx, "web", world.HostA, time.Minute)
	must(err)
	p := open(t, url[world.HostB], token)
	p.reads("h1", "web is protected: runs on a, b stands by,")

	p.button("Pause protection…")
	p.reads("dialog[open]", "If a fails meanwhile, web is down until a is back.")
	p.agrees()
	p.reads(".actions .result", "The protection of web is paused.")
	p.reads("h1", "web is NOT protected: an operator paused its protection; it runs on a alone.")
	p.hears("web: protection paused")
	p.portraits("story-paused")

	must(s.Kill(world.HostA))
	p.reads("h1", "web is in an unknown state: a has not answered for")
	p.reads(".picture", "owns it, by the log")
	p.portraits("story-unknown")
	p.button("Take over on b…")
	p.reads("dialog[open]", "By force, web goes on at b from epoch")
	p.reads("dialog[open] li", "everything it did since is lost")
	p.types("web")
	p.picture("story-force")
	p.agrees()
	p.reads(".actions .result", "web runs on b (generation 2).")
	p.reads("h1", "an operator paused its protection; it runs on b alone.")

	must(s.Start(ctx, world.HostA))
	p.button("Resume protection…")
	p.agrees()
	p.reads("h1", "web is protected: runs on b, a stands by,")

	// A drill moves it to and fro, and leaves a report.
	p.button("Run a drill…")
	p.reads("dialog[open] li", "Step: ")
	p.must(p.Eval(p.ctx, "(() => { const k = document.getElementById('drillkind'); k.value = 'switchover'; k.dispatchEvent(new Event('change')); })()", nil))
	p.reads("dialog[open] li", "ask b for a switchover to a")
	p.agrees()
	p.reads(".actions .result", "runs on w: it is among the drills below.")
	p.reads("[aria-labelledby=drills] tbody td", "switchover")
	p.must(p.Eval(p.ctx, "document.querySelector('[aria-labelledby=drills] tbody a').click()", nil))
	p.within(90*time.Second, "told how the drill ended", "document.querySelector('.report h1').textContent === 'Drill of web, switchover: all held.'")
	p.reads(".report [aria-label=Guarantees]", "held")
	p.portraits("story-report")
	p.clean(url[world.HostB], refused)

	// Both hosts of the guest are gone: the witness says that it does not know.
	w := open(t, url[world.Witness], token)
	w.reads("h1", "web is protected: runs on b, a stands by,")
	must(s.Kill(world.HostA))
	must(s.Kill(world.HostB))
	w.reads("h1", "web is in an unknown state: b has not answered for")
	w.reads(".picture", "not heard for")
	w.portraits("story-nobody")
	w.clean(url[world.Witness], refused)
}
