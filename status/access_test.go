package status

// Every route and everybody who may come: what they may not ask never reaches
// the host.

import (
	"encoding/hex"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
)

func TestEveryRouteAndEverybody(t *testing.T) {
	type client struct {
		name, certificate, token string
		level                    Level
		known                    bool
		refused                  bool // for what it shows
	}
	for _, anonymous := range []Level{Nothing, Health, Read} {
		t.Run(anonymous.String(), func(t *testing.T) {
			r := newRig(t, anonymous)
			for _, c := range []client{
				{name: "nobody", level: anonymous},
				{name: "reader's token", token: r.reader, level: Read, known: true},
				{name: "operator's token", token: r.writer, level: Operate, known: true},
				{name: "reader's certificate", certificate: "reader", level: Read, known: true},
				{name: "operator's certificate", certificate: "operator", level: Operate, known: true},
				{name: "reader with the operator's token", certificate: "reader", token: r.writer, level: Operate, known: true},
				{name: "operator with the reader's token", certificate: "operator", token: r.reader, level: Operate, known: true},
				{name: "root on the socket", level: Root, known: true},
				{name: "certificate of no one", certificate: "stranger", level: anonymous, known: true},
				{name: "operator with a wrong token", certificate: "operator", token: strings.Repeat("x", 40), refused: true},
			} {
				asker := r.caller(c.certificate)
				if c.level == Root {
					asker = r.root()
				}
				wrong := 0
				for _, route := range r.server.routes() {
					method, path, _ := strings.Cut(route.pattern, " ")
					at := strings.NewReplacer("{guest}", "web", "{file}", "main.js", "{host}", "alpha", "{id}", "a-drill", "{path...}", throughHost[method]).Replace(path)
					if strings.HasPrefix(path, "/backup/") {
						at = "/backup/db"
					}
					body := ""
					switch {
					case strings.HasSuffix(path, "/strike"):
						body = `{"id":"x","kind":"cut"}`
					case strings.Contains(path, "/checkpoint/"):
						body = `{"file":"/f"}`
					case strings.HasPrefix(path, "/api/v1/drills"):
						body = `{"name":"weekly"}`
					case method == http.MethodPost:
						body = "{}"
					}
					if method == http.MethodPost && path == "/api/v1/config" {
						body = `{"reload":true}`
					}
					if path == "/api/v1/cluster/replace" {
						body = `{"old":"witness","new":"judge"}`
					}
					a := r.ask(asker, route.pattern, method, at, c.token, body)
					want := http.StatusOK
					switch {
					case c.refused && wrong >= wrongAtOnce:
						want = http.StatusTooManyRequests
					case c.refused, c.level < route.need && !c.known:
						want = http.StatusUnauthorized
					case c.level < route.need:
						want = http.StatusForbidden
					case path == "/primary" || path == "/backup":
						want = http.StatusServiceUnavailable // not of all guests
					case at == hostsPath+"alpha/"+throughHost[http.MethodDelete]:
						if want = http.StatusNotFound; c.level < Root {
							want = http.StatusForbidden // it may be anything there
						}
					}
					if want == http.StatusUnauthorized {
						wrong++
					}
					if a.code != want {
						t.Errorf("%s: %s: %d %s, want %d", c.name, route.pattern, a.code, a.body, want)
					}
					if a.code == http.StatusUnauthorized != strings.HasPrefix(a.header.Get("WWW-Authenticate"), "Bearer ") {
						t.Errorf("%s: %s: %d with WWW-Authenticate %q", c.name, route.pattern, a.code, a.header.Get("WWW-Authenticate"))
					}
					acts := want == http.StatusOK && route.need >= Operate
					select {
					case asked := <-r.host.asked:
						if !acts {
							t.Errorf("%s: %s made the host %s", c.name, route.pattern, asked)
						}
					default:
						if acts {
							t.Errorf("%s: %s did not reach the host", c.name, route.pattern)
						}
					}
				}
			}
		})
	}
}

// throughHost is what is asked of a host that is asked by its name.
var throughHost = map[string]string{http.MethodGet: "api/v1/status", http.MethodPost: "api/v1/guests/web/stop", http.MethodDelete: "api/v1/nothing"}

