package main

// drill run, list, report, abort: proving on the running pair that a failure
// would be survived. A drill runs in a daemon, that of the witness where there is
// one; this finds it through the daemon of this host, and looks on.

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"understudy/drill"
	"understudy/events"
	"understudy/ownership"
	"understudy/status"
)

func drillCommand(f *common) *cobra.Command {
	return group("drill", "Prove that a failure would be survived, and measure it",
		`A drill moves or strikes a guest on purpose, or starts its backup's copy in
isolation; it measures the outage and the loss, asserts each guarantee with its
evidence, puts everything back and keeps a report. It runs in a daemon, that of
the witness where there is one, whoever asks.`,
		`  understudy drill run --kind bubble --guest web
  understudy drill list`,
		drillRunCommand(f), drillListCommand(f), drillReportCommand(f), drillAbortCommand(f))
}

// drillRun are the flags of drill run.
type drillRun struct {
	spec                drill.Spec
	kind, fault, check  string
	dryRun, detach, yes bool
}

func drillRunCommand(f *common) *cobra.Command {
	var d drillRun
	c := &cobra.Command{
		Use:   "run NAME | --kind KIND --guest GUEST",
		Short: "Run a drill, and put everything back",
		Long: `Run a drill: a configured one by its name ([[drill]]), or one that the flags
describe.

  switchover  moves the guest to its backup in good order, and back
  failover    strikes the guest's host: kill (its daemon and the guest die), freeze
              (they stand still), cut (it does not reach the others), for a time;
              the guest goes on at its backup, and is brought back afterwards
  bubble      starts the backup's copy in isolation while the guest goes on, runs
              the check in there, and throws the copy away

It measures how long the guest was away and what was lost, asserts each guarantee
with its evidence, compares all memory of both hosts, and keeps a report. Nothing
is begun unless everything is well before; --dry-run says what would be done.
Interrupted by Ctrl-C it is given up, and cleans up by itself.`,
		Example: `  understudy drill run weekly
  understudy drill run --kind bubble --guest web
  understudy drill run --kind failover --fault freeze --guest web --probe 192.0.2.10:22 --dry-run`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return d.run(cmd, f, args) },
	}
	p := c.Flags()
	p.StringVar(&d.kind, "kind", "", "switchover, failover or bubble")
	p.StringVar(&d.spec.Guest, "guest", "", "the guest")
	p.StringVar(&d.fault, "fault", "", "of a failover: kill, freeze or cut (default kill)")
	p.DurationVar(&d.spec.FaultFor, "fault-for", 0, "how long the fault lasts (default: long enough for a takeover)")
	p.StringVar(&d.check, "check-of", "", "run the check of that configured drill (commands are taken from the configuration alone)")
	p.StringVar(&d.spec.Probe, "probe", "", "a TCP `address` of the guest that is connected to all the time, to see the outage")
	p.DurationVar(&d.spec.MaxOutage, "max-outage", 0, "the longest outage that passes (default: any)")
	p.DurationVar(&d.spec.Patience, "patience", 0, "how long to wait for the guest to be protected again (default 15m)")
	p.BoolVar(&d.spec.Stay, "stay", false, "leave the guest where the drill brings it")
	p.BoolVar(&d.dryRun, "dry-run", false, "say what would be done, and whether it could be now")
	p.BoolVar(&d.detach, "detach", false, "do not wait for its end")
	p.BoolVarP(&d.yes, "yes", "y", false, "do not ask")
	return c
}

func (d *drillRun) run(cmd *cobra.Command, f *common, args []string) error {
	if err := d.describe(cmd, args); err != nil {
		return exitError{exitUsage, err}
	}
	ctx := cmd.Context()
	local, err := f.local()
	if err != nil {
		return err
	}
	if d.check != "" {
		if err := d.takeCheck(ctx, f); err != nil {
			return err
		}
	}
	at, client, err := engineOf(ctx, f, local, d.spec)
	if err != nil {
		return err
	}
	if d.dryRun {
		return d.plan(ctx, cmd, f, client)
	}
	if err := d.ask(ctx, cmd, f, client); err != nil {
		return err
	}
	id, err := client.RunDrill(ctx, d.spec)
	if err != nil {
		return err
	}
	if d.detach {
		return f.print(cmd.OutOrStdout(), map[string]string{"id": id, "host": string(at)}, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "drill %s runs on %s: understudy drill report %s\n", id, at, id)
			return err
		})
	}
	report, err := follow(ctx, cmd.ErrOrStderr(), client, id)
	if err != nil {
		return err
	}
	if err := f.print(cmd.OutOrStdout(), report, report.WriteTable); err != nil {
		return err
	}
	return verdictOf(report)
}

