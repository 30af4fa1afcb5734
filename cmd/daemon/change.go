package daemon

// The configuration changes while the daemon runs (SIGHUP, POST /api/v1/config):
//
//	file → config.Load → config.Compare with what runs → refine: what of it can
//	this host do now? → if anything cannot: nothing is done, and it is said why
//	→ prepare: what may fail, each with its way back → commit: what cannot
//
// One change at a time.

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"understudy/config"
	"understudy/events"
	"understudy/failover"
	"understudy/host"
	"understudy/ownership"
	"understudy/status"
	"understudy/transport"
)

// changing is the configuration that the daemon runs.
type changing struct {
	o        Options
	self     string
	hosting  *hosting
	book     *book
	port     *transport.Port
	voter    *failover.Node
	endpoint *endpointKeeper
	changed  func() // told of each change that was made; nil: nobody is

	busy sync.Mutex // one change at a time

	mu      sync.Mutex
	running *config.Config
	since   time.Time
	others  map[ownership.HostID]string // hashes
}

func newChanging(o Options, self config.Host, h *hosting, b *book, port *transport.Port, voter *failover.Node, e *endpointKeeper) *changing {
	return &changing{o: o, self: self.Name, hosting: h, book: b, port: port, voter: voter, endpoint: e, running: o.Config, since: time.Now()}
}

// now is the configuration that runs, which nobody changes.
func (c *changing) now() *config.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running
}

// brief is what the status says of it.
func (c *changing) brief() status.ConfigBrief {
	c.mu.Lock()
	defer c.mu.Unlock()
	return status.ConfigBrief{Hash: c.running.Hash(), Since: c.since, Others: c.others}
}

// Running implements status.Configuration.
func (c *changing) Running() status.RunningConfig {
	brief := c.brief()
	return status.RunningConfig{ConfigBrief: brief, File: c.o.File, TOML: string(c.now().Render())}
}

// Diff implements status.Configuration.
func (c *changing) Diff(ctx context.Context, toml string) (config.Change, error) {
	next, err := c.read(toml)
	if err != nil {
		return config.Change{}, err
	}
	return c.compare(ctx, c.now(), next), nil
}

// Reload implements status.Configuration.
func (c *changing) Reload(ctx context.Context) (config.Change, error) {
	c.busy.Lock()
	defer c.busy.Unlock()
	next, err := c.read("")
	if err != nil {
		return config.Change{}, fmt.Errorf("the configuration stays as it is: %w", err)
	}
	was := c.now()
	change := c.compare(ctx, was, next)
	if change.Empty() {
		return change, nil
	}
	if blocked := change.Blocked(); len(blocked) > 0 {
		var why []string
		for _, i := range blocked {
			why = append(why, i.String())
		}
		return change, fmt.Errorf("the configuration stays as it is, for %d of %d changes cannot be made now:\n%s", len(blocked), len(change.Items), strings.Join(why, "\n"))
	}
	notes, err := c.apply(ctx, was, next, change)
	if err != nil {
		return change, fmt.Errorf("the configuration stays as it is: %w", err)
	}
	change.Applied, change.Notes = true, notes
	if c.changed != nil {
		c.changed()
	}
	c.o.Slog.Info("the configuration has changed", "what", change.Summary(), "hash", next.Hash(), "notes", notes)
	if c.o.record != nil {
		c.o.record.Add(events.Event{Kind: events.KindConfigChanged, Change: events.Change{From: was.Hash(), To: next.Hash()}, Text: change.Summary()})
	}
	return change, nil
}

// askEvery is how often the other hosts are asked what they run, and askTime bounds
// one answer.
const (
	askEvery = 15 * time.Second
	askTime  = 5 * time.Second
)

// follow asks the other hosts what they run, until ctx ends.
func (c *changing) follow(ctx context.Context, peers *Peers) {
	for {
		others := map[ownership.HostID]string{}
		var differ []string
		for _, h := range peers.Hosts() {
			if h == peers.Self() {
				continue
			}
			client, err := peers.Client(h)
			if err != nil {
				continue
			}
			var there status.RunningConfig
			call, cancel := context.WithTimeout(ctx, askTime)
			err = client.Get(call, "/api/v1/config", &there)
			cancel()
			if err == nil && there.Hash != "" {
				others[h] = there.Hash
			}
		}
		c.mu.Lock()
		hash, was := c.running.Hash(), c.others
		c.others = others
		c.mu.Unlock()
		for h, is := range others {
			if is != hash && was[h] != is {
				differ = append(differ, string(h))
			}
		}
		if len(differ) > 0 {
			slices.Sort(differ)
			c.o.Slog.Warn("other hosts run another configuration: put the same file on them, and apply it (understudy config diff --all)", "hosts", differ)
		}
		select {
		case <-time.After(askEvery):
		case <-ctx.Done():
			return
		}
	}
}