func TestEveryAnswerSaysWhatABrowserMayDoWithIt(t *testing.T) {
	r := newRig(t, Read)
	asker := r.caller("")
	for _, path := range []string{"/livez", "/primary", "/api/v1/status", "/nothing", "/api/v1/guests/nobody", "/metrics"} {
		a := r.ask(asker, patternOf(r, path), http.MethodGet, path, "", "", "Origin", "https://evil.example")
		for name, want := range map[string]string{"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'", "X-Content-Type-Options": "nosniff",
			"X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store", "Access-Control-Allow-Origin": ""} {
			if got := a.header.Get(name); got != want {
				t.Errorf("%s: %s is %q, want %q", path, name, got, want)
			}
		}
	}
}

// patternOf is the route of a GET.
func patternOf(r *rig, path string) string {
	req, err := http.NewRequestWithContext(r.t.Context(), http.MethodGet, path, http.NoBody)
	if err != nil {
		r.t.Fatal(err)
	}
	_, pattern := r.server.mux.Handler(req)
	return pattern
}

// TestAForeignPageOperatesNothing: a browser shows an operator's certificate to
// whatever page asks it to.
func TestAForeignPageOperatesNothing(t *testing.T) {
	r := newRig(t, Nothing)
	asker := r.caller("operator")
	const stop = "POST /api/v1/guests/{guest}/stop"
	for _, header := range [][]string{{"Sec-Fetch-Site", "cross-site"}, {"Origin", "https://evil.example"}} {
		if a := r.ask(asker, stop, http.MethodPost, "/api/v1/guests/web/stop", "", "", header...); a.code != http.StatusForbidden {
			t.Errorf("with %v: %d", header, a.code)
		}
	}
	if len(r.host.asked) > 0 {
		t.Errorf("the host was asked to %s", <-r.host.asked)
	}
	if a := r.ask(asker, stop, http.MethodPost, "/api/v1/guests/web/stop", "", "", "Origin", "https://"+r.address); a.code != http.StatusOK {
		t.Errorf("its own page: %d %s", a.code, a.body)
	}
}

func TestMethodsThatAreNotThere(t *testing.T) {
	r := newRig(t, Read)
	asker := r.caller("")
	for _, c := range []struct {
		method, path, token string
		want                int
		allow               string
	}{
		{http.MethodDelete, "/api/v1/status", "", 405, "GET, HEAD, OPTIONS"},
		{http.MethodPut, "/api/v1/guests/web/stop", r.writer, 405, "POST, OPTIONS"},
		{http.MethodPost, "/livez", "", 405, "GET, HEAD, OPTIONS"},
		{http.MethodOptions, "/api/v1/status", "", 204, "GET, HEAD, OPTIONS"},
		{http.MethodOptions, "/api/v1/guests/web/stop", "", 204, "POST, OPTIONS"},
		{http.MethodOptions, "/primary/web", "", 200, "GET, HEAD, OPTIONS"},
		{http.MethodOptions, "/primary/db", "", 503, "GET, HEAD, OPTIONS"},
		{http.MethodHead, "/primary/web", "", 200, ""},
		{http.MethodHead, "/primary/db", "", 503, ""},
		{http.MethodHead, "/api/v1/status", "", 200, ""},
		{http.MethodOptions, "/nothing", "", 404, ""},
		{http.MethodGet, "/api/v2/status", "", 404, ""},
		{http.MethodGet, "/", "", 404, ""},
	} {
		a := r.ask(asker, "", c.method, c.path, c.token, "")
		if a.code != c.want || a.header.Get("Allow") != c.allow {
			t.Errorf("%s %s: %d, Allow %q; want %d, %q", c.method, c.path, a.code, a.header.Get("Allow"), c.want, c.allow)
		}
		if (c.method == http.MethodHead || c.method == http.MethodOptions && c.want != 404) && a.body != "" {
			t.Errorf("%s %s has the body %q", c.method, c.path, a.body)
		}
	}
	// Who may ask nothing does not learn what there is either.
	closed := newRig(t, Nothing)
	for _, path := range []string{"/nothing", "/api/v1/status", "/livez"} {
		if a := closed.ask(closed.caller(""), "", http.MethodGet, path, "", ""); a.code != http.StatusUnauthorized {
			t.Errorf("%s to nobody: %d", path, a.code)
		}
	}
}

