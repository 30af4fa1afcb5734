package status

// This file puts another daemon in the place of the one that answers.
//
//	POST /api/v1/upgrade {"binary":"…"}  → Upgrade

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// Upgrades puts another daemon in this one's place.
type Upgrades interface {
	// Upgrade starts a program, "" for this daemon's own, and returns when nothing
	// stands in the way of its taking everything over; this daemon then ends. After
	// an error nothing has changed.
	Upgrade(ctx context.Context, binary string) (Upgrade, error)
}

// UpgradeRequest is the body of POST /api/v1/upgrade; it may be left out.
type UpgradeRequest struct {
	// Binary is the absolute path of the new daemon's program on this host; empty
	// for the path that this daemon was started from.
	Binary string `json:"binary"`
}

// Upgrade is the answer: the new daemon takes everything over now. Its report has
// PID once it takes part; if it has the former one's again, it did not come up.
type Upgrade struct {
	From   string `json:"from"` // versions
	To     string `json:"to"`
	PID    int    `json:"pid"`
	Binary string `json:"binary"`
}

func (s *Server) upgradeRoutes() []route {
	return []route{{"POST /api/v1/upgrade", Root, s.upgrade}}
}

func (s *Server) upgrade(w http.ResponseWriter, r *http.Request) {
	var req UpgradeRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil && !errors.Is(err, io.EOF) {
		refuse(w, http.StatusBadRequest, fmt.Sprintf("the request's body: %v: want {\"binary\":\"/path\"} or nothing", err))
		return
	}
	if s.Upgrades == nil {
		refuse(w, http.StatusConflict, "this daemon cannot be upgraded in place: start it anew")
		return
	}
	u, err := s.Upgrades.Upgrade(r.Context(), req.Binary)
	if err != nil {
		refuse(w, http.StatusConflict, err.Error())
		return
	}
	answer(w, http.StatusOK, u)
}
