package config

// The section [api]: what it means on each host, what is told of mistakes in
// it, and that it comes back from what Render writes.

import (
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

const apiFile = `
cluster = "lab"
[api]
listen = "0.0.0.0:7443"
tokens = "/etc/understudy/tokens"
operators = ["alpha"]
readers = []
[[host]]
name = "a"
address = "127.0.0.1:7001"
[host.api]
listen = "[::1]:9443"
cert = "/etc/a.pem"
key = "/etc/a.key"
anonymous = "health"
[[host]]
name = "b"
address = "127.0.0.1:7002"
[[host]]
name = "w"
address = "127.0.0.1:7003"
witness = true
[host.api]
listen = "off"
`

func TestTheEndpointIsTheClustersOrTheHostsOwn(t *testing.T) {
	c, err := Parse([]byte(apiFile))
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]*API{
		"a": {Listen: "[::1]:9443", Cert: "/etc/a.pem", Key: "/etc/a.key", Tokens: "/etc/understudy/tokens", Operators: []string{"alpha"}, Anonymous: AnonymousHealth},
		"b": {Listen: "0.0.0.0:7443", Tokens: "/etc/understudy/tokens", Operators: []string{"alpha"}, Anonymous: AnonymousNone},
		"w": nil,
	} {
		h, _ := c.Host(host)
		got, on := c.APIOf(h)
		if on != (want != nil) || on && !reflect.DeepEqual(got, *want) {
			t.Errorf("%s: %+v, %v; want %+v", host, got, on, want)
		}
	}
	if _, on := Example().APIOf(Example().Hosts[0]); on {
		t.Error("the example listens on the network")
	}
}

func TestMistakesInTheEndpointAreTold(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(*Config)
		want  string
	}{
		"no port":           {func(c *Config) { c.API.Listen = "0.0.0.0" }, `api.listen: "0.0.0.0": want address:port`},
		"a name":            {func(c *Config) { c.API.Listen = "alpha:7443" }, "api.listen: \"alpha:7443\": not an address of this host"},
		"port 0":            {func(c *Config) { c.API.Listen = ":0" }, "the port is not a number"},
		"half a pair":       {func(c *Config) { c.API.Key = "/k" }, "api.cert: cert and key go together"},
		"relative":          {func(c *Config) { c.API.Tokens = "tokens" }, `api.tokens: "tokens" is not an absolute path`},
		"anonymous":         {func(c *Config) { c.API.Anonymous = "all" }, `api.anonymous: "all" is none of`},
		"nobody could ask":  {func(c *Config) { c.API.Listen = ":7443" }, "api.listen: host alpha would listen on :7443 and nobody could ask"},
		"nobody, one host":  {func(c *Config) { c.Hosts[1].API.Listen = ":7443" }, "host[1].api.listen: host beta would listen"},
		"of the other port": {func(c *Config) { c.API.Listen, c.API.Anonymous = c.Hosts[0].Address, AnonymousRead }, "is the host's own address for the other hosts"},
		"twice":             {func(c *Config) { c.API.Readers, c.API.Operators = []string{"x"}, []string{"x"} }, `api.operators: "x" is listed twice`},
		"no name":           {func(c *Config) { c.API.Readers = []string{""} }, "api.readers"},
		"a host's":          {func(c *Config) { c.Hosts[2].API.Anonymous = "x" }, "host[2].api.anonymous"},
	} {
		t.Run(name, func(t *testing.T) {
			config := Example()
			c.spoil(config)
			if err := config.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

func TestTheEndpointComesBackFromTheFile(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		path := rapid.SampledFrom([]string{"", "/etc/x", `/etc/"quoted"`})
		names := rapid.SampledFrom([][]string{nil, {"grafana"}, {`a "b"`, "ü, c"}})
		draw := func(label string) (a API) {
			a.Listen = rapid.SampledFrom([]string{"", "off", ":7443", "[::1]:1"}).Draw(t, label+" listen")
			if a.Cert = path.Draw(t, label+" cert"); a.Cert != "" {
				a.Key = "/etc/key"
			}
			a.Tokens, a.ClientCA = path.Draw(t, label+" tokens"), path.Draw(t, label+" ca")
			if a.Readers = names.Draw(t, label+" readers"); a.Readers == nil {
				a.Operators = names.Draw(t, label+" operators")
			}
			a.Anonymous = rapid.SampledFrom([]Anonymous{"", AnonymousHealth, AnonymousRead, AnonymousNone}).Draw(t, label+" anonymous")
			return a
		}
		c := Example()
		c.API, c.Hosts[1].API = draw("cluster"), draw("host")
		if c.Validate() != nil {
			return // nobody could ask
		}
		got, err := Parse(c.Render())
		if err != nil {
			t.Fatalf("%v\n%s", err, c.Render())
		}
		if !reflect.DeepEqual(got, c) {
			t.Fatalf("read back it is\n%+v, want\n%+v\n%s", got, c, c.Render())
		}
	})
}
