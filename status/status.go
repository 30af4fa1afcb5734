// Package status is the HTTP endpoint of one host. It listens on a Unix socket
// that only root may open (socket.go), where everything may be asked, and, if
// so configured, on the network with TLS, where everything but health needs a
// token or a certificate (network.go, access.go). `understudy status` and the
// other commands of the operator's tool are its clients (client.go).
//
//	GET  /livez, /readyz                      health of the daemon (health.go)
//	GET  /primary[/NAME], /backup[/NAME]      … of a guest's roles, for load balancers
//	GET  /metrics                             Prometheus (metrics.go)
//	GET  /api/v1/status                       → Report
//	GET  /api/v1/guests[/NAME]                → Guests, Guest
//	GET  /api/v1/guests/NAME/samples          its past, for plots (samples.go)
//	GET  /api/v1/cluster                      → Cluster
//	GET  /api/v1/events, /api/v1/stream       what happened, and what happens (events.go)
//	GET, POST, DELETE /api/v1/drills[/ID]     drills (drills.go)
//	GET  /api/v1/openapi.yaml                 all of this, exactly
//	GET  /api/v1/access                       who asks, and what they may (ui.go)
//	GET  /ui/                                 the dashboard, for browsers
//	POST /api/v1/guests/NAME/switchover       → the log's new state
//	POST /api/v1/guests/NAME/stop | start     → the log's new state
//	POST /api/v1/guests/NAME/pause | resume | unprotect | protect | failback  (control.go)
//	POST /api/v1/guests/NAME/verify           → VerifyResult
//	POST /api/v1/guests/NAME/checkpoint/…     → a stream (stream.go)
//	GET  /api/v1/hosts                        → HostList
//	ANY  /api/v1/hosts/HOST/PATH              PATH, asked of that host (peers.go)
//	POST /api/v1/guests/NAME/bubble           → a stream (bubble.go); DELETE ends it
//
// A request goes: listener → limits → who asks → may they → route. An error is
// answered with a status code that is not 2xx and a Problem. What a host cannot
// know it says to be unknown, with the age of what it knows.
package status

import (
	"context"
	"crypto/tls"
	_ "embed"
	"log/slog"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"understudy/host"
	"understudy/ownership"
	"understudy/primary"
	"understudy/status/dashboard"
)

// Version is the release, for reports. The linker sets it in a build of another
// one (-X understudy/status.Version=...); nothing else does.
var Version = "0.1.0"

// MaxBody bounds requests and answers, in bytes.
const MaxBody = 4 << 20

// Operations is what the endpoint offers (package host).
type Operations interface {
	Status() []host.GuestStatus
	Switchover(ctx context.Context, guest string) (ownership.Guest, error)
	Stop(ctx context.Context, guest string) (ownership.Guest, error)
	Start(ctx context.Context, guest string) (ownership.Guest, error)
	Verify(ctx context.Context, guest string) (primary.VerifyResult, error)
	Checkpoints
	Control
}

// Report is the answer to GET /api/v1/status.
type Report struct {
	Version string             `json:"version"`
	PID     int                `json:"pid"` // of the daemon
	Host    ownership.HostID   `json:"host"`
	Leader  ownership.HostID   `json:"leader"` // of the ownership log, "" if unknown
	Lease   time.Duration      `json:"lease_ns"`
	Guests  []host.GuestStatus `json:"guests"`
	// Exits lists each guest's ways out and how each is treated (RULES 27).
	Exits map[string][]Exit `json:"exits"`
	// LogAge is how old what is said of the log may be: Cluster.Contact.
	LogAge *time.Duration `json:"log_age_ns,omitempty"`
	// Config is the configuration that the daemon runs.
	Config ConfigBrief `json:"config"`
	// Certificates are those that this daemon shows and believes.
	Certificates []Certificate `json:"certificates,omitempty"`
}

// Certificate is one of the daemon's.
type Certificate struct {
	// Of is whose: "host" and "authority", between hosts; "endpoint", on the network.
	Of    string    `json:"of"`
	Until time.Time `json:"until"` // when it runs out
}

// Exit is one way out of a guest.
type Exit struct {
	Device string `json:"device"`
	// Held: what leaves this way waits for its epoch's commit.
	Held      bool   `json:"held"`
	Treatment string `json:"treatment"`
}

