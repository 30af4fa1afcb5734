package status

// What happened, from the host's log of events: as a list (/api/v1/events), and
// as server-sent events (/api/v1/stream) together with snapshots of the status.
//
//	retry: 2000
//
//	event: status          at once; then when something but an age has changed,
//	data: Report           at most every `every` milliseconds, and every 30 s
//
//	event: log             each, with its number, which a client that comes back
//	id: 17                 gives as Last-Event-ID to miss none
//	data: {…}
//
//	: still here           when nothing else was sent for 10 s
//
// The standard is the HTML Living Standard, section 9.2.

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"understudy/host"
)

// Event is one entry of the host's log of events.
type Event struct {
	Seq uint64 // grows by at least one from each to the next
	// JSON is the whole event, one object on one line.
	JSON json.RawMessage
}

// Events is the host's log of events.
type Events interface {
	// Since returns at most limit events with numbers above seq, the oldest
	// first; of one guest and one kind where these are given. Newest returns the
	// newest, in the same order.
	Since(seq uint64, guest, kind string, limit int) []Event
	Newest(guest, kind string, limit int) []Event
	// Follow yields the events with numbers above seq, those that are recorded
	// and then each as it comes, until ctx ends.
	Follow(ctx context.Context, seq uint64, guest, kind string) iter.Seq[Event]
}

// EventList is the answer to GET /api/v1/events.
type EventList struct {
	Events []json.RawMessage `json:"events"`
	// Last is the number to ask on from.
	Last uint64 `json:"last"`
}

const (
	defaultEvents = 100
	maxEvents     = 1000
	maxFilter     = 64 // bytes of a guest or a kind to look for

	defaultEvery = time.Second // between two snapshots
	minEvery     = 200 * time.Millisecond
	maxEvery     = time.Minute
	stillHere    = 10 * time.Second
	freshen      = 30 * time.Second // the status is sent again for its ages

	maxFollowers      = 64 // streams at one time
	maxFollowersOfOne = 8  // … of one client address, or host
)

const notRecorded = "events are not recorded here"

func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	q, err := parseEventQuery(r.URL.Query(), "")
	switch {
	case err != nil:
		refuse(w, http.StatusBadRequest, err.Error())
		return
	case s.Events == nil:
		refuse(w, http.StatusNotFound, notRecorded)
		return
	}
	list := EventList{Events: []json.RawMessage{}, Last: q.since}
	found := s.Events.Newest
	if q.resume {
		found = func(guest, kind string, limit int) []Event { return s.Events.Since(q.since, guest, kind, limit) }
	}
	for _, e := range found(q.guest, q.kind, q.limit) {
		list.Events, list.Last = append(list.Events, e.JSON), e.Seq
	}
	answer(w, http.StatusOK, list)
}

// eventQuery is what a client wants of the log of events.
type eventQuery struct {
	since       uint64
	guest, kind string
	limit       int
	every       time.Duration
	// resume: since was given. Without it, a list is of the newest, and a stream
	// begins with what happens next.
	resume bool
}

func parseEventQuery(q url.Values, lastID string) (eventQuery, error) {
	out := eventQuery{guest: q.Get("guest"), kind: q.Get("kind"), limit: defaultEvents, every: defaultEvery}
	for name := range q {
		if len(q[name]) > 1 {
			return out, fmt.Errorf("%.40q is given %d times", name, len(q[name]))
		}
	}
	if len(out.guest) > maxFilter || len(out.kind) > maxFilter {
		return out, fmt.Errorf("a guest or kind of more than %d bytes", maxFilter)
	}
	since := q.Get("since")
	if lastID != "" {
		since = lastID
	}
	var err error
	if since != "" {
		out.resume = true
		if out.since, err = strconv.ParseUint(since, 10, 64); err != nil {
			return out, fmt.Errorf("since, or Last-Event-ID: %.40q is not the number of an event", since)
		}
	}
	if n := q.Get("limit"); n != "" {
		if out.limit, err = strconv.Atoi(n); err != nil || out.limit < 1 || out.limit > maxEvents {
			return out, fmt.Errorf("limit=%.40q is not between 1 and %d", n, maxEvents)
		}
	}
	if n := q.Get("every"); n != "" {
		ms, err := strconv.ParseUint(n, 10, 32)
		out.every = time.Duration(ms) * time.Millisecond
		if err != nil || out.every < minEvery || out.every > maxEvery {
			return out, fmt.Errorf("every=%.40q is not between %d and %d milliseconds", n, minEvery.Milliseconds(), maxEvery.Milliseconds())
		}
	}
	return out, nil
}

// crowd counts those who follow.
type crowd struct {
	mu  sync.Mutex
	all int
	by  map[string]int
}

func (c *crowd) enter(who string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all >= maxFollowers || who != "" && c.by[who] >= maxFollowersOfOne {
		return false
	}
	c.all++
	c.by[who]++
	return true
}

