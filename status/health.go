package status

// What probes and load balancers are told. /livez: the daemon answers.
// /readyz: it can do its part. /primary: traffic for the guest belongs here.
// /backup: the image here could go on with the guest. Each judges the facts of
// one moment and says why; what the facts do not settle is "unknown" and counts
// as no. OPTIONS and HEAD get the same status without the body (access.go).

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"understudy/host"
	"understudy/ownership"
	"understudy/primary"
)

// Answers of a Verdict.
const (
	Yes     = "yes"
	No      = "no"
	Unknown = "unknown"
)

// Verdict is an answer to one question about a guest on this host.
type Verdict struct {
	Answer string `json:"answer"` // yes, no, unknown
	Why    string `json:"why"`
}

// facts are what a verdict needs beside the guest's own status.
type facts struct {
	lease time.Duration
	log   Cluster
}

// serves tells whether this host runs the guest, holds its lease and may let
// its output out. The lease proves it: while it lasts nobody else owns the
// guest, however old what is known of the log may be.
func serves(g host.GuestStatus) Verdict {
	p := g.Primary
	switch {
	case p == nil:
		return Verdict{No, fmt.Sprintf("this host is not the primary: it is %s", roleOf(g))}
	case p.LeaseLeft <= 0:
		return Verdict{No, fmt.Sprintf("this host holds no lease in generation %d", p.Generation)}
	case g.Log.Generation != p.Generation || g.Log.Owner != g.Host:
		return Verdict{No, fmt.Sprintf("the log names %s the owner, in generation %d", g.Log.Owner, g.Log.Generation)}
	case g.Log.Phase != ownership.PhaseActive:
		return Verdict{No, fmt.Sprintf("the guest is not active in the log: %s", g.Log.Phase)}
	case g.Log.Desired == ownership.Stopped:
		return Verdict{No, "the guest is to stop"}
	case !p.Running:
		return Verdict{No, "the guest stands still"}
	}
	switch p.Mode {
	case primary.ModeAlone, primary.ModeSyncing:
		return Verdict{Yes, fmt.Sprintf("runs here, unprotected (%s); lease for another %v", p.Mode, round(p.LeaseLeft))}
	case primary.ModeEntering, primary.ModeProtected:
		return Verdict{Yes, fmt.Sprintf("runs here, %s; lease for another %v", p.Mode, round(p.LeaseLeft))}
	}
	return Verdict{No, fmt.Sprintf("the guest's output waits: %s", p.Mode)}
}

// inSync tells whether the log, as far as it is known here, names this host's
// image in sync, and its last commit is not older than lag, if that is given.
func inSync(g host.GuestStatus, f facts, lag *time.Duration) Verdict {
	b := g.Backup
	switch {
	case b == nil:
		return Verdict{No, fmt.Sprintf("this host is not the backup: it is %s", roleOf(g))}
	case f.log.Contact == nil:
		return Verdict{Unknown, "this host has not heard of the ownership log's leader since the daemon began"}
	case f.lease == 0:
		return Verdict{Unknown, "the ownership log has no lease length yet"}
	case *f.log.Contact > f.lease:
		// What the log says here is as old as the last contact; once that is older
		// than a lease, anything may have been recorded since.
		return Verdict{Unknown, fmt.Sprintf("this host has not heard of the ownership log's leader for %v: what the log says of it may be over", round(*f.log.Contact))}
	case !g.Log.InSync || g.Log.Backup.Host != g.Host:
		return Verdict{No, "the log does not name this host in sync"}
	case !b.InSync || !b.Whole:
		return Verdict{No, "the log names another image of this host in sync, or its image is not whole"}
	case lag != nil && b.Epoch == 0:
		return Verdict{Unknown, "nothing was committed here since the daemon began"}
	case lag != nil && b.EpochAge > *lag:
		return Verdict{No, fmt.Sprintf("the last commit, epoch %d, is %v old, more than %v", b.Epoch, round(b.EpochAge), *lag)}
	}
	return Verdict{Yes, fmt.Sprintf("in sync; epoch %d was committed %v ago; the log was heard of %v ago", b.Epoch, round(b.EpochAge), round(*f.log.Contact))}
}

func roleOf(g host.GuestStatus) string {
	if g.Role == "" {
		return "starting"
	}
	return g.Role
}

func round(d time.Duration) time.Duration {
	if d < 10*time.Millisecond {
		return d.Round(10 * time.Microsecond)
	}
	return d.Round(time.Millisecond)
}

// RoleHealth is the body of /primary and /backup.
type RoleHealth struct {
	Host   ownership.HostID `json:"host"`
	OK     bool             `json:"ok"`
	Guests []GuestHealth    `json:"guests"`
	// LogAge is how old what is said of the log may be; missing: not known.
	LogAge *time.Duration `json:"log_age_ns,omitempty"`
}

// GuestHealth is the verdict on one guest.
type GuestHealth struct {
	Guest string `json:"guest"`
	Verdict
	Generation uint64           `json:"generation"` // in the log, as far as it is known here
	Owner      ownership.HostID `json:"owner"`
	// LeaseLeft (primary) and CommitAge (backup) are in nanoseconds.
	LeaseLeft *time.Duration `json:"lease_left_ns,omitempty"`
	CommitAge *time.Duration `json:"commit_age_ns,omitempty"`
	// PeerAge is since the last word of the pair's other host, on its session.
	PeerAge *time.Duration `json:"peer_age_ns,omitempty"`
}

func (s *Server) primary(w http.ResponseWriter, r *http.Request) {
	s.role(w, r, func(g host.GuestStatus, _ facts) Verdict { return serves(g) })
}

