// Command fuzzing runs the fuzz targets of the module and keeps what they
// learn; scripts/fuzz calls it.
//
//	*_test.go -> targets -> go test -fuzz -> Go's cache of interesting inputs
//	                                           -> those that reach more (-keep)
//	                                           -> testdata/fuzz of the package
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// What a corpus in the repository may hold, and what is tried for it.
const (
	maxFiles = 30
	maxBytes = 200 << 10
	maxTried = 64
	maxInput = 64 << 10
)

// target is one fuzz target.
type target struct {
	dir  string // of its package, from the module's root
	name string
}

func (t target) corpus() string { return filepath.Join(t.dir, "testdata", "fuzz", t.name) }

func main() {
	keep := flag.Bool("keep", false, "carry inputs that reach more code into the corpora")
	each := flag.Duration("time", 20*time.Second, "time for each target; 0 only keeps")
	only := flag.String("only", "", "a part of ./package.FuzzName")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, *keep, *each, *only)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "fuzz:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, keep bool, each time.Duration, only string) error {
	targets, err := find(".")
	if err != nil {
		return err
	}
	targets = slices.DeleteFunc(targets, func(t target) bool { return !strings.Contains("./"+t.dir+"."+t.name, only) })
	if len(targets) == 0 {
		return fmt.Errorf("no target is named like %q", only)
	}
	tmp, err := os.MkdirTemp("", "understudy-fuzz-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }() // nothing of it is wanted any more
	fmt.Printf("%-52s %12s %6s %6s %8s\n", "target", "executions", "new", "kept", "crashes")
	crashes := 0
	for _, t := range targets {
		var r result
		if each > 0 {
			if r, err = t.fuzz(ctx, each); err != nil {
				return err
			}
		}
		kept := 0
		if keep && r.crashed == "" {
			if kept, err = t.keep(ctx, tmp); err != nil {
				return err
			}
		}
		n := 0
		if r.crashed != "" {
			n = 1
		}
		crashes += n
		fmt.Printf("%-52s %12s %6s %6d %8d\n", "./"+t.dir+"."+t.name, r.executions, r.interesting, kept, n)
		if r.crashed != "" {
			fmt.Println(r.crashed)
		}
	}
	if crashes > 0 {
		return fmt.Errorf("%d of %d targets crashed; their corpora hold the inputs", crashes, len(targets))
	}
	return nil
}

var targetForm = regexp.MustCompile(`(?m)^func (Fuzz\w+)\(`)

// find lists the targets below root, in order.
func find(root string) (targets []target, err error) {
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && p != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || p == "build" || p == "bin") {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(p, "_test.go") {
			return nil
		}
		text, err := os.ReadFile(p)
		for _, m := range targetForm.FindAllStringSubmatch(string(text), -1) {
			targets = append(targets, target{dir: filepath.Dir(p), name: m[1]})
		}
		return err
	})
	return targets, err
}

// result is what Go's fuzzer said last.
type result struct {
	executions, interesting string
	crashed                 string // its report, "" if nothing crashed
}

var progress = regexp.MustCompile(`execs: (\d+) .*new interesting: (\d+)`)

// fuzz runs one target. At the end of its time Go's fuzzer sometimes reports
// its own deadline as a failure; a finding names the input that it wrote.
func (t target) fuzz(ctx context.Context, each time.Duration) (result, error) {
	out, err := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-fuzz", "^"+t.name+"$", "-fuzztime", each.String(), "-parallel", "2", "./"+t.dir).CombinedOutput()
	if ctx.Err() != nil {
		return result{}, ctx.Err()
	}
	r := result{executions: "0", interesting: "0"}
	said := string(out)
	if m := progress.FindAllStringSubmatch(said, -1); m != nil {
		r.executions, r.interesting = m[len(m)-1][1], m[len(m)-1][2]
	}
	deadline := strings.Contains(said, "context deadline exceeded") && !strings.Contains(said, "Failing input written")
	if err != nil && !deadline {
		r.crashed = said
	}
	return r, nil
}

