package dashboard_test

// What an operator does with the page, and who is no operator: each action says what
// follows from it before it is done, and what cannot be taken back wants a word.

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy/host"
	"understudy/ownership"
	"understudy/primary"
	"understudy/status"
)

// button waits until an action is offered, and presses it.
func (p *page) button(label string) {
	p.t.Helper()
	const find = "[...document.querySelectorAll('main button')].find((b) => b.checkVisibility() && !b.disabled && b.textContent === %q)"
	p.within(testTime, "offering "+label, fmt.Sprintf(find+" !== undefined", label))
	p.must(p.Eval(p.ctx, fmt.Sprintf("("+find+").focus()", label), nil))
	p.press("Enter")
}

// agrees presses the button that does it, once it may be.
func (p *page) agrees() {
	p.t.Helper()
	p.within(testTime, "ready to be agreed to", "!document.querySelector('dialog[open] .strong').disabled")
	p.must(p.Eval(p.ctx, "document.querySelector('dialog[open] .strong').focus()", nil))
	p.press("Enter")
}

// types puts a word into the question.
func (p *page) types(word string) {
	p.t.Helper()
	p.within(testTime, "asking for a word", "document.querySelector('dialog[open] input:not([hidden] *)') !== null")
	p.must(p.Eval(p.ctx, "document.querySelector('dialog[open] input').focus()", nil))
	p.must(p.Type(p.ctx, word))
}

// mayGo tells whether the question can be agreed to.
func (p *page) mayGo() (yes bool) {
	p.t.Helper()
	p.must(p.Eval(p.ctx, "!document.querySelector('dialog[open] .strong').disabled", &yes))
	return yes
}

func TestEachActionSaysWhatFollowsFromIt(t *testing.T) {
	s := newStage(t)
	paused := func(to ownership.Protection) func(g *host.GuestStatus) {
		return func(g *host.GuestStatus) {
			unprotected(primary.ModeAlone, false)(g)
			g.Log.Protection, g.Primary.LinkError = to, ""
		}
	}
	s.is(with(func(*host.GuestStatus) {}))
	p := open(t, s.url, s.operator)
	for _, c := range []struct {
		label  string
		guest  func(g *host.GuestStatus)
		says   []string
		result string
		asked  string
	}{
		{"Switch over…", func(*host.GuestStatus) {}, []string{"web moves from alpha to beta. Nothing is lost", "alpha becomes its backup"}, "web runs on beta (generation 4).", "switchover web"},
		{"Bring home to beta…", func(g *host.GuestStatus) { g.Home = "beta" }, []string{"goes back from alpha to beta"}, "web is home: it runs on beta (generation 4).", "failback web"},
		{"Pause protection…", func(*host.GuestStatus) {}, []string{"without protection", "web is down until alpha is back", "keeps its image"}, "The protection of web is paused.", "pause web"},
		{"Resume protection…", paused(ownership.ProtectionPaused), []string{"web is protected again"}, "The protection of web is on again.", "resume web"},
		{"Unprotect…", paused(ownership.ProtectionPaused), []string{"gives its protection up", "frees its image"}, "web is not protected any more.", "unprotect web"},
		{"Protect…", paused(ownership.ProtectionOff), []string{"All of its memory is copied first."}, "The protection of web is on again.", "protect web"},
		{"End the bubble…", func(g *host.GuestStatus) {
			standsBy("fed", true)(g)
			g.Bubble = &host.BubbleStatus{Stage: "checking", For: 12 * time.Second}
		}, []string{"The copy of web that runs in isolation on alpha is thrown away"}, "The bubble is ended.", "end the bubble of web"},
	} {
		s.is(with(c.guest))
		p.button(c.label)
		for _, text := range c.says {
			p.reads("dialog[open]", text)
		}
		if c.label == "Unprotect…" {
			p.picture("question-unprotect")
		}
		p.agrees()
		p.reads(".actions .result", c.result)
		if got := s.done(); got[len(got)-1] != c.asked {
			t.Errorf("%s asks the host for %q", c.label, got)
		}
	}
	p.reads(".facts", "on alpha, checking, since 12 s when told")
	p.reads(".notes", "runs in isolation on alpha")
	p.portraits("state-bubble")
	p.clean(s.url, refused)
}

