//go:build xen

package xenctl

// This file tries the binding on a real Xen host: it runs in its first domain, on
// a PVH domain that is there already:
//
//	xenctl.test -test.v -domain NAME
//
// driver_test.go tries the driver, which makes its own.
//
// scripts/xen-try makes such a host and domain, and runs it there. Elsewhere only what needs no Xen is tried.

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"understudy/epoch"
	"understudy/hypervisor/xen"
	"understudy/hypervisor/xen/stream"
	"understudy/hypervisor/xen/xenstore"
)

var domainName = flag.String("domain", "", "the PVH domain to try it on; none: this is no Xen host")

// TestWithoutXen: every handle says why it cannot be had.
func TestWithoutXen(t *testing.T) {
	if *domainName != "" {
		return
	}
	if c, err := Open(); err == nil {
		_ = c.Close()
		t.Fatal("there is a hypervisor here: run this test with -domain")
	} else if !bytes.Contains([]byte(err.Error()), []byte("Xen says: ")) {
		t.Errorf("Xen's words are missing: %v", err)
	}
	if s, err := NewToolstack(); err == nil {
		_ = s.Close()
		t.Error("libxenlight works without a hypervisor")
	}
}

// find returns the number of the domain of a name.
func find(ctx context.Context, store *xenstore.Client, name string) (uint32, error) {
	list, err := store.List(ctx, 0, "/local/domain")
	if err != nil {
		return 0, err
	}
	for _, id := range list {
		if is, err := store.Read(ctx, 0, "/local/domain/"+id+"/name"); err == nil && is == name {
			n, err := strconv.ParseUint(id, 10, 32)
			return uint32(n), err
		}
	}
	return 0, fmt.Errorf("no domain is called %q", name)
}

// captured is a domain at one instant.
type captured struct {
	head, tail []byte
	frames     *xen.Frames
	memory     []byte
}

// TestOnXen captures a domain several times by the direct path, and restores it
// from the last capture under another name, beside it.
func TestOnXen(t *testing.T) {
	if *domainName == "" {
		t.Fatal("no -domain: this takes a Xen host, see scripts/xen-try")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	store, err := xenstore.Dial(ctx, xenstore.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	domain, err := find(ctx, store, *domainName)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	last := capture(ctx, t, c, store, domain)

	tools, err := NewToolstack()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tools.Close() }()
	children := make(chan os.Signal, 64)
	signal.Notify(children, syscall.SIGCHLD)
	defer signal.Stop(children)
	go func() {
		for range children {
			tools.ChildEnded()
		}
	}()
	saveByToolstack(t, tools, domain)
	restore(ctx, t, c, store, tools, domain, last)
	close(children)
}

// saveByToolstack makes sure that others see the domain suspend when we have let go of
// its channel.
func saveByToolstack(t *testing.T, tools *Toolstack, domain uint32) {
	nowhere, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nowhere.Close() }()
	began := time.Now()
	if err := tools.Save(domain, nowhere.Fd()); err != nil {
		t.Fatalf("the toolstack cannot save a domain that we have let go of: %v", err)
	}
	t.Logf("saved by the toolstack in %v", time.Since(began))
	if err := tools.Resume(domain); err != nil {
		t.Fatal(err)
	}
}

func capture(ctx context.Context, t *testing.T, c *Control, store *xenstore.Client, domain uint32) captured {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var got captured
	major, minor, err := c.Version()
	must(err)
	info, err := c.Info(domain)
	must(err)
	t.Logf("Xen %d.%d, domain %+v", major, minor, info)
	if _, err := c.Info(domain + 1000); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("a domain that is not there: %v", err)
	}
	began := time.Now()
	got.frames, err = c.Frames(domain)
	must(err)
	t.Logf("frames %v, %d pages, found in %v", got.frames.Runs(), got.frames.Pages(), time.Since(began))
	policies, err := c.Policies(domain)
	must(err)
	got.head, err = xen.Head(major, minor, policies)
	must(err)
	d, err := xen.ParseHead(got.head)
	must(err)
	began = time.Now()
	m, err := c.Map(domain, got.frames, false)
	must(err)
	defer func() { must(m.Close()) }()
	t.Logf("mapped in %v, a head of %d bytes", time.Since(began), len(got.head))
	table, err := c.Grants(domain)
	must(err)
	defer func() { must(table.Close()) }()
	written := 0
	table.Grants().Written(func(frame uint64) bool {
		if _, ok := got.frames.Page(frame); !ok {
			t.Errorf("a grant of frame %#x, which is no page", frame)
		}
		written++
		return true
	})
	t.Logf("%d grants, %d mapped for writing", table.Grants().Len(), written)

	log, err := c.LogDirty(domain)
	must(err)
	defer func() { must(log.Close()) }()
	batch, err := c.Batch(domain)
	must(err)
	defer batch.Close()
	port, err := c.AllocPort(domain)
	must(err)
	channel, err := c.Suspend(domain, port)
	must(err)
	defer func() { must(channel.Close()) }()
	got.memory = make([]byte, len(m.Bytes()))
	dirty := epoch.NewPageSet(got.frames.Pages())
	for i := range 5 {
		began := time.Now()
		must(store.Write(ctx, 0, fmt.Sprintf("/local/domain/%d/control/shutdown", domain), "suspend"))
		for {
			must(channel.Wait(ctx, nil))
			info, err := c.Info(domain)
			must(err)
			if info.Shutdown {
				if info.Reason != xen.ReasonSuspend {
					t.Fatalf("the domain has shut down for the reason %d", info.Reason)
				}
				break
			}
		}
		suspended := time.Now()
		words, err := log.Clean()
		must(err)
		dirty.Clear()
		must(got.frames.Dirty(words, dirty))
		cleaned := time.Now()
		if i == 0 {
			dirty.Fill()
		}
		for first, count := range dirty.Runs {
			at := uint64(first) * epoch.PageSize
			copy(got.memory[at:at+count*epoch.PageSize], m.Bytes()[at:])
		}
		copied := time.Now()
		state := xen.State{}
		must(batch.State(&state))
		got.tail, err = state.AppendTail(nil, d)
		must(err)
		stated := time.Now()
		if i > 0 && !bytes.Equal(got.memory, m.Bytes()) {
			differ := 0
			for page := range got.frames.Pages() {
				at := page * epoch.PageSize
				if !bytes.Equal(got.memory[at:at+epoch.PageSize], m.Bytes()[at:at+epoch.PageSize]) {
					if differ++; differ <= 8 {
						t.Logf("capture %d: frame %#x was written, and the log does not tell", i, got.frames.Frame(epoch.GFN(page)))
					}
				}
			}
			t.Errorf("capture %d: %d pages were written that the log does not tell of", i, differ)
		}
		compared := time.Now()
		must(batch.Resume())
		must(store.Resumed(ctx, domain))
		t.Logf("capture %d: %d pages; asked to suspended %v, log %v, copy %v, state %v (%d bytes), resume %v", i, dirty.Count(),
			suspended.Sub(began), cleaned.Sub(suspended), copied.Sub(cleaned), stated.Sub(copied), len(got.tail), time.Since(compared))
		parsed, err := xen.ParseTail(got.tail, d)
		must(err)
		context, err := xen.ParseContext(parsed.Context)
		must(err)
		if i == 0 {
			t.Logf("parameters %+v, %d processors, %d records of context", parsed.Params, context.VCPUs, len(context.Entries))
			asked, err := c.Params(domain, nil)
			must(err)
			if !slices.Equal(asked, parsed.Params) {
				t.Errorf("asked for one by one, the parameters are %+v", asked)
			}
		}
		time.Sleep(300 * time.Millisecond) // the guest's own life between two epochs
	}
	return got
}

