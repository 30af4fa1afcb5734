package config

import (
	"encoding"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// full is a configuration in which every key can be changed.
func full() *Config {
	c := Example()
	g := &c.Guests[0]
	g.Kernel, g.Initrd, g.Append = "/boot/vmlinuz", "/boot/initrd", "quiet"
	g.Disks[0].Paths = map[string]string{"beta": "/srv/other.img"}
	c.API = API{Listen: "0.0.0.0:7443", Anonymous: AnonymousHealth}
	c.Drill = []Drill{{Name: "weekly", Guest: "web", Kind: DrillFailover}}
	c.setDefaults()
	return c
}

// TestEveryKeyHasItsTreatment changes every key there is, one by one, and holds
// what Compare says against this table, which an operator's guide may quote. A key
// that is not in it fails the test: say in treatments what its change brings about.
func TestEveryKeyHasItsTreatment(t *testing.T) {
	want := map[string]Treatment{
		"cluster": Refused, "profile": Live, "lease": Refused, "heartbeat": Session,
		"state_dir": RestartDaemon, "run_dir": RestartDaemon, "tls_dir": RestartDaemon,

		"api.listen": Live, "api.cert": Live, "api.key": Live, "api.tokens": Live, "api.client_ca": Live,
		"api.readers": Live, "api.operators": Live, "api.anonymous": Live,

		"fencing.command": RestartDaemon, "fencing.verify": RestartDaemon, "fencing.timeout": RestartDaemon, "fencing.after": RestartDaemon,
		"host.fencing.command": RestartDaemon, "host.fencing.verify": RestartDaemon, "host.fencing.timeout": RestartDaemon, "host.fencing.after": RestartDaemon,
		"host.name": Voters, "host.address": Session, "host.witness": Refused,
		"host.state_dir": RestartDaemon, "host.run_dir": RestartDaemon, "host.tls_dir": RestartDaemon,
		"host.api.listen": Live, "host.api.cert": Live, "host.api.key": Live, "host.api.tokens": Live, "host.api.client_ca": Live,
		"host.api.readers": Live, "host.api.operators": Live, "host.api.anonymous": Live,

		"guest.name": Live, "guest.host": Session, "guest.backup": Session, "guest.failback": Live, "guest.failback_after": Live,
		"guest.hypervisor": RestartGuest, "guest.memory": RestartGuest, "guest.cpus": RestartGuest, "guest.type": RestartGuest, "guest.machine": RestartGuest,
		"guest.cpu": RestartGuest, "guest.accel": RestartGuest, "guest.kernel": RestartGuest, "guest.initrd": RestartGuest,
		"guest.append": RestartGuest, "guest.user": RestartGuest, "guest.free_page_reporting": RestartGuest,
		"guest.bubble_address": RestartDaemon,
		"guest.nic.mac":        RestartGuest, "guest.nic.bridge": RestartGuest, "guest.nic.tap": RestartGuest, "guest.nic.segment": RestartGuest,
		"guest.disk.path": RestartGuest, "guest.disk.paths": RestartGuest, "guest.disk.mode": RestartGuest, "guest.disk.size": RestartGuest,
		"guest.disk.queues": RestartGuest, "guest.disk.unfenced": RestartGuest,

		"drills.strikes": Live,
		"drill.name":     Live, "drill.guest": Live, "drill.kind": Live, "drill.fault": Live, "drill.fault_for": Live, "drill.check": Live,
		"drill.check_timeout": Live, "drill.probe": Live, "drill.max_outage": Live, "drill.return": Live, "drill.patience": Live, "drill.schedule": Live,

		"guest.protection.epoch": Live, "guest.protection.floor": Live, "guest.protection.target": Live, "guest.protection.ceiling": Live,
		"guest.protection.window": Live, "guest.protection.delta_cache": Session, "guest.protection.held_output": Live,
		"guest.protection.held_writes": RestartGuest, "guest.protection.exclusion": RestartGuest, "guest.protection.rebuild": Live,
		"guest.protection.connections": Session, "guest.protection.compression": Live, "guest.protection.detach_after": Live,
		"guest.on_stop": Live, "guest.protection.handover_patience": Live,
		"guest.protection.verify_every": Live, "guest.protection.verify_all": Live,
	}
	seen := map[string]bool{}
	eachKey("", reflect.TypeFor[Config](), func(key string, at []int) {
		seen[key] = true
		treatment, known := want[key]
		if !known {
			t.Errorf("key %s is not in the table", key)
			return
		}
		was, is := full(), full()
		change(reflect.ValueOf(is).Elem(), at)
		got := Compare(was, is)
		if got.Empty() {
			t.Errorf("key %s: changed, and no difference is seen", key)
			return
		}
		for _, item := range got.Items {
			if item.Treatment != treatment {
				t.Errorf("key %s: %s, want %s", key, item, treatment)
			}
			if item.Treatment != Live && item.Treatment != Session && item.Treatment != Voters && item.Why == "" {
				t.Errorf("key %s: %s, and nobody is told what to do", key, item)
			}
		}
	})
	for key := range want {
		if !seen[key] {
			t.Errorf("there is no key %s", key)
		}
	}
	for key := range treatments {
		if !seen[key] && !slices.ContainsFunc(slices.Collect(maps.Keys(seen)), func(k string) bool { return strings.HasPrefix(k, key+".") }) {
			t.Errorf("there is a treatment for %s, and no such key", key)
		}
	}
}

// eachKey visits the keys of a type, and the way to each: field indices, and -1
// into the first element of a list.
func eachKey(key string, of reflect.Type, visit func(key string, at []int)) {
	var walk func(key string, of reflect.Type, at []int)
	walk = func(key string, of reflect.Type, at []int) {
		for i := range of.NumField() {
			f := of.Field(i)
			here, name := append(slices.Clone(at), i), join(key, f.Tag.Get("toml"))
			switch {
			case f.Anonymous:
				walk(key, f.Type, here)
			case f.Type.Kind() == reflect.Slice && f.Type.Elem().Kind() == reflect.Struct:
				walk(name, f.Type.Elem(), append(here, -1))
			case f.Type.Kind() == reflect.Struct && !isText(f.Type):
				walk(name, f.Type, here)
			default:
				visit(name, here)
			}
		}
	}
	walk(key, of, nil)
}

// change gives the value at a place another one.
func change(v reflect.Value, at []int) {
	for _, i := range at {
		if i < 0 {
			if v.Len() == 0 {
				v.Set(reflect.MakeSlice(v.Type(), 1, 1))
			}
			v = v.Index(0)
			continue
		}
		v = v.Field(i)
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(v.String() + "x")
	case reflect.Int, reflect.Int64:
		v.SetInt(v.Int() + 4096)
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.Pointer: // a switch that is on where nothing is said
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		} else {
			v.SetZero()
		}
	case reflect.Struct: // one value in the file
		if err := v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte("every 6h")); err != nil {
			panic(err)
		}
	case reflect.Array:
		v.Index(0).SetUint(v.Index(0).Uint() + 2)
	case reflect.Map:
		v.Set(reflect.ValueOf(map[string]string{"alpha": "/srv/else.img"}))
	case reflect.Slice:
		v.Set(reflect.ValueOf([]string{"somebody"}))
	default:
		panic("a key of kind " + v.Kind().String())
	}
}

