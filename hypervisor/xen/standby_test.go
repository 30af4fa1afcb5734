package xen

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"understudy/epoch"
	"understudy/hypervisor"
	"understudy/hypervisor/xen/stream"
)

// workshop makes fake domains, whose restores change what a restore makes anew.
type workshop struct {
	made      []*waitingFake
	fails     error // of Make
	finish    error // of the next Finish
	guest     error // of the next Guest
	named     int
	discarded int
	litter    bool // memory comes as somebody has left it
}

type waitingFake struct {
	shop     *workshop
	memory   []byte
	restored bool
	domain   *fake
	tail     []byte
	over     bool
}

// live is what the toolstack has on the console's page of a domain that is restored.
var live = bytes.Repeat([]byte{'x'}, epoch.PageSize)

// console is the page of frame 127.
func (w *waitingFake) console() []byte { return w.memory[63*epoch.PageSize:] }

func (w *workshop) Make(_ context.Context, spec *Spec, frames *Frames) (Waiting, error) {
	if w.fails != nil {
		return nil, w.fails
	}
	if len(spec.Head) == 0 || frames.Pages() != 64 {
		return nil, errors.New("the spec is not whole")
	}
	made := &waitingFake{shop: w, memory: make([]byte, 64*epoch.PageSize), restored: len(spec.Tail) > 0}
	if w.litter {
		copy(made.memory, bytes.Repeat([]byte{0xc2}, 40*epoch.PageSize))
	}
	if made.restored {
		copy(made.console(), live)
	}
	w.made = append(w.made, made)
	return made, nil
}

func (w *waitingFake) Memory() []byte { return w.memory }

func (w *waitingFake) Finish(_ context.Context, tail []byte) (*Finished, error) {
	if !w.restored {
		clear(w.console())
	}
	w.tail = tail
	if err := w.shop.finish; err != nil {
		w.shop.finish = nil
		return nil, err
	}
	w.domain = newFake()
	w.domain.memory = w.memory
	return &Finished{Number: 3, Domain: w.domain, Ask: w.domain}, nil
}

func (w *workshop) Guest(_ context.Context, f *Finished, spec *Spec, _ *Frames, rings []uint64) (*Guest, error) {
	if err := w.guest; err != nil {
		w.guest = nil
		return nil, err
	}
	return NewGuest(GuestConfig{Name: "web", Domain: f.Domain, Ask: f.Ask, Spec: *spec, Rings: rings})
}

func (w *workshop) Named(*Finished) error {
	w.named++
	return nil
}

func (w *waitingFake) Discard() error {
	w.over = true
	w.shop.discarded++
	return nil
}

func tailOf(t testing.TB, rings ...uint64) []byte {
	s := state()
	s.Params = nil
	for i, frame := range rings {
		s.Params = append(s.Params, stream.HVMParam{Index: []uint64{paramConsole, paramStore}[i], Value: frame})
	}
	d, err := ParseHead(head(t))
	must(t, err)
	tail, err := s.AppendTail(nil, d)
	must(t, err)
	return tail
}

func newTestStandby(t *testing.T, shop *workshop) *Standby {
	packed, err := Spec{Head: head(t), Memory: fakeRuns, Config: []byte("{}")}.Pack()
	must(t, err)
	s, err := NewStandby(t.Context(), "web", shop, packed)
	must(t, err)
	t.Cleanup(func() { _ = s.Destroy() })
	return s
}

// The state of a device model belongs to domains that have one; nothing else is begun
// with.
func TestADeviceModelsStateIsOfItsDomain(t *testing.T) {
	d, err := ParseHead(head(t))
	must(t, err)
	for kind, has := range map[Type]bool{PVH: false, HVM: true} {
		shop := &workshop{}
		packed, err := Spec{Head: head(t), Memory: fakeRuns, Config: []byte(`{"type":"` + string(kind) + `"}`)}.Pack()
		must(t, err)
		s, err := NewStandby(t.Context(), "web", shop, packed)
		must(t, err)
		plain, emulated := state(), state()
		emulated.Emulator = []byte("QEVM")
		right, wrong := plain, emulated
		if has {
			right, wrong = wrong, right
		}
		tail, err := wrong.AppendTail(nil, d)
		must(t, err)
		if err := s.Load(t.Context(), tail, nil); err == nil || !strings.Contains(err.Error(), "device model") {
			t.Errorf("%s: error %v", kind, err)
		}
		tail, err = right.AppendTail(nil, d)
		must(t, err)
		must(t, s.Load(t.Context(), tail, nil))
		must(t, s.Destroy())
	}
}

