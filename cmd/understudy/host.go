package main

// host replace, cert add: another machine in the place of a host or of the witness.

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"understudy/config"
	"understudy/ownership"
	"understudy/status"
	"understudy/transport/pki"
)

func hostCommand(f *common) *cobra.Command {
	return group("host", "Work on the hosts of the cluster",
		"Put another machine into the place of a host or of the witness, while guests run.",
		"  understudy host replace witness judge",
		hostReplaceCommand(f))
}

func hostReplaceCommand(f *common) *cobra.Command {
	var address string
	var witness bool
	c := &cobra.Command{
		Use:   "replace OLD NEW",
		Short: "Put NEW into the place of OLD among those who vote, while guests run",
		Long: `Put a host of the configuration, NEW, into the place of OLD, which is not in it any
more, in the ownership log. No guest stops for it. Before, in this order:

  1. understudy cert add NEW, where the authority's key is kept; copy the files to NEW
  2. put NEW into the place of OLD in understudy.toml: its [[host]] section, and the
     host and backup of guests; copy the file to every host that stays, and to NEW
  3. start understudyd on NEW
  4. understudy config apply on every host that stays

A guest whose backup was OLD is then protected by NEW, as soon as its memory has been
sent there. OLD must own no guest and be nobody's backup in sync; it may be dead. The
voters that stay have to be a majority without it. NEW votes only once it has all of the
log, and OLD goes only then. What is interrupted goes on when it is asked for again.

A fresh machine under the same name needs no change but its address: replace NAME NAME
waits until it votes again. The old machine must be gone for good then.`,
		Example: "  understudy host replace witness judge --address 192.0.2.9:7400 --witness\n  understudy host replace beta gamma",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := f.client()
			if err != nil {
				return err
			}
			old, fresh := args[0], args[1]
			var running status.RunningConfig
			if err := client.Get(cmd.Context(), configPath, &running); err != nil {
				return err
			}
			if err := checkFresh(running.TOML, fresh, address, witness, cmd.Flags().Changed("witness")); err != nil {
				return err
			}
			done, err := client.Replace(cmd.Context(), ownership.HostID(old), ownership.HostID(fresh), func(text string) {
				_, _ = fmt.Fprintln(cmd.ErrOrStderr(), text) // what counts is the outcome
			})
			if err != nil {
				return err
			}
			return f.print(cmd.OutOrStdout(), done, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "%s votes in the place of %s. The daemon of %s may be stopped, and its certificate forgotten\n", fresh, old, old)
				return err
			})
		},
	}
	c.Flags().StringVar(&address, "address", "", "make sure that the configuration has NEW at that `host:port`")
	c.Flags().BoolVar(&witness, "witness", false, "make sure that it is the witness there")
	return c
}

// checkFresh holds what the operator expects against what the daemon runs.
func checkFresh(toml, fresh, address string, witness, say bool) error {
	c, err := config.Parse([]byte(toml))
	if err != nil {
		return fmt.Errorf("the configuration that the daemon runs: %w", err)
	}
	h, ok := c.Host(fresh)
	switch {
	case !ok:
		return fmt.Errorf("the configuration that the daemon runs has no host %q: put it into the file, on every host, then understudy config apply", fresh)
	case address != "" && h.Address != address:
		return fmt.Errorf("the configuration that the daemon runs has %s at %s, not at %s", fresh, h.Address, address)
	case say && h.Witness != witness:
		return fmt.Errorf("in the configuration that the daemon runs, witness = %v for %s", h.Witness, fresh)
	}
	return nil
}

func certCommand(f *common) *cobra.Command {
	return group("cert", "Work on the cluster's certificates",
		"Issue certificates of the cluster's own authority.",
		"  understudy cert add gamma --dir /root/understudy-ca",
		certAddCommand(f))
}

func certAddCommand(f *common) *cobra.Command {
	var dir string
	var days int
	c := &cobra.Command{
		Use:   "add HOST",
		Short: "Issue a certificate for a host: a new one, or in the place of one that runs out",
		Long: `Issue a certificate and a key for a host in a directory with the authority's key
(ca.pem and ca-key.pem, see understudy init). Copy ca.pem, HOST.pem and HOST-key.pem to
that host's tls_dir, and the key nowhere else.`,
		Example: "  understudy cert add gamma\n  understudy cert add alpha --dir /root/understudy-ca --days 365",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if days < 1 {
				return exitError{exitUsage, errors.New("--days: want 1 or more")}
			}
			if err := pki.CheckName(args[0]); err != nil {
				return exitError{exitUsage, err}
			}
			if err := pki.Reissue(dir, args[0], time.Duration(days)*24*time.Hour); err != nil {
				return err
			}
			made := map[string]string{"authority": pki.AuthorityFile(dir), "certificate": pki.CertificateFile(dir, args[0]), "key": pki.KeyFile(dir, args[0])}
			return f.print(cmd.OutOrStdout(), made, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "wrote %s and %s\nnext: copy them and %s to tls_dir on %s\n",
					made["certificate"], made["key"], filepath.Base(made["authority"]), args[0])
				return err
			})
		},
	}
	c.Flags().StringVar(&dir, "dir", "/etc/understudy/tls", "the `directory` with the authority's certificate and key")
	c.Flags().IntVar(&days, "days", 5*365, "how long it is valid, at most as long as the authority")
	return c
}
