package dashboard_test

// What a person does with the page: shows who they are, acts, with a keyboard
// alone, on a phone, in the dark.

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy/drill"
	"understudy/host"
	"understudy/ownership"
	"understudy/primary"
)

func TestOnlyWhoMayReadIsShownAnything(t *testing.T) {
	s := newStage(t)
	s.is(with(func(*host.GuestStatus) {}))
	p := open(t, s.url, "")
	p.reads("h1", "Who are you?")
	if text := p.text("main"); strings.Contains(text, "web") {
		t.Errorf("who did not say who they are is shown %q", text)
	}
	p.clean(s.url, refused)
	p.signIn("short")
	p.reads("#signinwhy", "That is no token")
	p.signIn("us_" + strings.Repeat("x", 43))
	p.reads("#signinwhy", "The token was not taken")
	p.picture("who-are-you")

	p.signIn(s.reader)
	p.reads("h1", "web is protected")
	p.reads("#who", "eve-read may read, and change nothing")
	p.within(testTime, "without actions", "!document.querySelector('.actions').checkVisibility()")
	var kept string
	p.must(p.Eval(p.ctx, "JSON.stringify([sessionStorage.length, localStorage.length, document.cookie, location.href.includes('us_'), document.getElementById('token').value])", &kept))
	if kept != `[1,0,"",false,""]` {
		t.Errorf("the token is kept in %s", kept)
	}
	p.visit(s.url)
	p.reads("h1", "web is protected")
	p.must(p.Eval(p.ctx, "document.getElementById('signout').click()", nil))
	p.reads("h1", "Who are you?")
	p.clean(s.url, refused)
}

// focused is what the keyboard is on: its words, and whether that is seen.
type focused struct {
	What string
	Seen bool
}

func (p *page) focus() (f focused) {
	p.t.Helper()
	p.must(p.Eval(p.ctx, `(() => {
		const e = document.activeElement;
		const style = getComputedStyle(e.type === 'radio' ? e.nextElementSibling : e);
		const by = document.getElementById(e.getAttribute('aria-labelledby'));
		return e === document.body ? { What: 'nothing', Seen: true } : { What: (e.getAttribute('aria-label') || (e.labels?.[0] ?? by ?? e).textContent || e.id).trim().slice(0, 40), Seen: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2 };
	})()`, &f))
	return f
}

// walk presses Tab until it is on something that is called so.
func (p *page) walk(to string) (passed []string) {
	p.t.Helper()
	for range 60 {
		p.press("Tab")
		f := p.focus()
		if passed = append(passed, f.What); !f.Seen {
			p.t.Errorf("%q has the focus, and that is not seen", f.What)
		}
		if strings.HasPrefix(f.What, to) {
			return passed
		}
	}
	p.t.Fatalf("the keyboard does not come to %q; it came to %q", to, passed)
	return nil
}