// restore makes the domain anew beside itself: the memory is there before the last
// step, and only the tail is left at it.
func restore(ctx context.Context, t *testing.T, c *Control, store *xenstore.Client, tools *Toolstack, domain uint32, from captured) {
	config, err := tools.Config(domain)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("configuration: %s", config)
	var tree map[string]any
	if err := json.Unmarshal(config, &tree); err != nil {
		t.Fatal(err)
	}
	create := tree["c_info"].(map[string]any)
	create["name"], create["uuid"] = "understudy-try", "6f1d0000-0000-4000-8000-000000000001"
	if config, err = json.Marshal(tree); err != nil {
		t.Fatal(err)
	}
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	type result struct {
		domain uint32
		err    error
	}
	done := make(chan result, 1)
	began := time.Now()
	go func() {
		domain, err := tools.Restore(config, read.Fd())
		_ = read.Close()
		done <- result{domain, err}
	}()
	if err := xen.Feed(write, from.head, from.frames); err != nil {
		t.Fatal(err)
	}
	var made uint32
	for made == 0 {
		if made, err = find(ctx, store, "understudy-try"); err != nil && ctx.Err() != nil {
			t.Fatal(err)
		}
		select {
		case r := <-done:
			t.Fatalf("the restore has ended before its end was fed: %v", r.err)
		case <-time.After(20 * time.Millisecond):
		}
	}
	// Fed is not yet populated: the pipe holds some.
	var m *Mapping
	for m == nil {
		if m, err = c.Map(made, from.frames, true); err != nil {
			select {
			case r := <-done:
				t.Fatalf("the restore has ended before its end was fed: %v", r.err)
			case <-time.After(20 * time.Millisecond):
			}
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
	t.Logf("domain %d waits, and its memory is mapped, after %v", made, time.Since(began))
	copy(m.Bytes(), from.memory)
	began = time.Now()
	if _, err := write.Write(from.tail); err != nil {
		t.Fatal(err)
	}
	_ = write.Close()
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	restored := time.Now()
	d, err := xen.ParseHead(from.head)
	if err != nil {
		t.Fatal(err)
	}
	state, err := xen.ParseTail(from.tail, d)
	if err != nil {
		t.Fatal(err)
	}
	var changed []uint64
	for page := range from.frames.Pages() {
		at := page * stream.PageSize
		if !bytes.Equal(from.memory[at:at+stream.PageSize], m.Bytes()[at:at+stream.PageSize]) {
			changed = append(changed, from.frames.Frame(epoch.GFN(page)))
		}
	}
	t.Logf("the restore has changed the frames %#x, made anew are %#x", changed, state.Transient())
	for _, frame := range changed {
		if !slices.Contains(state.Transient(), frame) {
			t.Errorf("the restore has changed frame %#x", frame)
		}
	}
	began2 := time.Now()
	if err := tools.Unpause(r.domain); err != nil {
		t.Fatal(err)
	}
	t.Logf("tail to restored %v, unpause %v", restored.Sub(began), time.Since(began2))
	for before := bytes.Clone(m.Bytes()); bytes.Equal(before, m.Bytes()); { // it lives
		info, err := c.Info(r.domain)
		if err != nil || info.Shutdown || info.Crashed || info.Dying || ctx.Err() != nil {
			t.Fatalf("the domain that was restored writes nothing: %+v, %v", info, err)
		}
	}
	// Frames that are mapped outlive their domain.
	if err := tools.Destroy(r.domain); err != nil {
		t.Fatal(err)
	}
	sum := 0
	for at := 0; at < len(m.Bytes()); at += stream.PageSize {
		if m.Bytes()[at] != 0 {
			sum++
		}
	}
	t.Logf("after its domain was destroyed %d pages begin with a byte that is not zero", sum)
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}
