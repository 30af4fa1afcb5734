package status

// The dashboard's files (package status/dashboard), and what its page has to
// know before it asks for data: who the endpoint takes it for. The files hold no
// data, so everybody gets them: a browser cannot show a token when it is given an
// address. A browser that comes to / is led to them; for everybody else, probes
// above all, there is nothing at / as before.

import (
	"bytes"
	"net/http"
	"strings"
	"time"

	"understudy/status/dashboard"
)

// uiPolicy is the Content-Security-Policy of the dashboard: its own files and
// this endpoint, no text that is run or shown as markup.
const uiPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// Access is the answer to GET /api/v1/access: who asks, as far as that is known,
// and what they may.
type Access struct {
	Level Level  `json:"level"`          // nothing, health, read, operate
	Name  string `json:"name,omitempty"` // of the token or the certificate; "" for nobody in particular
}

// MarshalText encodes a level by its name.
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

func (s *Server) uiRoutes() []route {
	return []route{
		{"GET /api/v1/access", Nothing, s.access},
		{"GET /ui/", Nothing, s.page},
		{"GET /ui/{file}", Nothing, s.file},
	}
}

func (s *Server) access(w http.ResponseWriter, r *http.Request) {
	asks := asking(r)
	answer(w, http.StatusOK, Access{Level: asks.level, Name: asks.name})
}

// wantsDashboard tells a browser that was given the host's address alone.
func wantsDashboard(r *http.Request) bool {
	return r.URL.Path == "/" && (r.Method == http.MethodGet || r.Method == http.MethodHead) &&
		strings.Contains(r.Header.Get("Accept"), "text/html")
}

func (s *Server) page(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/ui/" { // the route has everything below, too
		refuse(w, http.StatusNotFound, "404 Not Found: the dashboard has no such file; it is at /ui/")
		return
	}
	s.sendFile(w, r, dashboard.Index)
}

func (s *Server) file(w http.ResponseWriter, r *http.Request) { s.sendFile(w, r, r.PathValue("file")) }

func (s *Server) sendFile(w http.ResponseWriter, r *http.Request, name string) {
	f, there := s.ui[name]
	if !there {
		refuse(w, http.StatusNotFound, "404 Not Found: the dashboard has no such file; it is at /ui/")
		return
	}
	hurry(w)
	h := w.Header()
	h.Set("Content-Security-Policy", uiPolicy)
	h.Set("Content-Type", f.Type)
	h.Set("ETag", f.ETag)
	// Kept, and asked for again at each use: the files of one version only go
	// with each other.
	h.Set("Cache-Control", "no-cache")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(f.Body))
}
