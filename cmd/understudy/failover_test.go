package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"understudy/host"
	"understudy/ownership"
)

// TestWhatIsLostIsSaidBeforeItIs is what an operator reads at a bad hour.
func TestWhatIsLostIsSaidBeforeItIs(t *testing.T) {
	const want = `guest web is owned by host alpha; the log names no backup in sync: the guest has run on alone since, and what it said has left.
By force it goes on at host beta from epoch 4711, committed 3m0s ago:
  - everything since is lost
  - connections break
`
	c := host.FailoverCost{Guest: "web", Host: "beta", Owner: "alpha", Way: host.WayImage, Epoch: 4711, EpochAge: 3 * time.Minute,
		Why: "the log names no backup in sync: the guest has run on alone since, and what it said has left", Loses: []string{"everything since is lost", "connections break"}}
	if got := printCost(c); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	c.Way = host.WayBoot
	if got := printCost(c); !strings.Contains(got, "By force it is booted anew at host beta:\n  - everything") {
		t.Errorf("got\n%s", got)
	}
}

// TestAForcedFailoverNeedsAnAgreement: of an operator, or of a script that says so.
func TestAForcedFailoverNeedsAnAgreement(t *testing.T) {
	c := root(&common{})
	for _, one := range []struct {
		typed string
		yes   bool
		want  string // of the error
	}{
		{"web\n", false, ""}, {" web ", false, ""}, {"", true, ""}, {"yes\n", false, "nothing was done"}, {"", false, "nothing was done"},
	} {
		var said bytes.Buffer
		c.SetErr(&said)
		c.SetIn(strings.NewReader(one.typed))
		err := agree(c, "all is lost\n", "web", one.yes)
		if (err == nil) != (one.want == "") || err != nil && !strings.Contains(err.Error(), one.want) {
			t.Errorf("typed %q, --yes %v: %v, want %q", one.typed, one.yes, err, one.want)
		}
		if !strings.HasPrefix(said.String(), "all is lost\n") || one.yes == strings.Contains(said.String(), `Type "web"`) {
			t.Errorf("said %q", said.String())
		}
	}
	// Neither a terminal nor --yes: a script that did not mean it.
	c.SetIn(nil)
	if err := agree(c, "", "web", false); err == nil || exitOf(err) != exitUsage {
		t.Errorf("without a terminal: %v", err)
	}
}

func TestFailoverTellsTheOutcome(t *testing.T) {
	here := ownership.Guest{Generation: 5, Owner: "beta", Phase: ownership.PhaseActive, Desired: ownership.Running}
	out, err := command(t, "failover", "web", "--socket", answering(t, 200, here))
	if err != nil || !strings.Contains(out, "guest web runs on host beta (generation 5)") {
		t.Errorf("%q, %v", out, err)
	}
	no := map[string]string{"error": "no takeover by host beta would be granted: it was paused. By force (--force): all is lost"}
	if _, err := command(t, "failover", "web", "--force", "--yes", "--socket", answering(t, 409, no)); err == nil || exitOf(err) != exitFailed || !strings.Contains(err.Error(), "By force") {
		t.Errorf("%v", err)
	}
}

func TestAHostIsSaidToBeOff(t *testing.T) {
	f := host.Fences{Host: "beta", Guests: []host.FencedGuest{{Guest: "web", Owner: "alpha", Fenced: "alpha"}, {Guest: "db", Owner: "beta"}}}
	for _, args := range [][]string{{"fence", "confirm", "alpha", "--yes"}, {"fence", "status"}} {
		out, err := command(t, append(args, "--socket", answering(t, 200, f))...)
		if err != nil || !strings.Contains(out, "web    alpha  alpha") || !strings.Contains(out, "db     beta   none") {
			t.Errorf("%v: %q, %v", args, out, err)
		}
	}
}
