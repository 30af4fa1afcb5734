package xen

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"understudy/hypervisor"
)

// fakeHost is a Xen host whose domains are fakes.
type fakeHost struct {
	workshop
	domains map[uint32]*fake
	names   map[uint32]string
	next    uint32
	fails   map[string]error // by what is asked of it
	hangs   chan struct{}    // Create tells that it waits, and waits for its context; nil: it does not
	swept   int
}

func newFakeHost() *fakeHost {
	return &fakeHost{domains: map[uint32]*fake{}, names: map[uint32]string{}, fails: map[string]error{}}
}

// add makes a domain.
func (h *fakeHost) add(name string, id [16]byte) uint32 {
	h.next++
	f := newFake()
	f.info.Domain, f.info.UUID = h.next, id
	h.domains[h.next], h.names[h.next] = f, name
	return h.next
}

func (h *fakeHost) Create(ctx context.Context, config []byte) (uint32, error) {
	var c struct {
		Create struct{ Name, UUID string } `json:"c_info"`
	}
	if err := json.Unmarshal(config, &c); err != nil {
		return 0, err
	}
	var id [16]byte
	text := strings.ReplaceAll(c.Create.UUID, "-", "")
	for i := range id {
		id[i] = unhex(text[2*i])<<4 | unhex(text[2*i+1])
	}
	domain := h.add(c.Create.Name, id)
	if h.hangs != nil {
		close(h.hangs)
		<-ctx.Done()
		return domain, ctx.Err()
	}
	return domain, h.fails["create"]
}

func unhex(b byte) byte { return byte(strings.IndexByte("0123456789abcdef", b)) }

func (h *fakeHost) Attach(_ context.Context, domain uint32) (*Attached, error) {
	if err := h.fails["attach"]; err != nil {
		return nil, err
	}
	frames, _ := NewFrames(fakeRuns)
	head, err := Head(4, 17, Policies{CPUID: make([]byte, 48)})
	return &Attached{Domain: h.domains[domain], Ask: h.domains[domain], Frames: frames, Head: head, Rings: []uint64{127}}, err
}

func (h *fakeHost) Rename(domain uint32, name string) error {
	h.names[domain] = name
	return h.fails["rename"]
}

func (h *fakeHost) Destroy(domain uint32) error {
	f := h.domains[domain]
	if f == nil {
		return syscall.ESRCH
	}
	f.mu.Lock()
	f.gone = true
	f.mu.Unlock()
	return nil
}

func (h *fakeHost) Sweep(context.Context) error { h.swept++; return nil }

func (h *fakeHost) Domains(context.Context) ([]Named, error) {
	var all []Named
	for n, f := range h.domains {
		if info, err := f.Info(); err == nil {
			all = append(all, Named{info, h.names[n]})
		}
	}
	return all, nil
}

// living are the names of the domains that are there.
func (h *fakeHost) living() (names []string) {
	all, _ := h.Domains(context.Background())
	for _, one := range all {
		names = append(names, one.Name)
	}
	slices.Sort(names)
	return names
}

func testConfig(t *testing.T) Config {
	kernel := filepath.Join(t.TempDir(), "vmlinuz")
	must(t, os.WriteFile(kernel, []byte("a kernel"), 0o644))
	return Config{Name: "web", Type: PVH, Memory: 64 << 20, VCPUs: 2, Kernel: kernel, Append: "quiet"}
}

func newTestDriver(t *testing.T, h *fakeHost, c Config) *Driver {
	d, err := NewDriver(c, h, slog.New(slog.DiscardHandler))
	must(t, err)
	return d
}

// A domain is the guest by its name once it is whole; a later process finds it by
// what its UUID says, and resumes nothing by itself.
func TestADriverStartsAndAdopts(t *testing.T) {
	h := newFakeHost()
	d := newTestDriver(t, h, testConfig(t))
	if _, err := d.Adopt(t.Context()); !errors.Is(err, hypervisor.ErrNoGuest) || d.Left() {
		t.Errorf("on an empty host: %v", err)
	}
	g, err := d.Start(t.Context())
	must(t, err)
	if got := h.living(); !slices.Equal(got, []string{"web"}) || !d.Left() {
		t.Errorf("the domains are %q", got)
	}
	var refusal *hypervisor.Refusal
	if _, err := d.Start(t.Context()); !errors.As(err, &refusal) {
		t.Errorf("a second start: %v", err)
	}
	must(t, g.Resume(t.Context()))
	must(t, g.Detach())

	// The former process was about to make others.
	h.add("web.standby-0000", newUUID("web"))
	h.add("web.new-0000", newUUID("web"))
	h.add("webshop", newUUID("webshop"))
	again := newTestDriver(t, h, testConfig(t))
	adopted, err := again.Adopt(t.Context())
	must(t, err)
	if got := h.living(); !slices.Equal(got, []string{"web", "webshop"}) {
		t.Errorf("after the adoption the domains are %q", got)
	}
	if f := h.domains[1]; !f.info.Shutdown || f.info.Reason != ReasonSuspend || f.resumed != 1 {
		t.Errorf("the guest that was adopted is %+v", f.info)
	}
	must(t, adopted.Detach())

	// It was left suspended: it is found so, and goes on.
	if adopted, err = again.Adopt(t.Context()); err != nil {
		t.Fatal(err)
	}
	must(t, adopted.Resume(t.Context()))
	if h.domains[1].resumed != 2 {
		t.Error("the guest was left suspended")
	}
	must(t, adopted.Detach())
	must(t, again.Clean(t.Context()))
	if got := h.living(); !slices.Equal(got, []string{"webshop"}) || h.swept != 1 {
		t.Errorf("after cleaning the domains are %q", got)
	}
}