func TestWithAKeyboardAlone(t *testing.T) {
	s := newStage(t)
	s.is(with(func(*host.GuestStatus) {}))
	s.tell(time.Minute, map[string]any{"guest": "web", "kind": "booted", "text": "booted"})
	p := open(t, s.url, s.operator)
	p.reads("h1", "web is protected")
	p.visit(s.url)
	p.reads("h1", "web is protected")
	p.within(testTime, "offering a switchover", "document.querySelector('.actions').checkVisibility() && !document.querySelector('.actions button').disabled")

	if first := p.walk("To the state")[0]; !strings.HasPrefix(first, "To the state") {
		t.Errorf("the first is %q", first)
	}
	p.press("Enter")
	p.walk("Switch over")
	p.press("Enter")
	p.reads("dialog", "web moves from alpha to beta. Nothing is lost")
	if f := p.focus(); f.What != "Cancel" {
		t.Errorf("a question begins at %q", f.What)
	}
	p.picture("question")
	p.clean(s.url, refused)
	p.press("Escape")
	p.within(testTime, "without a question", "!document.querySelector('dialog').open")
	if f := p.focus(); !strings.HasPrefix(f.What, "Switch over") {
		t.Errorf("after the question it is on %q", f.What)
	}
	p.press("Enter", "Tab", "Enter")
	p.reads(".result", "web runs on beta (generation 4).")
	s.mu.Lock()
	s.refuse = errors.New("guest web: another comparison is under way: ask again when it is over")
	s.mu.Unlock()
	p.walk("Verify memory")
	p.press("Enter", "Tab", "Enter")
	p.reads(".result", "web: Verify memory failed: guest web: another comparison is under way")
	if got := s.done(); !slices.Equal(got, []string{"switchover web", "verify web"}) {
		t.Errorf("the host was asked for %q", got)
	}

	p.walk("Pause: values over time")
	p.within(testTime, "plotting", "document.activeElement.querySelector('path.line.a').getAttribute('d').split('L').length > 3")
	p.press("Home")
	var first, next string
	const valueText = "document.activeElement.getAttribute('aria-valuetext')"
	p.must(p.Eval(p.ctx, valueText, &first))
	p.press("ArrowRight", "ArrowRight")
	p.must(p.Eval(p.ctx, valueText, &next))
	if first == next || !strings.Contains(next, "mean 2") {
		t.Errorf("the arrow keys lead from %q to %q", first, next)
	}
	p.press("Escape")
	passed := p.walk("As a table")
	p.press("Enter")
	p.reads("table", "99th percentile")
	p.reads("tbody td", "5 ms, 5 ms")
	passed = append(passed, p.walk("Commit lag: values")...)
	passed = append(passed, p.walk("What happened")...)
	for _, want := range []string{"Pause as a table", "Epoch length: values", "Dirty memory: sent and left out: values"} {
		if !slices.ContainsFunc(passed, func(s string) bool { return strings.HasPrefix(s, want[:min(len(want), 40)]) }) {
			t.Errorf("the keyboard does not come to %q; it came to %q", want, passed)
		}
	}
	p.clean(s.url, refused)
}

// TestAQuestionIsAskedAnewAtOnce: a browser tells that a question was closed only
// after whoever asks it again at once has done so.
func TestAQuestionIsAskedAnewAtOnce(t *testing.T) {
	s := newStage(t)
	s.is(with(func(*host.GuestStatus) {}))
	p := open(t, s.url, s.operator)
	p.button("Switch over…")
	p.within(testTime, "asking", "document.querySelector('dialog').open")
	p.must(p.Eval(p.ctx, `(() => {
		document.querySelector('dialog').close();
		[...document.querySelectorAll('.actions button')].find((b) => b.textContent === 'Switch over…').click();
	})()`, nil))
	p.within(testTime, "told what follows", "document.querySelector('dialog').textContent.includes('Nothing is lost')")
	p.agrees()
	p.reads(".result", "web runs on beta (generation 4).")
	p.clean(s.url, refused)
}

// TestThePlotsBeginWithAHostThatHasYetToLook: who opens the page as the host begins
// asks for samples before there are any.
func TestThePlotsBeginWithAHostThatHasYetToLook(t *testing.T) {
	s := newStage(t)
	s.is(with(func(*host.GuestStatus) {}))
	s.early.Store(1)
	p := open(t, s.url, s.operator)
	p.reads("h1", "web is protected")
	p.within(testTime, "plotting", "(document.querySelector('.plots path.line.a').getAttribute('d') ?? '').split('L').length > 3")
	p.clean(s.url, refused)
}

// TestThePlotsBeginBeforeThePageWasOpened: the host has looked before anybody did.
func TestThePlotsBeginBeforeThePageWasOpened(t *testing.T) {
	s := newStage(t)
	s.was(12, func(at time.Time) []host.GuestStatus {
		g := busyAt("web", at)
		switch ago := time.Since(at); {
		case ago > 8*time.Minute && ago < 9*time.Minute: // it ran elsewhere
			g.Primary = nil
		case ago > 4*time.Minute && ago < 5*time.Minute:
			unprotected(primary.ModeAlone, false)(&g)
		}
		return []host.GuestStatus{g}
	})
	s.is(with(func(*host.GuestStatus) {}))
	p := open(t, s.url, s.reader)
	p.reads("h1", "web is protected")
	// A line from twelve minutes ago to now, in two parts: the guest was elsewhere.
	const line = "document.querySelector('.plots .plot path.line.a').getAttribute('d')"
	p.within(testTime, "plotting twelve minutes", line+".split('L').length > 600 && "+line+".split('M').length === 3")
	p.reads(".plots text", "−9 min")
	p.within(testTime, "shading the minute in which it was not protected", "document.querySelector('.plot .unprotected').getBoundingClientRect().width > 10")
	p.reads(".legend", "not protected")
	p.picture("plots")
	p.walk("15 minutes")
	p.press("ArrowRight")
	p.within(testTime, "plotting the coarse samples", line+".split('L').length > 50 && "+line+".split('L').length < 90")
	p.must(p.Eval(p.ctx, "document.querySelector('.astable summary').click()", nil))
	p.reads("caption", "of each 20 min")
	p.press("ArrowLeft")
	p.within(testTime, "plotting the fine samples", line+".split('L').length > 600")
	p.clean(s.url, refused)
}

