// Package workload is the work that the benchmarks give a guest: one function for
// each, on the tree of a mounted disk. It runs in a process of its own (guest/init
// starts itself again for it), so that what it used is free again when it ends.
//
//	Run(root, "postmark files=500") ─> lines that tell what it does ─> "done postmark <seconds> <ops>"
//
// compile, archive, database and fio run the programs of a big image (package image)
// with its tree as their root directory; the others need nothing but files.
package workload

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// load is one workload.
type load struct {
	// defaults are its settings, all numbers.
	defaults map[string]int64
	run      func(ctx context.Context, j *job) (ops int64, err error)
}

// loads are all there are.
func loads() map[string]load {
	return map[string]load{
		// Reads every file of the source tree, or of the whole disk where there is none;
		// at most `files`, unless that is 0.
		"read-tree": {map[string]int64{"files": 0}, readTree},
		// Packs the source tree with tar and gzip.
		"archive": {nil, archive},
		// Compiles C files of newlib with gcc -O1; there are 889.
		"compile": {map[string]int64{"files": 120}, compile},
		// A mail spool, see postmark.go.
		"postmark": {map[string]int64{"files": 500, "transactions": 500, "low": 500, "high": 10000, "read": 5, "create": 5, "block": 512, "seed": 42}, postmark},
		// Random inserts, updates and selects in SQLite, `batch` to a transaction.
		"database": {map[string]int64{"ops": 5000, "batch": 10, "seed": 42}, database},
		// fio, to compare with package diskspeed: direct and asynchronous (libaio), on a
		// file of `size` MiB; `write`, `random` and `sync` are 0 or 1.
		"fio": {map[string]int64{"bs": 4096, "depth": 1, "seconds": 5, "size": 64, "write": 0, "random": 1, "sync": 0}, fio},
		// Nothing, for `seconds`.
		"idle": {map[string]int64{"seconds": 10}, idle},
	}
}

// maxSetting bounds every setting.
const maxSetting = 10_000_000

// job is a running load.
type job struct {
	root     string
	settings map[string]int64
	out      io.Writer
}

// Names are the workloads' names.
func Names() []string { return slices.Sorted(maps.Keys(loads())) }

// Check says whether words, a name and settings key=number, are a workload.
func Check(words []string) error {
	_, _, err := parse(words)
	return err
}

func parse(words []string) (load, map[string]int64, error) {
	if len(words) == 0 {
		return load{}, nil, fmt.Errorf("which workload? There are %s", strings.Join(Names(), ", "))
	}
	l, ok := loads()[words[0]]
	if !ok {
		return load{}, nil, fmt.Errorf("no workload %q, there are %s", words[0], strings.Join(Names(), ", "))
	}
	settings := map[string]int64{}
	maps.Copy(settings, l.defaults)
	for _, word := range words[1:] {
		key, value, _ := strings.Cut(word, "=")
		if _, ok := l.defaults[key]; !ok {
			return load{}, nil, fmt.Errorf("%s has no setting %q, it has %s", words[0], key, strings.Join(slices.Sorted(maps.Keys(l.defaults)), ", "))
		}
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil || n < 0 || n > maxSetting {
			return load{}, nil, fmt.Errorf("%s %q is not a number up to %d", key, value, maxSetting)
		}
		settings[key] = n
	}
	return l, settings, nil
}

// Run does what words say on the tree below root and writes to out what it does.
// The last line is "done NAME seconds ops", or there is an error.
func Run(ctx context.Context, root string, words []string, out io.Writer) error {
	l, settings, err := parse(words)
	if err != nil {
		return err
	}
	begin := time.Now()
	ops, err := l.run(ctx, &job{root: root, settings: settings, out: out})
	if err != nil {
		return fmt.Errorf("%s: %w", words[0], err)
	}
	_, err = fmt.Fprintf(out, "done %s %.3f %d\n", words[0], time.Since(begin).Seconds(), ops)
	return err
}

// Done is a workload that has come to its end.
type Done struct {
	Name string
	Took time.Duration
	Ops  int64
}

// ParseDone reads Run's last line.
func ParseDone(line string) (Done, error) {
	var d Done
	var seconds float64
	if n, err := fmt.Sscanf(line, "done %s %f %d", &d.Name, &seconds, &d.Ops); err != nil || n != 3 || !(seconds >= 0 && seconds < 1e6) {
		return Done{}, fmt.Errorf("%q is no line done NAME seconds ops", line)
	}
	d.Took = time.Duration(seconds * float64(time.Second))
	return d, nil
}

func (j *job) tell(format string, args ...any) {
	_, _ = fmt.Fprintf(j.out, format+"\n", args...) // whoever reads it may have gone
}

// program runs a program of the disk with the disk as its root directory.
func (j *job) program(ctx context.Context, stdin io.Reader, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Path, cmd.Err = name, nil // of the disk, where LookPath does not look
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=/", "LC_ALL=C"}
	cmd.Stdin = stdin
	if j.root != "/" {
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: j.root}
	}
	said, err := cmd.CombinedOutput()
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("the disk has no %s: this workload needs the big image", name)
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", name, err, said[:min(len(said), 2000)])
	}
	return string(said), nil
}

func idle(ctx context.Context, j *job) (int64, error) {
	select {
	case <-time.After(time.Duration(j.settings["seconds"]) * time.Second):
		return 0, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}
