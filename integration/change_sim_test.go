package integration

// The configuration of a pair changes while a client holds a connection to its
// guest: three whole daemons on loopback with simulated guests, everything else
// real. No story may cost a line, a failover, or a lost lease.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"understudy/cmd/daemon"
	"understudy/config"
	"understudy/egress"
	"understudy/hypervisor/sim"
	"understudy/ownership"
	"understudy/status"
	"understudy/transport/pki"
)

// trioTop is what these stories begin with: a lease that a busy machine does not end.
const trioTop = "lease = \"3s\"\nheartbeat = \"200ms\"\n"

// trio is the daemons of a cluster, each with a file of its own.
type trio struct {
	t     *testing.T
	dir   string
	net   *egress.Switch
	hosts []trioHost // of the configuration, in its order
	guest string     // the [[guest]] sections
	top   string     // keys of the cluster
	up    map[string]*trioDaemon
}

type trioHost struct {
	name, address string
	witness       bool
}

type trioDaemon struct {
	end    context.CancelFunc
	ended  chan error
	reload chan os.Signal
	client *status.Client
}

func newTrio(t *testing.T) *trio {
	t.Helper()
	dir, err := os.MkdirTemp("", "trio") // short: it holds Unix sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	x := &trio{t: t, dir: dir, up: map[string]*trioDaemon{}}
	x.must(pki.Init(filepath.Join(dir, "tls"), []string{"a", "b", "w"}, 24*time.Hour))
	x.net, err = egress.NewSwitch(filepath.Join(dir, "switch"), slog.New(slog.DiscardHandler))
	x.must(err)
	t.Cleanup(func() { _ = x.net.Close() })
	x.hosts = []trioHost{{"a", x.free(), false}, {"b", x.free(), false}, {"w", x.free(), true}}
	x.guest = x.section("web", "a", "b")
	x.top = trioTop
	for _, h := range x.hosts {
		x.write(h.name)
		x.start(h.name)
	}
	t.Cleanup(func() {
		x.stopGuests()
		for name := range x.up {
			x.stop(name)
		}
	})
	return x
}

func (x *trio) must(err error) {
	x.t.Helper()
	if err != nil {
		x.t.Fatal(err)
	}
}

func (x *trio) free() string {
	x.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	x.must(err)
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

func (x *trio) section(name, home, backup string, protection ...string) string {
	return fmt.Sprintf(`
[[guest]]
name = %q
host = %q
backup = %q
hypervisor = "sim"
memory = "8MiB"
[[guest.nic]]
mac = %q
segment = %q
[guest.protection]
epoch = "10ms"
detach_after = "3s"
%s
`, name, home, backup, sim.MACFor(name), filepath.Join(x.dir, "switch"), strings.Join(protection, "\n"))
}

// newTrioInUse is one whose guest web, of host a, is protected by b and serves a
// client.
func newTrioInUse(t *testing.T) (x *trio, ctx context.Context, c *sim.Client, web status.Guest) {
	t.Helper()
	x = newTrio(t)
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	t.Cleanup(cancel)
	x.protectedBy(ctx, "a", "web", "b")
	c, _ = x.caller(ctx, "web")
	x.must(c.WaitLine(ctx, 20))
	web, err := x.status(ctx, "a", "web")
	x.must(err)
	return x, ctx, c, web
}

// switchedOver moves web from host a to its backup, and checks that its client lost
// nothing.
func (x *trio) switchedOver(ctx context.Context, c *sim.Client, backup string) {
	x.t.Helper()
	x.must(x.up["a"].client.Operate(ctx, "web", "switchover", new(struct{})))
	x.protectedBy(ctx, backup, "web", "a")
	x.must(c.WaitLine(ctx, c.Report().Lines+20))
	x.must(c.Report().Err())
	x.t.Logf("%d lines in all, longest gap %v (of the switchover)", c.Report().Lines, c.Report().LongestGap)
}

// write writes the configuration, as it is to be now, to a host's file.
func (x *trio) write(name string) {
	x.t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "cluster = \"lab\"\ntls_dir = %q\n%s\n", filepath.Join(x.dir, "tls"), x.top)
	for _, h := range x.hosts {
		fmt.Fprintf(&b, "[[host]]\nname = %q\naddress = %q\nwitness = %v\nstate_dir = %q\nrun_dir = %q\n",
			h.name, h.address, h.witness, filepath.Join(x.dir, h.name+".state"), filepath.Join(x.dir, h.name))
	}
	b.WriteString(x.guest)
	x.must(os.WriteFile(x.file(name), []byte(b.String()), 0o600))
}