func TestAProtectionThatIsPausedIsResumed(t *testing.T) {
	s := newStage(t)
	s.is(with(func(g *host.GuestStatus) {
		unprotected(primary.ModeAlone, false)(g)
		g.Log.Protection = ownership.ProtectionPaused
	}))
	p := open(t, s.url, s.operator)
	p.reads("h1", "web is NOT protected: an operator paused its protection")
	p.walk("Resume protection")
	p.press("Enter")
	p.reads("dialog", "web is protected again, as soon as its backup has its memory.")
	p.press("Tab", "Enter")
	p.reads(".result", "The protection of web is on again.")
	if got := s.done(); !slices.Equal(got, []string{"resume web"}) {
		t.Errorf("the host was asked for %q", got)
	}
	// A question that is open while the state changes under it is taken back.
	s.is(with(func(*host.GuestStatus) {}))
	p.within(testTime, "offering a switchover", "!document.querySelector('.actions button').disabled")
	p.walk("Switch over")
	p.press("Enter")
	p.reads("dialog", "Nothing is lost")
	s.is(with(unprotected(primary.ModeAlone, false)))
	p.reads(".result", "Not asked for: that is possible only while it is protected.")
	p.clean(s.url, refused)
}

func TestTheHistoryOfDrills(t *testing.T) {
	s := newStage(t)
	s.stop()
	at := time.Now().Add(-24 * time.Hour)
	evil := "<b>the guest was rebooted</b>"
	s.drilled = []drill.Summary{
		{ID: "2", Name: "weekly", Guest: "web", Kind: drill.Failover, Fault: drill.Kill, State: drill.Held, Host: "alpha", Began: at, Outage: ptr(1077 * time.Millisecond)},
		{ID: "1", Guest: "web", Kind: drill.Bubble, State: drill.Failed, Why: evil, Host: "alpha", Began: at.Add(-time.Hour)},
		{ID: "0", Guest: "db", Kind: drill.Switchover, State: drill.Refused, Host: "alpha", Began: at.Add(-2 * time.Hour)},
	}
	s.up()
	s.is(func() []host.GuestStatus { return []host.GuestStatus{busy("db"), busy("web")} })
	p := open(t, s.url, s.reader)
	p.reads("h1", "All 2 guests are well.")
	p.within(testTime, "showing three drills", "document.querySelectorAll('[aria-labelledby=drills] tbody tr').length === 3")
	p.must(p.Eval(p.ctx, "location.hash = '#/guest/web'", nil))
	p.within(testTime, "showing two drills", "document.querySelectorAll('[aria-labelledby=drills] tbody tr').length === 2")
	for i, want := range []string{"weekly: failover, kill|all held|1.1 s|alpha|", "bubble|FAILED|not measured|alpha|" + evil} {
		var row string
		p.must(p.Eval(p.ctx, fmt.Sprintf("[...document.querySelectorAll('[aria-labelledby=drills] tbody tr')[%d].cells].slice(2).map((c) => (c.querySelector('a')?.firstChild ?? c).textContent).join('|')", i), &row))
		if row != want {
			t.Errorf("drill %d reads %q, want %q", i, row, want)
		}
	}
	p.picture("drills")
	p.clean(s.url, refused)

	// Each leads to its report.
	s.reports["1"] = aReport(evil)
	p.must(p.Eval(p.ctx, "document.querySelectorAll('[aria-labelledby=drills] tbody a')[1].click()", nil))
	p.reads("h1", "Drill of web, failover, kill: FAILED.")
	for selector, text := range map[string]string{
		".report .todo": "memory: it differs", ".report .facts": "2.1 s ± 3 ms", ".report [aria-label=Guarantees]": "BROKEN", ".report [aria-label=Timeline]": evil, ".report [aria-label=Checks]": "exit status 0",
		".report [aria-label='Left over']": "a file of it is left", ".report [aria-label='Before it began']": "on alpha",
	} {
		p.reads(selector, text)
	}
	p.picture("report")
	p.clean(s.url, refused)
	p.size(360, 740, true)
	p.clean(s.url, refused)
	p.picture("phone-report")
	p.must(p.Eval(p.ctx, "location.hash = '#/drill/alpha/none'", nil))
	p.reads(".report", "alpha has no such report")
	p.must(p.Eval(p.ctx, "document.querySelector('#up').click()", nil))
	p.reads("h1", "All 2 guests are well.")
}

