// Command build makes the packages of understudy: a deb and an rpm.
//
//	programs (go build) → manual, completion (asked of the programs) → stage
//	stage, units, scripts, examples → nfpm's configuration → nfpm → build/packages
//
// The same commit gives the same bytes: every time in a package is the commit's,
// or $SOURCE_DATE_EPOCH.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "packages:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	root    string // of the module
	out     string
	nfpm    string
	version string
	date    time.Time
}

func run(ctx context.Context, args []string) error {
	var o options
	set := flag.NewFlagSet("packages", flag.ContinueOnError)
	set.StringVar(&o.root, "root", ".", "the module's `directory`")
	set.StringVar(&o.out, "out", "build/packages", "where the packages go, a `directory`")
	set.StringVar(&o.nfpm, "nfpm", "", "nfpm's `program`")
	set.StringVar(&o.version, "version", "", "the release's version (default: the program's own)")
	if err := set.Parse(args); err != nil {
		return err
	}
	if o.nfpm == "" {
		return errors.New("--nfpm is missing: make packages knows it")
	}
	var err error
	if o.date, err = o.when(ctx); err != nil {
		return err
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	stage, err := os.MkdirTemp(o.out, "stage-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(stage) }()
	s := &stager{options: o, dir: stage}
	if err := s.programs(ctx); err != nil {
		return err
	}
	if err := s.fill(ctx); err != nil {
		return err
	}
	for _, f := range formats {
		made, err := s.pack(ctx, f)
		if err != nil {
			return err
		}
		fmt.Println(made)
	}
	return nil
}

// when is the time that everything in the packages has.
func (o options) when(ctx context.Context) (time.Time, error) {
	text, ok := os.LookupEnv("SOURCE_DATE_EPOCH") // reproducible-builds.org
	if !ok {
		git := exec.CommandContext(ctx, "git", "log", "-1", "--format=%ct")
		git.Dir = o.root
		out, err := git.Output()
		if err != nil {
			return time.Time{}, fmt.Errorf("the commit's time: %w; outside of a repository set SOURCE_DATE_EPOCH", err)
		}
		text = strings.TrimSpace(string(out))
	}
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil || seconds < 0 {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH=%q: want seconds since 1970", text)
	}
	return time.Unix(seconds, 0).UTC(), nil
}

// command runs a program and returns what it says on its standard output.
func command(ctx context.Context, dir string, env []string, name string, args ...string) ([]byte, error) {
	c := exec.CommandContext(ctx, name, args...)
	c.Dir, c.Env = dir, append(os.Environ(), env...)
	out, err := c.Output()
	if err != nil {
		var exit *exec.ExitError
		said := ""
		if errors.As(err, &exit) {
			said = string(exit.Stderr)
		}
		return nil, fmt.Errorf("%s %s: %w\n%s", filepath.Base(name), strings.Join(args, " "), err, said)
	}
	return out, nil
}