// Cluster is the answer to GET /api/v1/cluster: the ownership log as this host
// sees it. Ages are in nanoseconds.
type Cluster struct {
	Host   ownership.HostID `json:"host"`
	Leader ownership.HostID `json:"leader"` // "" if unknown
	Leads  bool             `json:"leads"`  // this host
	Term   uint64           `json:"term"`
	// Last is the newest entry here, Committed the newest known to be on a
	// majority, Applied the newest in what this host says of the log.
	Last      uint64 `json:"last_index"`
	Committed uint64 `json:"committed_index"`
	Applied   uint64 `json:"applied_index"`
	// Contact is since the leader was last heard; where this host leads, since a
	// majority was. Missing: not since the daemon began.
	Contact *time.Duration `json:"contact_ns,omitempty"`
	Voters  []Voter        `json:"voters"`
}

// Voter is one host of the cluster.
type Voter struct {
	Host    ownership.HostID `json:"host"`
	Address string           `json:"address"`
	Witness bool             `json:"witness"`
	Leader  bool             `json:"leader"` // as far as this host knows
	// Heard is since the voter's last word to this host; missing: none since the
	// daemon began. Hosts that do not lead have little to say to each other.
	Heard *time.Duration `json:"heard_ns,omitempty"`
	// Configured: it is in this host's configuration; Member: the ownership log is
	// for it; Votes: it votes. All three, but while a host is replaced.
	Configured bool `json:"configured"`
	Member     bool `json:"member"`
	Votes      bool `json:"votes"`
}

// Guests is the answer to GET /api/v1/guests.
type Guests struct {
	Guests []Guest `json:"guests"`
}

// Guest is a guest as this host sees it, with what load balancers are told.
type Guest struct {
	host.GuestStatus
	LogAge  *time.Duration `json:"log_age_ns,omitempty"` // see Report
	Serves  Verdict        `json:"serves"`               // of /primary/NAME
	InSync  Verdict        `json:"in_sync"`              // of /backup/NAME
	WaysOut []Exit         `json:"exits"`
}

// Sources are what a Server tells of.
type Sources struct {
	Operations Operations
	// Report fills in what comes neither from Operations nor from Cluster.
	Report func() Report
	// Cluster tells of the ownership log; nil: nothing is known of it.
	Cluster func() Cluster
	// Events is what happened; nil: it is not recorded here.
	Events Events
	// Peers are the hosts of the configuration; nil: no other host is asked.
	Peers Peers
	// Configuration is the daemon's; nil: it cannot be changed here.
	Configuration Configuration
	// Members is who votes; nil: it cannot be changed here.
	Members Members
	// Owner returns the owner of a guest, of any in the log, as far as it is
	// known here; "" if it is not. nil: it never is.
	Owner func(guest string) ownership.HostID
	// Drills runs drills; nil: they are not run here.
	Drills Drills
	// BootID names this boot of the machine, as events do; "" if it is not known.
	BootID string
	// Bubbles starts copies in isolation; nil: none here.
	Bubbles Bubbles
	// Strikes strikes this host; nil: nothing does.
	Strikes Strikes
	// Upgrades puts another daemon in this one's place; nil: not offered here.
	Upgrades Upgrades
	// Samples are of the guests' past; nil: none are kept.
	Samples Samples
	// Slog is told who was refused; nil: nobody is.
	Slog *slog.Logger
}

// Server answers requests.
type Server struct {
	Sources
	began   time.Time
	mux     *http.ServeMux
	need    map[string]Level // of each pattern
	unix    *http.Server
	metrics http.Handler
	crowd   crowd
	ui      map[string]dashboard.File
	shows   atomic.Pointer[func() (*tls.Certificate, error)] // on the network, while it is there
}

// route is a pattern of http.ServeMux with what it needs.
type route struct {
	pattern string
	need    Level
	serve   http.HandlerFunc
}

//go:embed openapi.yaml
var openAPI []byte

// NewServer returns a server of what the sources tell.
func NewServer(from Sources) *Server {
	if from.Cluster == nil {
		from.Cluster = func() Cluster { return Cluster{Voters: []Voter{}} }
	}
	if from.Slog == nil {
		from.Slog = slog.New(slog.DiscardHandler)
	}
	s := &Server{Sources: from, began: time.Now(), mux: http.NewServeMux(), need: map[string]Level{}, crowd: crowd{by: map[string]int{}}}
	s.metrics = s.exporter()
	var err error
	if s.ui, err = dashboard.Files(); err != nil {
		s.Slog.Error("there is no dashboard", "err", err)
	}
	for _, r := range s.routes() {
		s.mux.HandleFunc(r.pattern, s.toOwner(r).serve)
		s.need[r.pattern] = r.need
	}
	s.unix = &http.Server{Handler: http.MaxBytesHandler(s.handler(everything), MaxBody), ReadHeaderTimeout: 5 * time.Second,
		MaxHeaderBytes: 64 << 10, IdleTimeout: time.Minute}
	return s
}

