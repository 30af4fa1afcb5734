package status

// This file is the one form of every answer that is a JSON value, and of every
// refusal: RFC 9457 (problem details), with the member "error" beside it, which
// holds the host's own words and is what Client shows.

import (
	"encoding/json"
	"net/http"
	"time"
)

// Problem is the body of every answer that is not 2xx, but for the health
// checks of this package, whose body is their verdict.
type Problem struct {
	Type   string `json:"type"` // always "about:blank": the status says it
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	Error  string `json:"error"` // the detail
}

// answerTime bounds how long a client may take to accept an answer, or a part
// of a stream, in any case.
const answerTime = 10 * time.Second

// answer sends v.
func answer(w http.ResponseWriter, code int, v any) { send(w, code, "application/json", v) }

// refuse sends a problem.
func refuse(w http.ResponseWriter, code int, why string) {
	send(w, code, "application/problem+json", Problem{Type: "about:blank", Title: http.StatusText(code), Status: code, Detail: why, Error: why})
}

func send(w http.ResponseWriter, code int, kind string, v any) {
	hurry(w)
	w.Header().Set("Content-Type", kind)
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v) // the client may be gone; nobody else can be told
}

// text sends a few lines.
func text(w http.ResponseWriter, code int, body string) {
	hurry(w)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	_, _ = w.Write([]byte(body)) // as above
}

// hurry gives the client answerTime from now to accept what is written next.
func hurry(w http.ResponseWriter) {
	// What cannot be given a deadline (a test's recorder) needs none.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(answerTime))
}
