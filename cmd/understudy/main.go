// Command understudy is the operator's tool. It talks to the daemon of this
// host through its Unix socket.
//
// Exit status: 0 done, and what was asked is so; 1 it failed; 2 a wrong command
// line or configuration; 3 (status) a guest is not protected; 4 (verify) memory
// differs, (checkpoint verify) the file cannot be restored here, or (bubble) the check
// found something wrong; 5 no daemon answers, or not the one that was to be asked;
// 6 (drill) it ran, and a check or a guarantee did not hold; 7 (config diff) something
// would change, or differs.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"understudy/config"
	"understudy/hypervisor/qemu/dirty"
	"understudy/ownership"
	"understudy/status"
)

// Exit statuses.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitUnprotected = 3
	exitDiffers     = 4
	exitNoDaemon    = 5
	exitDrillFailed = 6
	exitChanges     = 7
)

// exitError carries an exit status.
type exitError struct {
	status int
	error
}

func (e exitError) Unwrap() error { return e.error }

// helperWord is the hidden first argument by which check-host calls this
// program to make a userfaultfd inside a trial machine; see package dirty.
const helperWord = "userfaultfd-helper"

func main() {
	if len(os.Args) > 1 && os.Args[1] == helperWord {
		os.Exit(dirty.HelperMain(os.Args[2:]))
	}
	os.Exit(run())
}

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var f common
	err := root(&f).ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var e exitError
	code := exitFailed
	switch {
	case errors.As(err, &e):
		code = e.status
	case !f.understood: // no such command, or not with these arguments
		code = exitUsage
	case errors.Is(err, status.ErrNoDaemon), errors.Is(err, status.ErrNoPeer):
		code = exitNoDaemon
	}
	if err.Error() != "" {
		fmt.Fprintln(os.Stderr, "understudy:", err)
	}
	return code
}

// common are the flags of every command.
type common struct {
	config, host, socket, at, output string

	understood bool // the command line is sound: a failure is the command's own
}

// root returns the command with all others beneath it; f holds their common flags.
func root(f *common) *cobra.Command {
	c := &cobra.Command{
		Use:           "understudy",
		Short:         "Keep virtual machines running when their host is lost",
		Version:       status.Version,
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if f.output != "table" && f.output != "json" {
				return exitError{exitUsage, fmt.Errorf("--output %q: want table or json", f.output)}
			}
			f.understood = true
			return nil
		},
	}
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return exitError{exitUsage, err} })
	p := c.PersistentFlags()
	p.StringVar(&f.config, "config", "/etc/understudy/understudy.toml", "the configuration `file`")
	p.StringVar(&f.host, "host", "", "which of the configured hosts this is (default: the host name)")
	p.StringVar(&f.socket, "socket", "", "the daemon's `socket` (default: from the configuration)")
	p.StringVar(&f.at, "at", "", "ask that `host` of the configuration, through this one's daemon")
	p.StringVarP(&f.output, "output", "o", "table", "table or json")
	c.AddCommand(initCommand(f), configCommand(f), checkHostCommand(f), statusCommand(f),
		switchoverCommand(f), stopCommand(f), startCommand(f), verifyCommand(f), checkpointCommand(f), demoCommand(f), selftestCommand(f), simulateCommand(f))
	c.AddCommand(bubbleCommand(f), pauseCommand(f), resumeCommand(f), unprotectCommand(f), protectCommand(f), failbackCommand(f))
	c.AddCommand(drillCommand(f))
	c.AddCommand(hostCommand(f), certCommand(f))
	c.AddCommand(failoverCommand(f), fenceCommand(f))
	c.AddCommand(upgradeCommand(f), versionCommand(f), manCommand(f, c))
	c.AddCommand(eventsCommand(f), raftCommand(f), tokenCommand(f), bundleCommand(f))
	c.AddCommand(topCommand(f))
	explain(c)
	f.complete(c)
	return c
}

// group is a command that does nothing but stand above others.
func group(use, short, long, example string, children ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Long: long, Example: example}
	c.AddCommand(children...)
	return c
}

// load reads the configuration and finds this host in it.
func (f *common) load() (*config.Config, config.Host, error) {
	c, err := config.Load(f.config)
	if err != nil {
		return nil, config.Host{}, exitError{exitUsage, err}
	}
	name := f.host
	if name == "" {
		if name, err = os.Hostname(); err != nil {
			return nil, config.Host{}, exitError{exitUsage, err}
		}
	}
	h, ok := c.Host(name)
	if !ok {
		return nil, config.Host{}, exitError{exitUsage, fmt.Errorf("%s has no [[host]] named %q: say --host", f.config, name)}
	}
	return c, h, nil
}

// client returns a client of this host's daemon, or through it of the daemon
// that --at names.
func (f *common) client() (*status.Client, error) {
	c, err := f.local()
	if err == nil && f.at != "" {
		c = c.At(ownership.HostID(f.at))
	}
	return c, err
}

// local returns a client of this host's daemon.
func (f *common) local() (*status.Client, error) {
	if f.socket != "" {
		return status.NewClient(f.socket), nil
	}
	c, h, err := f.load()
	if err != nil {
		return nil, err
	}
	return status.NewClient(socketOf(c, h)), nil
}

// print writes v as JSON, or calls table.
func (f *common) print(w io.Writer, v any, table func(w io.Writer) error) error {
	if f.output == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(v)
	}
	return table(w)
}