// A start that fails leaves no domain, wherever it fails.
func TestAStartThatFails(t *testing.T) {
	for _, step := range []string{"create", "attach", "rename"} {
		h := newFakeHost()
		h.fails[step] = errors.New("no memory")
		if _, err := newTestDriver(t, h, testConfig(t)).Start(t.Context()); err == nil || !strings.Contains(err.Error(), "no memory") || len(h.living()) != 0 {
			t.Errorf("%s: error %v, left are %q", step, err, h.living())
		}
	}
	h := newFakeHost()
	h.add("web", [16]byte{1})
	if _, err := newTestDriver(t, h, testConfig(t)).Start(t.Context()); err == nil || !strings.Contains(err.Error(), "has not made") {
		t.Errorf("a name that somebody else has: %v", err)
	}
	must(t, newTestDriver(t, h, testConfig(t)).Clean(t.Context()))
	if len(h.living()) != 1 {
		t.Error("somebody else's domain is cleaned away")
	}
}

// A start that is cancelled while its firmware lays memory out does not wait for it,
// and leaves no domain.
func TestAStartIsCancelled(t *testing.T) {
	h := newFakeHost()
	h.hangs = make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-h.hangs
		cancel()
	}()
	if _, err := newTestDriver(t, h, testConfig(t)).Start(ctx); !errors.Is(err, context.Canceled) || len(h.living()) != 0 {
		t.Errorf("error %v, left are %q", err, h.living())
	}
}

// A standby is made for the very guest that is configured here.
func TestADriverStandsBy(t *testing.T) {
	h, c := newFakeHost(), testConfig(t)
	d := newTestDriver(t, h, c)
	g, err := d.Start(t.Context())
	must(t, err)
	defer func() { must(t, g.Destroy()) }()
	s, err := d.Standby(t.Context(), g.Spec())
	must(t, err)
	must(t, s.Destroy())

	other := c
	other.VCPUs = 4
	must(t, os.WriteFile(c.Kernel+"-2", []byte("another kernel"), 0o644))
	newer := c
	newer.Kernel += "-2"
	for name, change := range map[string]Config{"processors": other, "kernel": newer} {
		var refusal *hypervisor.Refusal
		if _, err := newTestDriver(t, h, change).Standby(t.Context(), g.Spec()); !errors.As(err, &refusal) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What libxl is told, and what is refused.
func TestConfigOfADomain(t *testing.T) {
	c := testConfig(t)
	c.Domain = "web"
	text, err := c.toolstack(suffixNew, newUUID("web"))
	must(t, err)
	for _, want := range []string{`"type":"pvh"`, `"name":"web.new-`, `"max_memkb":65536`, `"avail_vcpus":[0,1]`, `"on_reboot":"preserve"`, `"type.pvh":{}`} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("the toolstack is told %s, want %s in it", text, want)
		}
	}
	pc := c
	pc.Type = HVM
	text, err = pc.toolstack(suffixNew, newUUID("web"))
	must(t, err)
	for _, want := range []string{`"type":"hvm"`, `"type.hvm":{`, `"vga":{"kind":"none"}`, `"vnc":{"enable":"False"}`} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("the toolstack is told %s, want %s in it", text, want)
		}
	}
	must(t, pc.validate())
	for name, change := range map[string]func(*Config){
		"PV": func(c *Config) { c.Type = "pv" }, "type": func(c *Config) { c.Type = "arm" }, "name": func(c *Config) { c.Name = "a/b" },
		"memory": func(c *Config) { c.Memory++ }, "processors": func(c *Config) { c.VCPUs = 0 }, "kernel": func(c *Config) { c.Kernel = "" },
	} {
		bad := testConfig(t)
		change(&bad)
		var refusal *hypervisor.Refusal
		if _, err := NewDriver(bad, newFakeHost(), slog.New(slog.DiscardHandler)); !errors.As(err, &refusal) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if id := newUUID("web"); !ours("web", id) || ours("webshop", id) || ours("web", [16]byte{}) {
		t.Error("a UUID does not say whose it is")
	}
}
