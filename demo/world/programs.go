package world

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"understudy/lab"
)

// Programs builds understudy and understudyd of this module into a directory
// that every user may read, for tests. The caller removes the directory.
func Programs(tags ...string) (dir string, err error) {
	if dir, err = os.MkdirTemp("", "understudy-programs-"); err != nil {
		return "", err
	}
	build := exec.Command("go", "build", "-tags", strings.Join(tags, ","), "-o", dir+"/", "understudy/cmd/understudy", "understudy/cmd/understudyd")
	out, err := build.CombinedOutput()
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		_ = os.RemoveAll(dir)
		return "", fmt.Errorf("%s: %w\n%s", build, err, out)
	}
	return dir, nil
}

// Sweep removes what worlds of processes that have died left under a prefix.
func Sweep(prefix string) error {
	_, err := lab.Sweep(prefix)
	return errors.Join(err, sweep(prefix))
}

// Leftovers lists what worlds with this prefix have made and is there:
// directories, network namespaces (with the TAPs and nftables tables in them),
// mounts, and processes in them or with their paths in the command line. When
// all worlds are closed there is nothing.
func Leftovers(prefix string) ([]string, error) {
	left, err := lab.Leftovers(prefix)
	dirs, globErr := filepath.Glob(filepath.Join(tmpfs, prefix+"-world-*"))
	disks, diskErr := filepath.Glob(filepath.Join(diskfs, prefix+"-world-*"))
	for _, d := range append(dirs, disks...) {
		left = append(left, "directory "+d)
	}
	mounts, mountErr := os.ReadFile("/proc/self/mountinfo")
	for _, m := range strings.Split(string(mounts), "\n") {
		if strings.Contains(m, "/"+prefix+"-") {
			left = append(left, "mount "+m)
		}
	}
	processes, procErr := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range processes {
		words, err := os.ReadFile(p) // it may have ended
		if err == nil && bytes.Contains(words, []byte(prefix+"-world-")) {
			left = append(left, "process "+p+": "+string(bytes.ReplaceAll(words, []byte{0}, []byte{' '})))
		}
	}
	return left, errors.Join(err, globErr, diskErr, mountErr, procErr)
}
