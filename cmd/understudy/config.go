package main

// config check, diff, apply, show: the configuration before it counts, what it would
// change, and making it count.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"understudy/config"
	"understudy/ownership"
	"understudy/status"
)

const configPath = "/api/v1/config"

func configCommand(f *common) *cobra.Command {
	return group("config", "Work on the configuration",
		"Check a configuration, say what a changed one would change, and make it count while guests run.",
		"  understudy config check\n  understudy config diff\n  understudy config apply",
		configCheckCommand(f), configDiffCommand(f), configApplyCommand(f), configShowCommand(f))
}

func configCheckCommand(f *common) *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Say everything that is wrong with the configuration",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := config.Load(f.config)
			if err != nil {
				return exitError{exitUsage, err}
			}
			return f.print(cmd.OutOrStdout(), map[string]any{"config": f.config, "valid": true, "hosts": len(c.Hosts), "guests": len(c.Guests)},
				func(w io.Writer) error {
					_, err := fmt.Fprintf(w, "%s is valid: cluster %s, lease %v, %d hosts, %d guests\n", f.config, c.Cluster, c.Lease, len(c.Hosts), len(c.Guests))
					return err
				})
		},
	}
}

func configDiffCommand(f *common) *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "diff [FILE]",
		Short: "Say what a changed configuration would change, and how",
		Long: `Compare the configuration that the daemon runs with its file as it is now, or
with FILE, and say of each difference how it takes effect:

  live            at once, nothing stops
  session         the session to the backup is made anew; the guest runs on
  restart-guest   only while the guest is stopped
  restart-daemon  when the daemon of the host is started anew
  voters          the hosts learn of each other; then: understudy host replace
  refused         not at all

Nothing is changed. With --all, compare what the daemons of all hosts run. The exit
status is 0 if nothing would change, 7 if something would, 1 after an error.`,
		Example: "  understudy config diff\n  understudy config diff /root/new.toml\n  understudy config diff --all",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := f.client()
			if err != nil {
				return err
			}
			if all {
				if len(args) > 0 {
					return exitError{exitUsage, errors.New("--all compares what the daemons run, and takes no file")}
				}
				return diffAll(cmd.Context(), f, cmd.OutOrStdout(), client)
			}
			q := status.ConfigRequest{Diff: true}
			if len(args) > 0 {
				text, err := os.ReadFile(args[0])
				if err != nil {
					return exitError{exitUsage, err}
				}
				if _, err := config.Parse(text); err != nil {
					return exitError{exitUsage, fmt.Errorf("%s: %w", args[0], err)}
				}
				q.TOML = string(text)
			}
			var change config.Change
			if err := client.Post(cmd.Context(), configPath, q, &change); err != nil {
				return err
			}
			if err := f.print(cmd.OutOrStdout(), change, func(w io.Writer) error { return printChange(w, change) }); err != nil {
				return err
			}
			if !change.Empty() {
				return exitError{exitChanges, errors.New("")}
			}
			return nil
		},
	}
	c.Flags().BoolVar(&all, "all", false, "compare what the daemons of all hosts run")
	return c
}

func configApplyCommand(f *common) *cobra.Command {
	return &cobra.Command{
		Use:     "apply",
		Aliases: []string{"reload"},
		Short:   "Let the daemon read its file again, and do at once what that changes, or nothing",
		Long: `The daemon reads its file again, checks it, compares it with the configuration that
it runs, and makes all that has changed count, at once and under running guests; or, if
any of it cannot be done now, nothing, and says why. SIGHUP does the same. Each host has
a file of its own: apply it on all of them, in any order.`,
		Example: "  understudy config diff && understudy config apply",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := f.client()
			if err != nil {
				return err
			}
			var change config.Change
			if err := client.Post(cmd.Context(), configPath, status.ConfigRequest{Reload: true}, &change); err != nil {
				return err
			}
			return f.print(cmd.OutOrStdout(), change, func(w io.Writer) error {
				if err := printChange(w, change); err != nil || change.Empty() {
					return err
				}
				_, err := fmt.Fprintln(w, "done. The other hosts have a file of their own: understudy config diff --all")
				return err
			})
		},
	}
}