func TestAStandbyTakesOver(t *testing.T) {
	shop := &workshop{}
	s := newTestStandby(t, shop)
	ctx := t.Context()
	page := bytes.Repeat([]byte{'a'}, epoch.PageSize)
	must(t, s.WritePages(5, page))
	if _, err := s.Run(ctx); err == nil {
		t.Error("it runs without a state")
	}
	must(t, s.Load(ctx, tailOf(t, 127), fetcher{7: 'b'}))
	if s.WritePages(5, page) == nil || s.Load(ctx, tailOf(t, 127), nil) == nil {
		t.Error("its memory changes after it was loaded")
	}
	g, err := s.Run(ctx)
	must(t, err)
	defer func() { _ = g.Destroy() }()
	got := make([]byte, epoch.PageSize)
	must(t, g.ReadPages(5, got))
	if !bytes.Equal(got, page) || shop.made[0].memory[7*epoch.PageSize] != 'b' || shop.made[0].domain.resumed != 1 {
		t.Error("it does not go on with what was committed")
	}
	must(t, g.Pause(ctx))
	set := epoch.NewPageSet(64)
	must(t, g.CollectDirty(set))
	must(t, g.Resume(ctx))
	must(t, g.Pause(ctx))
	set.Clear()
	must(t, g.CollectDirty(set))
	if !set.Contains(63) || set.Count() != 1 {
		t.Errorf("of a domain that does nothing %d pages are dirty, want its console", set.Count())
	}
	must(t, s.Destroy())
	if shop.made[0].domain.gone {
		t.Error("the standby ends the guest that it has become")
	}
}

// A restore that fails has cost nothing: the next attempt begins with what was
// committed, also where the first one has written.
func TestARestoreThatFails(t *testing.T) {
	shop := &workshop{finish: errors.New("no event channel")}
	s := newTestStandby(t, shop)
	ctx := t.Context()
	ring := bytes.Repeat([]byte{'r'}, epoch.PageSize)
	must(t, s.WritePages(63, ring))
	must(t, s.WritePages(0, ring))
	if err := s.Load(ctx, tailOf(t, 127), nil); err == nil || !strings.Contains(err.Error(), "no event channel") {
		t.Errorf("error %v", err)
	}
	got := make([]byte, 2*epoch.PageSize)
	must(t, s.ReadPages(62, got))
	if !bytes.Equal(got[epoch.PageSize:], ring) {
		t.Error("the image has changed with the failure")
	}
	if s.Load(ctx, tailOf(t, 127), nil) == nil {
		t.Error("a second state for one restore")
	}
	shop.fails = errors.New("no memory")
	if s.Reset(ctx) == nil || shop.made[0].over {
		t.Error("a reset that failed has let go of the image")
	}
	shop.fails = nil
	must(t, s.Reset(ctx))
	if !shop.made[0].over || !bytes.Equal(shop.made[1].memory[63*epoch.PageSize:], ring) || !bytes.Equal(shop.made[1].memory[:epoch.PageSize], ring) {
		t.Error("the new domain has other memory")
	}
	must(t, s.WritePages(1, ring)) // it is a standby as before
	must(t, s.Load(ctx, tailOf(t, 127), nil))
	must(t, s.Reset(ctx)) // after a load that nobody wanted
	if !shop.made[1].domain.gone || shop.discarded != 2 {
		t.Error("the domain that was loaded is still there")
	}
	shop.guest = errors.New("no network")
	if err := s.Load(ctx, tailOf(t, 127), nil); err == nil || !strings.Contains(err.Error(), "no network") {
		t.Errorf("error %v", err)
	}
	must(t, s.Reset(ctx)) // after one of whose domain no guest could be made
	if d := shop.made[2].domain; !d.gone || !d.closed {
		t.Error("the domain that no guest was made of is still there")
	}
	must(t, s.Destroy())
	if !shop.made[3].over {
		t.Error("a domain is left")
	}
	if s.Reset(ctx) == nil || s.Load(ctx, nil, nil) == nil || s.WritePages(0, ring) == nil {
		t.Error("it is of use still")
	}
}

