package xenbus

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"understudy/hypervisor/xen/xenstore"
	"understudy/hypervisor/xen/xenstore/xenstoretest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// What a guest's driver does from its first breath to its second.
func TestAHandshake(t *testing.T) {
	var h Handshake
	for i, c := range []struct {
		guest State
		do    []Action
		ours  State
	}{
		{StateInitialising, []Action{Write}, StateInitWait},
		{StateInitialising, nil, StateInitWait},
		{StateInitialised, []Action{Connect, Write}, StateConnected},
		{StateInitialised, nil, StateConnected},
		{StateConnected, nil, StateConnected},
		{StateClosing, []Action{Disconnect, Write}, StateClosing},
		{StateClosing, nil, StateClosing},
		{StateClosed, []Action{Write}, StateClosed},
		{StateInitialised, nil, StateClosed}, // it has not seen that we have closed
		{StateInitialising, []Action{Write}, StateInitWait},
		{StateConnected, []Action{Connect, Write}, StateConnected}, // changes come several in one
		{StateInitialising, []Action{Disconnect, Write}, StateInitWait},
		{StateInitialised, []Action{Connect, Write}, StateConnected},
		{StateUnknown, []Action{Disconnect, Write}, StateClosed}, // its domain is gone
	} {
		if do := h.Step(c.guest); !slices.Equal(do, c.do) || h.State != c.ours {
			t.Fatalf("step %d, the guest in state %v: %v, ours %v; want %v, %v", i, c.guest, do, h.State, c.do, c.ours)
		}
	}
	if do := h.Failed(); !slices.Equal(do, []Action{Write}) || h.State != StateClosing {
		t.Errorf("after a failure: %v, ours %v", do, h.State)
	}
}

// A driver that was there before us is shown what we offer first.
func TestADriverThatIsConnectedAlready(t *testing.T) {
	var h Handshake
	for _, want := range [][]Action{{Write}, {Connect, Write}, nil} {
		if do := h.Step(StateConnected); !slices.Equal(do, want) {
			t.Fatalf("%v, want %v", do, want)
		}
	}
	var nobody Handshake
	for _, want := range [][]Action{{Write}, nil} {
		if do := nobody.Step(StateUnknown); !slices.Equal(do, want) || nobody.State != StateInitWait {
			t.Fatalf("%v, want %v", do, want)
		}
	}
}

func TestStates(t *testing.T) {
	for s := StateInitialising; s <= StateClosed; s++ {
		if got, err := ParseState(s.String()); got != s || err != nil {
			t.Errorf("%v is read as %v, %v", s, got, err)
		}
	}
	for _, bad := range []string{"7", "x", "-1", "256"} {
		if _, err := ParseState(bad); err == nil {
			t.Errorf("%q is a state", bad)
		}
	}
}

// backend notes what it is asked for.
type backend struct {
	mu    sync.Mutex
	did   []string
	fails error
}

func (b *backend) note(what string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.did = append(b.did, what)
}

func (b *backend) Offer() map[string]string { return map[string]string{"feature-x": "1"} }

func (b *backend) Plug(read func(key string) string) (map[string]string, error) {
	b.note("plug " + read("ring-ref") + read("missing"))
	return map[string]string{"sectors": "8"}, b.fails
}

func (b *backend) Unplug() { b.note("unplug") }

func (b *backend) all() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Join(b.did, ", ")
}

type world struct {
	t     *testing.T
	store *xenstoretest.Store
	guest *xenstore.Client
	front string
	back  string
	said  bytes.Buffer
}

func newWorld(t *testing.T) *world {
	s := xenstoretest.New(t)
	front, back := Paths(7, Disk, 51712)
	return &world{t: t, store: s, guest: s.Client(t), front: front, back: back}
}

