package status

// A drill strikes this host (package strike): its daemon and one guest's machine
// are killed or frozen, or the host is cut off, for a bounded time.

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"

	"understudy/strike"
)

// Strikes is what strikes this host.
type Strikes interface {
	// Allowed: the host lets itself be struck.
	Allowed() bool
	// Strike strikes shortly after it has returned.
	Strike(ctx context.Context, guest string, s strike.Spec) (strike.Struck, error)
	// Strikes are those that are not undone yet.
	Strikes() ([]strike.Struck, error)
}

// StrikeList is the answer to GET /api/v1/strikes.
type StrikeList struct {
	Allowed bool            `json:"allowed"`
	Strikes []strike.Struck `json:"strikes"` // those that are not undone yet
}

func (s *Server) strikeRoutes() []route {
	return []route{
		{"POST /api/v1/guests/{guest}/strike", Operate, s.strike},
		{"GET /api/v1/strikes", Read, s.strikes},
	}
}

func (s *Server) strike(w http.ResponseWriter, r *http.Request) {
	var spec strike.Spec
	if err := decode(r, &spec); err != nil {
		refuse(w, http.StatusBadRequest, "the request's body: "+err.Error())
		return
	}
	if s.Strikes == nil {
		refuse(w, http.StatusNotFound, "this host cannot be struck")
		return
	}
	struck, err := s.Strikes.Strike(r.Context(), r.PathValue("guest"), spec)
	if err != nil {
		refuse(w, http.StatusConflict, err.Error())
		return
	}
	answer(w, http.StatusOK, struck)
}

func (s *Server) strikes(w http.ResponseWriter, _ *http.Request) {
	list := StrikeList{Strikes: []strike.Struck{}}
	if s.Strikes != nil {
		list.Allowed = s.Strikes.Allowed()
		all, err := s.Strikes.Strikes()
		if err != nil {
			refuse(w, http.StatusInternalServerError, err.Error())
			return
		}
		list.Strikes = append(list.Strikes, all...)
	}
	answer(w, http.StatusOK, list)
}

// decode reads a request's body: one JSON value, with no key that is not known.
func decode(r *http.Request, into any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, more := d.Token(); !errors.Is(more, io.EOF) {
		return errors.New("something follows it")
	}
	return nil
}