// The domain of a guest whose description has a state is restored ahead of time. The
// toolstack's rings in it are never written, whatever their pages are committed as, in
// whatever pieces they come.
func TestADomainThatIsRestoredAheadOfTime(t *testing.T) {
	shop := &workshop{litter: true}
	packed, err := Spec{Head: head(t), Memory: fakeRuns, Config: []byte("{}"), Tail: tailOf(t, 127)}.Pack()
	must(t, err)
	s, err := NewStandby(t.Context(), "web", shop, packed)
	must(t, err)
	ctx := t.Context()
	got := make([]byte, 64*epoch.PageSize)
	must(t, s.ReadPages(0, got))
	if len(bytes.Trim(got, "\x00")) > 0 {
		t.Error("the image is not zero at first")
	}
	all := make([]byte, 64*epoch.PageSize)
	for i := range all {
		all[i] = byte(i / epoch.PageSize)
	}
	must(t, s.WritePages(0, all[:10*epoch.PageSize]))
	must(t, s.WritePages(10, all[10*epoch.PageSize:]))
	holds := func(when string) {
		t.Helper()
		must(t, s.ReadPages(0, got))
		now := shop.made[len(shop.made)-1]
		if !bytes.Equal(got, all) || !bytes.Equal(now.memory[:63*epoch.PageSize], all[:63*epoch.PageSize]) {
			t.Errorf("%s: the image is not what was written", when)
		}
		if !bytes.Equal(now.console(), live) {
			t.Errorf("%s: the toolstack's ring was written", when)
		}
	}
	holds("written")
	if err := s.Load(ctx, tailOf(t, 126), nil); err == nil || !strings.Contains(err.Error(), "[62]") {
		t.Errorf("rings at another page: error %v", err)
	}
	must(t, s.WritePages(63, all[63*epoch.PageSize:])) // that has cost nothing
	must(t, s.Load(ctx, tailOf(t, 127), fetcher{9: 9}))
	holds("loaded")
	must(t, s.Reset(ctx))
	holds("reset")
	must(t, s.WritePages(62, all[62*epoch.PageSize:]))
	must(t, s.Load(ctx, tailOf(t, 127), nil))
	g, err := s.Run(ctx)
	must(t, err)
	defer func() { _ = g.Destroy() }()
	must(t, s.Destroy())
	if shop.made[1].domain.gone || shop.made[1].domain.resumed != 1 || !bytes.Equal(shop.made[1].tail, tailOf(t, 127)) {
		t.Error("it does not go on with its state")
	}
}

// A state that is torn never reaches the restore, nor does one whose pages cannot
// all be had.
func TestNothingTornIsLoaded(t *testing.T) {
	shop := &workshop{}
	s := newTestStandby(t, shop)
	tail := tailOf(t, 127)
	for n := 0; n < len(tail); n += 3 {
		if s.Load(t.Context(), tail[:n], nil) == nil {
			t.Fatalf("%d of %d bytes are loaded", n, len(tail))
		}
	}
	if err := s.Load(t.Context(), tail, fetcher{9: 0}); err == nil || !strings.Contains(err.Error(), "page 9") {
		t.Errorf("error %v", err)
	}
	if shop.made[0].tail != nil {
		t.Error("a restore was given what is not whole")
	}
	must(t, s.Load(t.Context(), tail, nil))
	if s.ReadPages(64, make([]byte, epoch.PageSize)) == nil || s.ReadPages(0, make([]byte, 1)) == nil {
		t.Error("memory is read that the guest does not have")
	}
}

func TestAStandbyThatCannotBeMade(t *testing.T) {
	packed, err := Spec{Head: head(t), Memory: fakeRuns, Config: []byte("{}")}.Pack()
	must(t, err)
	if _, err := NewStandby(t.Context(), "web", &workshop{fails: errors.New("no memory")}, packed); err == nil || !strings.Contains(err.Error(), "no memory") {
		t.Errorf("error %v", err)
	}
	var refusal *hypervisor.Refusal
	if _, err := NewStandby(t.Context(), "web", &workshop{}, hypervisor.Spec{Pages: 1, Machine: packed.Machine}); !errors.As(err, &refusal) {
		t.Errorf("error %v", err)
	}
}

// fetcher supplies pages of one byte; 0 cannot be had.
type fetcher map[epoch.GFN]byte

func (f fetcher) Missing(set *epoch.PageSet) {
	for page := range f {
		set.Add(page)
	}
}

func (f fetcher) Content(page epoch.GFN, dst []byte) error {
	if f[page] == 0 {
		return fmt.Errorf("the disk is gone")
	}
	copy(dst, bytes.Repeat([]byte{f[page]}, len(dst)))
	return nil
}

func (f fetcher) Filled(epoch.GFN) {}
