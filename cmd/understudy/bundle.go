package main

// support-bundle: one file with what somebody needs who is to find out what went
// wrong. From every host that answers: its status, cluster, events, metrics,
// strikes and newest drills; from this one also the configuration, versions,
// kernel, QEMU and the daemon's log. The manifest says what is in it, what is not
// and why. Nothing in it is a secret: see scrub.go.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"understudy/config"
	"understudy/drill"
	"understudy/ownership"
	"understudy/status"
)

const (
	bundleLimit   = 15 * time.Second // for each answer, and each program
	bundleDrills  = 5                // reports of a host
	bundleEvents  = 10_000           // the newest, of a host
	maxBundleFile = 8 << 20          // bytes; of longer ones the end is kept
	maxBundle     = 256 << 20        // bytes, before compression
)

func bundleCommand(f *common) *cobra.Command {
	return &cobra.Command{
		Use:   "support-bundle FILE",
		Short: "Put together what support needs to find out what went wrong",
		Long: `Write FILE, which ends in .tar.zst or .tar.gz: the configuration, and of every host
that answers its status, its view of the ownership log, events, metrics and newest
drills; of this host also versions, kernel, QEMU and the daemon's log. manifest.json
lists what is in it, and what is missing and why. Private keys and tokens are not:
they are not asked for, and removed wherever they turn up. Look through it before
you give it away: it has names, addresses and command lines.`,
		Example: "  understudy support-bundle /tmp/understudy.tar.zst",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.at != "" {
				return exitError{exitUsage, errors.New("a bundle is of all hosts: leave --at out")}
			}
			m, err := f.bundle(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return f.print(cmd.OutOrStdout(), m, m.table(args[0]))
		},
	}
}

// bundle writes the bundle.
func (f *common) bundle(ctx context.Context, path string) (manifest, error) {
	out, err := newBundle(path)
	if err != nil {
		return manifest{}, err
	}
	defer out.giveUp()
	show := newBar(f, os.Stderr)
	defer show.end()
	steps := []func(){
		func() { f.bundleHere(ctx, out) },
		func() { bundleSystem(ctx, out) },
	}
	local, err := f.local()
	names := []ownership.HostID{}
	if err == nil {
		names, err = hosts(ctx, local)
	}
	if err != nil {
		out.lack("hosts", err)
	}
	for _, h := range names {
		steps = append(steps, func() { bundleHost(ctx, out, local.At(h), h) })
	}
	for i, step := range steps {
		show.show("gathering", uint64(i), uint64(len(steps)))
		step()
		if ctx.Err() != nil {
			return manifest{}, ctx.Err()
		}
	}
	return out.end()
}

// bundleHere adds what is in this host's files.
func (f *common) bundleHere(ctx context.Context, out *bundle) {
	c, h, err := f.load()
	if err != nil {
		out.lack("understudy.toml", err)
	} else {
		// As it is understood, not as it is written: comments may say anything.
		out.add("understudy.toml", hideArguments(c).Render())
	}
	out.addJSON("versions.json", map[string]string{"understudy": status.Version, "go": runtime.Version(), "system": runtime.GOOS + "/" + runtime.GOARCH, "host": h.Name})
	out.run(ctx, "log.txt", "journalctl", "--no-pager", "--output=short-precise", "--lines=20000", "--unit=understudyd*")
}

// hideArguments returns a copy without what may hold secrets of others: kernel
// command lines.
func hideArguments(c *config.Config) *config.Config {
	hidden := *c
	hidden.Guests = append([]config.Guest(nil), c.Guests...)
	for i := range hidden.Guests {
		if g := &hidden.Guests[i]; g.Append != "" {
			g.Append = "(" + fmt.Sprint(len(g.Append)) + " bytes, not shown)"
		}
	}
	return &hidden
}

// bundleSystem adds what this host is.
func bundleSystem(ctx context.Context, out *bundle) {
	for name, file := range map[string]string{"kernel.txt": "/proc/version", "processors.txt": "/proc/cpuinfo", "memory.txt": "/proc/meminfo",
		"os-release.txt": "/etc/os-release", "pressure-cpu.txt": "/proc/pressure/cpu", "pressure-io.txt": "/proc/pressure/io"} {
		text, err := os.ReadFile(file)
		if err != nil {
			out.lack("system/"+name, err)
			continue
		}
		out.add("system/"+name, text)
	}
	out.run(ctx, "system/qemu.txt", "qemu-system-x86_64", "--version")
	out.run(ctx, "system/nftables.txt", "nft", "list", "ruleset")
	out.run(ctx, "system/links.txt", "ip", "-details", "address")
	out.run(ctx, "system/units.txt", "systemctl", "status", "--no-pager", "--full", "understudyd*")
}