// describe makes the spec of the command line.
func (d *drillRun) describe(cmd *cobra.Command, args []string) error {
	d.spec.Kind, d.spec.Fault = drill.Kind(d.kind), drill.Fault(d.fault)
	switch {
	case len(args) == 1:
		for _, name := range []string{"kind", "guest", "fault", "fault-for", "check-of", "probe", "max-outage", "patience", "stay"} {
			if cmd.Flags().Changed(name) {
				return fmt.Errorf("--%s does not go with the name of a configured drill", name)
			}
		}
		d.spec.Name = args[0]
		return nil
	case d.kind == "" || d.spec.Guest == "":
		return errors.New("which drill? Say its name, or --kind and --guest")
	}
	whole := d.spec
	whole.SetDefaults()
	return whole.Validate()
}

// takeCheck takes the check of a configured drill.
func (d *drillRun) takeCheck(_ context.Context, f *common) error {
	c, _, err := f.load()
	if err != nil {
		return err
	}
	for _, one := range c.Drill {
		if one.Name == d.check {
			d.spec.Check, d.spec.CheckTimeout = one.Check, one.CheckTimeout.Std()
			return nil
		}
	}
	return exitError{exitUsage, fmt.Errorf("--check-of: no [[drill]] %q in %s", d.check, f.config)}
}

// plan prints what would be done.
func (d *drillRun) plan(ctx context.Context, cmd *cobra.Command, f *common, client *status.Client) error {
	plan, err := client.PlanDrill(ctx, d.spec)
	if err != nil {
		return err
	}
	if err := f.print(cmd.OutOrStdout(), plan, plan.WriteTable); err != nil {
		return err
	}
	if !plan.Possible {
		return errors.New("the drill could not be begun now")
	}
	return nil
}

// ask lets the operator think again. A bubble harms nobody.
func (d *drillRun) ask(ctx context.Context, cmd *cobra.Command, f *common, client *status.Client) error {
	if d.yes || d.spec.Kind == drill.Bubble {
		return nil
	}
	if !terminal(cmd.InOrStdin()) {
		return exitError{exitUsage, errors.New("a drill moves or strikes the guest: say --yes where nobody can be asked, or --dry-run to see what it would do")}
	}
	plan, err := client.PlanDrill(ctx, d.spec)
	if err != nil {
		return err
	}
	if err := plan.WriteTable(cmd.ErrOrStderr()); err != nil {
		return err
	}
	if !plan.Possible {
		return errors.New("the drill cannot be begun now")
	}
	_, _ = fmt.Fprint(cmd.ErrOrStderr(), "\nBegin? [y/N] ")
	answer, _ := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), 100)).ReadString('\n')
	if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
		return errors.New("nothing was done")
	}
	return nil
}

// engineOf finds the host that runs drills of a guest, and returns a client of it.
func engineOf(ctx context.Context, f *common, local *status.Client, s drill.Spec) (ownership.HostID, *status.Client, error) {
	if f.at != "" {
		return ownership.HostID(f.at), local.At(ownership.HostID(f.at)), nil
	}
	var cluster status.Cluster
	if err := local.Get(ctx, "/api/v1/cluster", &cluster); err != nil {
		return "", nil, err
	}
	var members []drill.Member
	witness := false
	for _, v := range cluster.Voters {
		members = append(members, drill.Member{Host: v.Host, Witness: v.Witness})
		witness = witness || v.Witness
	}
	var facts drill.Facts
	if !witness { // then it depends on the guest
		c, _, err := f.load()
		if err != nil {
			return "", nil, err
		}
		for _, one := range c.Drill {
			if one.Name == s.Name && s.Name != "" {
				s.Guest = one.Guest
			}
		}
		g, _ := c.Guest(s.Guest)
		facts.Host, facts.Backup = ownership.HostID(g.Host), ownership.HostID(g.Backup)
	}
	at := drill.Engine(members, facts)
	if at == "" || at == cluster.Host {
		return cluster.Host, local, nil
	}
	return at, local.At(at), nil
}

const (
	// lookEvery is how often a drill is looked at.
	lookEvery = 300 * time.Millisecond
	// looksInVain are as many looks without an answer as take a minute: the daemon
	// that is asked may be the one that the drill strikes.
	looksInVain = int(time.Minute / lookEvery)
)