func (x *trio) file(name string) string { return filepath.Join(x.dir, name+".toml") }

func (x *trio) start(name string) {
	x.t.Helper()
	c, err := config.Load(x.file(name))
	x.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	self, _ := c.Host(name)
	d := &trioDaemon{end: cancel, ended: make(chan error, 1), reload: make(chan os.Signal, 1), client: status.NewClient(daemon.Socket(c, self))}
	ready := make(chan struct{})
	go func() {
		d.ended <- daemon.Run(ctx, daemon.Options{Config: c, File: x.file(name), Host: name, Reload: d.reload,
			Slog: testLog(x.t).With("host", name), Ready: func() { close(ready) }})
	}()
	select {
	case <-ready:
	case err := <-d.ended:
		x.t.Fatalf("daemon of %s: %v", name, err)
	}
	x.up[name] = d
}

func (x *trio) stop(name string) {
	x.t.Helper()
	d := x.up[name]
	delete(x.up, name)
	d.end()
	if err := <-d.ended; err != nil {
		x.t.Errorf("daemon of %s: %v", name, err)
	}
}

// stopGuests stops what runs: it would outlive its daemon.
func (x *trio) stopGuests() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, d := range x.up {
		r, err := d.client.Status(ctx)
		x.must(err)
		for _, g := range r.Guests {
			if g.Primary != nil {
				x.must(d.client.Operate(ctx, g.Name, "stop", new(struct{})))
			}
		}
	}
}

// apply lets a host read its file, written anew, and make it count.
func (x *trio) apply(ctx context.Context, name string) (config.Change, error) {
	x.t.Helper()
	x.write(name)
	var c config.Change
	err := x.up[name].client.Post(ctx, "/api/v1/config", status.ConfigRequest{Reload: true}, &c)
	return c, err
}

func (x *trio) applied(ctx context.Context, names ...string) {
	x.t.Helper()
	for _, name := range names {
		c, err := x.apply(ctx, name)
		x.must(err)
		if !c.Applied || len(c.Notes) > 0 {
			x.t.Fatalf("%s: %+v", name, c)
		}
		x.t.Logf("%s: %s", name, c.Summary())
	}
}

func (x *trio) status(ctx context.Context, name, guest string) (status.Guest, error) {
	var g status.Guest
	d := x.up[name]
	if d == nil {
		return g, errors.New("it is down")
	}
	return g, d.client.Get(ctx, "/api/v1/guests/"+guest, &g)
}

