package blkif

import (
	"slices"
	"strconv"
	"strings"
	"testing"

	"understudy/disk"
)

// driver is a guest's driver as xenstore shows it.
func driver(state State, keys map[string]string) Front {
	return Front{
		State: state.String(), Protocol: keys["protocol"], Port: keys["event-channel"], Order: keys["ring-page-order"],
		Ref: func(key string) string { return keys[key] },
	}
}

var oneRing = map[string]string{"ring-ref": "8", "event-channel": "21", "protocol": "x86_64-abi"}

// What a guest's driver does from its first breath to its second.
func TestAHandshake(t *testing.T) {
	var h Handshake
	for i, c := range []struct {
		guest State
		keys  map[string]string
		do    []Action
		ours  State
	}{
		{StateInitialising, nil, []Action{Write}, StateInitWait},
		{StateInitialising, nil, nil, StateInitWait},
		{StateInitialised, oneRing, []Action{Connect, Write}, StateConnected},
		{StateInitialised, oneRing, nil, StateConnected},
		{StateConnected, oneRing, nil, StateConnected},
		{StateClosing, oneRing, []Action{Disconnect, Write}, StateClosing},
		{StateClosing, oneRing, nil, StateClosing},
		{StateClosed, nil, []Action{Write}, StateClosed},
		{StateInitialised, oneRing, nil, StateClosed}, // it has not seen that we have closed
		{StateInitialising, nil, []Action{Write}, StateInitWait},
		{StateConnected, oneRing, []Action{Connect, Write}, StateConnected}, // changes come several in one
		{StateInitialising, nil, []Action{Disconnect, Write}, StateInitWait},
		{StateInitialised, oneRing, []Action{Connect, Write}, StateConnected},
		{StateUnknown, nil, []Action{Disconnect, Write}, StateClosed}, // its domain is gone
	} {
		do, err := h.Step(driver(c.guest, c.keys))
		if err != nil || !slices.Equal(do, c.do) || h.State != c.ours {
			t.Fatalf("step %d, the guest in state %v: %v, ours %v, error %v; want %v, %v", i, c.guest, do, h.State, err, c.do, c.ours)
		}
	}
	if h.Port != 21 || !slices.Equal(h.Ring.Refs, []uint32{8}) || h.Ring.Protocol != X86_64 {
		t.Errorf("the ring is %+v, port %d", h.Ring, h.Port)
	}
}

// A driver that was there before us is shown what we offer first.
func TestADriverThatIsConnectedAlready(t *testing.T) {
	var h Handshake
	for _, want := range [][]Action{{Write}, {Connect, Write}, nil} {
		if do, err := h.Step(driver(StateConnected, oneRing)); err != nil || !slices.Equal(do, want) {
			t.Fatalf("%v, error %v, want %v", do, err, want)
		}
	}
	var nobody Handshake
	for _, want := range [][]Action{{Write}, nil} {
		if do, err := nobody.Step(Front{}); err != nil || !slices.Equal(do, want) || nobody.State != StateInitWait {
			t.Fatalf("%v, error %v, want %v", do, err, want)
		}
	}
}

func TestARingOfSeveralPages(t *testing.T) {
	keys := map[string]string{"ring-page-order": "4", "event-channel": "3", "protocol": "x86_32-abi"}
	var want []uint32
	for i := range 16 {
		keys["ring-ref"+strconv.Itoa(i)] = strconv.Itoa(1000 + i)
		want = append(want, uint32(1000+i))
	}
	h := Handshake{State: StateInitWait}
	if _, err := h.Step(driver(StateInitialised, keys)); err != nil || !slices.Equal(h.Ring.Refs, want) || h.Ring.Protocol != X86_32 {
		t.Errorf("%+v, error %v", h.Ring, err)
	}
}

func TestADriverThatWritesNonsense(t *testing.T) {
	change := func(key, value string) map[string]string {
		keys := map[string]string{"ring-ref": "8", "event-channel": "21"}
		keys[key] = value
		return keys
	}
	for name, c := range map[string]struct {
		front Front
		want  string
	}{
		"state":        {Front{State: "7"}, "which is none"},
		"no number":    {Front{State: "x"}, "which is none"},
		"protocol":     {driver(StateInitialised, change("protocol", "arm-abi")), "arm-abi"},
		"no reference": {driver(StateInitialised, change("ring-ref", "")), "ring-ref"},
		"negative":     {driver(StateInitialised, change("ring-ref", "-1")), "ring-ref"},
		"large":        {driver(StateInitialised, change("ring-ref", "4294967296")), "ring-ref"},
		"port":         {driver(StateInitialised, change("event-channel", "0")), "which is none"},
		"order":        {driver(StateInitialised, change("ring-page-order", "5")), "2^5 pages"},
		"high order":   {driver(StateInitialised, change("ring-page-order", "4000000000")), "2^4000000000"},
		"half a ring":  {driver(StateInitialised, change("ring-page-order", "1")), "ring-ref0"},
	} {
		h := Handshake{State: StateInitWait}
		do, err := h.Step(c.front)
		if err == nil || !strings.Contains(err.Error(), c.want) || !slices.Equal(do, []Action{Write}) || h.State != StateClosing {
			t.Errorf("%s: %v, ours %v, error %v", name, do, h.State, err)
		}
	}
	h := Handshake{State: StateInitWait}
	if _, err := h.Step(driver(StateInitialised, oneRing)); err != nil {
		t.Fatal(err)
	}
	if do := h.Failed(); !slices.Equal(do, []Action{Write}) || h.State != StateClosing {
		t.Errorf("after a ring that could not be connected: %v, %v", do, h.State)
	}
}

func TestWhatIsOffered(t *testing.T) {
	find := func(entries []Entry, key string) string {
		for _, e := range entries {
			if e.Key == key {
				return e.Value
			}
		}
		return ""
	}
	info := disk.Info{Sectors: 1 << 21, MaxSectors: 1024, MaxZeroSectors: 8}
	f := Features(info)
	if find(f, "feature-max-indirect-segments") != "128" || find(f, "feature-discard") != "1" || find(f, "feature-persistent") != "0" {
		t.Errorf("offered are %v", f)
	}
	if s := Size(info); find(s, "sectors") != "2097152" || find(s, "info") != "0" {
		t.Errorf("the size is %v", s)
	}
	info.ReadOnly, info.MaxSectors = true, 88
	if f := Features(info); find(f, "feature-discard") != "" || find(f, "feature-max-indirect-segments") != "" || find(Size(info), "info") != "4" {
		t.Errorf("offered are %v", f)
	}
}