func configShowCommand(f *common) *cobra.Command {
	return &cobra.Command{
		Use:   "show",
		Short: "Show the configuration that the daemon runs",
		Long: `Show the configuration that the daemon runs, as a file: it may differ from the file
that it was read from, which may have been edited since.`,
		Example: "  understudy config show\n  understudy --at beta config show > beta.toml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := f.client()
			if err != nil {
				return err
			}
			var c status.RunningConfig
			if err := client.Get(cmd.Context(), configPath, &c); err != nil {
				return err
			}
			return f.print(cmd.OutOrStdout(), c, func(w io.Writer) error {
				_, err := io.WriteString(w, c.TOML)
				return err
			})
		},
	}
}

func printChange(w io.Writer, c config.Change) error {
	if c.Empty() {
		_, err := fmt.Fprintln(w, "nothing changes")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	p := func(format string, a ...any) { _, _ = fmt.Fprintf(t, format, a...) } // Flush tells errors
	value := func(s string) string {
		if s == "" {
			return "none"
		}
		return s
	}
	for _, i := range c.Items {
		how := string(i.Treatment)
		if i.Blocked {
			how = "NOT NOW, " + how
		}
		p("%s\t%s → %s\t%s\n", i.Key, value(i.Was), value(i.Is), how)
		if i.Why != "" {
			p("\t\t  %s\n", i.Why)
		}
	}
	for _, n := range c.Notes {
		p("note\t%s\t\n", n)
	}
	return t.Flush()
}

// hostConfig is what a host's daemon runs, compared with this one's.
type hostConfig struct {
	Host  ownership.HostID `json:"host"`
	Hash  string           `json:"hash,omitempty"`
	Since time.Time        `json:"since,omitzero"`
	// Differs lists what is different there.
	Differs []config.Item `json:"differs"`
	Error   string        `json:"error,omitempty"`
}

// diffAll compares the configurations of all hosts with that of the one asked.
func diffAll(ctx context.Context, f *common, w io.Writer, client *status.Client) error {
	var here status.RunningConfig
	if err := client.Get(ctx, configPath, &here); err != nil {
		return err
	}
	ours, err := config.Parse([]byte(here.TOML))
	if err != nil {
		return fmt.Errorf("the configuration that the daemon runs: %w", err)
	}
	var hosts status.HostList
	if err := client.Get(ctx, "/api/v1/hosts", &hosts); err != nil {
		return err
	}
	all := make([]hostConfig, 0, len(hosts.Hosts))
	differ, silent := 0, 0
	for _, h := range hosts.Hosts {
		one := hostConfig{Host: h, Differs: []config.Item{}}
		var there status.RunningConfig
		err := client.At(h).Get(ctx, configPath, &there)
		if err == nil {
			one.Hash, one.Since = there.Hash, there.Since
			var theirs *config.Config
			if theirs, err = config.Parse([]byte(there.TOML)); err == nil && there.Hash != here.Hash {
				one.Differs = append(one.Differs, config.Compare(ours, theirs).Items...)
				differ++
			}
		}
		if err != nil {
			one.Error = err.Error()
			silent++
		}
		all = append(all, one)
	}
	if err := f.print(w, all, func(w io.Writer) error { return printHostConfigs(w, all) }); err != nil {
		return err
	}
	switch {
	case differ > 0:
		return exitError{exitChanges, fmt.Errorf("%d of %d hosts run another configuration: put the same file on them, then understudy config apply", differ, len(all))}
	case silent > 0:
		return fmt.Errorf("%d of %d hosts did not say what they run", silent, len(all))
	}
	return nil
}

func printHostConfigs(w io.Writer, all []hostConfig) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	p := func(format string, a ...any) { _, _ = fmt.Fprintf(t, format, a...) } // Flush tells errors
	for _, h := range all {
		switch {
		case h.Error != "":
			p("%s\tunknown: %s\n", h.Host, h.Error)
			continue
		case len(h.Differs) == 0:
			p("%s\t%s\tthe same, since %s\n", h.Host, h.Hash, h.Since.Format(time.RFC3339))
		default:
			p("%s\t%s\tDIFFERS, since %s\n", h.Host, h.Hash, h.Since.Format(time.RFC3339))
		}
		for _, i := range h.Differs {
			p("\t\t  %s\n", i.String())
		}
	}
	return t.Flush()
}