func (w *world) attach(b *backend) *Device {
	w.t.Helper()
	d, err := Attach(w.t.Context(), Config{
		Store: w.store.Client(w.t), Domain: 7, Kind: Disk, Number: 51712, Front: map[string]string{"device-type": "disk"}, Back: map[string]string{"dev": "xvda"},
		Backend: b, Log: slog.New(slog.NewTextHandler(&w.said, nil)),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return d
}

// says lets the guest's driver write keys, then its state.
func (w *world) says(state State, keys ...string) {
	w.t.Helper()
	for _, key := range append(keys, "state="+state.String()) {
		key, value, _ := strings.Cut(key, "=")
		if err := w.guest.Write(w.t.Context(), 0, w.front+"/"+key, value); err != nil {
			w.t.Fatal(err)
		}
	}
}

// ours waits until our state is this.
func (w *world) ours(state State) {
	w.t.Helper()
	watch, err := w.guest.Watch(w.t.Context(), w.back)
	if err != nil {
		w.t.Fatal(err)
	}
	limit := time.After(20 * time.Second)
	for w.store.Values(w.back)["state"] != state.String() {
		select {
		case <-watch.Changed:
		case <-limit:
			w.t.Fatalf("our state is %s, want %s", w.store.Values(w.back)["state"], state)
		}
	}
	if err := watch.End(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// A device from its nodes to its end: the guest finds what it needs, is served,
// reboots, and is served again.
func TestADevice(t *testing.T) {
	w, b := newWorld(t), &backend{}
	d := w.attach(b)
	front, back := w.store.Values(w.front), w.store.Values(w.back)
	if front["backend"] != w.back || front["backend-id"] != "0" || front["device-type"] != "disk" || front["state"] != "1" {
		t.Errorf("the guest's side is %v", front)
	}
	if back["frontend"] != w.front || back["frontend-id"] != "7" || back["feature-x"] != "1" || back["dev"] != "xvda" || back["state"] != "2" {
		t.Errorf("our side is %v", back)
	}
	if w.store.Permissions(w.front) != "n7 r0" || w.store.Permissions(w.back) != "n0 r7" {
		t.Errorf("permissions %q, %q", w.store.Permissions(w.front), w.store.Permissions(w.back))
	}
	w.says(StateInitialised, "ring-ref=8")
	w.ours(StateConnected)
	if b.all() != "plug 8" || w.store.Values(w.back)["sectors"] != "8" {
		t.Errorf("the back end did %q", b.all())
	}
	w.says(StateConnected)
	w.says(StateClosing)
	w.ours(StateClosing)
	w.says(StateClosed)
	w.ours(StateClosed)
	w.says(StateInitialising)
	w.ours(StateInitWait)
	w.says(StateInitialised, "ring-ref=9")
	w.ours(StateConnected)
	if err := d.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if b.all() != "plug 8, unplug, plug 9, unplug" || len(w.store.Values(w.back)) != 0 {
		t.Errorf("the back end did %q, left are %v", b.all(), w.store.Values(w.back))
	}
	if err := d.Detach(t.Context()); err != nil {
		t.Error(err)
	}
}

// A disk is connected behind the network, if that asks soon enough, and at the end of its
// patience otherwise. Who detaches it then does not wait for that.
func TestADeviceBehindAnother(t *testing.T) {
	disk, network := newWorld(t), newWorld(t)
	network.store, network.guest = disk.store, disk.guest
	network.front, network.back = Paths(7, Network, 0)
	attach := func(w *world, c Config) *Device {
		c.Store, c.Domain = w.store.Client(t), 7
		d, err := Attach(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := d.Detach(context.Background()); err != nil {
				t.Error(err)
			}
		})
		return d
	}
	first := attach(network, Config{Kind: Network, Number: 0, Backend: &backend{}})
	attach(disk, Config{Kind: Disk, Number: 51712, Backend: &backend{}, Behind: []*Device{first}})
	disk.says(StateInitialised, "ring-ref=8")
	network.says(StateConnected)
	disk.ours(StateConnected)
	if is := network.store.Values(network.back)["state"]; is != StateConnected.String() {
		t.Errorf("the disk is connected while the network is in state %s", is)
	}
	// Its driver goes and comes back: nobody waits any more.
	disk.says(StateClosed)
	disk.ours(StateClosed)
	disk.says(StateInitialising)
	disk.ours(StateInitWait)
	disk.says(StateInitialised, "ring-ref=9")
	disk.ours(StateConnected)

	alone := newWorld(t)
	silent := attach(alone, Config{Kind: Network, Number: 1, Backend: &backend{}})
	attach(alone, Config{Kind: Disk, Number: 51712, Backend: &backend{}, Behind: []*Device{silent}})
	began := time.Now()
	alone.says(StateInitialised, "ring-ref=8")
	alone.ours(StateConnected)
	if waited := time.Since(began); waited < behindPatience {
		t.Errorf("without a network it is connected after %v", waited)
	}

	gone := newWorld(t)
	never := attach(gone, Config{Kind: Network, Number: 1, Backend: &backend{}})
	last := attach(gone, Config{Kind: Disk, Number: 51712, Backend: &backend{}, Behind: []*Device{never}})
	gone.says(StateInitialised, "ring-ref=8")
	began = time.Now()
	if err := last.Detach(t.Context()); err != nil {
		t.Error(err)
	}
	if waited := time.Since(began); waited >= behindPatience {
		t.Errorf("let go of after %v", waited)
	}
}

// A process that comes after another goes on with what is connected, at once and
// without the guest's notice, and begins where the other has stopped.
func TestAFormerProcess(t *testing.T) {
	w := newWorld(t)
	first := w.attach(&backend{})
	detach := func(d *Device) {
		t.Helper()
		if err := d.Detach(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	detach(first) // before the guest's driver was there
	w.says(StateInitialised, "ring-ref=8")
	second := w.attach(&backend{})
	w.ours(StateConnected)
	detach(second)
	b := &backend{}
	third := w.attach(b)
	if b.all() != "plug 8" {
		t.Errorf("at first the back end did %q", b.all())
	}
	select {
	case <-third.connected:
	default:
		t.Error("who is behind it would wait")
	}
	w.says(StateConnected)
	detach(third)
	if b.all() != "plug 8, unplug" || w.store.Values(w.back)["state"] != "4" {
		t.Errorf("the back end did %q, our state is %s", b.all(), w.store.Values(w.back)["state"])
	}
	// One that cannot go on says so to the guest.
	fourth := w.attach(&backend{fails: errors.New("no such ring")})
	w.ours(StateClosing)
	detach(fourth)
	if !strings.Contains(w.said.String(), "no such ring") {
		t.Errorf("the log: %s", w.said.String())
	}
}

// A driver that writes nonsense is refused, and another attempt of it is not.
func TestADriverThatWritesNonsense(t *testing.T) {
	w, b := newWorld(t), &backend{fails: errors.New("a ring of none")}
	d := w.attach(b)
	w.says(StateInitialised)
	w.ours(StateClosing)
	w.says(StateClosed)
	w.ours(StateClosed)
	w.says(StateInitialising)
	w.ours(StateInitWait)
	if err := w.guest.Write(t.Context(), 0, w.front+"/state", "99"); err != nil {
		t.Fatal(err)
	}
	w.ours(StateClosing)
	b.mu.Lock()
	b.fails = nil
	b.mu.Unlock()
	w.says(StateInitialising)
	w.ours(StateInitWait)
	w.says(StateInitialised, "ring-ref=1")
	w.ours(StateConnected)
	if err := d.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// What was left of domains that are gone is removed, and nothing else.
func TestSweep(t *testing.T) {
	store := xenstoretest.New(t)
	client, ctx := store.Client(t), t.Context()
	living := map[uint32]bool{7: true}
	gone := func(domain uint32) (bool, error) { return !living[domain], nil }
	if err := Sweep(ctx, client, gone); err != nil { // there is nothing
		t.Fatal(err)
	}
	for _, path := range []string{"understudy/vbd/3/51712/state", "understudy/vif/3/0/state", "understudy/vif/7/0/state", "understudy/vif/x/0/state", "backend/vif/3/0/state"} {
		if err := client.Write(ctx, 0, "/local/domain/0/"+path, "4"); err != nil {
			t.Fatal(err)
		}
	}
	if err := Sweep(ctx, client, gone); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{"understudy/vbd/3/51712/state": false, "understudy/vif/3/0/state": false, "understudy/vif/7/0/state": true, "understudy/vif/x/0/state": true, "backend/vif/3/0/state": true} {
		if _, err := client.Read(ctx, 0, "/local/domain/0/"+path); (err == nil) != want {
			t.Errorf("%s: error %v", path, err)
		}
	}
	broken := errors.New("no hypervisor")
	living[7] = false
	if err := Sweep(ctx, client, func(uint32) (bool, error) { return true, broken }); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
}
