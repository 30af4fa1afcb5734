package config

// [fencing]: how a host is made sure to be off.

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"
)

// Fencing is how a host is fenced; the one under [host.fencing] is for that host.
type Fencing struct {
	// Command is run with the host's name appended, on the host that takes over.
	Command []string `toml:"command"`
	// Verify must exit with 0 after it for the host to count as off.
	Verify []string `toml:"verify"`
	// Timeout bounds each.
	Timeout Duration `toml:"timeout"`
	// After is how long a takeover from a silent host may stand still before it is
	// fenced.
	After Duration `toml:"after"`
}

const (
	defaultFenceTimeout = Duration(30 * time.Second)
	minFenceTimeout     = Duration(1 * time.Second)
	maxFenceTimeout     = Duration(10 * time.Minute)
	maxFenceAfter       = Duration(1 * time.Hour)
	maxArgs             = 64
	maxArg              = 4096
)

// FencingOf returns how h is fenced; ok is false if there is no way.
func (c *Config) FencingOf(h Host) (f Fencing, ok bool) {
	f = c.Fencing.with(h.Fencing)
	return f, len(f.Command) > 0
}

// with overrides key by key.
func (f Fencing) with(own Fencing) Fencing {
	if len(own.Command) > 0 {
		f.Command = own.Command
	}
	if len(own.Verify) > 0 {
		f.Verify = own.Verify
	}
	if own.Timeout != 0 {
		f.Timeout = own.Timeout
	}
	if own.After != 0 {
		f.After = own.After
	}
	return f
}

func (v *validator) fencing(c *Config) {
	v.oneFencing("fencing.", c.Fencing, false)
	for i, h := range c.Hosts[:min(len(c.Hosts), voters)] {
		v.oneFencing(fmt.Sprintf("host[%d].fencing.", i), h.Fencing, true)
		if f := c.Fencing.with(h.Fencing); len(f.Verify) > 0 && len(f.Command) == 0 {
			v.add(fmt.Sprintf("host[%d].fencing.verify", i), "verifies a command, and there is none: set command, or leave it out")
		}
	}
}

func (v *validator) oneFencing(key string, f Fencing, optional bool) {
	for _, one := range []struct {
		key  string
		argv []string
	}{{"command", f.Command}, {"verify", f.Verify}} {
		if len(one.argv) == 0 {
			continue
		}
		v.path(key+one.key+"[0]", one.argv[0])
		if len(one.argv) > maxArgs || slices.ContainsFunc(one.argv, func(a string) bool { return len(a) > maxArg || strings.ContainsFunc(a, isControl) }) {
			v.add(key+one.key, "has more than %d arguments, or one longer than %d bytes or with a control character", maxArgs, maxArg)
		}
	}
	if f.Timeout != 0 || !optional {
		between(v, key+"timeout", f.Timeout, minFenceTimeout, maxFenceTimeout)
	}
	between(v, key+"after", f.After, 0, maxFenceAfter)
}

func (w *writer) fencing(f Fencing, lease Duration) {
	w.text("", "# Fencing: make sure that a silent host is off (STONITH). The host's name is appended to both commands.", "[fencing]")
	w.list("command", f.Command, "like [\"/usr/local/sbin/power-off\"]; none: an operator looks, and says understudy fence confirm")
	w.list("verify", f.Verify, "must exit with 0 afterwards for the host to count as off")
	w.option("timeout", f.Timeout, defaultFenceTimeout, "for each")
	w.option("after", f.After, lease, "a takeover stands still for that long")
}

func (w *writer) hostFencing(f Fencing) {
	if reflect.ValueOf(f).IsZero() {
		return
	}
	w.text("[host.fencing]")
	for _, one := range []struct {
		key  string
		argv []string
	}{{"command", f.Command}, {"verify", f.Verify}} {
		if len(one.argv) > 0 {
			w.list(one.key, one.argv, "")
		}
	}
	for _, one := range []struct {
		key  string
		took Duration
	}{{"timeout", f.Timeout}, {"after", f.After}} {
		if one.took != 0 {
			w.key(one.key, one.took, "")
		}
	}
}