// keep carries inputs from Go's cache into the corpus, the smallest first, each
// if it reaches a block of its package that nothing before it does.
func (t target) keep(ctx context.Context, tmp string) (kept int, err error) {
	cached, err := t.cached(ctx)
	if err != nil || len(cached) == 0 {
		return 0, err
	}
	files, bytes, err := size(t.corpus())
	if err != nil {
		return 0, err
	}
	c, err := t.coverage(ctx, tmp)
	if err != nil {
		return 0, err
	}
	reached, err := c.of(ctx, "^"+t.name+"$")
	if err != nil {
		return 0, err
	}
	for _, in := range cached[:min(len(cached), maxTried)] {
		if files >= maxFiles || bytes+in.size > maxBytes {
			break
		}
		text, err := os.ReadFile(in.path)
		if err != nil {
			return kept, err
		}
		base := filepath.Base(in.path)
		if err := os.WriteFile(filepath.Join(c.corpus, base), text, 0o644); err != nil { //nolint:gosec // a file of the repository
			return kept, err
		}
		more, err := c.of(ctx, "^"+t.name+"$/^"+base+"$")
		if err != nil && strings.Contains(err.Error(), "in corpus entry") {
			continue // of a time when the target took other arguments
		}
		if err != nil {
			return kept, fmt.Errorf("input %s: %w", in.path, err)
		}
		before := len(reached)
		for block := range more {
			reached[block] = true
		}
		if len(reached) == before {
			continue
		}
		if err := os.MkdirAll(t.corpus(), 0o755); err != nil { //nolint:gosec // a directory of the repository
			return kept, err
		}
		if err := os.WriteFile(filepath.Join(t.corpus(), base), text, 0o644); err != nil { //nolint:gosec // a file of the repository
			return kept, err
		}
		files, bytes, kept = files+1, bytes+in.size, kept+1
	}
	return kept, nil
}

type input struct {
	path string
	size int64
}

// cached lists what the fuzzer found interesting, the smallest first.
func (t target) cached(ctx context.Context) (found []input, err error) {
	env, err := exec.CommandContext(ctx, "go", "list", "-f", "{{.ImportPath}}", "./"+t.dir).Output()
	if err != nil {
		return nil, fmt.Errorf("go list ./%s: %w", t.dir, err)
	}
	cache, err := exec.CommandContext(ctx, "go", "env", "GOCACHE").Output()
	if err != nil {
		return nil, fmt.Errorf("go env GOCACHE: %w", err)
	}
	dir := filepath.Join(strings.TrimSpace(string(cache)), "fuzz", strings.TrimSpace(string(env)), t.name)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		if i, err := e.Info(); err == nil && i.Size() <= maxInput {
			found = append(found, input{filepath.Join(dir, e.Name()), i.Size()})
		}
	}
	slices.SortFunc(found, func(a, b input) int { return cmp.Or(cmp.Compare(a.size, b.size), cmp.Compare(a.path, b.path)) })
	return found, err
}

// size counts a corpus' files and bytes.
func size(dir string) (files int, bytes int64, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, 0, nil
	}
	for _, e := range entries {
		if i, err := e.Info(); err == nil {
			files, bytes = files+1, bytes+i.Size()
		}
	}
	return files, bytes, err
}

// covered runs a test binary in a directory like its package's, but for the
// corpus of one target, which is a copy.
type covered struct {
	binary, dir, corpus string
}

func (t target) coverage(ctx context.Context, tmp string) (c covered, err error) {
	flat := strings.ReplaceAll(t.dir, "/", "-")
	c = covered{binary: filepath.Join(tmp, flat+".test"), dir: filepath.Join(tmp, flat+"."+t.name)}
	c.corpus = filepath.Join(c.dir, "testdata", "fuzz", t.name)
	if _, err := os.Stat(c.binary); err != nil {
		if out, err := exec.CommandContext(ctx, "go", "test", "-c", "-cover", "-o", c.binary, "./"+t.dir).CombinedOutput(); err != nil {
			return c, fmt.Errorf("go test -c -cover ./%s: %w\n%s", t.dir, err, out)
		}
	}
	if err := os.MkdirAll(c.corpus, 0o700); err != nil {
		return c, err
	}
	for _, sub := range []string{".", "testdata"} {
		entries, err := os.ReadDir(filepath.Join(t.dir, sub))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return c, err
		}
		for _, e := range entries {
			if e.Name() == "testdata" || e.Name() == "fuzz" {
				continue
			}
			abs, err := filepath.Abs(filepath.Join(t.dir, sub, e.Name()))
			if err != nil {
				return c, err
			}
			if err := os.Symlink(abs, filepath.Join(c.dir, sub, e.Name())); err != nil {
				return c, err
			}
		}
	}
	if _, err := os.Stat(t.corpus()); err == nil {
		return c, os.CopyFS(c.corpus, os.DirFS(t.corpus()))
	}
	return c, nil
}

var blockForm = regexp.MustCompile(`(?m)^(\S+:\S+) \d+ [1-9]\d*$`)

// of returns the blocks that the tests of a pattern reach.
func (c covered) of(ctx context.Context, pattern string) (map[string]bool, error) {
	profile := filepath.Join(c.dir, "profile")
	cmd := exec.CommandContext(ctx, c.binary, "-test.run", pattern, "-test.coverprofile", profile)
	cmd.Dir = c.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%s: %w\n%s", pattern, err, out)
	}
	text, err := os.ReadFile(profile)
	if err != nil {
		return nil, err
	}
	blocks := map[string]bool{}
	for _, m := range blockForm.FindAllStringSubmatch(string(text), -1) {
		blocks[m[1]] = true
	}
	return blocks, nil
}