func TestWhatIsLostByForceIsSaidAndAgreedToByName(t *testing.T) {
	s := newStage(t)
	s.is(with(standsBy("asking", true)))
	p := open(t, s.url, s.operator)
	p.reads("h1", "web is failing over")

	s.mu.Lock()
	s.cost = host.FailoverCost{Guest: "web", Host: "alpha", Owner: "beta", Way: host.WayNone, Why: "guest \"web\" was never started", Loses: []string{}}
	s.mu.Unlock()
	p.button("Take over on alpha…")
	p.reads("dialog[open]", "alpha cannot take it over: guest \"web\" was never started.")
	if p.mayGo() {
		t.Error("what is not possible can be agreed to")
	}
	p.press("Escape")

	s.mu.Lock()
	s.cost = host.FailoverCost{Guest: "web", Host: "alpha", Owner: "beta", Way: host.WayImage, Why: "the log names no backup in sync", Epoch: 77, EpochAge: 3 * time.Minute,
		Loses: []string{"everything it did since is lost, <b>also what the world has seen of it</b>", "connections that went on since break"}, Consent: "image 01 generation 3"}
	s.mu.Unlock()
	p.button("Take over on alpha…")
	p.reads("dialog[open]", "By force, web goes on at alpha from epoch 77, committed 3 min ago; the log names no backup in sync.")
	p.reads("dialog[open] li", "<b>also what the world has seen of it</b>")
	p.types("we")
	if p.mayGo() {
		t.Error("half of the name is enough")
	}
	p.press("Enter")
	p.must(p.Type(p.ctx, "b"))
	p.picture("question-force")
	p.press("Enter")
	p.reads(".actions .result", "web runs on alpha (generation 9).")

	p.button("beta is off…")
	p.reads("dialog[open]", "If it is not off, a guest can run twice, and its disk is damaged.")
	p.types("beta")
	p.agrees()
	p.reads(".actions .result", "The ownership log knows that beta is off, for web.")
	if got, want := s.done(), []string{`failover web force true lose "image 01 generation 3"`, "fence beta"}; !slices.Equal(got, want) {
		t.Errorf("the host was asked for %q, want %q", got, want)
	}
	s.is(with(func(g *host.GuestStatus) {
		standsBy("asking", true)(g)
		g.Log.Fenced = "beta"
	}))
	p.reads(".notes", "beta is known to be off")
	p.reads(".picture", "owner, known to be off")
	p.reads(".facts", "beta")
	p.portraits("state-fenced")
	p.clean(s.url, refused)
}

func TestADrillIsChosenPlannedAndFollowed(t *testing.T) {
	s := newStage(t)
	s.is(with(func(*host.GuestStatus) {}))
	p := open(t, s.url, s.operator)
	p.button("Run a drill…")
	p.reads("dialog[open]", "alpha runs it, and puts everything back. web is not away")
	p.reads("dialog[open] li", "Step: start the copy of web on beta in isolation")
	choose := func(kind string) {
		t.Helper()
		p.must(p.Eval(p.ctx, fmt.Sprintf("(() => { const k = document.getElementById('drillkind'); k.value = %q; k.dispatchEvent(new Event('change')); })()", kind), nil))
	}
	choose("failover cut")
	p.reads("dialog[open]", "alpha cannot run it now.")
	p.reads("dialog[open] li", "alpha has strikes = false")
	if p.mayGo() {
		t.Error("what is not possible can be agreed to")
	}
	choose("failover kill")
	p.reads("dialog[open] li", "Risk: every guest that alpha runs is struck")
	p.reads("dialog[open]", "web is away for about 1.1 s")
	p.picture("question-drill")
	if p.mayGo() {
		t.Error("a host is struck without a word")
	}
	p.types("web")
	p.agrees()
	p.reads(".actions .result", "Drill a-drill runs on alpha")
	p.reads("[aria-labelledby=drills] td", "running")
	p.must(p.Eval(p.ctx, "document.querySelector('[aria-labelledby=drills] tbody a').click()", nil))
	p.reads("h1", "Drill of web, failover, kill: running.")
	p.button("Give the drill up…")
	p.reads("dialog[open]", "What it has done is undone")
	p.agrees()
	p.reads(".report .result", "It is given up, and cleans up.")
	p.reads("h1", "Drill of web, failover, kill: given up.")
	if got, want := s.done(), []string{"drill failover kill web", "give up a-drill"}; !slices.Equal(got, want) {
		t.Errorf("the host was asked for %q, want %q", got, want)
	}
	p.clean(s.url, refused)
}

func TestWhoMayLookSignsInToDoMore(t *testing.T) {
	s := newStage(t)
	s.stop()
	s.who = status.Read
	s.up()
	s.is(with(func(*host.GuestStatus) {}))
	p := open(t, s.url, "")
	p.reads("h1", "web is protected")
	p.reads("#who", "you may read, and change nothing")
	p.within(testTime, "without actions", "!document.querySelector('.actions').checkVisibility()")
	p.button2("#signmore")
	p.reads("h1", "Who are you?")
	p.reads("h1", "web is protected") // which is still shown
	p.signIn("us_" + strings.Repeat("x", 43))
	p.reads("#signinwhy", "The token was not taken")
	p.reads("h1", "web is protected")
	p.button2("#signless")
	p.within(testTime, "without a question", "document.getElementById('signinbox').hidden")
	p.button2("#signmore")
	p.signIn(s.operator)
	p.reads("#who", "eve-operate may operate")
	p.button("Switch over…")
	p.press("Escape")
	p.within(testTime, "without a question", "document.getElementById('signinbox').hidden")
	p.clean(s.url, refused)
}

// button2 presses the button that a selector names.
func (p *page) button2(selector string) {
	p.t.Helper()
	p.within(testTime, "offering "+selector, fmt.Sprintf("document.querySelector(%q).checkVisibility()", selector))
	p.must(p.Eval(p.ctx, fmt.Sprintf("document.querySelector(%q).click()", selector), nil))
}