// TestATokenIsWorthWhatItsFileSaysNow: taken out, it is worth nothing at the
// next request; a file with a mistake lets nobody in; put right, it works.
func TestATokenIsWorthWhatItsFileSaysNow(t *testing.T) {
	r := newRig(t, Nothing)
	good, err := os.ReadFile(r.tokens)
	if err != nil {
		t.Fatal(err)
	}
	ask := func() int {
		return r.ask(r.caller(""), "GET /api/v1/cluster", http.MethodGet, "/api/v1/cluster", r.reader, "").code
	}
	for _, step := range []struct {
		about string
		do    func()
		want  int
	}{
		{"at first", func() {}, 200},
		{"its line is gone", func() { r.write("# none\n") }, 401},
		{"back", func() { r.write(string(good)) }, 200},
		{"a mistake in the file", func() { r.write(string(good) + "x y\n") }, 401},
		{"back again", func() { r.write(string(good)) }, 200},
		{"others may write", func() { chmod(t, r.tokens, 0o666) }, 401},
		{"not any more", func() { chmod(t, r.tokens, 0o640) }, 200},
		{"no file", func() { _ = os.Remove(r.tokens) }, 401},
		{"a new one", func() { r.write(string(good)) }, 200},
	} {
		if step.do(); ask() != step.want {
			t.Errorf("%s: not %d", step.about, step.want)
		}
	}
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func TestTokensAreReadOrRefusedWithTheirLine(t *testing.T) {
	hash := strings.Repeat("0a", 32)
	all, err := ParseTokens([]byte("# who\n\n  grafana\tread " + hash + "\r\nops operate " + strings.ToUpper(hash)))
	if err != nil || len(all) != 2 || all[0].Name != "grafana" || all[0].Level != Read || all[1].Level != Operate || hex.EncodeToString(all[1].Hash[:]) != hash {
		t.Errorf("read %+v, %v", all, err)
	}
	for text, want := range map[string]string{
		"a read":                                  "line 1 has 2 words",
		"\na read " + hash + " x":                 "line 2 has 4 words",
		"a admin " + hash:                         "none of the roles",
		"a nothing " + hash:                       "none of the roles",
		"a read 0a":                               "a SHA-256 has 64",
		"a read " + strings.Repeat("x", 64):       "line 1: the SHA-256",
		"a read " + hash + "\na read " + hash:     `line 2: there is another token "a"`,
		"a\x00 read " + hash:                      "is not a name",
		strings.Repeat("a", 65) + " read " + hash: "is not a name",
		strings.Repeat(" ", maxTokenFile+1):       "more than",
	} {
		if _, err := ParseTokens([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: %v, want %s", text, err, want)
		}
	}
	if _, _, err := NewToken("a b", Read); err == nil {
		t.Error("a token whose name cannot be written was made")
	}
	if _, _, err := NewToken("a", Health); err == nil {
		t.Error("a token of a role that cannot be written was made")
	}
}

func FuzzParseTokens(f *testing.F) {
	f.Add([]byte("# who\ngrafana read " + strings.Repeat("0a", 32) + "\n"))
	f.Add([]byte("a operate " + strings.Repeat("F", 64)))
	f.Fuzz(func(t *testing.T, text []byte) {
		all, err := ParseTokens(text)
		if err != nil {
			return
		}
		var lines strings.Builder
		for _, token := range all {
			lines.WriteString(token.Line() + "\n")
		}
		again, err := ParseTokens([]byte(lines.String()))
		if err != nil || !slices.Equal(again, all) {
			t.Errorf("%q is read as %+v, and what is written of that as %+v, %v", text, all, again, err)
		}
	})
}

func FuzzBearer(f *testing.F) {
	for _, s := range []string{"Bearer us_0123456789abcdef", "bearer x", "Basic dTpw", "Bearer", "Bearer  aaaaaaaaaaaaaaaaaaaa"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		secret, given, err := bearer(http.Header{"Authorization": {value}})
		if !given || err != nil && secret != "" || err == nil && (len(secret) < minSecret || !strings.HasSuffix(value, " "+secret)) {
			t.Errorf("%q: %q, %t, %v", value, secret, given, err)
		}
	})
}