func (s *Server) backup(w http.ResponseWriter, r *http.Request) {
	lag, err := parseLag(r.URL.Query()["lag_ms"])
	if err != nil {
		refuse(w, http.StatusBadRequest, err.Error())
		return
	}
	s.role(w, r, func(g host.GuestStatus, f facts) Verdict { return inSync(g, f, lag) })
}

// maxLag bounds lag_ms.
const maxLag = 24 * time.Hour

// parseLag reads lag_ms; nil if it is not given.
func parseLag(values []string) (*time.Duration, error) {
	if len(values) == 0 {
		return nil, nil
	}
	n, err := strconv.ParseUint(values[0], 10, 32)
	if err != nil || len(values) > 1 || time.Duration(n)*time.Millisecond > maxLag {
		return nil, fmt.Errorf("lag_ms=%.40q is not one number of milliseconds between 0 and %d", strings.Join(values[:min(len(values), 3)], ","), maxLag.Milliseconds())
	}
	lag := time.Duration(n) * time.Millisecond
	return &lag, nil
}

// role answers for the guest that is named, or for all of this host's: then
// all have to be well, and no guest is none that is.
func (s *Server) role(w http.ResponseWriter, r *http.Request, judge func(host.GuestStatus, facts) Verdict) {
	all, c := s.report()
	name := r.PathValue("guest")
	h := RoleHealth{Host: all.Host, Guests: []GuestHealth{}, LogAge: c.Contact}
	well := 0
	for _, g := range all.Guests {
		if name != "" && g.Name != name {
			continue
		}
		one := GuestHealth{Guest: g.Name, Verdict: judge(g, facts{all.Lease, c}), Generation: uint64(g.Log.Generation), Owner: g.Log.Owner}
		if p := g.Primary; p != nil {
			one.LeaseLeft, one.PeerAge = &p.LeaseLeft, p.PeerAge
		}
		if b := g.Backup; b != nil {
			one.PeerAge = b.PeerAge
			if b.Epoch > 0 {
				one.CommitAge = &b.EpochAge
			}
		}
		if one.Answer == Yes {
			well++
		}
		h.Guests = append(h.Guests, one)
	}
	if name != "" && len(h.Guests) == 0 {
		s.noGuest(w, r, all)
		return
	}
	h.OK = well > 0 && well == len(h.Guests)
	answer(w, codeOf(h.OK), h)
}

func codeOf(ok bool) int {
	if ok {
		return http.StatusOK
	}
	return http.StatusServiceUnavailable
}

// Checks is the body of /livez and /readyz as JSON.
type Checks struct {
	OK     bool    `json:"ok"`
	Checks []Check `json:"checks"`
}

// Check is one of them.
type Check struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	Why  string `json:"why"`
}

// livez answers: who gets an answer knows that the daemon lives. It does not
// depend on anything that a restart would not mend.
func (s *Server) livez(w http.ResponseWriter, r *http.Request) {
	checked(w, r, "livez", []Check{{"daemon", true, fmt.Sprintf("has run for %v", time.Since(s.began).Round(time.Second))}})
}

// readyz tells whether the host can do its part: it takes part in the ownership
// log, and none of its guests is stuck. Being protected is another matter.
func (s *Server) readyz(w http.ResponseWriter, r *http.Request) {
	all, c := s.report()
	checks := []Check{logCheck(all.Lease, c)}
	for _, g := range all.Guests {
		one := Check{Name: "guest/" + g.Name, OK: true, Why: "this host is its " + roleOf(g)}
		switch {
		case g.Problem != "":
			one.OK, one.Why = false, g.Problem
		case g.Role == "" || g.Role == "booting" || g.Role == "recovering":
			one.OK, one.Why = false, roleOf(g)
		}
		checks = append(checks, one)
	}
	checked(w, r, "readyz", checks)
}

func logCheck(lease time.Duration, c Cluster) Check {
	check := Check{Name: "ownership-log"}
	switch {
	case c.Leader == "":
		check.Why = "no leader of the ownership log is known"
	case c.Contact == nil:
		check.Why = fmt.Sprintf("%s is taken for the leader, and has not been heard since the daemon began", c.Leader)
	case lease == 0:
		check.Why = "the ownership log has no lease length yet"
	case *c.Contact > lease:
		check.Why = fmt.Sprintf("%s is taken for the leader; the last contact was %v ago, more than a lease of %v", c.Leader, round(*c.Contact), lease)
	default:
		check.OK, check.Why = true, fmt.Sprintf("%s leads; the last contact was %v ago", c.Leader, round(*c.Contact))
	}
	return check
}

// checked answers as Kubernetes' own probes do: "ok", or which check failed;
// ?verbose lists all, and who accepts JSON gets that.
func checked(w http.ResponseWriter, r *http.Request, name string, checks []Check) {
	all := Checks{OK: true, Checks: checks}
	for _, c := range checks {
		all.OK = all.OK && c.OK
	}
	if strings.Contains(r.Header.Get("Accept"), "application/json") {
		answer(w, codeOf(all.OK), all)
		return
	}
	var b strings.Builder
	_, verbose := r.URL.Query()["verbose"]
	if verbose || !all.OK {
		for _, c := range checks {
			mark, state := "[+]", "ok"
			if !c.OK {
				mark, state = "[-]", "failed"
			}
			fmt.Fprintf(&b, "%s%s %s: %s\n", mark, c.Name, state, c.Why)
		}
		if all.OK {
			fmt.Fprintf(&b, "%s check passed\n", name)
		} else {
			fmt.Fprintf(&b, "%s check failed\n", name)
		}
	} else {
		b.WriteString("ok\n")
	}
	text(w, codeOf(all.OK), b.String())
}
