package status

// The operator's switch of a guest's protection, and the way home. What each
// does is in package host; each answers with the log's new state.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"time"

	"understudy/host"
	"understudy/ownership"
)

// Control is what the endpoint offers of it (package host).
type Control interface {
	Pause(ctx context.Context, guest string) (ownership.Guest, error)
	Resume(ctx context.Context, guest string) (ownership.Guest, error)
	Unprotect(ctx context.Context, guest string) (ownership.Guest, error)
	Protect(ctx context.Context, guest string) (ownership.Guest, error)
	Failback(ctx context.Context, guest string) (ownership.Guest, error)
	FailoverCost(ctx context.Context, guest string) (host.FailoverCost, error)
	Failover(ctx context.Context, guest string, r host.FailoverRequest) (ownership.Guest, error)
	Fences() host.Fences
	FenceConfirm(ctx context.Context, target ownership.HostID) (host.Fences, error)
}

func (s *Server) controlRoutes(c Control) []route {
	one := func(name string, f func(ctx context.Context, guest string) (ownership.Guest, error)) route {
		return route{"POST /api/v1/guests/{guest}/" + name, Operate, s.operation(func(ctx context.Context, g string) (any, error) { return f(ctx, g) })}
	}
	return []route{
		one("pause", c.Pause), one("resume", c.Resume), one("unprotect", c.Unprotect), one("protect", c.Protect), one("failback", c.Failback),
		{"GET /api/v1/guests/{guest}/failover", Read, s.operation(func(ctx context.Context, g string) (any, error) { return c.FailoverCost(ctx, g) })},
		{"POST /api/v1/guests/{guest}/failover", Operate, requested(func(r *http.Request, q host.FailoverRequest) (any, error) {
			return c.Failover(r.Context(), r.PathValue("guest"), q)
		})},
		{"GET /api/v1/fence", Read, func(w http.ResponseWriter, r *http.Request) {
			if h := s.knowsGuests(r, ""); h != "" {
				s.pass(w, r, h)
				return
			}
			answer(w, http.StatusOK, c.Fences())
		}},
		{"POST /api/v1/fence/{host}", Operate, func(w http.ResponseWriter, r *http.Request) {
			if h := s.knowsGuests(r, ownership.HostID(r.PathValue("host"))); h != "" {
				s.pass(w, r, h)
				return
			}
			f, err := c.FenceConfirm(r.Context(), ownership.HostID(r.PathValue("host")))
			if err != nil {
				refuse(w, http.StatusConflict, err.Error())
				return
			}
			answer(w, http.StatusOK, f)
		}},
	}
}

// knowsGuests returns the host that a question about guests is sent on to by one that
// has none, a witness: one that leads or was heard lately before others, and never
// the one that is said to be off. "" is for this one to answer.
func (s *Server) knowsGuests(r *http.Request, off ownership.HostID) (at ownership.HostID) {
	if s.Peers == nil || cameFrom(r) != "" || len(s.Operations.Status()) > 0 {
		return ""
	}
	least := time.Duration(math.MaxInt64)
	self := s.Report().Host
	for _, v := range s.Cluster().Voters {
		if v.Host == self || v.Host == off || v.Witness {
			continue
		}
		heard := time.Duration(math.MaxInt64 - 1)
		if v.Heard != nil {
			heard = *v.Heard
		}
		if heard < least {
			at, least = v.Host, heard
		}
	}
	return at
}

// requested serves an operation that is told more in its body.
func requested[Q any](f func(r *http.Request, request Q) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var q Q
		d := json.NewDecoder(r.Body)
		d.DisallowUnknownFields()
		err := d.Decode(&q)
		if err == nil {
			if _, more := d.Token(); !errors.Is(more, io.EOF) {
				err = errors.New("something follows it")
			}
		}
		if err != nil {
			refuse(w, http.StatusBadRequest, fmt.Sprintf("the request's body: %v", err))
			return
		}
		v, err := f(r, q)
		if err != nil {
			refuse(w, http.StatusConflict, err.Error())
			return
		}
		answer(w, http.StatusOK, v)
	}
}