// follow looks on until a drill is over. On a terminal it tells each step.
func follow(ctx context.Context, to io.Writer, client *status.Client, id string) (drill.Report, error) {
	shown := 0
	tells := terminal(to)
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for silent := 0; ; {
		report, err := client.Drill(ctx, id)
		switch {
		case ctx.Err() != nil:
			return giveUp(context.WithoutCancel(ctx), to, client, id)
		case err != nil && silent < looksInVain:
			silent++
		case err != nil:
			return report, fmt.Errorf("drill %s goes on by itself: look later, or on another host, with 'understudy drill report %s': %w", id, id, err)
		default:
			silent = 0
			for ; tells && shown < len(report.Timeline) && !report.State.Over(); shown++ {
				s := report.Timeline[shown]
				_, _ = fmt.Fprintf(to, "%8.1fs  %s\n", s.At.Seconds(), s.Text)
			}
			if report.State.Over() {
				return report, nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return giveUp(context.WithoutCancel(ctx), to, client, id)
		}
	}
}

// giveUp aborts a drill that nobody waits for any more.
func giveUp(ctx context.Context, to io.Writer, client *status.Client, id string) (drill.Report, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := client.AbortDrill(ctx, id); err != nil {
		return drill.Report{}, fmt.Errorf("drill %s could not be given up: %w", id, err)
	}
	_, _ = fmt.Fprintln(to)
	return drill.Report{}, fmt.Errorf("drill %s is given up, and undoes what it has done: understudy drill report %s", id, id)
}

// verdictOf is the exit status of a drill that is over.
func verdictOf(r drill.Report) error {
	switch r.State {
	case drill.Held:
		return nil
	case drill.Failed:
		return exitError{exitDrillFailed, fmt.Errorf("drill %s failed: %s", r.ID, r.Why)}
	}
	return fmt.Errorf("drill %s: %s: %s", r.ID, r.State, r.Why)
}

func terminal(v any) bool {
	file, ok := v.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return err == nil
}

// voters returns a client of each host of the cluster.
func voters(ctx context.Context, f *common) ([]ownership.HostID, *status.Client, error) {
	local, err := f.local()
	if err != nil {
		return nil, nil, err
	}
	if f.at != "" {
		return []ownership.HostID{ownership.HostID(f.at)}, local, nil
	}
	var cluster status.Cluster
	if err := local.Get(ctx, "/api/v1/cluster", &cluster); err != nil {
		return nil, nil, err
	}
	var all []ownership.HostID
	for _, v := range cluster.Voters {
		all = append(all, v.Host)
	}
	return all, local, nil
}

// drillHistory is what drill list prints.
type drillHistory struct {
	Drills []drill.Summary `json:"drills"`
	// Silent are the hosts whose history is not in it, and why.
	Silent     map[ownership.HostID]string `json:"silent,omitempty"`
	Unreadable []string                    `json:"unreadable,omitempty"`
}

// gather asks all hosts for their histories.
func gather(ctx context.Context, f *common, limit int) (drillHistory, error) {
	out := drillHistory{Drills: []drill.Summary{}, Silent: map[ownership.HostID]string{}}
	all, local, err := voters(ctx, f)
	if err != nil {
		return out, err
	}
	for _, h := range all {
		call, cancel := context.WithTimeout(ctx, 5*time.Second)
		l, err := local.At(h).DrillList(call, limit)
		cancel()
		if err != nil {
			out.Silent[h] = err.Error()
			continue
		}
		out.Drills = append(out.Drills, l.Drills...)
		out.Unreadable = append(out.Unreadable, l.Unreadable...)
	}
	if len(out.Silent) == len(all) {
		return out, fmt.Errorf("no host tells of its drills: %v", out.Silent)
	}
	slices.SortStableFunc(out.Drills, func(a, b drill.Summary) int { return cmp.Compare(b.Began.UnixNano(), a.Began.UnixNano()) })
	out.Drills = out.Drills[:min(len(out.Drills), limit)]
	return out, nil
}

func drillListCommand(f *common) *cobra.Command {
	limit := 20
	c := &cobra.Command{
		Use:   "list",
		Short: "The drills that were run, on all hosts, the newest first",
		Long: `List the drills in the histories of all hosts, the newest first. What they ended
with: held (every check and guarantee held), failed, refused or skipped (nothing
was done, since a condition did not hold), aborted, interrupted (its daemon ended
under it; the next one has cleaned up).`,
		Example: `  understudy drill list
  understudy drill list --limit 100 --output json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 1 || limit > 500 {
				return exitError{exitUsage, fmt.Errorf("--limit %d: want 1 to 500", limit)}
			}
			all, err := gather(cmd.Context(), f, limit)
			if err != nil {
				return err
			}
			return f.print(cmd.OutOrStdout(), all, func(w io.Writer) error { return printDrills(w, all) })
		},
	}
	c.Flags().IntVar(&limit, "limit", limit, "how many")
	return c
}

func printDrills(w io.Writer, all drillHistory) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	p := func(format string, a ...any) { _, _ = fmt.Fprintf(t, format, a...) } // Flush tells errors
	p("ID\tGUEST\tKIND\tRESULT\tBEGAN\tTOOK\tOUTAGE\tHOST\n")
	for _, d := range all.Drills {
		kind, outage := string(d.Kind), "-"
		if d.Fault != "" {
			kind += " " + string(d.Fault)
		}
		if d.Outage != nil {
			outage = events.About(*d.Outage).String()
		}
		result := string(d.State)
		if d.State == drill.Running {
			result += ": " + string(d.Phase)
		}
		p("%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", d.ID, d.Guest, kind, result, d.Began.Local().Format("2006-01-02 15:04:05"), events.About(d.Took), outage, d.Host)
	}
	for h, why := range all.Silent {
		p("\nhost %s does not tell: %s\n", h, why)
	}
	for _, u := range all.Unreadable {
		p("\nnot readable: %s\n", u)
	}
	return t.Flush()
}

func drillReportCommand(f *common) *cobra.Command {
	var format, file string
	c := &cobra.Command{
		Use:   "report [ID]",
		Short: "A drill's report, without an ID that of the newest",
		Long: `Print a drill's report: what was measured, each check, each guarantee with its
evidence, and the timeline of all hosts by one clock. As a table, as JSON, as JUnit
XML for a pipeline, or as one page of HTML with plots that needs nothing else.`,
		Example: `  understudy drill report
  understudy drill report ID --format html --file report.html
  understudy drill report ID --format junit > drill.xml`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if format == "" {
				format = f.output
			}
			if !slices.Contains([]string{"table", "json", "junit", "html"}, format) {
				return exitError{exitUsage, fmt.Errorf("--format %q: want table, json, junit or html", format)}
			}
			report, err := findReport(cmd.Context(), f, args)
			if err != nil {
				return err
			}
			var text bytes.Buffer
			if err := writeReport(&text, &report, format); err != nil {
				return err
			}
			if file == "" {
				_, err = text.WriteTo(cmd.OutOrStdout())
				return err
			}
			return renameio.WriteFile(file, text.Bytes(), 0o644)
		},
	}
	c.Flags().StringVar(&format, "format", "", "table, json, junit (XML) or html (one page) (default: --output)")
	c.Flags().StringVar(&file, "file", "", "write it to a `file`")
	return c
}

func writeReport(w io.Writer, r *drill.Report, format string) error {
	switch format {
	case "json":
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(r)
	case "junit":
		return r.WriteJUnit(w)
	case "html":
		return r.WriteHTML(w)
	}
	return r.WriteTable(w)
}

// findReport asks the hosts until one has the drill.
func findReport(ctx context.Context, f *common, args []string) (drill.Report, error) {
	all, local, err := voters(ctx, f)
	if err != nil {
		return drill.Report{}, err
	}
	if len(args) == 0 {
		list, err := gather(ctx, f, 1)
		if err != nil {
			return drill.Report{}, err
		}
		if len(list.Drills) == 0 {
			return drill.Report{}, errors.New("no drill was run yet: understudy drill run --kind bubble --guest GUEST")
		}
		return local.At(list.Drills[0].Host).Drill(ctx, list.Drills[0].ID)
	}
	var why []error
	for _, h := range all {
		call, cancel := context.WithTimeout(ctx, 10*time.Second)
		report, err := local.At(h).Drill(call, args[0])
		cancel()
		if err == nil {
			return report, nil
		}
		why = append(why, fmt.Errorf("host %s: %w", h, err))
	}
	return drill.Report{}, errors.Join(why...)
}

func drillAbortCommand(f *common) *cobra.Command {
	return &cobra.Command{
		Use:   "abort ID",
		Short: "Give a drill that runs up; it undoes what it has done",
		Long: `Give up a drill that runs, on whichever host. It ends a bubble, waits for a strike
to undo itself and brings the guest back; the report tells when that is done.`,
		Example: "  understudy drill abort 20260405t030000000z-weekly-1f2e3d",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			all, local, err := voters(cmd.Context(), f)
			if err != nil {
				return err
			}
			var why []error
			for _, h := range all {
				call, cancel := context.WithTimeout(cmd.Context(), 10*time.Second)
				err := local.At(h).AbortDrill(call, args[0])
				cancel()
				if err == nil {
					return f.print(cmd.OutOrStdout(), map[string]string{"id": args[0], "host": string(h)}, func(w io.Writer) error {
						_, err := fmt.Fprintf(w, "drill %s on %s is given up, and undoes what it has done: understudy drill report %s\n", args[0], h, args[0])
						return err
					})
				}
				why = append(why, fmt.Errorf("host %s: %w", h, err))
			}
			return errors.Join(why...)
		},
	}
}
