package main

// token add, list, remove: the file of bearer tokens that [api] names. It holds
// hashes; a token itself is printed once, when it is made. The endpoint reads the
// file again with the next request.

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"understudy/status"
)

func tokenCommand(f *common) *cobra.Command {
	return group("token", "Bearer tokens for the status endpoint",
		`Work on this host's file of bearer tokens, the one that tokens in [api] names. The
file holds no token, only hashes; what is changed there counts from the next request
on. Each host has a file of its own.`,
		"",
		tokenAddCommand(f), tokenListCommand(f), tokenRemoveCommand(f))
}

// madeToken is what `token add --output json` prints.
type madeToken struct {
	Name  string `json:"name"`
	Level string `json:"level"`
	Token string `json:"token"`
}

func tokenAddCommand(f *common) *cobra.Command {
	var level string
	c := &cobra.Command{
		Use:   "add NAME",
		Short: "Make a token and print it, this once",
		Long: `Draw a token of 256 random bits, keep its hash under NAME, and print the token. It
is not to be had again: give it to who is to use it, in a header

  Authorization: Bearer TOKEN`,
		Example: "  understudy token add grafana --level read",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := parseLevel(level)
			if err != nil {
				return exitError{exitUsage, err}
			}
			file, err := f.tokens()
			if err != nil {
				return err
			}
			secret, token, err := status.NewToken(args[0], l)
			if err == nil && strings.HasPrefix(args[0], "#") {
				err = errors.New("a line that begins with # is a comment")
			}
			if err != nil {
				return exitError{exitUsage, fmt.Errorf("token %.80q: %w", args[0], err)}
			}
			if err := editTokens(file, func(text string) (string, error) {
				if text != "" && !strings.HasSuffix(text, "\n") {
					text += "\n"
				}
				return text + token.Line() + "\n", nil
			}); err != nil {
				return err
			}
			return f.print(cmd.OutOrStdout(), madeToken{args[0], level, secret}, func(w io.Writer) error {
				_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "the token of %s, which may %s; it is not shown again:\n", args[0], level)
				_, err := fmt.Fprintln(w, secret)
				return err
			})
		},
	}
	c.Flags().StringVar(&level, "level", "", "what it is good for: `read` or operate")
	_ = c.RegisterFlagCompletionFunc("level", cobra.FixedCompletions([]string{"read", "operate"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

func tokenListCommand(f *common) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "The names of the tokens, and what they are good for",
		Long:    "List the tokens of this host's file by name. The tokens themselves are nowhere.",
		Example: "  understudy token list",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			file, err := f.tokens()
			if err != nil {
				return err
			}
			_, all, err := readTokens(file)
			if err != nil {
				return err
			}
			type listed struct {
				Name  string `json:"name"`
				Level string `json:"level"`
			}
			list := make([]listed, 0, len(all))
			for _, t := range all {
				list = append(list, listed{t.Name, t.Level.String()})
			}
			return f.print(cmd.OutOrStdout(), list, func(w io.Writer) error {
				t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
				_, _ = fmt.Fprintln(t, "NAME\tLEVEL") // Flush tells errors
				for _, one := range list {
					_, _ = fmt.Fprintf(t, "%s\t%s\n", one.Name, one.Level)
				}
				return t.Flush()
			})
		},
	}
}

func tokenRemoveCommand(f *common) *cobra.Command {
	return &cobra.Command{
		Use:     "remove NAME",
		Short:   "Make a token worthless, at once",
		Long:    "Take a token out of this host's file: the next request that shows it is refused.",
		Example: "  understudy token remove grafana",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			file, err := f.tokens()
			if err != nil {
				return err
			}
			err = editTokens(file, func(text string) (string, error) {
				var kept strings.Builder
				found := false
				for line := range strings.Lines(text) {
					if fields := strings.Fields(line); len(fields) == 3 && fields[0] == args[0] && !strings.HasPrefix(fields[0], "#") {
						found = true
						continue
					}
					kept.WriteString(line)
				}
				if !found {
					return "", fmt.Errorf("%s has no token %.80q: understudy token list", file, args[0])
				}
				return kept.String(), nil
			})
			if err != nil {
				return err
			}
			return f.print(cmd.OutOrStdout(), map[string]string{"removed": args[0]}, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "token %s is worth nothing any more\n", args[0])
				return err
			})
		},
	}
}

func parseLevel(text string) (status.Level, error) {
	for _, l := range []status.Level{status.Read, status.Operate} {
		if text == l.String() {
			return l, nil
		}
	}
	return 0, fmt.Errorf("--level %.40q: want %s or %s", text, status.Read, status.Operate)
}

// tokens is the path of this host's file of tokens.
func (f *common) tokens() (string, error) {
	if f.at != "" {
		return "", exitError{exitUsage, errors.New("each host has a file of tokens of its own: run this there, without --at")}
	}
	c, h, err := f.load()
	if err != nil {
		return "", err
	}
	api, _ := c.APIOf(h)
	if api.Tokens == "" {
		return "", exitError{exitUsage, fmt.Errorf("%s names no file of tokens for host %s: add tokens = \"/etc/understudy/tokens\" to its [api]", f.config, h.Name)}
	}
	return api.Tokens, nil
}

// maxTokenFile is more than status.ParseTokens takes, which says so.
const maxTokenFile = 128 << 10

// readTokens reads the file; one that is not there has no tokens.
func readTokens(path string) (text string, all []status.Token, err error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil, nil
	}
	if err != nil {
		return "", nil, err
	}
	defer func() { _ = file.Close() }()
	b, err := io.ReadAll(io.LimitReader(file, maxTokenFile))
	if err == nil {
		all, err = status.ParseTokens(b)
	}
	if err != nil {
		return "", nil, fmt.Errorf("%s: %w", path, err)
	}
	return string(b), all, nil
}

// editTokens changes the file, wholly or not at all, and one at a time. What it
// becomes has to be right; mode and owner stay.
func editTokens(path string, change func(text string) (string, error)) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("change %s: %w", path, err)
	}
	defer func() { _ = dir.Close() }()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("change %s: lock its directory: %w", path, err)
	}
	text, _, err := readTokens(path)
	if err != nil {
		return err
	}
	if text, err = change(text); err != nil {
		return err
	}
	if _, err := status.ParseTokens([]byte(text)); err != nil {
		return fmt.Errorf("%s is not changed: %w", path, err)
	}
	mode, uid, gid := fs.FileMode(0o600), os.Geteuid(), os.Getegid()
	if info, err := os.Stat(path); err == nil {
		mode = info.Mode().Perm()
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			uid, gid = int(st.Uid), int(st.Gid)
		}
	}
	file, err := renameio.NewPendingFile(path, renameio.WithPermissions(mode), renameio.IgnoreUmask())
	if err != nil {
		return fmt.Errorf("change %s: %w", path, err)
	}
	defer func() { _ = file.Cleanup() }()
	if uid != os.Geteuid() || gid != os.Getegid() {
		err = file.Chown(uid, gid)
	}
	if err == nil {
		_, err = file.WriteString(text)
	}
	if err == nil {
		err = file.CloseAtomicallyReplace()
	}
	if err != nil {
		return fmt.Errorf("change %s: %w", path, err)
	}
	return nil
}