// aReport is that of a failover after which something was found.
func aReport(evil string) drill.Report {
	took := func(d time.Duration) *drill.Measured { return &drill.Measured{Took: d, Error: 3 * time.Millisecond} }
	return drill.Report{ID: "1", Spec: drill.Spec{Guest: "web", Kind: drill.Failover, Fault: drill.Kill}, State: drill.Failed, Why: "memory: it differs", Host: "witness", Began: time.Now().Add(-time.Hour),
		Took: 31 * time.Second, From: "alpha", To: "beta",
		Conditions: []drill.Condition{{Name: "the guest runs", Holds: true, Text: "on alpha, generation 3"}, {Name: "no other drill runs", Holds: true, Text: "no host that answers runs one"}},
		Timeline: []drill.Step{{Kind: "phase", Text: "act", Host: "witness"}, {At: time.Second, Host: "alpha", Kind: "strike", Text: "its daemon and the guest are killed"},
			{At: 2 * time.Second, Error: time.Millisecond, Host: "beta", Kind: "takeover-asked", Text: evil}},
		RTO:        drill.RTO{Running: took(2050 * time.Millisecond), FirstOutput: took(2100 * time.Millisecond), Text: "2.1s"},
		RPO:        &drill.RPO{Committed: 77, Resumed: 77, Age: took(40 * time.Millisecond), OutputLost: "none: nothing left before its commit"},
		Checks:     []drill.Check{{Name: "check", Verdict: drill.Yes, Text: "exit status 0", Output: "web answers"}},
		Guarantees: []drill.Guarantee{{Name: "one owner", Verdict: drill.Yes, Evidence: "generations 3 to 5 in the records of three hosts"}, {Name: "memory", Verdict: drill.No, Evidence: "it differs"}},
		Left:       []string{"a file of it is left"}}
}

func TestOnAPhone(t *testing.T) {
	s := newStage(t)
	s.is(with(func(g *host.GuestStatus) {
		unprotected(primary.ModeAlone, false)(g)
		g.Problem = "open /var/lib/understudy/" + strings.Repeat("a-long-name-without-a-space", 8)
	}))
	s.tell(time.Minute, map[string]any{"guest": "web", "kind": "unprotected", "reason": "backup-gone", "text": "unprotected: the daemon of host beta is not there " + strings.Repeat("x", 100)})
	p := open(t, s.url, "")
	p.size(360, 740, true)
	p.visit(s.url)
	p.signIn(s.operator)
	p.reads("h1", "web is NOT protected: runs on alpha alone, since the daemon on beta is not there.")
	p.reads(".picture", "web runs here")
	p.size(360, 1300, true)
	p.picture("phone")
	p.size(360, 740, true)
	p.clean(s.url, refused)
	var small []string
	p.must(p.Eval(p.ctx, `[...document.querySelectorAll('.picture text')].filter((e) => e.textContent && e.getBoundingClientRect().height < 11).map((e) => e.textContent)`, &small))
	if len(small) > 0 {
		t.Errorf("too small to read: %q", small)
	}
	p.button("Unprotect…")
	p.reads("dialog[open]", "frees its image")
	p.picture("phone-question")
	p.clean(s.url, refused)
	var out string
	p.must(p.Eval(p.ctx, `(() => { const d = document.querySelector('dialog[open]').getBoundingClientRect(); return d.left >= 0 && d.right <= innerWidth && d.top >= 0 && d.bottom <= innerHeight ? '' : JSON.stringify(d); })()`, &out))
	if out != "" {
		t.Errorf("a question does not fit a phone: %s", out)
	}
	p.press("Escape")
	p.size(320, 640, true) // a desktop's window at a zoom of 400%
	p.clean(s.url, refused)
}

