package status

// The dashboard's files as browsers get them, and what others find where a
// browser finds the dashboard: what they found before there was one.

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"understudy/status/dashboard"
)

const browsers = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"

func TestABrowserIsLedToTheDashboardAndAProbeIsNot(t *testing.T) {
	r := newRig(t, Nothing)
	asker := r.caller("")
	for _, c := range []struct {
		method, path, accept, token string
		code                        int
		to                          string
	}{
		{http.MethodGet, "/", browsers, "", http.StatusFound, "/ui/"},
		{http.MethodHead, "/", browsers, "", http.StatusFound, "/ui/"},
		{http.MethodGet, "/", "*/*", "", http.StatusUnauthorized, ""},
		{http.MethodGet, "/", "*/*", r.reader, http.StatusNotFound, ""},
		{http.MethodOptions, "/", browsers, r.reader, http.StatusNotFound, ""},
		{http.MethodPost, "/", browsers, r.writer, http.StatusNotFound, ""},
		{http.MethodGet, "/nothing", browsers, r.reader, http.StatusNotFound, ""},
		{http.MethodGet, "/ui", browsers, "", http.StatusTemporaryRedirect, "/ui/"},
		{http.MethodGet, "/ui/nothing.js", browsers, "", http.StatusNotFound, ""},
		{http.MethodGet, "/ui/a/b", browsers, "", http.StatusNotFound, ""},
		{http.MethodGet, "/ui/../livez", browsers, "", http.StatusUnauthorized, ""},
		{http.MethodGet, "/ui/..%2fstatus.go", browsers, "", http.StatusNotFound, ""},
		{http.MethodPost, "/ui/", browsers, "", http.StatusUnauthorized, ""},
		{http.MethodGet, "/livez", browsers, "", http.StatusUnauthorized, ""},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, "https://"+r.address+c.path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept", c.accept)
		if c.token != "" {
			req.Header.Set("Authorization", "Bearer "+c.token)
		}
		resp, err := asker.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != c.code || resp.Header.Get("Location") != c.to {
			t.Errorf("%s %s, accepting %s: %d to %q, want %d to %q", c.method, c.path, c.accept, resp.StatusCode, resp.Header.Get("Location"), c.code, c.to)
		}
	}
}

func TestTheDashboardsFiles(t *testing.T) {
	r := newRig(t, Nothing)
	asker := r.caller("")
	files, err := dashboard.Files()
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 10 {
		t.Errorf("there are %d files", len(files))
	}
	for name, f := range files {
		a := r.ask(asker, "GET /ui/{file}", http.MethodGet, "/ui/"+name, "", "")
		policy := a.header.Get("Content-Security-Policy")
		if a.code != http.StatusOK || a.body != string(f.Body) || a.header.Get("Etag") != f.ETag || a.header.Get("Cache-Control") != "no-cache" || a.header.Get("Content-Type") != f.Type ||
			a.header.Get("X-Content-Type-Options") != "nosniff" || !strings.Contains(policy, "script-src 'self';") || strings.Contains(policy, "unsafe") {
			t.Errorf("%s: %d, %v", name, a.code, a.header)
		}
		if again := r.ask(asker, "", http.MethodHead, "/ui/"+name, "", "", "If-None-Match", f.ETag); again.code != http.StatusNotModified {
			t.Errorf("%s again: %d", name, again.code)
		}
		for _, foreign := range []string{"http://", "https://", "//", "<script>", " style=", "innerHTML", "eval(", "localStorage", "document.cookie"} {
			text := strings.ReplaceAll(string(f.Body), "http://www.w3.org/2000/svg", "")
			for line := range strings.Lines(text) {
				if at := strings.Index(line, foreign); at >= 0 && !(foreign == "//" && strings.HasPrefix(strings.TrimSpace(line[at:]), "//")) {
					t.Errorf("%s has %q: %s", name, foreign, line)
				}
			}
		}
	}
	page := r.ask(asker, "GET /ui/", http.MethodGet, "/ui/", "", "")
	if page.code != http.StatusOK || page.body != string(files[dashboard.Index].Body) {
		t.Errorf("the page: %d, %d bytes", page.code, len(page.body))
	}
}

func TestWhoAsksIsTold(t *testing.T) {
	r := newRig(t, Health)
	for _, c := range []struct{ certificate, token, want string }{
		{"", "", `{"level":"health"}`},
		{"", r.reader, `{"level":"read","name":"grafana"}`},
		{"", r.writer, `{"level":"operate","name":"ops"}`},
		{"operator", "", `{"level":"operate","name":"operator"}`},
		{"stranger", "", `{"level":"health","name":"stranger"}`},
	} {
		a := r.ask(r.caller(c.certificate), "GET /api/v1/access", http.MethodGet, "/api/v1/access", c.token, "")
		if a.code != http.StatusOK || strings.TrimSpace(a.body) != c.want || !json.Valid([]byte(a.body)) {
			t.Errorf("%+v: %d %s", c, a.code, a.body)
		}
	}
}
