package config

// The status endpoint on the network: its section [api], what a host has of its
// own in [host.api], and everything the other files do for a section, in their
// order.

import (
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// API is the status endpoint beside the Unix socket: HTTPS, for load balancers,
// monitoring and operators elsewhere. Without Listen there is none.
type API struct {
	// Listen is the address and port to listen on, like "0.0.0.0:7443" or
	// "[::]:7443"; "off" on a host that shall not have the cluster's.
	Listen string `toml:"listen"`
	// Cert and Key are the files of the endpoint's certificate, PEM; without
	// them the host shows the one it has for the other hosts.
	Cert string `toml:"cert"`
	Key  string `toml:"key"`
	// Tokens is a file with a line for each bearer token: name, role, SHA-256.
	Tokens string `toml:"tokens"`
	// ClientCA signs the certificates of clients, PEM; without it, the
	// cluster's own authority does.
	ClientCA string `toml:"client_ca"`
	// Readers and Operators are the common names of clients' certificates that
	// may read, and that may operate guests, too.
	Readers   []string `toml:"readers"`
	Operators []string `toml:"operators"`
	// Anonymous is what those may ask who show neither.
	Anonymous Anonymous `toml:"anonymous"`
}

// Anonymous says what may be asked without authorisation.
type Anonymous string

const (
	AnonymousNone   Anonymous = "none"
	AnonymousHealth Anonymous = "health" // /livez, /readyz, /primary, /backup
	AnonymousRead   Anonymous = "read"   // everything but operations
)

// apiOff is how a host says that it has no endpoint.
const apiOff = "off"

// with returns a with what own has in its place.
func (a API) with(own API) API {
	or(&own.Listen, a.Listen)
	if own.Cert == "" && own.Key == "" {
		own.Cert, own.Key = a.Cert, a.Key
	}
	or(&own.Tokens, a.Tokens)
	or(&own.ClientCA, a.ClientCA)
	if own.Readers == nil {
		own.Readers = a.Readers
	}
	if own.Operators == nil {
		own.Operators = a.Operators
	}
	or(&own.Anonymous, a.Anonymous)
	return own
}

// setDefaults makes an empty list none: what is left out of a file is empty.
func (a *API) setDefaults() {
	if len(a.Readers) == 0 {
		a.Readers = nil
	}
	if len(a.Operators) == 0 {
		a.Operators = nil
	}
}

func (v *validator) apis(c *Config) {
	v.api("api.", c.API)
	for i, h := range c.Hosts[:min(len(c.Hosts), voters)] {
		key := fmt.Sprintf("host[%d].api.", i)
		before := len(v.problems)
		v.api(key, h.API)
		api, on := c.APIOf(h)
		if !on || len(v.problems) > before {
			continue
		}
		if reflect.ValueOf(h.API).IsZero() {
			key = "api."
		}
		if api.Tokens == "" && api.Readers == nil && api.Operators == nil && api.Anonymous == AnonymousNone {
			v.add(key+"listen", "host %.40s would listen on %s and nobody could ask: give tokens, readers, operators, or anonymous = %q", h.Name, api.Listen, AnonymousHealth)
			return // once, if it is the cluster's
		}
		if api.Listen == h.Address {
			v.add(key+"listen", "%s is the host's own address for the other hosts", api.Listen)
		}
	}
}

func (v *validator) api(key string, a API) {
	if a.Listen != "" && a.Listen != apiOff {
		if reason := checkListen(a.Listen); reason != "" {
			v.add(key+"listen", "%.80q: %s", a.Listen, reason)
		}
	}
	if (a.Cert == "") != (a.Key == "") {
		v.add(key+"cert", "cert and key go together")
	}
	for _, one := range []struct{ key, value string }{
		{"cert", a.Cert}, {"key", a.Key}, {"tokens", a.Tokens}, {"client_ca", a.ClientCA},
	} {
		if one.value != "" {
			v.path(key+one.key, one.value)
		}
	}
	if a.Anonymous != "" {
		oneOf(v, key+"anonymous", a.Anonymous, AnonymousNone, AnonymousHealth, AnonymousRead)
	}
	seen := map[string]bool{}
	for _, list := range []struct {
		key   string
		names []string
	}{{"readers", a.Readers}, {"operators", a.Operators}} {
		if len(list.names) > maxNames {
			v.add(key+list.key, "there are %d names, at most %d", len(list.names), maxNames)
		}
		for _, name := range list.names[:min(len(list.names), maxNames)] {
			switch {
			case name == "" || len(name) > maxCommon || strings.ContainsFunc(name, isControl):
				v.add(key+list.key, "%.80q is not the common name of a certificate: 1 to %d bytes", name, maxCommon)
			case seen[name]:
				v.add(key+list.key, "%.80q is listed twice", name)
			}
			seen[name] = true
		}
	}
}

// checkListen returns what is wrong with an address to listen on, or "".
func checkListen(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "want address:port, [IPv6]:port or :port"
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "the port is not a number between 1 and 65535"
	}
	if ip, err := netip.ParseAddr(host); host != "" && (err != nil || ip.IsMulticast()) {
		return "not an address of this host: an IP address, 0.0.0.0 or [::]"
	}
	return ""
}

func (w *writer) api(a API) {
	w.text("", "# The status endpoint on the network (HTTPS), beside the socket in run_dir.", "[api]")
	w.option("listen", a.Listen, "", `like "0.0.0.0:7443"; none without it; "off" under [host.api] for one host`)
	w.option("cert", a.Cert, "", "else the host's own, of the cluster's authority")
	w.option("key", a.Key, "", "")
	w.option("tokens", a.Tokens, "", "a file: NAME read|operate SHA256, a line for each")
	w.option("client_ca", a.ClientCA, "", "signs clients' certificates; else the cluster's authority does")
	w.list("readers", a.Readers, "common names of certificates that may read")
	w.list("operators", a.Operators, "… and that may operate guests")
	anonymous := a.Anonymous
	or(&anonymous, defaultAnonymous)
	if a.Anonymous == "" {
		w.option("anonymous", string(anonymous), string(defaultAnonymous), `what others may ask: "none", "health", "read"`)
	} else {
		w.key("anonymous", string(anonymous), `what others may ask: "none", "health", "read"`)
	}
}

func (w *writer) hostAPI(a API) {
	if reflect.ValueOf(a).IsZero() {
		return
	}
	w.text("[host.api]")
	for _, one := range []struct{ key, value string }{
		{"listen", a.Listen}, {"cert", a.Cert}, {"key", a.Key}, {"tokens", a.Tokens}, {"client_ca", a.ClientCA}, {"anonymous", string(a.Anonymous)},
	} {
		if one.value != "" {
			w.key(one.key, one.value, "")
		}
	}
	if a.Readers != nil {
		w.list("readers", a.Readers, "")
	}
	if a.Operators != nil {
		w.list("operators", a.Operators, "")
	}
}

// list writes a key with strings, as a comment if there are none.
func (w *writer) list(key string, values []string, comment string) {
	if len(values) == 0 {
		key = "# " + key
	}
	written := slices.Clone(values)
	for i, s := range written {
		written[i] = tomlString(s)
	}
	w.key(key, tomlList("["+strings.Join(written, ", ")+"]"), comment)
}

// tomlList is a list as it is written.
type tomlList string
