package main

// events: what happened, on one host or on all, as a table or as JSON lines, and
// what happens, with --follow.

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"understudy/events"
	"understudy/ownership"
	"understudy/status"
)

func eventsCommand(f *common) *cobra.Command {
	var o eventsOptions
	c := &cobra.Command{
		Use:   "events",
		Short: "What happened on this host, or on all: takeovers, drills, troubles",
		Long: `List what this host has recorded: the newest, or with --since those after an event's
number, or of the last minutes. --follow goes on with what happens, over restarts of
the daemon, and misses nothing. With --all, the events of every host in the order of
their clocks. With --output json, each event is an object on a line of its own.`,
		Example: `  understudy events --since 1h
  understudy events --follow --guest web
  understudy events --all --since 10m --output json | jq 'select(.kind == "takeover-running")'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.all && f.at != "" {
				return exitError{exitUsage, errAtAndAll}
			}
			since, err := parseSince(o.since, time.Now())
			if err != nil {
				return exitError{exitUsage, err}
			}
			if o.all && since.number {
				return exitError{exitUsage, errors.New("--since with a number is of one host; with --all give a time, like 10m")}
			}
			return o.run(cmd, f, since)
		},
	}
	fl := c.Flags()
	fl.BoolVar(&o.follow, "follow", false, "go on with what happens")
	fl.StringVar(&o.guest, "guest", "", "only of this `guest`")
	fl.StringVar(&o.kind, "kind", "", "only of this `kind`, like takeover-running")
	fl.StringVar(&o.since, "since", "", "after the event with this `number`, or of the last time, like 10m")
	fl.BoolVar(&o.all, "all", false, "of every host")
	return c
}

type eventsOptions struct {
	guest, kind, since string
	follow, all        bool
}

// since is where to begin.
type since struct {
	number bool
	seq    uint64
	after  time.Time // zero: with the newest
}

func parseSince(text string, now time.Time) (since, error) {
	if text == "" {
		return since{}, nil
	}
	if seq, err := strconv.ParseUint(text, 10, 64); err == nil {
		return since{number: true, seq: seq}, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return since{}, fmt.Errorf("--since %.40q: want the number of an event, or a time like 90s, 10m or 24h", text)
	}
	return since{after: now.Add(-d)}, nil
}

func (o *eventsOptions) run(cmd *cobra.Command, f *common, from since) error {
	local, err := f.local()
	if err != nil {
		return err
	}
	ctx, w := cmd.Context(), cmd.OutOrStdout()
	print := &eventPrinter{w: w, json: f.output == "json", hosts: o.all}
	asked := []ownership.HostID{ownership.HostID(f.at)}
	client := func(h ownership.HostID) *status.Client {
		if h == "" {
			return local
		}
		return local.At(h)
	}
	if o.all {
		if asked, err = hosts(ctx, local); err != nil {
			return err
		}
	}
	past := make([]said[pastEvents], len(asked))
	var all sync.WaitGroup
	for i, h := range asked {
		all.Go(func() {
			past[i].Host = h
			past[i].Value, past[i].Err = o.past(ctx, client(h), from)
		})
	}
	all.Wait()
	var found []eventLine
	for _, one := range past {
		if one.Err != nil && !o.all {
			return one.Err
		}
		if one.Err != nil {
			_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "understudy: host %s: %v\n", one.Host, one.Err)
		}
		found = append(found, one.Value.lines...)
	}
	slices.SortStableFunc(found, func(a, b eventLine) int { return a.At.Compare(b.At) })
	for _, e := range found {
		print.print(e)
	}
	if !o.follow {
		if print.err != nil || !o.all {
			return print.err
		}
		return silent(past)
	}
	return o.goOn(cmd, print, past, client)
}

// goOn follows every host from where its past ended.
func (o *eventsOptions) goOn(cmd *cobra.Command, print *eventPrinter, past []said[pastEvents], client func(ownership.HostID) *status.Client) error {
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	failed := make([]error, len(past))
	var all sync.WaitGroup
	for i, one := range past {
		all.Go(func() {
			q := status.EventQuery{Guest: o.guest, Kind: o.kind, Since: &one.Value.last}
			if one.Err != nil {
				q.Since = nil
			}
			for ctx.Err() == nil {
				err := client(one.Host).Follow(ctx, q, func(_ uint64, event json.RawMessage) error {
					e, err := parseEvent(event)
					if err == nil {
						err = print.print(e)
					}
					return err
				}, func(err error) {
					_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "understudy: %v; it is asked again\n", err)
				})
				// A host that is down as we begin may come up.
				if !o.all || !errors.Is(err, status.ErrNoPeer) {
					if failed[i] = err; ctx.Err() == nil && !o.all || print.broken() {
						cancel()
					}
					return
				}
				select {
				case <-time.After(hostLimit):
				case <-ctx.Done():
				}
			}
		})
	}
	all.Wait()
	if cmd.Context().Err() != nil {
		return nil // the operator has seen enough
	}
	return errors.Join(errors.Join(failed...), print.err)
}

// pastEvents are a host's events and the number to go on from.
type pastEvents struct {
	lines []eventLine
	last  uint64
}

// maxPast bounds the events of a time, of one host.
const maxPast = 200_000

// past returns what has happened.
func (o *eventsOptions) past(ctx context.Context, c *status.Client, from since) (p pastEvents, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*hostLimit)
	defer cancel()
	q := status.EventQuery{Guest: o.guest, Kind: o.kind}
	page := func() (n int, err error) {
		list, err := c.Events(ctx, q)
		if err != nil {
			return 0, err
		}
		for _, text := range list.Events {
			e, err := parseEvent(text)
			if err != nil {
				return 0, err
			}
			if e.At.After(from.after) {
				p.lines = append(p.lines, e)
			}
		}
		p.last = max(p.last, list.Last)
		return len(list.Events), nil
	}
	const most = 1000             // of one answer
	if o.follow && !from.number { // to go on from the last, whatever it is of
		newest, err := c.Events(ctx, status.EventQuery{Limit: 1})
		if err != nil {
			return p, err
		}
		defer func() { p.last = max(p.last, newest.Last) }()
	}
	if from.after.IsZero() && !from.number {
		if o.follow {
			return p, nil
		}
		_, err := page()
		return p, err
	}
	if !from.number { // most likely they are among the newest
		q.Limit = most
		n, err := page()
		if err != nil || n < most || len(p.lines) < n {
			return p, err
		}
		p.lines = nil
	}
	for p.last = from.seq; ; {
		q.Since, q.Limit = &p.last, most
		if n, err := page(); err != nil || n < most {
			return p, err
		}
		if len(p.lines) > maxPast {
			return p, fmt.Errorf("there are more than %d events: say --since with a shorter time, --guest or --kind", maxPast)
		}
	}
}

// eventLine is an event with its text as the host has written it.
type eventLine struct {
	events.Event
	text json.RawMessage
}

func parseEvent(text json.RawMessage) (eventLine, error) {
	e, err := events.Parse(text)
	if err != nil {
		return eventLine{}, fmt.Errorf("an event of the host: %w", err)
	}
	return eventLine{e, text}, nil
}

// eventPrinter prints events, from several goroutines.
type eventPrinter struct {
	mu          sync.Mutex
	w           io.Writer
	json, hosts bool
	begun       bool
	err         error
}

func (p *eventPrinter) broken() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err != nil
}

func (p *eventPrinter) print(e eventLine) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return p.err
	}
	if p.json {
		_, p.err = fmt.Fprintf(p.w, "%s\n", e.text)
		return p.err
	}
	if !p.begun {
		p.begun = true
		_, p.err = fmt.Fprintln(p.w, p.row("NUMBER", "TIME", "HOST", "GUEST", "KIND", "WHAT"))
	}
	if p.err == nil {
		_, p.err = fmt.Fprintln(p.w, p.row(strconv.FormatUint(e.Seq, 10), e.At.UTC().Format("2006-01-02 15:04:05.000"), string(e.Host), cmp.Or(e.Guest, "-"), string(e.Kind), what(e.Event)))
	}
	return p.err
}

// row has columns wide enough for most, since what follows is not known yet.
func (p *eventPrinter) row(number, at, host, guest, kind, what string) string {
	if p.hosts {
		return fmt.Sprintf("%-23s  %-10s  %-10s  %-18s  %s", at, host, guest, kind, what)
	}
	return fmt.Sprintf("%7s  %-23s  %-10s  %-18s  %s", number, at, guest, kind, what)
}

// what is an event's text on one line, with what else it says.
func what(e events.Event) string {
	var parts []string
	if e.Text != "" {
		parts = append(parts, strings.Join(strings.FieldsFunc(e.Text, func(r rune) bool { return r < ' ' || r == 0x7f }), " "))
	} else {
		if e.Change != (events.Change{}) {
			parts = append(parts, fmt.Sprintf("%s → %s", cmp.Or(e.Change.From, "none"), cmp.Or(e.Change.To, "none")))
		}
		if e.Peer != "" {
			parts = append(parts, "host "+string(e.Peer))
		}
		if e.Reason != "" {
			parts = append(parts, string(e.Reason))
		}
	}
	if e.Generation > 0 {
		parts = append(parts, fmt.Sprintf("generation %d", e.Generation))
	}
	if e.Duration > 0 && e.Text == "" {
		parts = append(parts, events.About(e.Duration).String())
	}
	return strings.Join(parts, ", ")
}
