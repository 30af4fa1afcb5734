package config

// What changes from one configuration to another, and what has to happen for it:
//
//	two Configs → every host's own view (resolve) → hosts and guests paired by
//	name → key by key, by reflection → the treatment of each key (treatments)
//
// All of it is pure. What depends on what runs just now (a guest that would have
// to be stopped first, a host that still votes) is the daemon's to add.

import (
	"crypto/sha256"
	"encoding"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// Treatment says how the change of a key takes effect.
type Treatment string

const (
	// Live takes effect at once, and nothing stops.
	Live Treatment = "live"
	// Session makes the session to the backup anew; the guest runs on, and is
	// unprotected if the backup is another host.
	Session Treatment = "session"
	// RestartGuest takes effect on a guest that is stopped; while it is meant to
	// run it is refused.
	RestartGuest Treatment = "restart-guest"
	// RestartDaemon takes effect when the daemon of the host is started anew; to
	// the other hosts it is nothing.
	RestartDaemon Treatment = "restart-daemon"
	// Voters changes who votes. The hosts learn of each other at once; who votes
	// changes by `understudy host replace`.
	Voters Treatment = "voters"
	// Refused cannot be changed.
	Refused Treatment = "refused"
)

// Item is one thing that changes.
type Item struct {
	// Key is where, like guest.web.protection.window or host.beta.address.
	Key string `json:"key"`
	// Host or Guest is whose it is; neither: the cluster's.
	Host  string `json:"host,omitempty"`
	Guest string `json:"guest,omitempty"`
	// Was and Is are the values as they are written in the file; "" is none.
	Was       string    `json:"was"`
	Is        string    `json:"is"`
	Treatment Treatment `json:"treatment"`
	// Why is what to do about a change that cannot just be made, else what it
	// brings about, "" if that is plain.
	Why string `json:"why,omitempty"`
	// Blocked: the daemon that was asked cannot make it now.
	Blocked bool `json:"blocked,omitempty"`
}

func (i Item) String() string {
	s := fmt.Sprintf("%s: %s → %s (%s)", i.Key, orNone(i.Was), orNone(i.Is), i.Treatment)
	if i.Why != "" {
		s += ": " + i.Why
	}
	return s
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// Change is all that is different between two configurations, in the order of
// the file.
type Change struct {
	Items []Item `json:"items"`
	// Applied: it has been made. Notes say what of it takes effect later.
	Applied bool     `json:"applied"`
	Notes   []string `json:"notes,omitempty"`
}

// Empty reports that nothing is different.
func (c Change) Empty() bool { return len(c.Items) == 0 }

// Blocked returns the items that cannot be made now.
func (c Change) Blocked() []Item {
	return slices.DeleteFunc(slices.Clone(c.Items), func(i Item) bool { return !i.Blocked })
}

// Summary is one line for people.
func (c Change) Summary() string {
	if c.Empty() {
		return "nothing changes"
	}
	const told = 6
	var keys []string
	for _, i := range c.Items[:min(len(c.Items), told)] {
		keys = append(keys, i.Key)
	}
	s := strings.Join(keys, ", ")
	if n := len(c.Items) - told; n > 0 {
		s += fmt.Sprintf(" and %d more", n)
	}
	return s
}

// rule is the treatment of a key and of all keys below it.
type rule struct {
	Treatment
	why string
}

const (
	stopFirst = "the guest is built with it: stop the guest, apply the change on both its hosts, start it"
	byDaemon  = "start understudyd anew on that host; the other hosts need not be touched"
)

// treatments are the rules by key, without the names of hosts and guests; the
// longest key that fits counts.
var treatments = map[string]rule{
	"cluster":   {Refused, "the certificates are made out to it: make a new cluster with understudy init"},
	"profile":   {Live, "only the times that follow from it change, if any do"},
	"lease":     {Refused, "the ownership log keeps the lease that it began with, and raft's timing follows from it"},
	"heartbeat": {Session, ""},

	"drills.strikes": {Live, ""},
	"drill":          {Live, ""},

	"host":           {Voters, ""},
	"host.name":      {Voters, ""},
	"host.address":   {Session, "on the host itself, start understudyd anew: it listens there then"},
	"host.witness":   {Refused, "a host and a witness are different voters: replace it by one of another name (understudy host replace)"},
	"host.state_dir": {RestartDaemon, "move what is in it while the daemon is down; " + byDaemon},
	"host.run_dir":   {RestartDaemon, "the memory and the sockets of guests are there: no guest may run on that host; " + byDaemon},
	"host.tls_dir":   {RestartDaemon, byDaemon},
	"host.api":       {Live, ""},
	"host.fencing":   {RestartDaemon, byDaemon},
	"fencing":        {RestartDaemon, byDaemon},

	"guest":                     {Live, ""}, // one added or removed
	"guest.name":                {Live, ""},
	"guest.host":                {Session, ""},
	"guest.backup":              {Session, ""},
	"guest.failback":            {Live, ""},
	"guest.failback_after":      {Live, ""},
	"guest.on_stop":             {Live, ""},
	"guest.hypervisor":          {RestartGuest, stopFirst},
	"guest.memory":              {RestartGuest, stopFirst},
	"guest.cpus":                {RestartGuest, stopFirst},
	"guest.type":                {RestartGuest, stopFirst},
	"guest.machine":             {RestartGuest, stopFirst},
	"guest.cpu":                 {RestartGuest, stopFirst},
	"guest.accel":               {RestartGuest, stopFirst},
	"guest.kernel":              {RestartGuest, stopFirst},
	"guest.initrd":              {RestartGuest, stopFirst},
	"guest.append":              {RestartGuest, stopFirst},
	"guest.user":                {RestartGuest, stopFirst},
	"guest.free_page_reporting": {RestartGuest, stopFirst},
	"guest.bubble_address":      {RestartDaemon, byDaemon},
	"guest.nic":                 {RestartGuest, stopFirst},
	"guest.disk":                {RestartGuest, stopFirst},

	"guest.protection.epoch":             {Live, ""},
	"guest.protection.floor":             {Live, ""},
	"guest.protection.target":            {Live, ""},
	"guest.protection.ceiling":           {Live, ""},
	"guest.protection.window":            {Live, ""},
	"guest.protection.delta_cache":       {Session, ""},
	"guest.protection.held_output":       {Live, ""},
	"guest.protection.held_writes":       {RestartGuest, "the memory for it is taken with the guest's disks: stop the guest, apply the change on both its hosts, start it"},
	"guest.protection.exclusion":         {RestartGuest, "what is on the disks is watched from the guest's first request: stop the guest, apply the change on both its hosts, start it"},
	"guest.protection.rebuild":           {Live, "from the next takeover on"},
	"guest.protection.connections":       {Session, ""},
	"guest.protection.compression":       {Live, ""},
	"guest.protection.detach_after":      {Live, ""},
	"guest.protection.handover_patience": {Live, "from the next handover on"},
	"guest.protection.verify_every":      {Live, ""},
	"guest.protection.verify_all":        {Live, ""},
}

// ruleOf finds the rule of a key without names.
func ruleOf(key string) (rule, bool) {
	for k := key; k != ""; {
		// A whole host or guest that comes or goes says nothing of its keys.
		if r, ok := treatments[k]; ok && (k == key || k != "host" && k != "guest") {
			return r, true
		}
		i := strings.LastIndexByte(k, '.')
		if i < 0 {
			break
		}
		k = k[:i]
	}
	return rule{Refused, "no treatment is known"}, false
}

// Compare returns what is different in is, which both have been checked.
func Compare(was, is *Config) Change {
	d := &differ{}
	a, b := was.resolve(), is.resolve()
	d.fields("", "", reflect.ValueOf(*a), reflect.ValueOf(*b))
	return Change{Items: d.items}
}

// resolve returns a copy in which every host has its own directories and its own
// endpoint, and the cluster has none.
func (c *Config) resolve() *Config {
	out := *c
	out.Hosts = slices.Clone(c.Hosts)
	for i, h := range c.Hosts {
		out.Hosts[i].Dirs = c.DirsOf(h)
		if api, on := c.APIOf(h); on {
			out.Hosts[i].API = api
		} else {
			out.Hosts[i].API = API{Listen: apiOff}
		}
	}
	out.Dirs, out.API = Dirs{}, API{}
	return &out
}

// Hash names the meaning of a configuration: hosts with the same file, or with
// files that differ only in what has no meaning, have the same one.
func (c *Config) Hash() string {
	r := c.resolve()
	r.Guests = slices.Clone(r.Guests)
	slices.SortFunc(r.Hosts, func(a, b Host) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(r.Guests, func(a, b Guest) int { return strings.Compare(a.Name, b.Name) })
	text, err := json.Marshal(r)
	if err != nil {
		return "" // it has only values that JSON can express
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:8])
}

// differ collects what is different.
type differ struct {
	items       []Item
	host, guest string // of which
}

// fields compares two structs. key is the way to them with names, plain without.
func (d *differ) fields(key, plain string, was, is reflect.Value) {
	for i := range was.NumField() {
		f := was.Type().Field(i)
		a, b := was.Field(i), is.Field(i)
		name := f.Tag.Get("toml")
		switch {
		case f.Anonymous:
			d.fields(key, plain, a, b)
		case f.Type == reflect.TypeFor[[]Host]():
			d.named(name, a, b, &d.host)
		case f.Type == reflect.TypeFor[[]Guest]():
			d.named(name, a, b, &d.guest)
		case f.Type == reflect.TypeFor[[]Drill]():
			d.named(name, a, b, new(string))
		case f.Type.Kind() == reflect.Struct && !isText(f.Type):
			d.fields(join(key, name), join(plain, name), a, b)
		default:
			d.value(join(key, name), join(plain, name), a, b)
		}
	}
}

func join(key, name string) string { return strings.TrimPrefix(key+"."+name, ".") }

// named compares two lists of what has names.
func (d *differ) named(kind string, was, is reflect.Value, whose *string) {
	names := func(list reflect.Value) (all []string) {
		for i := range list.Len() {
			all = append(all, list.Index(i).FieldByName("Name").String())
		}
		return all
	}
	before, after := names(was), names(is)
	defer func() { *whose = "" }()
	r, _ := ruleOf(kind)
	for i, name := range before {
		*whose = name
		if j := slices.Index(after, name); j >= 0 {
			d.fields(kind+"."+name, kind, was.Index(i), is.Index(j))
		} else {
			d.add(Item{Key: kind + "." + name, Was: describe(was.Index(i)), Treatment: r.Treatment, Why: r.why})
		}
	}
	for j, name := range after {
		*whose = name
		if !slices.Contains(before, name) {
			d.add(Item{Key: kind + "." + name, Is: describe(is.Index(j)), Treatment: r.Treatment, Why: r.why})
		}
	}
}

// describe is a host or a guest in a few words.
func describe(v reflect.Value) string {
	switch v := v.Interface().(type) {
	case Host:
		if v.Witness {
			return "the witness at " + v.Address
		}
		return "a host at " + v.Address
	case Guest:
		return fmt.Sprintf("a guest of %s on %s and %s", v.Memory, v.Host, v.Backup)
	case Drill:
		return fmt.Sprintf("a %s of %s", v.Kind, v.Guest)
	}
	return "set"
}

// value compares what is no struct. Lists of structs (disks, network devices)
// are told element by element.
func (d *differ) value(key, plain string, was, is reflect.Value) {
	if was.Kind() == reflect.Slice && was.Type().Elem().Kind() == reflect.Struct {
		for i := range max(was.Len(), is.Len()) {
			one := fmt.Sprintf("%s[%d]", key, i)
			switch {
			case i >= was.Len():
				d.leaf(one, plain, "", "added")
			case i >= is.Len():
				d.leaf(one, plain, "removed", "")
			default:
				d.fields(one, plain, was.Index(i), is.Index(i))
			}
		}
		return
	}
	switch was.Kind() {
	case reflect.Map, reflect.Slice:
		if was.Len()+is.Len() == 0 { // nil or empty, it is the same
			return
		}
	}
	if !reflect.DeepEqual(was.Interface(), is.Interface()) {
		d.leaf(key, plain, written(was), written(is))
	}
}

func (d *differ) leaf(key, plain, was, is string) {
	r, _ := ruleOf(plain)
	d.add(Item{Key: key, Was: was, Is: is, Treatment: r.Treatment, Why: r.why})
}

func (d *differ) add(i Item) {
	i.Host, i.Guest = d.host, d.guest
	d.items = append(d.items, i)
}

// written is a value as the file has it.
func written(v reflect.Value) string {
	if text, ok := v.Interface().(encoding.TextMarshaler); ok {
		if b, err := text.MarshalText(); err == nil {
			return string(b)
		}
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return ""
		}
		return written(v.Elem())
	case reflect.Map, reflect.Slice:
		if v.Len() == 0 {
			return ""
		}
		if b, err := json.Marshal(v.Interface()); err == nil {
			return string(b)
		}
	}
	return fmt.Sprint(v.Interface())
}

// isText reports a type that is one value in the file.
func isText(t reflect.Type) bool {
	return t.Implements(reflect.TypeFor[encoding.TextMarshaler]())
}
