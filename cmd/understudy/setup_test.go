package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy/cmd/daemon"
	"understudy/config"
	"understudy/hypervisor/qemu"
	"understudy/transport"
)

func TestAddressIsCutAtItsName(t *testing.T) {
	for _, c := range []struct{ in, name, address string }{
		{"alpha=192.0.2.1:7400", "alpha", "192.0.2.1:7400"},
		{"alpha=[2001:db8::1]:7400", "alpha", "[2001:db8::1]:7400"},
		{"alpha=alpha.example.net:7400", "alpha", "alpha.example.net:7400"},
	} {
		name, address, err := cutAddress(c.in)
		if err != nil || name != c.name || address != c.address {
			t.Errorf("%q: %q at %q, %v; want %q at %q", c.in, name, address, err, c.name, c.address)
		}
	}
	for _, in := range []string{"", "=", "alpha", "alpha=", "=192.0.2.1:7400", "alpha=192.0.2.1", "alpha=2001:db8::1", "192.0.2.1:7400"} {
		if name, address, err := cutAddress(in); err == nil || !strings.Contains(err.Error(), "NAME=HOST:PORT") {
			t.Errorf("%q was taken for %q at %q, %v; want an error that says the form", in, name, address, err)
		}
	}
}

func TestMadeConfigHasTheOperatorsNames(t *testing.T) {
	for _, c := range []struct {
		about  string
		hosts  []string
		primal string // where the example's guest starts
		backup string
	}{
		{"the example as it is", nil, "alpha", "beta"},
		{"other names", []string{"north=10.0.0.1:7400", "south=10.0.0.2:7400", "tower=10.0.0.3:7400"}, "north", "south"},
		{"the example's names, turned round", []string{"beta=10.0.0.1:7400", "alpha=10.0.0.2:7400", "witness=10.0.0.3:7400"}, "beta", "alpha"},
		{"a host with the witness's name", []string{"witness=10.0.0.1:7400", "beta=10.0.0.2:7400", "alpha=10.0.0.3:7400"}, "witness", "beta"},
	} {
		t.Run(c.about, func(t *testing.T) {
			made, err := makeConfig("shop", c.hosts)
			if err != nil {
				t.Fatal(err)
			}
			if g := made.Guests[0]; g.Host != c.primal || g.Backup != c.backup {
				t.Errorf("the guest starts on %s and goes on at %s; want %s and %s", g.Host, g.Backup, c.primal, c.backup)
			}
			for i, h := range c.hosts {
				if got := made.Hosts[i].Name + "=" + made.Hosts[i].Address; got != h {
					t.Errorf("host %d is %s, want %s", i, got, h)
				}
			}
			if w, ok := made.Witness(); !ok || w.Name != made.Hosts[2].Name {
				t.Errorf("the witness is %+v, want the third host", w)
			}
			// What is written must be read back by every command.
			again, err := config.Parse(made.Render())
			if err != nil {
				t.Fatalf("the rendered file: %v", err)
			}
			if again.Cluster != "shop" {
				t.Errorf("the cluster is %q, want shop", again.Cluster)
			}
		})
	}
}

