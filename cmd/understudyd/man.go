package main

// understudyd man: the daemon's page of the manual.

import (
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"understudy/cmd/manual"
	"understudy/status"
)

const longText = `understudyd is the daemon of one host: it runs guests, stands by for others'
guests, and votes on who owns them; on the witness it only votes. All hosts have the
same configuration, and each its own certificate.

A guest boots on its host as soon as two of the three hosts are up, and is protected
when its backup has its memory. Guests are processes of their own: they live on while
the daemon is restarted, and the next one adopts them. What a guest reads, writes and
sends goes through the daemon, so a guest stands still, and is taken over by its
backup, when the daemon is not back within a lease.

It logs to standard error and takes no commands but understudy's, through its
socket. Under systemd (Type=notify) it says when it takes part, how its guests are, and,
if a watchdog is set, that all of its loops come round.

SIGINT and SIGTERM end the daemon, and leave its guests to the next one.`

// about is what the page says beside the flags.
func about(date time.Time) manual.About {
	return manual.About{
		Section: 8, Date: date, Version: "understudy " + status.Version,
		Exits: []manual.Exit{
			{Status: "0", Meaning: "Ended by SIGINT or SIGTERM."},
			{Status: "1", Meaning: "It failed; the last line says at what."},
			{Status: "2", Meaning: "A wrong command line or configuration."},
		},
		Files: [][2]string{
			{"/etc/understudy/understudy.toml", "The configuration, the same on every host."},
			{"/etc/understudy/tls", "The authority's certificate, and this host's own with its key."},
			{"/var/lib/understudy", "The ownership log, the record of events and what must outlive a restart of the machine."},
			{"/run/understudy", "The guests' memory and sockets: a tmpfs with room for all of it."},
		},
		Also: []string{"understudy(1)", "understudy.toml(5)"},
	}
}

func manCommand(daemon *cobra.Command, understood *bool) *cobra.Command {
	var dir, date string
	c := &cobra.Command{
		Use:    "man",
		Short:  "Write the daemon's page of the manual",
		Args:   cobra.NoArgs,
		Hidden: true, // for those who build packages
		RunE: func(*cobra.Command, []string) error {
			*understood = true
			day, err := time.Parse(time.DateOnly, date)
			if err != nil {
				return usage{fmt.Errorf("--date %q: want YYYY-MM-DD", date)}
			}
			_, err = manual.Write(filepath.Join(dir, "man8"), daemon, about(day))
			return err
		},
	}
	c.Flags().StringVar(&dir, "dir", "man", "where to write")
	c.Flags().StringVar(&date, "date", time.Now().UTC().Format(time.DateOnly), "the page's `date`")
	return c
}
