// Command understudyd is the daemon of one host: it runs guests, stands by for
// others' guests, and votes on who owns them; on the witness it only votes.
//
//	understudyd --config /etc/understudy/understudy.toml --host alpha
//
// It ends on SIGINT or SIGTERM, with status 0; guests under QEMU are left
// running, to be adopted by the next daemon. On SIGHUP it reads its configuration
// again, and does at once what that changes, or nothing. Status 2 is a wrong command line
// or configuration, 1 any other failure.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"understudy/cmd/daemon"
	"understudy/cmd/sdnotify"
	"understudy/config"
	"understudy/disk/vhost"
	"understudy/hypervisor/qemu/dirty"
	"understudy/status"
)

// helperWord is the hidden first argument by which the daemon calls itself to
// make a userfaultfd inside a QEMU process; see package dirty.
const helperWord = "userfaultfd-helper"

// strikeWord is the hidden first argument by which the daemon calls itself to
// strike this host for a drill; see package strike.
const strikeWord = "strike"

func main() {
	if len(os.Args) > 1 && os.Args[1] == strikeWord {
		os.Exit(daemon.StrikeMain(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == helperWord {
		os.Exit(dirty.HelperMain(os.Args[2:]))
	}
	os.Exit(run())
}

// usage is an error of the command line or the configuration.
type usage struct{ error }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	understood := false // the command line is sound
	err := command(&understood).ExecuteContext(ctx)
	var u usage
	switch {
	case err == nil:
		return 0
	case !understood || errors.As(err, &u):
		fmt.Fprintln(os.Stderr, "understudyd:", err)
		return 2
	}
	fmt.Fprintln(os.Stderr, "understudyd:", err)
	return 1
}

func command(understood *bool) *cobra.Command {
	var file, host, format, level string
	var takeOver int
	var t trial
	c := &cobra.Command{
		Use:           "understudyd",
		Short:         "The understudy daemon: protects guests, stands by for guests, votes",
		Long:          longText,
		Example:       "  understudyd --config /etc/understudy/understudy.toml --host alpha\n  systemctl enable --now understudyd",
		Version:       status.Version,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			*understood = true
			log, err := logger(format, level)
			if err != nil {
				return usage{err}
			}
			c, err := config.Load(file)
			if err != nil {
				return usage{err}
			}
			if host == "" {
				if host, err = os.Hostname(); err != nil {
					return usage{fmt.Errorf("which host is this? say --host: %w", err)}
				}
			}
			if _, ok := c.Host(host); !ok {
				return usage{fmt.Errorf("%s has no [[host]] named %q: say --host", file, host)}
			}
			self, err := os.Executable()
			if err != nil {
				return err
			}
			reload := make(chan os.Signal, 1)
			signal.Notify(reload, syscall.SIGHUP)
			defer signal.Stop(reload)
			o := daemon.Options{Config: c, Host: host, Helper: []string{self, helperWord}, Strike: []string{self, strikeWord}, Slog: log, File: file, Reload: reload,
				Command: commandLine(self, os.Args[1:])}
			if takeOver > 0 {
				if o.From, err = daemon.NewPredecessor(takeOver); err != nil {
					return err
				}
			}
			if o.Supervisor, err = supervisor(); err != nil {
				return usage{err}
			}
			if err := t.begin(&o); err != nil {
				return err
			}
			// One processor more than there are: see vhost.Linger.
			runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 1)
			o.Linger = new(vhost.Linger)
			return daemon.Run(cmd.Context(), o)
		},
	}
	c.Flags().StringVar(&file, "config", "/etc/understudy/understudy.toml", "the configuration `file`")
	c.Flags().StringVar(&host, "host", "", "which of the configured hosts this is (default: the host name)")
	c.Flags().StringVar(&format, "log-format", "text", "text or json")
	c.Flags().StringVar(&level, "log-level", "info", "debug, info, warn or error")
	c.Flags().IntVar(&takeOver, daemon.TakeOverFlag, 0, "the descriptor of a daemon to take the place of")
	if err := c.Flags().MarkHidden(daemon.TakeOverFlag); err != nil {
		panic(err) // it was defined just now
	}
	t.flags(c)
	c.CompletionOptions.DisableDefaultCmd = true
	c.SetHelpCommand(&cobra.Command{Hidden: true})
	c.AddCommand(manCommand(c, understood))
	return c
}

// supervisor is systemd, if it wants to know.
func supervisor() (daemon.Supervisor, error) {
	n, err := sdnotify.New(os.LookupEnv)
	if n == nil {
		return nil, err // no interface around a nil
	}
	return n, err
}

// commandLine is how the next daemon is started: as this one was, but for what
// this one was told of the one before.
func commandLine(self string, args []string) []string {
	line := []string{self}
	for _, a := range args {
		if !strings.HasPrefix(a, "--"+daemon.TakeOverFlag+"=") {
			line = append(line, a)
		}
	}
	return line
}

func logger(format, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level: %w", err)
	}
	o := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(os.Stderr, o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(os.Stderr, o)), nil
	}
	return nil, fmt.Errorf("--log-format %q: want text or json", format)
}