func TestConfigIsNotMadeOfNonsense(t *testing.T) {
	for _, c := range []struct {
		about, cluster string
		hosts          []string
		want           string
	}{
		{"two hosts", "shop", []string{"a=10.0.0.1:1", "b=10.0.0.2:1"}, "want 3"},
		{"no form", "shop", []string{"a=10.0.0.1:1", "b=10.0.0.2:1", "c"}, "NAME=HOST:PORT"},
		{"one name twice", "shop", []string{"a=10.0.0.1:1", "a=10.0.0.2:1", "c=10.0.0.3:1"}, `another host "a"`},
		{"one address twice", "shop", []string{"a=10.0.0.1:1", "b=10.0.0.1:1", "c=10.0.0.3:1"}, "address of another host"},
		{"no port", "shop", []string{"a=10.0.0.1:http", "b=10.0.0.2:1", "c=10.0.0.3:1"}, "port"},
		{"a name that is none", "shop", []string{"A=10.0.0.1:1", "b=10.0.0.2:1", "c=10.0.0.3:1"}, "is no name"},
		{"a cluster that is none", "my shop", []string{"a=10.0.0.1:1", "b=10.0.0.2:1", "c=10.0.0.3:1"}, "cluster"},
	} {
		t.Run(c.about, func(t *testing.T) {
			if _, err := makeConfig(c.cluster, c.hosts); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
}

// command runs the tool in this process.
func command(t *testing.T, args ...string) (out string, err error) {
	t.Helper()
	var b bytes.Buffer
	c := root(&common{})
	c.SetArgs(args)
	c.SetOut(&b)
	c.SetErr(&b)
	err = c.ExecuteContext(t.Context())
	return b.String(), err
}

// exitOf is the exit status that run gives an error.
func exitOf(err error) int {
	var e exitError
	if errors.As(err, &e) {
		return e.status
	}
	return exitFailed
}

func TestInitWritesAWorkingPairOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etc")
	hosts := []string{"--host-address", "north=10.0.0.1:7400", "--host-address", "south=10.0.0.2:7400", "--host-address", "tower=10.0.0.3:7400"}
	args := append([]string{"init", "--dir", dir, "--cluster", "shop", "--output", "json"}, hosts...)
	out, err := command(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	var wrote struct{ Config, TLS string }
	if err := json.Unmarshal([]byte(out), &wrote); err != nil {
		t.Fatalf("%q: %v", out, err)
	}
	c, err := config.Load(wrote.Config)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range c.Hosts {
		id, err := transport.LoadIdentity(wrote.TLS, h.Name)
		if err != nil {
			t.Errorf("the identity of %s: %v", h.Name, err)
		} else if left := time.Until(id.NotAfter()); left < 4*365*24*time.Hour {
			t.Errorf("the certificate of %s runs out in %v", h.Name, left)
		}
	}
	if out, err := command(t, "config", "check", "--config", wrote.Config); err != nil || !strings.Contains(out, "is valid: cluster shop") {
		t.Errorf("config check: %q, %v", out, err)
	}

	// A second time nothing is touched: the certificates are in use by then.
	before, err := os.ReadFile(filepath.Join(wrote.TLS, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := command(t, args...); err == nil || exitOf(err) != exitFailed || !strings.Contains(err.Error(), "nothing was written") {
		t.Errorf("init again: %v", err)
	}
	if after, err := os.ReadFile(filepath.Join(wrote.TLS, "ca.pem")); err != nil || !bytes.Equal(before, after) {
		t.Errorf("init again has changed the authority (%v)", err)
	}
}

func TestWrongCommandLinesSayWhy(t *testing.T) {
	file := filepath.Join(t.TempDir(), "understudy.toml")
	if err := os.WriteFile(file, config.Example().Render(), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args   []string
		status int
		want   string
	}{
		{[]string{"status", "--output", "yaml"}, exitUsage, "want table or json"},
		{[]string{"status", "--no-such-flag"}, exitUsage, "no-such-flag"},
		{[]string{"status", "--config", "/nowhere.toml"}, exitUsage, "/nowhere.toml"},
		{[]string{"status", "--config", file, "--host", "gamma"}, exitUsage, `no [[host]] named "gamma": say --host`},
		{[]string{"init", "--dir", t.TempDir(), "--host-address", "a=b"}, exitUsage, "want 3"},
		{[]string{"config", "check", "--config", "/nowhere.toml"}, exitUsage, "/nowhere.toml"},
		{[]string{"demo", "--memory", "much"}, exitUsage, "is not a size"},
	} {
		_, err := command(t, c.args...)
		if err == nil || exitOf(err) != c.status || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v (exit status %d), want %q and exit status %d", c.args, err, exitOf(err), c.want, c.status)
		}
	}
}

func TestChecksArePrintedWithTheirRemedies(t *testing.T) {
	var b bytes.Buffer
	err := printChecks(&b, []qemu.Report{{Guest: "web", Checks: []qemu.Check{
		{Name: "kernel", Status: qemu.StatusOK, Detail: "Linux 6.18.1"},
		{Name: "swap", Status: qemu.StatusWarn, Detail: "1 swap areas", Remedy: "swapoff"},
	}}})
	const want = `web  ok    kernel  Linux 6.18.1
web  warn  swap    1 swap areas
                   → swapoff
`
	if err != nil || b.String() != want {
		t.Errorf("got (%v)\n%s\nwant\n%s", err, b.String(), want)
	}
}

func TestSocketLiesInTheHostsRunDirectory(t *testing.T) {
	c := config.Example()
	h, _ := c.Host("alpha")
	if got := socketOf(c, h); got != "/run/understudy/understudy.sock" || got != daemon.Socket(c, h) {
		t.Errorf("the socket is %s", got)
	}
	h.Run = "/run/elsewhere"
	if got := socketOf(c, h); got != "/run/elsewhere/understudy.sock" {
		t.Errorf("with a run directory of its own the socket is %s", got)
	}
}
