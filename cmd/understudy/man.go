package main

// version and man: what the program is, and its manual as pages for man(1).

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"understudy/cmd/manual"
	"understudy/config"
	"understudy/status"
)

func versionCommand(f *common) *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print which release this is",
		Long:    "Print which release this program is, and what it was built with. The daemon's own is in the output of \"status --output json\".",
		Example: "  understudy version --output json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := map[string]string{"version": status.Version, "go": runtime.Version()}
			return f.print(cmd.OutOrStdout(), v, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "understudy %s (%s)\n", status.Version, runtime.Version())
				return err
			})
		},
	}
}

// about is what the manual says beside the commands.
func about(date time.Time) manual.About {
	return manual.About{
		Section: 1, Date: date, Version: "understudy " + status.Version,
		Exits: []manual.Exit{
			{Status: "0", Meaning: "Done, and what was asked is so."},
			{Status: "1", Meaning: "It failed; the message says what, and what to do next."},
			{Status: "2", Meaning: "A wrong command line or configuration."},
			{Status: "5", Meaning: "No daemon answers."},
		},
		Files: [][2]string{
			{"/etc/understudy/understudy.toml", "The configuration, the same on every host."},
			{"/etc/understudy/tls", "The authority's certificate, and this host's own with its key."},
			{"/run/understudy/understudy.sock", "The daemon's socket, which only root may open."},
		},
		Also: []string{"understudy(1)", "understudy.toml(5)", "understudyd(8)"},
	}
}

func manCommand(f *common, root *cobra.Command) *cobra.Command {
	var dir, date string
	c := &cobra.Command{
		Use:     "man",
		Short:   "Write the manual's pages",
		Long:    "Write a page of the manual for each command, and one for the configuration, into the directories man1 and man5 of --dir.",
		Example: "  understudy man --dir /usr/local/share/man",
		Args:    cobra.NoArgs,
		Hidden:  true, // for those who build packages
		RunE: func(cmd *cobra.Command, _ []string) error {
			day, err := time.Parse(time.DateOnly, date)
			if err != nil {
				return exitError{exitUsage, fmt.Errorf("--date %q: want YYYY-MM-DD", date)}
			}
			of := about(day)
			names, err := manual.Write(filepath.Join(dir, "man1"), root, of)
			if err != nil {
				return err
			}
			of.Section = 5
			names = append(names, "understudy.toml.5")
			if err := writeConfigPage(dir, of); err != nil {
				return err
			}
			return f.print(cmd.OutOrStdout(), names, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "wrote %d pages into %s\n", len(names), dir)
				return err
			})
		},
	}
	c.Flags().StringVar(&dir, "dir", "man", "where to write")
	c.Flags().StringVar(&date, "date", time.Now().UTC().Format(time.DateOnly), "the pages' `date`")
	return c
}

// writeConfigPage writes the page of the configuration: the file that init
// writes, in which every key is explained.
func writeConfigPage(dir string, of manual.About) error {
	page := of.File("understudy.toml", "the configuration of understudy",
		`One file in TOML, the same on every host. "understudy init" writes it; "understudy config check" lists everything that is wrong with it.
The example below is what "understudy init" writes: it has every key, what it is for, and its default.`, string(config.Example().Render()))
	dir = filepath.Join(dir, "man5")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return renameio.WriteFile(filepath.Join(dir, "understudy.toml.5"), page, 0o644)
}
