package main

// understudy top: the pair in a terminal. This host's daemon is asked, and through
// it the others; whoever is silent is shown so.

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"understudy/events"
	"understudy/ownership"
	"understudy/status"
	"understudy/status/samples"
	"understudy/top"
)

func topCommand(f *common) *cobra.Command {
	var once bool
	var every time.Duration
	c := &cobra.Command{
		Use:   "top",
		Short: "Watch the guests of all hosts in a terminal",
		Long: `Watch the guests of all hosts: whether each is protected, where it runs, how long it
stands still, how far its backup is behind, what is sent and held, and what happened.
It asks this host's daemon, and through it the others, every second.

Keys: up and down choose a guest, enter shows all about it, e the events, space freezes
the screen, ? explains, q ends. Where NO_COLOR is set there is no colour; without a
UTF-8 locale no other characters than ASCII.`,
		Example: "  understudy top\n  understudy top --once",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if every < 100*time.Millisecond || every > time.Hour {
				return exitError{exitUsage, fmt.Errorf("--every %v: want 100ms to 1h", every)}
			}
			client, err := f.client()
			if err != nil {
				return err
			}
			o := top.Options{Source: &cluster{Client: client, asked: map[string]bool{}}, Every: every, In: cmd.InOrStdin(), Out: cmd.OutOrStdout(), Environ: os.Environ(), Unicode: utf8Locale(os.Getenv)}
			width, terminal := terminalWidth(cmd.OutOrStdout())
			o.Colour = terminal && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
			if !once {
				if !terminal {
					return exitError{exitUsage, fmt.Errorf("top needs a terminal; --once prints one frame without")}
				}
				return top.Run(cmd.Context(), o)
			}
			frame, err := top.Once(cmd.Context(), o, width)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), frame)
			return err
		},
	}
	c.Flags().BoolVar(&once, "once", false, "print one frame and end")
	c.Flags().DurationVar(&every, "every", time.Second, "how long between two looks")
	return c
}

// terminalWidth is that of the terminal w is, or 80.
func terminalWidth(w io.Writer) (width int, terminal bool) {
	file, ok := w.(*os.File)
	if !ok {
		return 80, false
	}
	size, err := unix.IoctlGetWinsize(int(file.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 80, false
	}
	if size.Col == 0 {
		return 80, true
	}
	return int(size.Col), true
}

// utf8Locale reports whether the locale's characters are UTF-8: locale(7).
func utf8Locale(env func(string) string) bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := env(name); v != "" {
			v = strings.ToUpper(v)
			return strings.Contains(v, "UTF-8") || strings.Contains(v, "UTF8")
		}
	}
	return false
}

// cluster is all hosts, by way of one.
type cluster struct {
	*status.Client
	asked map[string]bool // guests whose past was asked for
}

// recentEvents is how many are asked for.
const recentEvents = 100

// Look asks all hosts at once.
func (c *cluster) Look(ctx context.Context) top.Look {
	l := top.Look{At: time.Now()}
	here, err := c.Status(ctx)
	if err == nil {
		err = c.Get(ctx, "/api/v1/cluster", &l.Cluster)
	}
	if err != nil {
		l.Err = err
		return l
	}
	l.Lease = here.Lease
	l.Hosts = make([]top.Host, len(l.Cluster.Voters))
	var asking sync.WaitGroup
	for i, v := range l.Cluster.Voters {
		h := &l.Hosts[i]
		h.Name, h.Witness = v.Host, v.Witness
		if v.Host == here.Host {
			h.Guests = here.Guests
			continue
		}
		asking.Go(func() {
			var there status.Report
			there, h.Err = c.At(v.Host).Status(ctx)
			h.Guests = there.Guests
		})
	}
	l.Events = c.recent(ctx)
	asking.Wait()
	l.Past = c.past(ctx, here.Host, l.Hosts)
	return l
}

// past is what the hosts remember of the guests that are seen for the first time. A
// host that remembers nothing, or is silent, is no reason to wait.
func (c *cluster) past(ctx context.Context, here ownership.HostID, hosts []top.Host) map[string][]samples.Series {
	var mu sync.Mutex
	var asking sync.WaitGroup
	found := map[string][]samples.Series{}
	for _, h := range hosts {
		at := c.Client
		if h.Name != here {
			at = c.At(h.Name)
		}
		for _, g := range h.Guests {
			if c.asked[g.Name] {
				continue
			}
			asking.Go(func() {
				var s samples.Series
				if at.Get(ctx, "/api/v1/guests/"+url.PathEscape(g.Name)+"/samples", &s) != nil {
					return
				}
				mu.Lock()
				defer mu.Unlock()
				found[g.Name] = append(found[g.Name], s)
			})
		}
	}
	asking.Wait()
	for _, h := range hosts {
		for _, g := range h.Guests {
			c.asked[g.Name] = true
		}
	}
	return found
}

// recent are the latest events of the host that is asked; none if it keeps none.
func (c *cluster) recent(ctx context.Context) (found []top.Event) {
	var list status.EventList
	if c.Get(ctx, fmt.Sprintf("/api/v1/events?limit=%d", recentEvents), &list) != nil {
		return nil
	}
	for _, raw := range list.Events {
		var e events.Event
		if json.Unmarshal(raw, &e) == nil {
			found = append(found, top.Event{At: e.At, Guest: e.Guest, Text: e.Text})
		}
	}
	return found
}