// until waits for what a host says of a guest.
func (x *trio) until(ctx context.Context, what, name, guest string, ok func(g status.Guest) bool) status.Guest {
	x.t.Helper()
	for {
		g, err := x.status(ctx, name, guest)
		if err == nil && ok(g) {
			return g
		}
		select {
		case <-ctx.Done():
			x.t.Fatalf("never on %s: %s; last: %+v, %v", name, what, g, err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (x *trio) protectedBy(ctx context.Context, name, guest, backup string) status.Guest {
	x.t.Helper()
	return x.until(ctx, "protected by "+backup, name, guest, func(g status.Guest) bool {
		return g.Protected == "yes" && string(g.Primary.Backup) == backup
	})
}

// caller is a client that counts lines of the guest.
func (x *trio) caller(ctx context.Context, guest string) (c *sim.Client, hangUp func()) {
	x.t.Helper()
	port, err := egress.OpenSegment(egress.SocketConfig{Local: filepath.Join(x.dir, "client-"+guest), Remote: filepath.Join(x.dir, "switch"), UID: -1, GID: -1})
	x.must(err)
	link := sim.NewLink(port, egress.ErrEmpty)
	c, err = sim.NewClient(sim.ClientConfig{Guest: sim.MACFor(guest), MAC: net.HardwareAddr{2, 0, 0, 0, 1, byte(len(guest))}, NIC: link})
	x.must(err)
	ctx, cancel := context.WithCancel(ctx)
	var calling sync.WaitGroup
	calling.Go(func() {
		if err := c.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
			x.t.Errorf("client of %s: %v", guest, err)
		}
		_ = link.Close()
	})
	hangUp = sync.OnceFunc(func() {
		cancel()
		calling.Wait()
	})
	x.t.Cleanup(hangUp)
	return c, hangUp
}

// quiet checks that nothing happened to the guest that its client could notice.
func (x *trio) quiet(ctx context.Context, c *sim.Client, name, guest string, generation uint64) {
	x.t.Helper()
	x.must(c.WaitLine(ctx, c.Report().Lines+50))
	x.must(c.Report().Err())
	g, err := x.status(ctx, name, guest)
	x.must(err)
	if uint64(g.Log.Generation) != generation || string(g.Log.Owner) != name {
		x.t.Errorf("guest %s is owned by %s in generation %d, was by %s in %d", guest, g.Log.Owner, g.Log.Generation, name, generation)
	}
	var events struct {
		Events []struct{ Kind, Text string } `json:"events"`
	}
	x.must(x.up[name].client.Get(ctx, "/api/v1/events?limit=1000&guest="+guest, &events))
	for _, e := range events.Events {
		if e.Kind == "lease-lost" {
			x.t.Errorf("guest %s: %s", guest, e.Text)
		}
	}
	x.t.Logf("guest %s: %d lines, longest gap %v", guest, c.Report().Lines, c.Report().LongestGap)
}

// TestTheConfigurationChangesUnderAGuest: settings, one after the other; what cannot
// be done is refused as a whole and says why; guests come and go.
func TestTheConfigurationChangesUnderAGuest(t *testing.T) {
	x, ctx, c, before := newTrioInUse(t)
	image, generation := before.Primary.Image, uint64(before.Log.Generation)

	// Nothing has changed.
	for _, name := range []string{"a", "b", "w"} {
		if ch, err := x.apply(ctx, name); err != nil || !ch.Empty() {
			t.Fatalf("%s: %+v, %v", name, ch, err)
		}
	}
	// Live settings, by request and by signal.
	x.guest = x.section("web", "a", "b", `window = 4`, `held_output = "8MiB"`, `compression = "none"`, `verify_every = "1s"`)
	x.applied(ctx, "a", "b")
	x.guest = x.section("web", "a", "b", `window = 3`, `rebuild = "eager"`)
	for _, name := range []string{"a", "b", "w"} {
		x.write(name)
		x.up[name].reload <- nil
	}
	running := func(name string) status.RunningConfig {
		var r status.RunningConfig
		x.must(x.up[name].client.Get(ctx, "/api/v1/config", &r))
		return r
	}
	want, err := config.Load(x.file("a"))
	x.must(err)
	for _, name := range []string{"a", "b", "w"} {
		for running(name).Hash != want.Hash() {
			select {
			case <-ctx.Done():
				t.Fatalf("%s never read its file", name)
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
	// The session is made anew, and continues the image.
	x.top = strings.Replace(trioTop, "200ms", "100ms", 1)
	x.guest = x.section("web", "a", "b", `window = 3`, `connections = 4`, `delta_cache = "8MiB"`)
	x.applied(ctx, "b", "w", "a")
	if g := x.protectedBy(ctx, "a", "web", "b"); g.Primary.Image != image {
		t.Errorf("the image was made anew")
	}
	x.quiet(ctx, c, "a", "web", generation)

	// What cannot be done now is refused, and nothing of it is done.
	kept := x.guest
	for _, c := range []struct {
		name, guest, why string
		change           func(text string) string
	}{
		{"more memory, and a narrower window", strings.Replace(strings.Replace(kept, "8MiB", "16MiB", 1), "window = 3", "window = 2", 1), "understudy stop web", nil},
		{"no guest", "", "understudy stop web", nil},
		{"another cluster", kept, "understudy init", func(s string) string { return strings.Replace(s, `"lab"`, `"other"`, 1) }},
		{"other directories", kept, "start understudyd anew", func(s string) string { return strings.ReplaceAll(s, "a.state", "a.other") }},
		{"nonsense", kept, "line 1", func(string) string { return "?" }},
	} {
		x.guest = c.guest
		x.write("a")
		if c.change != nil {
			x.must(os.WriteFile(x.file("a"), []byte(c.change(string(must(os.ReadFile(x.file("a")))))), 0o600))
		}
		err := x.up["a"].client.Post(ctx, "/api/v1/config", status.ConfigRequest{Reload: true}, new(config.Change))
		if err == nil || !strings.Contains(err.Error(), "stays as it is") || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	x.guest = kept
	x.write("a")
	if r := running("a"); r.Hash != must(config.Load(x.file("a"))).Hash() {
		t.Errorf("the refused configuration runs:\n%s", r.TOML)
	}

	// A guest is added on both hosts, boots and is protected; and goes again.
	x.guest = kept + x.section("database", "b", "a")
	x.applied(ctx, "a", "b", "w")
	x.protectedBy(ctx, "b", "database", "a")
	d, hangUp := x.caller(ctx, "database")
	x.must(d.WaitLine(ctx, 20))
	hangUp()
	x.guest = kept
	if _, err := x.apply(ctx, "b"); err == nil || !strings.Contains(err.Error(), "understudy stop database") {
		t.Errorf("a guest that runs was removed: %v", err)
	}
	x.must(x.up["b"].client.Operate(ctx, "database", "stop", new(struct{})))
	x.until(ctx, "stopped", "a", "database", func(g status.Guest) bool { return g.Role == "stopped" })
	x.applied(ctx, "b", "a", "w")
	if _, err := x.status(ctx, "b", "database"); err == nil {
		t.Error("the guest is still there")
	}
	// … and comes back with more memory.
	x.guest = kept + strings.Replace(x.section("database", "b", "a"), "8MiB", "16MiB", 1)
	x.applied(ctx, "a", "b", "w")
	x.until(ctx, "stopped", "b", "database", func(g status.Guest) bool { return g.Role == "stopped" })
	x.must(x.up["b"].client.Operate(ctx, "database", "start", new(struct{})))
	if g := x.protectedBy(ctx, "b", "database", "a"); g.Primary.Pages != 4096 {
		t.Errorf("it has %d pages", g.Primary.Pages)
	}
	x.quiet(ctx, c, "a", "web", generation)

	// While it is stopped, its memory changes in place.
	x.must(x.up["b"].client.Operate(ctx, "database", "stop", new(struct{})))
	x.until(ctx, "stopped", "a", "database", func(g status.Guest) bool { return g.Role == "stopped" })
	x.guest = kept + x.section("database", "b", "a")
	x.applied(ctx, "b", "a", "w")
	x.until(ctx, "stopped", "b", "database", func(g status.Guest) bool { return g.Role == "stopped" })
	x.must(x.up["b"].client.Operate(ctx, "database", "start", new(struct{})))
	if g := x.protectedBy(ctx, "b", "database", "a"); g.Primary.Pages != 2048 {
		t.Errorf("it has %d pages", g.Primary.Pages)
	}
	x.quiet(ctx, c, "a", "web", generation)
	if g := x.protectedBy(ctx, "a", "web", "b"); g.Primary.Image != image {
		t.Errorf("the image of web was made anew")
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// replace puts a fresh host into the place of another in the configuration of all
// that stay, starts it, and lets by drive the log's part.
func (x *trio) replace(ctx context.Context, old, fresh, by string) {
	x.t.Helper()
	began := time.Now()
	x.must(pki.Reissue(filepath.Join(x.dir, "tls"), fresh, 24*time.Hour))
	var stay []string
	for i, h := range x.hosts {
		if h.name == old {
			x.hosts[i].name, x.hosts[i].address = fresh, x.free()
		} else {
			stay = append(stay, h.name)
		}
	}
	x.guest = strings.ReplaceAll(x.guest, fmt.Sprintf("backup = %q", old), fmt.Sprintf("backup = %q", fresh))
	x.write(fresh)
	x.start(fresh)
	x.applied(ctx, stay...)
	x.t.Logf("%s → %s: configured after %v", old, fresh, time.Since(began).Round(time.Millisecond))
	var said string
	for {
		c, err := x.up[by].client.Replace(ctx, ownership.HostID(old), ownership.HostID(fresh), func(text string) {
			x.t.Logf("%8v %s", time.Since(began).Round(time.Millisecond), text)
		})
		if err == nil {
			for _, v := range c.Voters {
				if !v.Configured || !v.Member || !v.Votes {
					x.t.Errorf("in the end %+v", v)
				}
			}
			break
		}
		// The backup's place has to be taken first.
		if !strings.Contains(err.Error(), "is the backup in sync") {
			x.t.Fatal(err)
		}
		said = err.Error()
		select {
		case <-ctx.Done():
			x.t.Fatal(said)
		case <-time.After(20 * time.Millisecond):
		}
	}
	x.t.Logf("%s → %s: done after %v %s", old, fresh, time.Since(began).Round(time.Millisecond), said)
}

// TestTheWitnessIsReplacedUnderAGuest, alive and then dead, while a client counts:
// no failover, no lost lease, no line lost. Then the guest fails over with the fresh
// witness' vote alone.
func TestTheWitnessIsReplacedUnderAGuest(t *testing.T) {
	x, ctx, c, g := newTrioInUse(t)
	image := g.Primary.Image

	x.replace(ctx, "w", "w2", "a")
	x.stop("w")
	x.quiet(ctx, c, "a", "web", uint64(g.Log.Generation))
	x.stop("w2") // it dies, and is replaced by one that comes after its death
	x.replace(ctx, "w2", "w3", "b")
	x.quiet(ctx, c, "a", "web", uint64(g.Log.Generation))
	if now := x.protectedBy(ctx, "a", "web", "b"); now.Primary.Image != image {
		t.Error("the image was made anew")
	}
	// A daemon that is started anew finds the log with the fresh witness.
	x.stop("b")
	x.start("b")
	x.protectedBy(ctx, "a", "web", "b")
	x.switchedOver(ctx, c, "b")
}

// TestTheBackupsHostIsReplacedByAFreshOne: its machine is lost; the guest runs on,
// and is protected by the fresh one, to which it then goes.
func TestTheBackupsHostIsReplacedByAFreshOne(t *testing.T) {
	x, ctx, c, g := newTrioInUse(t)

	x.stop("b")
	lost := time.Now()
	x.replace(ctx, "b", "c", "a")
	x.protectedBy(ctx, "a", "web", "c")
	t.Logf("protected by the fresh host %v after the old one was lost", time.Since(lost).Round(time.Millisecond))
	x.quiet(ctx, c, "a", "web", uint64(g.Log.Generation))
	x.switchedOver(ctx, c, "c")
}