// read reads the file anew, or the text.
func (c *changing) read(toml string) (*config.Config, error) {
	if toml != "" {
		return config.Parse([]byte(toml))
	}
	if c.o.File == "" {
		return nil, errors.New("this daemon was not started from a file")
	}
	return config.Load(c.o.File)
}

// listen reloads whenever it is asked to, until ctx ends.
func (c *changing) listen(ctx context.Context) {
	for {
		select {
		case <-c.o.Reload:
		case <-ctx.Done():
			return
		}
		if change, err := c.Reload(ctx); err != nil {
			c.o.Slog.Error("the configuration was not changed", "err", err)
		} else if change.Empty() {
			c.o.Slog.Info("the configuration was read: nothing has changed in it")
		}
	}
}

// compare says what would change, and what of it cannot be done here and now.
func (c *changing) compare(ctx context.Context, was, next *config.Config) config.Change {
	change := config.Compare(was, next)
	if _, ok := next.Host(c.self); !ok {
		change.Items = append(change.Items, config.Item{Key: "host." + c.self, Host: c.self, Was: "this host", Treatment: config.Voters, Blocked: true,
			Why: "this host is not in the new configuration: stop its daemon once it has been replaced (understudy host replace, on another host)"})
	}
	for i := range change.Items {
		c.refine(ctx, was, next, &change.Items[i])
	}
	return change
}

// refine decides about one item.
func (c *changing) refine(ctx context.Context, was, next *config.Config, i *config.Item) {
	block := func(why string) { i.Blocked, i.Why = true, why }
	switch i.Treatment {
	case config.Refused:
		i.Blocked = true
	case config.Voters:
		if i.Blocked {
			break
		}
		if why := exchange(c.voter, next); why != "" {
			block(why)
		} else if i.Is == "" {
			i.Why = "then, when every host has the new configuration: understudy host replace " + i.Host + " NEW"
		}
	case config.RestartDaemon:
		i.Blocked = i.Host == c.self || i.Host == ""
	case config.RestartGuest:
		g, _ := was.Guest(i.Guest)
		if !runsOn(g, c.self) {
			return
		}
		if err := c.hosting.host.Removable(ctx, i.Guest); err != nil {
			block(err.Error() + "; " + i.Why)
		}
	case config.Session:
		if strings.HasPrefix(i.Key, "host.") && i.Host == c.self {
			i.Blocked = true // its own address
		}
		c.stays(ctx, was, next, i)
	case config.Live:
		c.stays(ctx, was, next, i)
	}
}

// stays blocks an item that takes a guest away from this host while it matters.
func (c *changing) stays(ctx context.Context, was, next *config.Config, i *config.Item) {
	if i.Guest == "" {
		return
	}
	before, here := was.Guest(i.Guest)
	after, stays := next.Guest(i.Guest)
	if !here || !runsOn(before, c.self) || stays && runsOn(after, c.self) {
		return
	}
	if err := c.hosting.host.Removable(ctx, i.Guest); err != nil {
		i.Blocked, i.Why = true, err.Error()
	}
}

// steps are done one by one; if one fails, those before it are undone.
type steps []func()

func (s *steps) undo() {
	for _, f := range slices.Backward(*s) {
		f()
	}
	*s = nil
}

