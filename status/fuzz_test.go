package status

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
)

// FuzzRequest feeds bytes to the daemon's endpoint as a client's request: no
// panic, whole JSON where JSON is promised, and only a POST makes the host act.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		"GET /api/v1/status HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST /api/v1/guests/web/switchover HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
		"POST /api/v1/guests/web/checkpoint/save HTTP/1.1\r\nHost: x\r\nContent-Length: 16\r\n\r\n{\"file\":\"/x.uc\"}",
		"POST /api/v1/guests/web/checkpoint/restore HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{\"no\":true}",
		"POST /api/v1/guests/web/checkpoint/verify HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n{}{}",
		"POST /api/v1/guests/%2e%2e/stop HTTP/1.1\r\nHost: x\r\n\r\n",
		"DELETE /api/v1/status HTTP/1.1\r\nHost: x\r\n\r\n",
		"OPTIONS /backup/db?lag_ms=100 HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /readyz?verbose HTTP/1.1\r\nHost: x\r\nAccept: application/json\r\n\r\n",
		"GET /api/v1/stream?every=200&since=3 HTTP/1.1\r\nHost: x\r\nLast-Event-ID: 4\r\n\r\n",
		"GET /api/v1/events?guest=web&limit=3 HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /api/v1/guests/web/samples?ring=coarse&since=abcdefgh-12 HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: application/openmetrics-text\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(in)))
		if err != nil {
			return
		}
		gone, cancel := context.WithCancel(t.Context())
		cancel() // a stream ends with its client
		host := newFake()
		w := httptest.NewRecorder()
		NewServer(sourcesOf(host)).unix.Handler.ServeHTTP(w, r.WithContext(gone))
		if kind := w.Header().Get("Content-Type"); (kind == "application/json" || kind == "application/problem+json") && r.Method != http.MethodOptions && !json.Valid(w.Body.Bytes()) {
			t.Errorf("%q was answered with %q", in, w.Body)
		}
		if r.Method != http.MethodPost && len(host.asked) > 0 {
			t.Errorf("%s %s made the host act: %s", r.Method, r.URL, <-host.asked)
		}
	})
}