func (c *crowd) leave(who string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all--
	if c.by[who]--; c.by[who] == 0 {
		delete(c.by, who)
	}
}

func (s *Server) stream(w http.ResponseWriter, r *http.Request) {
	q, err := parseEventQuery(r.URL.Query(), r.Header.Get("Last-Event-ID"))
	if err != nil {
		refuse(w, http.StatusBadRequest, err.Error())
		return
	}
	if r.ContentLength != 0 {
		// net/http would not tell that the client is gone while its body is unread.
		refuse(w, http.StatusBadRequest, "a request for a stream has no body")
		return
	}
	from := ""
	if a := addressOf(r.RemoteAddr); a != (netip.Prefix{}) { // else of the Unix socket
		from = a.String()
	}
	if h := cameFrom(r); h != "" {
		from = "host " + string(h)
	}
	if !s.crowd.enter(from) {
		w.Header().Set("Retry-After", "10")
		refuse(w, http.StatusTooManyRequests, fmt.Sprintf("too many streams are open: at most %d, and %d of one address", maxFollowers, maxFollowersOfOne))
		return
	}
	defer s.crowd.leave(from)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // a reverse proxy would wait for more
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	forget := context.AfterFunc(ending(ctx), cancel)
	defer forget()
	s.follow(ctx, &sse{w: w}, q)
}

// follow sends until ctx ends, the client is gone, or the log is done with it.
func (s *Server) follow(ctx context.Context, out *sse, q eventQuery) {
	ctx, cancel := context.WithCancel(ctx)
	var reader sync.WaitGroup
	defer reader.Wait()
	defer cancel()
	var log chan Event // stays nil where nothing is recorded
	if s.Events != nil {
		if !q.resume {
			for _, e := range s.Events.Newest("", "", 1) {
				q.since = e.Seq
			}
		}
		log = make(chan Event)
		reader.Go(func() {
			defer close(log)
			for e := range s.Events.Follow(ctx, q.since, q.guest, q.kind) {
				select {
				case log <- e:
				case <-ctx.Done():
					return
				}
			}
		})
	}
	out.send("retry: 2000\n\n")
	var last shown
	tick, beat := time.NewTicker(q.every), time.NewTicker(stillHere)
	defer tick.Stop()
	defer beat.Stop()
	s.snapshot(out, &last)
	for out.err == nil {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.snapshot(out, &last)
		case <-beat.C:
			if time.Since(out.last) >= stillHere {
				out.send(": still here\n\n")
			}
		case e, ok := <-log:
			if !ok {
				return
			}
			out.event("log", strconv.FormatUint(e.Seq, 10), e.JSON)
		}
	}
}

// shown is the status that was sent last.
type shown struct {
	ageless []byte
	at      time.Time
}

// snapshot sends the status if something but an age has changed since last, or
// that was long ago.
func (s *Server) snapshot(out *sse, last *shown) {
	r, _ := s.report()
	now, err := json.Marshal(ageless(r))
	if err != nil {
		out.err = err
		return
	}
	if bytes.Equal(now, last.ageless) && time.Since(last.at) < freshen {
		return
	}
	data, err := json.Marshal(r)
	if err != nil {
		out.err = err
		return
	}
	*last = shown{now, time.Now()}
	out.event("status", "", data)
}

// ageless is r without what changes by the passing of time alone.
func ageless(r Report) Report {
	r.LogAge = nil
	guests := make([]host.GuestStatus, len(r.Guests))
	for i, g := range r.Guests {
		if g.Primary != nil {
			p := *g.Primary
			p.ModeFor, p.EpochAge, p.LeaseLeft, p.PeerAge = 0, 0, min(p.LeaseLeft, 1), nil
			g.Primary = &p
		}
		if g.Backup != nil {
			b := *g.Backup
			b.EpochAge, b.PeerAge = 0, nil
			g.Backup = &b
		}
		if g.Bubble != nil {
			b := *g.Bubble
			b.For = 0
			g.Bubble = &b
		}
		guests[i] = g
	}
	r.Guests = guests
	r.Exits = maps.Clone(r.Exits)
	return r
}

// sse writes server-sent events.
type sse struct {
	w    http.ResponseWriter
	last time.Time // when the client was last sent something
	err  error
}

func (o *sse) event(kind, id string, data []byte) {
	var b strings.Builder
	b.WriteString("event: " + kind + "\n")
	if id != "" {
		b.WriteString("id: " + id + "\n")
	}
	for line := range bytes.Lines(data) {
		b.WriteString("data: ")
		b.Write(bytes.TrimRight(line, "\r\n"))
		b.WriteByte('\n')
	}
	b.WriteByte('\n')
	o.send(b.String())
}

func (o *sse) send(s string) {
	if o.err != nil {
		return
	}
	hurry(o.w)
	if _, o.err = o.w.Write([]byte(s)); o.err == nil {
		o.err = http.NewResponseController(o.w).Flush()
	}
	o.last = time.Now()
}