// contrast finds text that is hard to read: less than 4.5 against its ground, 3
// where it is large (WCAG 2.2, 1.4.3).
const contrast = `(() => {
	const parse = (c) => c.match(/[\d.]+/g).map(Number);
	const light = (c) => { const [r, g, b] = parse(c).map((v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
	const ground = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; const v = parse(c); if (v.length < 4 || v[3] > 0) return c; } return 'rgb(255, 255, 255)'; };
	const bad = [];
	for (const e of document.querySelectorAll('body *')) {
		if (![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()) || !e.checkVisibility({ visibilityProperty: true }) || e.disabled || e.closest('.visually-hidden, noscript, style')) continue;
		const style = getComputedStyle(e.type === 'radio' ? e.nextElementSibling : e);
		const ink = e instanceof SVGElement ? style.fill : style.color;
		const under = e.classList.contains('guestname') ? getComputedStyle(e.previousElementSibling).fill : ground(e instanceof SVGElement ? e.closest('svg').parentElement : e);
		const [a, b] = [light(ink), light(under)].sort((x, y) => y - x);
		const ratio = (a + 0.05) / (b + 0.05);
		const size = parseFloat(style.fontSize);
		if (ratio < (size >= 24 || size >= 18.66 && style.fontWeight >= 700 ? 3 : 4.5)) bad.push(e.textContent.trim().slice(0, 30) + ': ' + ratio.toFixed(2) + ' (' + ink + ' on ' + under + ')');
	}
	return bad;
})()`

func TestItIsReadInTheLightAndInTheDark(t *testing.T) {
	s := newStage(t)
	s.tell(time.Minute, map[string]any{"guest": "web", "kind": "unprotected", "text": "a"})
	s.tell(time.Minute, map[string]any{"guest": "web", "kind": "protected", "text": "b"})
	s.tell(time.Minute, map[string]any{"guest": "web", "kind": "problem", "text": "c"})
	s.is(with(func(*host.GuestStatus) {}))
	p := open(t, s.url, s.operator)
	for _, scheme := range []string{"light", "dark"} {
		p.must(p.Prefer(p.ctx, "prefers-color-scheme", scheme))
		for name, change := range map[string]func(*host.GuestStatus){
			"protected": func(*host.GuestStatus) {}, "unprotected": unprotected(primary.ModeAlone, false), "synchronising": unprotected(primary.ModeSyncing, true),
			"elsewhere": standsBy("fed", true),
		} {
			s.is(with(change))
			p.within(testTime, name, fmt.Sprintf("document.title.includes(%q)", map[string]string{"protected": "web: protected", "unprotected": "not protected", "synchronising": "synchronising", "elsewhere": "unknown here"}[name]))
			var bad []string
			p.must(p.Eval(p.ctx, contrast, &bad))
			if len(bad) > 0 {
				t.Errorf("%s, %s: hard to read:\n%s", scheme, name, strings.Join(bad, "\n"))
			}
			if scheme == "dark" {
				p.picture("dark-" + name)
			}
		}
	}
	var moves int
	const animated = "document.getAnimations().filter((a) => a.playState === 'running').length"
	s.is(with(func(*host.GuestStatus) {}))
	p.within(testTime, "moving", animated+" > 0")
	p.must(p.Prefer(p.ctx, "prefers-reduced-motion", "reduce"))
	if p.must(p.Eval(p.ctx, animated, &moves)); moves != 0 {
		t.Errorf("%d things move on a page that is to keep still", moves)
	}
}
