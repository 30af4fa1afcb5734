package main

// init, config check, check-host: what an operator does before the first start.

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"understudy/cmd/daemon"
	"understudy/config"
	"understudy/hypervisor/qemu"
	"understudy/transport/pki"
)

func socketOf(c *config.Config, h config.Host) string { return daemon.Socket(c, h) }

func initCommand(f *common) *cobra.Command {
	var dir, cluster string
	var hosts []string
	c := &cobra.Command{
		Use:   "init",
		Short: "Write a configuration and certificates for a pair and a witness",
		Long: `Write understudy.toml and a directory tls with a certificate authority of its own
and a certificate for each host. Copy understudy.toml, tls/ca.pem and each host's
own tls/NAME.pem and tls/NAME-key.pem to that host; keep tls/ca-key.pem elsewhere.`,
		Example: "  understudy init --dir /etc/understudy --host-address alpha=192.0.2.1:7400 \\\n" +
			"    --host-address beta=192.0.2.2:7400 --host-address witness=192.0.2.3:7400",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			made, err := makeConfig(cluster, hosts)
			if err != nil {
				return exitError{exitUsage, err}
			}
			path := filepath.Join(dir, "understudy.toml")
			if _, err := os.Stat(path); err == nil {
				return fmt.Errorf("%s is there already: nothing was written", path)
			}
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			var names []string
			for _, h := range made.Hosts {
				names = append(names, h.Name)
			}
			if err := pki.Init(filepath.Join(dir, "tls"), names, 5*365*24*time.Hour); err != nil {
				return err
			}
			if err := renameio.WriteFile(path, made.Render(), 0o644); err != nil {
				return err
			}
			return f.print(cmd.OutOrStdout(), map[string]string{"config": path, "tls": filepath.Join(dir, "tls")}, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "wrote %s and %s\nnext: describe your guests in it, then on each host: understudy config check && understudy check-host\n",
					path, filepath.Join(dir, "tls"))
				return err
			})
		},
	}
	c.Flags().StringVar(&dir, "dir", "/etc/understudy", "where to write")
	c.Flags().StringVar(&cluster, "cluster", "understudy", "the cluster's name")
	c.Flags().StringArrayVar(&hosts, "host-address", nil, "NAME=HOST:PORT, three times: two hosts, then the witness")
	return c
}

// makeConfig is the example with the operator's names and addresses.
func makeConfig(cluster string, hosts []string) (*config.Config, error) {
	c := config.Example()
	c.Cluster = cluster
	if len(hosts) == 0 {
		return c, nil
	}
	if len(hosts) != len(c.Hosts) {
		return nil, fmt.Errorf("%d --host-address given, want %d: two hosts, then the witness", len(hosts), len(c.Hosts))
	}
	renamed := map[string]string{}
	for i, h := range hosts {
		name, address, err := cutAddress(h)
		if err != nil {
			return nil, err
		}
		renamed[c.Hosts[i].Name] = name
		c.Hosts[i].Name, c.Hosts[i].Address = name, address
	}
	for i := range c.Guests {
		g := &c.Guests[i]
		g.Host, g.Backup = renamed[g.Host], renamed[g.Backup]
	}
	return c, c.Validate()
}

func cutAddress(s string) (name, address string, err error) {
	for i := range s {
		if s[i] == '=' {
			name, address = s[:i], s[i+1:]
			_, _, err = net.SplitHostPort(address)
			if err == nil && name != "" {
				return name, address, nil
			}
		}
	}
	return "", "", fmt.Errorf("--host-address %q: want NAME=HOST:PORT", s)
}

func checkHostCommand(f *common) *cobra.Command {
	var against string
	c := &cobra.Command{
		Use:   "check-host",
		Short: "Say whether this host can run and stand by for its guests",
		Long: `Go through what this host needs for each of its guests, and protect a small
trial machine. With --against, also compare what must be equal on both hosts
with the other host's own report:

  on the one host     understudy check-host --output json > alpha.json
  on the other host   understudy check-host --against alpha.json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, h, err := f.load()
			if err != nil {
				return err
			}
			var there []qemu.Report
			if against != "" {
				if there, err = readReports(against); err != nil {
					return exitError{exitUsage, err}
				}
			}
			self, err := os.Executable()
			if err != nil {
				return err
			}
			reports, err := daemon.CheckHost(cmd.Context(), c, h, []string{self, helperWord})
			if err != nil {
				return err
			}
			if against != "" {
				compareReports(reports, there)
			}
			err = f.print(cmd.OutOrStdout(), reports, func(w io.Writer) error { return printChecks(w, reports) })
			for _, r := range reports {
				if err == nil && !r.OK() {
					err = fmt.Errorf("host %s cannot protect guest %s", h.Name, r.Guest)
				}
			}
			return err
		},
	}
	c.Flags().StringVar(&against, "against", "", "the other host's report, a `file`")
	return c
}

// maxReport bounds a report that is read back, in bytes.
const maxReport = 1 << 20

func readReports(path string) ([]qemu.Report, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	b, err := io.ReadAll(io.LimitReader(file, maxReport))
	if err != nil {
		return nil, err
	}
	var r []qemu.Report
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("%s is no report of check-host --output json: %w", path, err)
	}
	return r, nil
}

// compareReports adds to each report how this host differs from the other.
func compareReports(here, there []qemu.Report) {
	for i := range here {
		at := slices.IndexFunc(there, func(r qemu.Report) bool { return r.Guest == here[i].Guest })
		if at < 0 {
			here[i].Checks = append(here[i].Checks, qemu.Check{Name: "both hosts equal", Status: qemu.StatusFail,
				Detail: "the other host's report does not name this guest", Remedy: "use the same configuration on both hosts"})
			continue
		}
		differences := here[i].Facts.Compare(there[at].Facts)
		for _, d := range differences {
			here[i].Checks = append(here[i].Checks, qemu.Check{Name: "both hosts equal", Status: qemu.StatusFail,
				Detail: fmt.Sprintf("%s: %s here, %s there", d.What, d.Here, d.There), Remedy: d.Remedy})
		}
		if len(differences) == 0 {
			here[i].Checks = append(here[i].Checks, qemu.Check{Name: "both hosts equal", Status: qemu.StatusOK, Detail: "what must be equal is"})
		}
	}
}

func printChecks(w io.Writer, reports []qemu.Report) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	var errs []error
	for _, r := range reports {
		for _, c := range r.Checks {
			_, err := fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", r.Guest, c.Status, c.Name, c.Detail)
			if c.Remedy != "" {
				_, err = fmt.Fprintf(t, "\t\t\t→ %s\n", c.Remedy)
			}
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, t.Flush())...)
}
