package blkif

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"

	"understudy/disk"
	"understudy/hypervisor/xen/xentest"
)

// driver is what a guest's driver has written.
func driver(keys map[string]string) func(key string) string {
	return func(key string) string { return keys[key] }
}

var oneRing = map[string]string{"ring-ref": "8", "event-channel": "21", "protocol": "x86_64-abi"}

func TestARingOfSeveralPages(t *testing.T) {
	if p, port, err := parameters(driver(oneRing)); err != nil || port != 21 || !slices.Equal(p.Refs, []uint32{8}) || p.Protocol != X86_64 {
		t.Errorf("%+v, port %d, error %v", p, port, err)
	}
	keys := map[string]string{"ring-page-order": "4", "event-channel": "3", "protocol": "x86_32-abi"}
	var want []uint32
	for i := range 16 {
		keys["ring-ref"+strconv.Itoa(i)] = strconv.Itoa(1000 + i)
		want = append(want, uint32(1000+i))
	}
	if p, _, err := parameters(driver(keys)); err != nil || !slices.Equal(p.Refs, want) || p.Protocol != X86_32 {
		t.Errorf("%+v, error %v", p, err)
	}
}

func TestADriverThatWritesNonsense(t *testing.T) {
	change := func(key, value string) map[string]string {
		keys := map[string]string{"ring-ref": "8", "event-channel": "21"}
		keys[key] = value
		return keys
	}
	for name, c := range map[string]struct {
		keys map[string]string
		want string
	}{
		"protocol":     {change("protocol", "arm-abi"), "arm-abi"},
		"no reference": {change("ring-ref", ""), "ring-ref"},
		"negative":     {change("ring-ref", "-1"), "ring-ref"},
		"large":        {change("ring-ref", "4294967296"), "ring-ref"},
		"port":         {change("event-channel", "0"), "which is none"},
		"order":        {change("ring-page-order", "5"), "2^5 pages"},
		"high order":   {change("ring-page-order", "4000000000"), "2^4000000000"},
		"half a ring":  {change("ring-page-order", "1"), "ring-ref0"},
	} {
		if p, _, err := parameters(driver(c.keys)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %+v, error %v", name, p, err)
		}
	}
}

// A driver plugs in, out, and in again, as package xenbus has it.
func TestPlug(t *testing.T) {
	g := newGuest(t, X86_64, 0)
	bound := errors.New("no such port")
	d := newDisk(g, 64)
	dev, err := New(Config{Backend: d, Memory: g, Bind: func(port uint32) (Channel, error) {
		if port != 21 {
			return nil, bound
		}
		return g.event, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dev.Close() }()
	if dev.Offer()["feature-flush-cache"] != "1" {
		t.Errorf("offered are %v", dev.Offer())
	}
	if _, err := dev.Plug(driver(map[string]string{"ring-ref": "100", "event-channel": "22"})); !errors.Is(err, bound) {
		t.Errorf("a port that is not there: %v", err)
	}
	if _, err := dev.Plug(driver(nil)); err == nil {
		t.Error("nothing is a ring")
	}
	dev.Start()
	says, err := dev.Plug(driver(map[string]string{"ring-ref": "100", "event-channel": "21"}))
	if err != nil || says["sectors"] != "64" {
		t.Fatal(says, err)
	}
	g.put(opFlush, 1, 0)
	g.expect(1, statusOK)
	dev.Unplug()
	if !dev.Stopped() {
		t.Error("it serves a ring that was unplugged")
	}
}

// A process dies with requests in flight: the one after it does those anew, and only
// those, whatever was finished behind them.
func TestARingThatAFormerProcessServed(t *testing.T) {
	g := newGuest(t, X86_64, 0)
	d := newDisk(g, 64)
	d.gate = make(chan struct{})
	dead := connected(t, g, d)
	at := g.data()
	g.put(opFlush, 1, 0)
	g.push()
	<-d.arrived
	d.hold.Store(true) // what is taken at once is finished at once
	copy(g.page(at), pattern(3))
	g.put(opWrite, 2, 8, segment{ref(at), 0, 7})
	g.put(opRead, 3, 8, segment{ref(at + 1), 0, 7})
	g.push()
	<-d.arrived
	if n := g.answered(); n != 0 {
		t.Fatalf("%d requests are answered before the first is", n)
	}
	dead.Disconnect()
	close(d.gate)
	next := xentest.NewEvent()
	g.event = next
	connected(t, g, d)
	for _, want := range []uint64{1, 2, 3} {
		if id, _, status := g.response(); id != want || status != statusOK {
			t.Errorf("response %d with the status %d, want %d", id, status, want)
		}
	}
	if string(g.page(at+1)) != string(pattern(3)) {
		t.Error("what was read is not what was written")
	}
}

func TestWhatIsOffered(t *testing.T) {
	info := disk.Info{Sectors: 1 << 21, MaxSectors: 1024, MaxZeroSectors: 8}
	f := features(info)
	if f["feature-max-indirect-segments"] != "128" || f["feature-discard"] != "1" || f["feature-persistent"] != "0" {
		t.Errorf("offered are %v", f)
	}
	if s := size(info); s["sectors"] != "2097152" || s["info"] != "0" {
		t.Errorf("the size is %v", s)
	}
	info.ReadOnly, info.MaxSectors = true, 88
	if f := features(info); f["feature-discard"] != "" || f["feature-max-indirect-segments"] != "" || size(info)["info"] != "4" {
		t.Errorf("offered are %v", f)
	}
}