func TestWhatIsTheSameDoesNotChange(t *testing.T) {
	if c := Compare(full(), full()); !c.Empty() {
		t.Errorf("nothing changed, and there is %s", c.Summary())
	}
	// Written differently, it is the same: a key of the cluster or of each host.
	was, is := full(), full()
	is.Run = "/elsewhere"
	for i := range is.Hosts {
		is.Hosts[i].Run = was.Run
	}
	is.Guests[0].Disks[0].Paths = map[string]string{"beta": "/srv/other.img"}
	slices.Reverse(is.Hosts)
	if c := Compare(was, is); !c.Empty() || was.Hash() != is.Hash() {
		t.Errorf("written differently, and there is %v; %s, %s", c.Items, was.Hash(), is.Hash())
	}
}

func TestHostsAndGuestsComeAndGo(t *testing.T) {
	was, is := full(), full()
	is.Hosts[2] = Host{Name: "judge", Address: "192.0.2.9:7070", Witness: true}
	is.Guests = append(is.Guests, is.Guests[0])
	is.Guests[1].Name = "db"
	is.Guests[0].Protection.Window = 3
	is.Guests[0].Disks = append(slices.Clone(is.Guests[0].Disks), Disk{Path: "/srv/more.img", Mode: Replicated, Queues: 1})
	want := []Item{
		{Key: "host.witness", Host: "witness", Was: "the witness at 192.0.2.3:7070", Treatment: Voters},
		{Key: "host.judge", Host: "judge", Is: "the witness at 192.0.2.9:7070", Treatment: Voters},
		{Key: "guest.web.protection.window", Guest: "web", Was: "2", Is: "3", Treatment: Live},
		{Key: "guest.web.disk[1]", Guest: "web", Is: "added", Treatment: RestartGuest, Why: stopFirst},
		{Key: "guest.db", Guest: "db", Is: "a guest of 2GiB on alpha and beta", Treatment: Live},
	}
	got := Compare(was, is)
	if !slices.Equal(got.Items, want) {
		t.Errorf("got\n%v\nwant\n%v", got.Items, want)
	}
	if len(got.Blocked()) != 0 || !strings.Contains(got.Summary(), "guest.db") {
		t.Errorf("blocked %v, summary %s", got.Blocked(), got.Summary())
	}
	back := Compare(is, was)
	if len(back.Items) != len(want) || back.Items[len(want)-1].Key != "guest.db" || back.Items[len(want)-1].Is != "" {
		t.Errorf("the way back is\n%v", back.Items)
	}
}

// TestADifferenceIsADifferenceBothWays: Compare sees the same keys from either
// side, and equal configurations have equal hashes, others others.
func TestADifferenceIsADifferenceBothWays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := full(), full()
		n := rapid.IntRange(0, 4).Draw(t, "changes")
		var keys [][]int
		eachKey("", reflect.TypeFor[Config](), func(_ string, at []int) { keys = append(keys, at) })
		for range n {
			change(reflect.ValueOf(b).Elem(), rapid.SampledFrom(keys).Draw(t, "key"))
		}
		there, back := Compare(a, b), Compare(b, a)
		of := func(c Change) (all []string) {
			for _, i := range c.Items {
				all = append(all, i.Key)
			}
			slices.Sort(all)
			return all
		}
		if !slices.Equal(of(there), of(back)) {
			t.Fatalf("there %v, back %v", of(there), of(back))
		}
		if there.Empty() != (a.Hash() == b.Hash()) {
			t.Fatalf("%d items, hashes %s and %s", len(there.Items), a.Hash(), b.Hash())
		}
	})
}
