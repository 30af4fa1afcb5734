package status

// The past of a guest, for plots: package samples.

import (
	"errors"
	"net/http"

	"understudy/clock"
	"understudy/status/samples"
)

// Samples are what is kept of the guests' past (samples.Keeper).
type Samples interface {
	Series(guest, ring, since string, now clock.Instant) (samples.Series, error)
}

func (s *Server) sampleRoutes() []route {
	return []route{{"GET /api/v1/guests/{guest}/samples", Read, s.samples}}
}

func (s *Server) samples(w http.ResponseWriter, r *http.Request) {
	if s.Samples == nil {
		refuse(w, http.StatusNotFound, "no samples are kept here")
		return
	}
	ring := r.URL.Query().Get("ring")
	if ring == "" {
		ring = samples.Rings[0].Name
	}
	series, err := s.Samples.Series(r.PathValue("guest"), ring, r.URL.Query().Get("since"), clock.Boot{}.Now())
	switch {
	case errors.Is(err, samples.ErrGuest):
		refuse(w, http.StatusNotFound, err.Error())
	case err != nil:
		refuse(w, http.StatusBadRequest, err.Error())
	default:
		answer(w, http.StatusOK, series)
	}
}