// bundleHost adds what a host says of itself.
func bundleHost(ctx context.Context, out *bundle, c *status.Client, h ownership.HostID) {
	under := "hosts/" + url.PathEscape(string(h)) + "/"
	ask := func(name, path string) ([]byte, bool) {
		ctx, cancel := context.WithTimeout(ctx, bundleLimit)
		defer cancel()
		text, err := c.Raw(ctx, path, status.MaxBody)
		if err != nil {
			out.lack(under+name, err)
			return nil, errors.Is(err, status.ErrNoPeer)
		}
		out.add(under+name, text)
		return text, false
	}
	if _, down := ask("status.json", "/api/v1/status"); down {
		out.lack(under+"*", errors.New("the host does not answer: run understudy support-bundle there, too"))
		return
	}
	for _, one := range [][2]string{{"cluster.json", "/api/v1/cluster"}, {"guests.json", "/api/v1/guests"}, {"ready.txt", "/readyz?verbose"}, {"metrics.txt", "/metrics"},
		{"strikes.json", "/api/v1/strikes"}} {
		ask(one[0], one[1])
	}
	bundleConfig(ctx, out, c, under+"understudy.toml")
	if text, err := newestEvents(ctx, c); err != nil {
		out.lack(under+"events.jsonl", err)
	} else {
		out.add(under+"events.jsonl", text)
	}
	list, _ := ask("drills.json", "/api/v1/drills")
	for _, id := range drillIDs(list) {
		ask("drills/"+id+".json", "/api/v1/drills/"+url.PathEscape(id))
	}
}

// bundleConfig adds the configuration that a host runs with.
func bundleConfig(ctx context.Context, out *bundle, c *status.Client, name string) {
	ctx, cancel := context.WithTimeout(ctx, bundleLimit)
	defer cancel()
	var running status.RunningConfig
	err := c.Get(ctx, "/api/v1/config", &running)
	var parsed *config.Config
	if err == nil {
		parsed, err = config.Parse([]byte(running.TOML))
	}
	if err != nil {
		out.lack(name, err)
		return
	}
	out.add(name, hideArguments(parsed).Render())
}

// newestEvents are a host's, one a line.
func newestEvents(ctx context.Context, c *status.Client) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, bundleLimit)
	defer cancel()
	newest, err := c.Events(ctx, status.EventQuery{Limit: 1})
	if err != nil {
		return nil, err
	}
	var text strings.Builder
	since := uint64(0)
	if newest.Last > bundleEvents {
		since = newest.Last - bundleEvents
	}
	for since < newest.Last && text.Len() < maxBundleFile {
		list, err := c.Events(ctx, status.EventQuery{Since: &since, Limit: 1000})
		if err != nil {
			return nil, err
		}
		if len(list.Events) == 0 || list.Last <= since {
			break
		}
		for _, e := range list.Events {
			text.Write(e)
			text.WriteByte('\n')
		}
		since = list.Last
	}
	return []byte(text.String()), nil
}

// drillIDs are the newest reports' names in a host's list of drills.
func drillIDs(text []byte) (ids []string) {
	var list drill.List
	if json.Unmarshal(text, &list) != nil {
		return nil
	}
	for _, d := range list.Drills[:min(len(list.Drills), bundleDrills)] {
		if d.ID != "" && filepath.Base(d.ID) == d.ID && !strings.HasPrefix(d.ID, ".") {
			ids = append(ids, d.ID)
		}
	}
	return ids
}

// run adds what a program says.
func (b *bundle) run(ctx context.Context, name, program string, args ...string) {
	ctx, cancel := context.WithTimeout(ctx, bundleLimit)
	defer cancel()
	path, err := exec.LookPath(program)
	if err != nil {
		b.lack(name, fmt.Errorf("there is no %s here", program))
		return
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.WaitDelay = time.Second
	said := &tailWriter{limit: maxBundleFile}
	cmd.Stdout, cmd.Stderr = said, said
	err = cmd.Run()
	if text := said.text(); len(text) > 0 {
		b.add(name, text)
	} else if err == nil {
		err = errors.New("it said nothing")
	}
	if err != nil {
		b.lack(name, fmt.Errorf("%s: %w", program, err))
	}
}