func (s *Server) routes() []route {
	ops := s.Operations
	all := []route{
		{"GET /livez", Health, s.livez},
		{"GET /readyz", Health, s.readyz},
		{"GET /primary", Health, s.primary},
		{"GET /primary/{guest}", Health, s.primary},
		{"GET /backup", Health, s.backup},
		{"GET /backup/{guest}", Health, s.backup},
		{"GET /metrics", Read, s.metrics.ServeHTTP},
		{"GET /api/v1/status", Read, s.status},
		{"GET /api/v1/guests", Read, s.guests},
		{"GET /api/v1/guests/{guest}", Read, s.guest},
		{"GET /api/v1/cluster", Read, s.cluster},
		{"GET /api/v1/events", Read, s.events},
		{"GET /api/v1/stream", Read, s.stream},
		{"GET /api/v1/openapi.yaml", Read, s.openAPI},
		{"POST /api/v1/guests/{guest}/switchover", Operate, s.operation(func(ctx context.Context, g string) (any, error) { return ops.Switchover(ctx, g) })},
		{"POST /api/v1/guests/{guest}/stop", Operate, s.operation(func(ctx context.Context, g string) (any, error) { return ops.Stop(ctx, g) })},
		{"POST /api/v1/guests/{guest}/start", Operate, s.operation(func(ctx context.Context, g string) (any, error) { return ops.Start(ctx, g) })},
		{"POST /api/v1/guests/{guest}/verify", Operate, s.operation(func(ctx context.Context, g string) (any, error) { return ops.Verify(ctx, g) })},
	}
	all = append(all, s.controlRoutes(ops)...)
	all = append(all, s.peerRoutes()...)
	all = append(all, s.drillRoutes()...)
	all = append(all, s.uiRoutes()...)
	all = append(all, s.sampleRoutes()...)
	all = append(all, s.upgradeRoutes()...)
	all = append(all, configRoutes(s.Configuration)...)
	all = append(all, memberRoutes(s.Members)...)
	all = append(all, checkpointRoutes(ops)...)
	all = append(all, s.strikeRoutes()...)
	return append(all, s.bubbleRoutes()...)
}

// report is everything this host knows, now.
func (s *Server) report() (Report, Cluster) {
	r, c := s.Report(), s.Cluster()
	r.Version, r.Guests, r.LogAge = Version, s.Operations.Status(), c.Contact
	if show := s.shows.Load(); show != nil {
		if cert, err := (*show)(); err == nil && cert.Leaf != nil {
			r.Certificates = append(slices.Clip(r.Certificates), Certificate{"endpoint", cert.Leaf.NotAfter})
		}
	}
	return r, c
}

func (s *Server) status(w http.ResponseWriter, _ *http.Request) {
	r, _ := s.report()
	answer(w, http.StatusOK, r)
}

func (s *Server) cluster(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, s.Cluster())
}

func (s *Server) guests(w http.ResponseWriter, _ *http.Request) {
	r, c := s.report()
	all := Guests{Guests: make([]Guest, 0, len(r.Guests))}
	for _, g := range r.Guests {
		all.Guests = append(all.Guests, guestOf(g, r, c))
	}
	answer(w, http.StatusOK, all)
}

func (s *Server) guest(w http.ResponseWriter, req *http.Request) {
	r, c := s.report()
	for _, g := range r.Guests {
		if g.Name == req.PathValue("guest") {
			answer(w, http.StatusOK, guestOf(g, r, c))
			return
		}
	}
	s.noGuest(w, req, r)
}

func (s *Server) noGuest(w http.ResponseWriter, req *http.Request, r Report) {
	refuse(w, http.StatusNotFound, "no guest \""+req.PathValue("guest")+"\" on host "+string(r.Host)+": see the [[guest]] sections of the configuration")
}

func guestOf(g host.GuestStatus, r Report, c Cluster) Guest {
	exits := r.Exits[g.Name]
	if exits == nil {
		exits = []Exit{}
	}
	return Guest{GuestStatus: g, LogAge: c.Contact, Serves: serves(g), InSync: inSync(g, facts{lease: r.Lease, log: c}, nil), WaysOut: exits}
}

func (s *Server) openAPI(w http.ResponseWriter, _ *http.Request) {
	hurry(w)
	w.Header().Set("Content-Type", "application/yaml")
	_, _ = w.Write(openAPI) // the client may be gone
}

func (s *Server) operation(f func(ctx context.Context, guest string) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := f(r.Context(), r.PathValue("guest"))
		if err != nil {
			refuse(w, http.StatusConflict, err.Error())
			return
		}
		answer(w, http.StatusOK, v)
	}
}
