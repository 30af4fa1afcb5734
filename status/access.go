package status

// Who asks, and what they may: a request of an unknown route, without the
// level its route needs, or made by a foreign page in an operator's browser,
// ends here.

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// Level is what somebody may ask. A higher one includes the lower.
type Level uint8

const (
	Nothing Level = iota
	Health        // /livez, /readyz, /primary, /backup
	Read          // everything that changes nothing
	Operate       // what moves, stops and protects guests, and drills as configured
	Root          // what runs a command or a program, or names a file, on a host
)

var levels = [...]string{"nothing", "health", "read", "operate", "root"}

func (l Level) String() string { return levels[l] }

// who asks.
type who struct {
	level Level
	name  string // "" for nobody in particular
}

// denial is why nobody is let in at all.
type denial struct {
	code int
	why  string
	// retry is after how many seconds it may be tried again, 0: at any time.
	retry int
}

// handler answers requests of those whom identify knows.
func (s *Server) handler(identify func(*http.Request) (who, *denial)) http.Handler {
	foreign := http.NewCrossOriginProtection()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		secure(w.Header())
		asks, no := identify(r)
		if no != nil {
			if no.code == http.StatusUnauthorized {
				w.Header().Set("WWW-Authenticate", `Bearer realm="understudy", error="invalid_token"`)
			}
			if no.retry > 0 {
				w.Header().Set("Retry-After", fmt.Sprint(no.retry))
			}
			refuse(w, no.code, no.why)
			return
		}
		find, pattern := s.mux.Handler(r)
		need, known := s.need[pattern]
		switch {
		case !known && wantsDashboard(r):
			http.Redirect(w, r, "/ui/", http.StatusFound)
		case !known && asks.level == Nothing, known && asks.level < need && asks.name == "":
			w.Header().Set("WWW-Authenticate", `Bearer realm="understudy"`)
			refuse(w, http.StatusUnauthorized, "this needs a bearer token, or a client's certificate")
		case !known:
			s.elsewhere(w, r, find)
		case asks.level < need:
			forbid(w, asks, need)
		case foreign.Check(r) != nil:
			refuse(w, http.StatusForbidden, "a request of a page that is not of this endpoint")
		default:
			s.mux.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), asksKey{}, asks)))
		}
	})
}

// forbid says what is missing. No token and no certificate gives more than
// Operate: who runs programs as root has to be root on a host.
func forbid(w http.ResponseWriter, asks who, need Level) {
	if need == Root {
		refuse(w, http.StatusForbidden, fmt.Sprintf("%s may %s; this is for root alone: run understudy on one of the hosts", asks.name, asks.level))
		return
	}
	refuse(w, http.StatusForbidden, fmt.Sprintf("%s may %s; this needs %q", asks.name, asks.level, need))
}

// asksKey is of who asks, in a request's context.
type asksKey struct{}

// asking returns who asks.
func asking(r *http.Request) who {
	asks, _ := r.Context().Value(asksKey{}).(who)
	return asks
}

// elsewhere answers what no route is for: find is what the mux would do.
func (s *Server) elsewhere(w http.ResponseWriter, r *http.Request, find http.Handler) {
	said := &said{header: http.Header{}}
	find.ServeHTTP(said, r)
	allow := said.header.Get("Allow")
	if allow != "" {
		allow += ", OPTIONS"
		w.Header().Set("Allow", allow)
	}
	switch {
	case allow != "" && r.Method == http.MethodOptions:
		s.options(w, r)
	case allow != "":
		refuse(w, http.StatusMethodNotAllowed, fmt.Sprintf("405 Method Not Allowed: %.16q of %.200q; it has %s", r.Method, r.URL.Path, allow))
	default:
		refuse(w, http.StatusNotFound, fmt.Sprintf("404 Not Found: nothing is at %.200q; GET /api/v1/openapi.yaml tells what there is", r.URL.Path))
	}
}

// options answers OPTIONS. Load balancers check health with it: for them it is
// GET without the body.
func (s *Server) options(w http.ResponseWriter, r *http.Request) {
	as := r.Clone(r.Context())
	as.Method = http.MethodGet
	if _, pattern := s.mux.Handler(as); s.need[pattern] != Health {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	s.mux.ServeHTTP(&bodiless{w}, as)
}

// bodiless passes on everything but the body.
type bodiless struct{ http.ResponseWriter }

func (b *bodiless) Write(p []byte) (int, error) { return len(p), nil }

// Unwrap is for http.ResponseController.
func (b *bodiless) Unwrap() http.ResponseWriter { return b.ResponseWriter }

// said is an answer nobody gets.
type said struct{ header http.Header }

func (s *said) Header() http.Header         { return s.header }
func (s *said) Write(p []byte) (int, error) { return len(p), nil }
func (s *said) WriteHeader(int)             {}

// secure says what a browser may do with any answer of ours: show it, as what
// it is, in its own window. There are no CORS headers: other sites' pages get
// nothing. (No Strict-Transport-Security: that would bind every other service
// under the host's name, and this one has no plain HTTP to protect.)
func secure(h http.Header) {
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
}

// access is how clients on the network are known.
type access struct {
	anonymous          Level
	readers, operators []string
	tokens             *tokenFile // nil: none
}

// identify tells who asks, by certificate and by token; either may give more.
// A token that is wrong is refused, whatever else there is.
func (a *access) identify(r *http.Request) (who, *denial) {
	asks := who{level: a.anonymous}
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		switch name := r.TLS.PeerCertificates[0].Subject.CommonName; {
		case slices.Contains(a.operators, name):
			asks = who{Operate, name}
		case slices.Contains(a.readers, name):
			asks = who{max(Read, a.anonymous), name}
		default:
			asks.name = name // known, and entitled to nothing more than others
		}
	}
	secret, given, err := bearer(r.Header)
	switch {
	case err != nil:
		return who{}, &denial{code: http.StatusUnauthorized, why: err.Error()}
	case !given:
		return asks, nil
	case a.tokens == nil:
		return who{}, &denial{code: http.StatusUnauthorized, why: "a bearer token, and this endpoint takes none"}
	}
	t, err := a.tokens.find(secret)
	if err != nil {
		return who{}, &denial{code: http.StatusUnauthorized, why: err.Error()}
	}
	if t.Level > asks.level || asks.name == "" {
		asks = who{max(t.Level, asks.level), t.Name}
	}
	return asks, nil
}

// bearer reads the credentials of a request (RFC 6750, section 2.1).
func bearer(h http.Header) (secret string, given bool, err error) {
	values := h.Values("Authorization")
	if len(values) == 0 {
		return "", false, nil
	}
	if len(values) > 1 {
		return "", true, fmt.Errorf("there are %d Authorization headers", len(values))
	}
	scheme, secret, ok := strings.Cut(values[0], " ")
	switch {
	case !ok || !strings.EqualFold(scheme, "Bearer"):
		return "", true, fmt.Errorf("the Authorization header is not of the form: Bearer TOKEN")
	case len(secret) < minSecret || len(secret) > maxSecret || strings.ContainsFunc(secret, notToken68):
		return "", true, fmt.Errorf("the bearer token is not one: %d to %d letters, digits and -._~+/=", minSecret, maxSecret)
	}
	return secret, true, nil
}

// notToken68 tells what is not in a token68 (RFC 9110, section 11.2).
func notToken68(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-._~+/=", r))
}