// apply makes the change, all of it or nothing.
func (c *changing) apply(ctx context.Context, was, next *config.Config, change config.Change) (notes []string, err error) {
	var back steps
	defer func() {
		if err != nil {
			back.undo()
		}
	}()
	// What may fail comes first: the endpoint's address, guests that come.
	endpoint, err := c.endpoint.prepare(ctx, next)
	if err != nil {
		return nil, fmt.Errorf("the status endpoint: %w", err)
	}
	back = append(back, endpoint.drop)
	wire := c.hosting.sessions()
	if err := c.hosting.setSessions(wireOf(next)); err != nil {
		return nil, err
	}
	back = append(back, func() { _ = c.hosting.setSessions(wire) })
	// The voter first: what the book says of former hosts follows from it.
	if err := c.voter.SetPeers(peersOf(next)); err != nil {
		return nil, err
	}
	back = append(back, func() { _ = c.voter.SetPeers(peersOf(was)) }, func() {
		if err := c.book.set(was); err != nil {
			c.o.Slog.Warn("where the hosts are is not kept", "err", err)
		}
		c.book.admit(c.port)
	})
	if err := c.book.set(next); err != nil {
		return nil, err
	}
	c.book.admit(c.port)

	if err := c.exchange(ctx, was, next, change, &back); err != nil {
		return nil, err
	}
	// From here on nothing is taken back.
	back = nil
	c.endpoint.commit(endpoint)
	notes = c.settle(ctx, was, next, change)
	c.mu.Lock()
	c.running, c.since = next, time.Now()
	c.mu.Unlock()
	return notes, nil
}

// exchange removes the guests that go, or are built anew, and adds those that
// come.
func (c *changing) exchange(ctx context.Context, was, next *config.Config, change config.Change, back *steps) error {
	h := c.hosting
	for _, g := range was.Guests {
		if !runsOn(g, c.self) || !c.leaves(g, next, change) {
			continue
		}
		if err := h.host.Remove(ctx, g.Name); err != nil {
			return err
		}
		h.forget(g.Name)
		*back = append(*back, func() {
			if err := c.add(was, g); err != nil {
				c.o.Slog.Error("a guest that was to be removed is not back; it is when the daemon is started anew", "guest", g.Name, "err", err)
			}
		})
	}
	for _, g := range next.Guests {
		if _, here := h.guest(g.Name); here || !runsOn(g, c.self) {
			continue
		}
		if err := c.add(next, g); err != nil {
			return err
		}
		*back = append(*back, func() {
			h.forget(g.Name)
			call, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			if err := h.host.Remove(call, g.Name); err != nil {
				c.o.Slog.Error("a guest that was to be added is not gone", "guest", g.Name, "err", err)
			}
		})
	}
	return nil
}

// leaves reports whether a guest of this host goes, or has to be built anew.
func (c *changing) leaves(g config.Guest, next *config.Config, change config.Change) bool {
	after, stays := next.Guest(g.Name)
	return !stays || !runsOn(after, c.self) || slices.ContainsFunc(change.Items, func(i config.Item) bool {
		return i.Guest == g.Name && i.Treatment == config.RestartGuest
	})
}

func (c *changing) add(of *config.Config, g config.Guest) error {
	made, err := c.hosting.make(of, g)
	if err != nil {
		return err
	}
	if err := c.hosting.host.Add(made); err != nil {
		return err
	}
	c.hosting.keep(of, g, made)
	return nil
}

// settleTime bounds the wait for a guest's role to take new settings, and for its
// gate to have room for them.
const settleTime = 5 * time.Second

// settle gives the guests that stay their new settings. What cannot take effect
// at once does later, and is noted.
func (c *changing) settle(ctx context.Context, was, next *config.Config, change config.Change) (notes []string) {
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	anew := func(guest string) bool { // is its session to be made anew?
		return slices.ContainsFunc(change.Items, func(i config.Item) bool {
			g, _ := next.Guest(guest)
			return i.Treatment == config.Session && (i.Guest == guest || i.Guest == "" && (i.Host == "" || runsOn(g, i.Host)))
		})
	}
	for _, g := range next.Guests {
		made, here := c.hosting.guest(g.Name)
		before, known := was.Guest(g.Name)
		if !here || !known || c.leaves(before, next, change) {
			continue
		}
		c.hosting.settle(g, &made)
		c.hosting.keep(next, g, made)
		if err := c.hosting.host.Change(ctx, made, anew(g.Name)); err != nil {
			notes = append(notes, err.Error())
		}
		if before.Protection.HeldOutput != g.Protection.HeldOutput {
			if err := c.resize(ctx, made, int(g.Protection.HeldOutput)); err != nil {
				notes = append(notes, fmt.Sprintf("held_output of guest %s: %v; it takes effect when its daemon is started anew", g.Name, err))
			}
		}
	}
	return notes
}

// resize changes the room for held output as soon as what is held fits into it.
func (c *changing) resize(ctx context.Context, g host.Guest, bytes int) error {
	for {
		err := resize(g.Gate, bytes)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}
