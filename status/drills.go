package status

// Drills on this host, and what a failure would do (package drill). A drill is
// begun by POST, goes on by itself, and is looked at by GET until it is over.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"understudy/clock"
	"understudy/drill"
	"understudy/ownership"
)

// Drills is what the endpoint offers for drills (drill.Runner).
type Drills interface {
	List(limit int) (drill.List, error)
	Report(id string) (drill.Report, error)
	Start(s drill.Spec) (id string, err error)
	Abort(id string) error
	Plan(ctx context.Context, s drill.Spec) (drill.Plan, error)
	Foretell(ctx context.Context, fail string, guests ...string) (drill.Forecast, error)
}

// DrillBegun is the answer to POST /api/v1/drills, and to DELETE.
type DrillBegun struct {
	ID string `json:"id"`
}

// Clock is the answer to GET /api/v1/clock: this host's clocks, now.
type Clock struct {
	Host ownership.HostID `json:"host"`
	drill.Reading
}

const (
	maxListed   = 500
	noDrills    = "drills are not run here"
	listDefault = 50
)

func (s *Server) drillRoutes() []route {
	return []route{
		{"GET /api/v1/clock", Read, s.clock},
		{"GET /api/v1/drills", Read, s.drills},
		{"GET /api/v1/drills/{id}", Read, s.drill},
		{"POST /api/v1/drills", Operate, s.beginDrill},
		{"POST /api/v1/drills/plan", Operate, s.planDrill},
		{"DELETE /api/v1/drills/{id}", Operate, s.abortDrill},
		{"GET /api/v1/guests/{guest}/simulate", Read, s.simulate},
	}
}

func (s *Server) clock(w http.ResponseWriter, _ *http.Request) {
	c := Clock{Host: s.Report().Host}
	c.Reading = drill.Reading{Time: time.Now().Round(0), Boot: clock.Boot{}.Now(), BootID: s.BootID}
	answer(w, http.StatusOK, c)
}

func (s *Server) drills(w http.ResponseWriter, r *http.Request) {
	limit := listDefault
	if text := r.URL.Query().Get("limit"); text != "" {
		var err error
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > maxListed {
			refuse(w, http.StatusBadRequest, fmt.Sprintf("limit=%.40q is not between 1 and %d", text, maxListed))
			return
		}
	}
	if s.Drills == nil {
		answer(w, http.StatusOK, drill.List{Drills: []drill.Summary{}})
		return
	}
	list, err := s.Drills.List(limit)
	if err != nil {
		refuse(w, http.StatusInternalServerError, err.Error())
		return
	}
	answer(w, http.StatusOK, list)
}

func (s *Server) drill(w http.ResponseWriter, r *http.Request) {
	if s.Drills == nil {
		refuse(w, http.StatusNotFound, noDrills)
		return
	}
	report, err := s.Drills.Report(r.PathValue("id"))
	switch {
	case errors.Is(err, drill.ErrNoReport):
		refuse(w, http.StatusNotFound, err.Error())
	case err != nil:
		refuse(w, http.StatusConflict, err.Error())
	default:
		answer(w, http.StatusOK, report)
	}
}

// order reads the drill that is asked for; false if it was refused.
func (s *Server) order(w http.ResponseWriter, r *http.Request) (drill.Spec, bool) {
	if s.Drills == nil {
		refuse(w, http.StatusNotFound, noDrills)
		return drill.Spec{}, false
	}
	var spec drill.Spec
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	err := d.Decode(&spec)
	if err == nil {
		if _, more := d.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("something follows it")
		}
	}
	if err != nil {
		refuse(w, http.StatusBadRequest, fmt.Sprintf("the request's body: %v", err))
		return spec, false
	}
	return spec, true
}

func (s *Server) beginDrill(w http.ResponseWriter, r *http.Request) {
	spec, ok := s.order(w, r)
	if !ok {
		return
	}
	id, err := s.Drills.Start(spec)
	if err != nil {
		refuse(w, drillRefusal(err), err.Error())
		return
	}
	answer(w, http.StatusOK, DrillBegun{id})
}

func drillRefusal(err error) int {
	switch {
	case errors.Is(err, drill.ErrNoDrill), errors.Is(err, drill.ErrNotRunning):
		return http.StatusNotFound
	case errors.Is(err, drill.ErrBusy):
		return http.StatusConflict
	}
	return http.StatusUnprocessableEntity
}

func (s *Server) planDrill(w http.ResponseWriter, r *http.Request) {
	spec, ok := s.order(w, r)
	if !ok {
		return
	}
	plan, err := s.Drills.Plan(r.Context(), spec)
	if err != nil {
		refuse(w, drillRefusal(err), err.Error())
		return
	}
	answer(w, http.StatusOK, plan)
}

func (s *Server) abortDrill(w http.ResponseWriter, r *http.Request) {
	if s.Drills == nil {
		refuse(w, http.StatusNotFound, noDrills)
		return
	}
	id := r.PathValue("id")
	if err := s.Drills.Abort(id); err != nil {
		refuse(w, drillRefusal(err), err.Error())
		return
	}
	answer(w, http.StatusOK, DrillBegun{id})
}

func (s *Server) simulate(w http.ResponseWriter, r *http.Request) {
	if s.Drills == nil {
		refuse(w, http.StatusNotFound, noDrills)
		return
	}
	f, err := s.Drills.Foretell(r.Context(), r.URL.Query().Get("fail"), r.PathValue("guest"))
	if err != nil {
		refuse(w, http.StatusBadRequest, err.Error())
		return
	}
	answer(w, http.StatusOK, f)
}

// RunDrill begins a drill on the host that the client is of.
func (c *Client) RunDrill(ctx context.Context, s drill.Spec) (id string, err error) {
	var begun DrillBegun
	err = c.Post(ctx, "/api/v1/drills", s, &begun)
	return begun.ID, err
}

// PlanDrill tells what it would do.
func (c *Client) PlanDrill(ctx context.Context, s drill.Spec) (drill.Plan, error) {
	var p drill.Plan
	err := c.Post(ctx, "/api/v1/drills/plan", s, &p)
	return p, err
}

// AbortDrill gives it up.
func (c *Client) AbortDrill(ctx context.Context, id string) error {
	return c.Delete(ctx, "/api/v1/drills/"+url.PathEscape(id), &DrillBegun{})
}

// Drill returns its report, as far as it is.
func (c *Client) Drill(ctx context.Context, id string) (drill.Report, error) {
	text, err := c.Raw(ctx, "/api/v1/drills/"+url.PathEscape(id), drill.MaxReport+1)
	if err != nil {
		return drill.Report{}, err
	}
	return drill.ParseReport(text)
}

// DrillList returns the host's history.
func (c *Client) DrillList(ctx context.Context, limit int) (drill.List, error) {
	var l drill.List
	err := c.Get(ctx, fmt.Sprintf("/api/v1/drills?limit=%d", limit), &l)
	return l, err
}

// Simulate tells what a failure would do to a guest.
func (c *Client) Simulate(ctx context.Context, guest, fail string) (drill.Forecast, error) {
	var f drill.Forecast
	err := c.Get(ctx, "/api/v1/guests/"+url.PathEscape(guest)+"/simulate?fail="+url.QueryEscape(fail), &f)
	return f, err
}
