package image

// The big image: debootstrap into a directory, sources unpacked, mkfs.ext4 -d.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"understudy/guest/workload"
)

const (
	bigSize = 3072 * mib
	// bigSuite is the Debian release that the image holds, whatever runs here.
	bigSuite = "bookworm"
	// bigPackages come to the minimal Debian, which has tar and gzip: a compiler,
	// a database, fio to compare with, and two packages that bring sources.
	bigPackages = "gcc,libc6-dev,sqlite3,fio,xz-utils,glibc-source,newlib-source"
	bigRecipe   = "big 1: 3 GiB, minbase " + bigSuite + " with " + bigPackages + ", sources unpacked"
	bigMirror   = "http://deb.debian.org/debian"
)

// Big returns the path of the big image in dir, which it makes if it is not there:
// 3 GiB, a minimal Debian with gcc, SQLite and fio, glibc's sources (20,000 files)
// in /usr/src/glibc and newlib's in /usr/src/newlib. That takes root, debootstrap, a
// Debian mirror (the one apt is configured with) and a minute or two.
func Big(ctx context.Context, dir string) (string, error) {
	path, err := built(dir, "big", bigRecipe, func(path string) error { return makeBig(ctx, path) })
	if err != nil {
		return "", fmt.Errorf("make the guest's big disk image: %w", err)
	}
	return path, nil
}

func makeBig(ctx context.Context, path string) error {
	if os.Geteuid() != 0 {
		return errors.New("debootstrap needs root")
	}
	tree := path + "-tree"
	if err := debootstrap(ctx, tree, bigPackages); err != nil {
		return err
	}
	for from, to := range map[string]string{"usr/src/glibc": workload.SourceTree, "usr/src/newlib": workload.CompileTree} {
		if err := unpackSources(ctx, filepath.Join(tree, from), filepath.Join(tree, to)); err != nil {
			return err
		}
	}
	// What apt keeps only for itself.
	for _, waste := range []string{"var/cache/apt", "var/lib/apt/lists"} {
		if err := os.RemoveAll(filepath.Join(tree, waste)); err != nil {
			return err
		}
	}
	return Filesystem(ctx, path, "debian", tree, bigSize)
}

// debootstrap fills tree with a minimal Debian and some packages. It mounts file systems there, so it has a mount
// namespace of its own: however it ends, nothing stays mounted here.
func debootstrap(ctx context.Context, tree, packages string) error {
	program, err := tool("debootstrap")
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, program, "--variant=minbase", "--include="+packages, bigSuite, tree, mirror(ctx))
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	said, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, tail(said))
	}
	return nil
}

// mirror is the one that apt gets bigSuite from, or Debian's own.
func mirror(ctx context.Context) string {
	targets, err := command(ctx, nil, nil, "apt-get", "indextargets", "--format", "$(SITE) $(CODENAME) $(COMPONENT) $(ORIGIN)", "Created-By: Packages")
	if err != nil {
		return bigMirror // no Debian, or none of this release
	}
	for line := range strings.Lines(targets) {
		if site, rest, _ := strings.Cut(strings.TrimSpace(line), " "); rest == bigSuite+" main Debian" {
			return site
		}
	}
	return bigMirror
}

// unpackSources makes tree what the one archive in from holds, and removes the
// archive.
func unpackSources(ctx context.Context, from, tree string) error {
	archives, err := filepath.Glob(filepath.Join(from, "*.tar.xz"))
	if err != nil || len(archives) != 1 {
		return fmt.Errorf("%d archives in %s, want one", len(archives), from)
	}
	if err := os.MkdirAll(tree, 0o755); err != nil {
		return err
	}
	if _, err := command(ctx, nil, nil, "tar", "-xJf", archives[0], "-C", tree, "--strip-components=1", "--no-same-owner"); err != nil {
		return err
	}
	return os.Remove(archives[0])
}
