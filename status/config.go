package status

// The configuration that the daemon runs, and how it becomes another (daemon's
// change.go).

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"understudy/config"
	"understudy/ownership"
)

// Configuration is the daemon's.
type Configuration interface {
	Running() RunningConfig
	// Diff says what another would change: one in TOML, or the daemon's file as it
	// is now (""). Nothing is changed.
	Diff(ctx context.Context, toml string) (config.Change, error)
	// Reload makes the daemon's file, as it is now, the configuration.
	Reload(ctx context.Context) (config.Change, error)
}

// ConfigBrief names a configuration.
type ConfigBrief struct {
	// Hash is the same on hosts whose configurations mean the same.
	Hash string `json:"hash"`
	// Since is when this daemon began to run it.
	Since time.Time `json:"since"`
	// Others are the hashes of the other hosts, as they said when they were last
	// asked (every 15 s); a host that did not answer then is not among them.
	Others map[ownership.HostID]string `json:"others,omitempty"`
}

// RunningConfig is the answer to GET /api/v1/config. It holds no secrets: those are
// in files of their own.
type RunningConfig struct {
	ConfigBrief
	File string `json:"file"` // "" if it came from none
	TOML string `json:"toml"`
}

// ConfigRequest is the body of POST /api/v1/config: one of the two.
type ConfigRequest struct {
	// Reload reads the daemon's file again and makes it the configuration.
	Reload bool `json:"reload,omitempty"`
	// Diff only says what that would change, or what TOML would.
	Diff bool   `json:"diff,omitempty"`
	TOML string `json:"toml,omitempty"`
}

func configRoutes(c Configuration) []route {
	offered := func(f http.HandlerFunc) http.HandlerFunc {
		if c == nil {
			return func(w http.ResponseWriter, _ *http.Request) {
				refuse(w, http.StatusNotFound, "the configuration is not known here")
			}
		}
		return f
	}
	return []route{
		{"GET /api/v1/config", Read, offered(func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, c.Running()) })},
		{"POST /api/v1/config", Operate, offered(func(w http.ResponseWriter, r *http.Request) { changeConfig(c, w, r) })},
	}
}

func changeConfig(c Configuration, w http.ResponseWriter, r *http.Request) {
	var q ConfigRequest
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	err := d.Decode(&q)
	if err == nil {
		if _, more := d.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("something follows it")
		}
	}
	switch {
	case err != nil:
	case q.Reload == q.Diff:
		err = errors.New(`want "reload" or "diff"`)
	case q.Reload && q.TOML != "":
		err = errors.New(`what is reloaded is the daemon's file: write the text there, then ask for "reload"`)
	}
	if err != nil {
		refuse(w, http.StatusBadRequest, fmt.Sprintf("the request's body: %v", err))
		return
	}
	f := c.Reload
	if q.Diff {
		f = func(ctx context.Context) (config.Change, error) { return c.Diff(ctx, q.TOML) }
	}
	change, err := f(r.Context())
	if err != nil {
		refuse(w, http.StatusConflict, err.Error())
		return
	}
	if change.Items == nil {
		change.Items = []config.Item{}
	}
	answer(w, http.StatusOK, change)
}
