package status

import (
	"context"
	"errors"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"understudy/config"
	"understudy/ownership"
)

// fakeConfig is the configuration of a fake host.
type fakeConfig fake

var aChange = config.Change{Items: []config.Item{
	{Key: "guest.web.protection.window", Guest: "web", Was: "2", Is: "3", Treatment: config.Live},
	{Key: "guest.web.memory", Guest: "web", Was: "1GiB", Is: "2GiB", Treatment: config.RestartGuest, Why: "stop it first", Blocked: true},
}}

func (f *fakeConfig) Running() RunningConfig {
	return RunningConfig{ConfigBrief: ConfigBrief{Hash: "0123"}, File: "/etc/x.toml", TOML: "cluster = \"lab\"\n"}
}

func (f *fakeConfig) Diff(ctx context.Context, toml string) (config.Change, error) {
	return aChange, (*fake)(f).do(ctx, "diff", toml)
}

func (f *fakeConfig) Reload(ctx context.Context) (config.Change, error) {
	c := config.Change{Applied: true}
	return c, (*fake)(f).do(ctx, "reload", "")
}

// TestTheConfigurationIsToldComparedAndReloaded over the network, by those who may.
func TestTheConfigurationIsToldComparedAndReloaded(t *testing.T) {
	r := newRig(t, Read)
	const path = "/api/v1/config"
	for _, c := range []struct {
		name, method, token, body string
		code                      int
		asked, says               string
	}{
		{"anybody reads it", "GET", "", "", 200, "", `"hash":"0123"`},
		{"a reader does not reload it", "POST", r.reader, `{"reload":true}`, 403, "", ""},
		{"an operator does", "POST", r.writer, `{"reload":true}`, 200, "reload ", `"items":[]`},
		{"what would change", "POST", r.writer, `{"diff":true}`, 200, "diff ", `"treatment":"live"`},
		{"what a text would change", "POST", r.writer, `{"diff":true,"toml":"x = 1"}`, 200, "diff x = 1", `"blocked":true`},
		{"both", "POST", r.writer, `{"diff":true,"reload":true}`, 400, "", `want \"reload\" or \"diff\"`},
		{"neither", "POST", r.writer, `{}`, 400, "", "want"},
		{"a text is not made the configuration", "POST", r.writer, `{"reload":true,"toml":"x = 1"}`, 400, "", "write the text there"},
		{"something else", "POST", r.writer, `{"reload":true,"now":true}`, 400, "", "unknown field"},
		{"more", "POST", r.writer, `{"reload":true}{}`, 400, "", "something follows"},
		{"nothing", "POST", r.writer, ``, 400, "", "body"},
	} {
		a := r.ask(r.caller(""), c.method+" "+path, c.method, path, c.token, c.body)
		if a.code != c.code || !strings.Contains(a.body, c.says) {
			t.Errorf("%s: %d %s, want %d with %q", c.name, a.code, a.body, c.code, c.says)
		}
		asked := ""
		select {
		case asked = <-r.host.asked:
		default:
		}
		if asked != c.asked {
			t.Errorf("%s: the host was asked to %q, want %q", c.name, asked, c.asked)
		}
	}
	r.host.err = context.DeadlineExceeded
	if a := r.ask(r.caller(""), "POST "+path, http.MethodPost, path, r.writer, `{"reload":true}`); a.code != http.StatusConflict {
		t.Errorf("what cannot be done is answered %d", a.code)
	}
}

// Replace makes the fake one of the Members, too.
func (f *fakeConfig) Replace(ctx context.Context, old, fresh ownership.HostID, tell func(string)) (Cluster, error) {
	tell("it is given the log")
	return Cluster{Voters: []Voter{{Host: fresh, Configured: true, Member: true, Votes: true}}}, (*fake)(f).do(ctx, "replace "+string(old), string(fresh))
}

// TestAVoterIsReplacedOverTheSocket: the stages reach whoever asks, then the outcome.
func TestAVoterIsReplacedOverTheSocket(t *testing.T) {
	f := newFake()
	path := filepath.Join(shortDir(t), "s")
	serveSources(t, sourcesOf(f), path)
	var told []string
	got, err := NewClient(path).Replace(t.Context(), "witness", "judge", func(text string) { told = append(told, text) })
	if err != nil || len(got.Voters) != 1 || got.Voters[0].Host != "judge" || len(told) != 1 || told[0] != "it is given the log" || <-f.asked != "replace witness judge" {
		t.Errorf("%+v, %v, told %q", got, err, told)
	}
	f.err = errors.New("it owns a guest")
	if _, err := NewClient(path).Replace(t.Context(), "witness", "judge", func(string) {}); err == nil || err.Error() != "it owns a guest" {
		t.Errorf("refused: %v", err)
	}
	if _, err := NewClient(path).Replace(t.Context(), "", "judge", func(string) {}); err == nil {
		t.Error("nobody was replaced")
	}
}