// TestWhatAHostilePeerSaysHarmsNobody: another host of the pair answers with markup,
// with what is of the wrong kind, and with nonsense.
func TestWhatAHostilePeerSaysHarmsNobody(t *testing.T) {
	evil := `<img src=x onerror=\"document.title='owned'\">`
	answers := []string{
		`{"host":"beta","version":"` + evil + `","guests":[{"name":"` + evil + `","host":"beta","role":"` + evil + `","protected":"no","log":{"generation":1,"owner":"` + evil + `","phase":"` + evil + `","desired":"` + evil + `"},"problem":"` + evil + `","bubble":{"stage":"` + evil + `","for_ns":"x"}}],"drills":[{"id":"` + evil + `","kind":"` + evil + `","host":"../..","state":"` + evil + `","began":7}],"events":[{"kind":"` + evil + `","seq":1,"time":"now"}],"voters":[{"host":"` + evil + `"}],"leader":"` + evil + `"}`,
		`{"guests":"x","voters":7,"events":{},"drills":"x"}`, `[]`, `null`, `{"guests":[null]}`, `{"guests":[{"name":7,"log":null}]}`, `not JSON`, `"x"`,
		`{"host":"beta","guests":[{"name":"web","host":"beta","role":"primary","log":{"generation":99,"revision":99,"owner":"beta","phase":"active","desired":"running","backup":{}},"primary":{"mode":"protected"}}]}`,
	}
	s := newStage(t)
	s.is(with(func(*host.GuestStatus) {}))
	turn, all := 0, make(chan struct{})
	beta := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		s.mu.Lock()
		defer s.mu.Unlock()
		if strings.HasSuffix(r.URL.Path, "/status") {
			if turn++; turn == len(answers)+1 {
				close(all)
			}
		}
		_, _ = w.Write([]byte(answers[turn%len(answers)])) // its client may be gone
	}))
	defer beta.Close()
	s.stop()
	s.others = map[ownership.HostID]string{"beta": beta.Listener.Addr().String(), "witness": ""}
	s.up()
	p := open(t, s.url, s.operator)
	p.within(testTime, "showing something", "document.querySelector('h1:not([hidden] *)') !== null")
	select {
	case <-all:
	case <-time.After(2 * testTime):
		t.Error("the peer was not asked often enough")
	}
	var bad string
	p.must(p.Eval(p.ctx, `document.title.includes('owned') || document.querySelectorAll('main img, main script, main iframe').length > 0 ? 'markup of a peer is markup here' : ''`, &bad))
	if bad != "" {
		t.Error(bad)
	}
	// Once it talks sense it is understood.
	sense, err := json.Marshal(status.Report{Host: "beta", Leader: "witness", Lease: time.Second, Guests: with(func(g *host.GuestStatus) {
		standsBy("fed", true)(g)
		g.Host, g.Log.Owner, g.Log.Backup.Host = "beta", "alpha", "beta"
	})()})
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	answers = []string{string(sense)}
	s.mu.Unlock()
	p.reads("h1", "web is protected")
	p.within(testTime, "showing what is so", "document.getElementById('broken').hidden")
	p.reads(".picture", "stands by")
	p.clean(s.url, refused, "502")
}

// TestNothingIsRunThatIsNotThePages: the browser itself refuses what a hole in the
// page would let in.
func TestNothingIsRunThatIsNotThePages(t *testing.T) {
	s := newStage(t)
	s.is(with(func(*host.GuestStatus) {}))
	p := open(t, s.url, s.reader)
	p.reads("h1", "web is protected")
	for what, script := range map[string]string{
		"markup of a string":        `(() => { try { document.body.innerHTML += '<b>x</b>'; return true; } catch { return false; } })()`,
		"code of a string":          `new Promise((done) => setTimeout(() => { try { new Function('return 1')(); done(true); } catch { done(false); } }))`, // later: what a debugger runs itself may do that
		"a style in an attribute":   `(() => { const e = document.createElement('p'); document.body.append(e); e.setAttribute('style', 'position: fixed'); const was = getComputedStyle(e).position; e.remove(); return was === 'fixed'; })()`,
		"a style in the page":       `(() => { const e = document.createElement('style'); e.textContent = 'body { opacity: 0.5; }'; document.head.append(e); const was = getComputedStyle(document.body).opacity; e.remove(); return was !== '1'; })()`,
		"a handler in an attribute": `(() => { const e = document.createElement('button'); try { e.setAttribute('onclick', 'window.owned = true'); } catch {} document.body.append(e); e.click(); e.remove(); return window.owned === true; })()`,
	} {
		var ran bool
		p.must(p.Eval(p.ctx, script, &ran))
		if ran {
			t.Errorf("%s is taken", what)
		}
	}
	var elsewhere string
	p.must(p.Eval(p.ctx, `fetch('https://192.0.2.1/').then(() => 'reached', (e) => 'refused')`, &elsewhere))
	if elsewhere != "refused" {
		t.Errorf("another host is %s", elsewhere)
	}
}
