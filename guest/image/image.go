// Package image makes and examines the guest's disk images, on the host: raw
// files with an ext4 file system, sparse.
//
//	Small  the demo's and the stories' disk: a library of files to read, room to write; made in a moment
//	Big    the benchmark's disk: a Debian with a source tree, a compiler and a database
//	Dom0   a Xen host's disk, and what to start it with
//	Copy   a copy that takes only the room of what is in it
//	Fsck   what the file system would look like to the next boot, judged by e2fsck
//
// Small and Big write the image once, into a directory, under a name that says
// what it was made from; a second call finds it there. Give guests a Copy.
package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	mib = 1 << 20
)

// built returns the path of the image that recipe makes in dir: the one that is
// there, or a new one by write. Images of the same kind made by another
// recipe are removed: nothing uses them again.
func built(dir, kind, recipe string, write func(path string) error) (string, error) {
	sum := sha256.Sum256([]byte(recipe))
	path := filepath.Join(dir, fmt.Sprintf("%s-%x.ext4", kind, sum[:6]))
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		return path, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	old, err := filepath.Glob(filepath.Join(dir, kind+"-*.*")) // with what was taken out of them
	if err != nil {
		return "", err
	}
	work, err := os.MkdirTemp(dir, kind+"-new-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(work) }()
	fresh := filepath.Join(work, "image")
	if err := write(fresh); err != nil {
		return "", err
	}
	if err := os.Rename(fresh, path); err != nil {
		return "", err
	}
	for _, o := range old {
		if strings.HasPrefix(o, strings.TrimSuffix(path, "ext4")) {
			continue // somebody else made it meanwhile
		}
		if err := os.Remove(o); err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
	}
	return path, nil
}

// tool finds a program that may be in a directory that users do not have in
// their path.
func tool(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("no %s here: run scripts/setup", name)
}

// command runs a program with env added to ours; the error has what it said.
func command(ctx context.Context, stdin io.Reader, env []string, name string, args ...string) (string, error) {
	path, err := tool(name)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin = stdin
	said, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, tail(said))
	}
	return string(said), err
}

// tail is the end of a long output.
func tail(said []byte) []byte {
	const most = 4096
	return said[max(0, len(said)-most):]
}

// Filesystem makes path a sparse file of size bytes with an empty ext4 file
// system, or one with the files of tree. Nothing is left for the guest's kernel
// to initialise in the background. The same tree gives the same bytes, but for
// the change times and the directory order of its files.
func Filesystem(ctx context.Context, path, label, tree string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return fmt.Errorf("make a file of %d MiB: %w", size/mib, err)
	}
	args := []string{"-q", "-F", "-b", "4096", "-m", "0", "-L", label,
		"-U", "7a1b0000-0000-4000-8000-000000000001",
		"-E", "hash_seed=7a1b0000-0000-4000-8000-000000000002,root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0,nodiscard"}
	if tree != "" {
		args = append(args, "-d", tree)
	}
	_, err = command(ctx, nil, fixedTime, "mkfs.ext4", append(args, path)...)
	return err
}

// fixedTime makes mkfs.ext4 and debugfs write the same times each day.
var fixedTime = []string{"E2FSPROGS_FAKE_TIME=1700000000"}

// Copy makes to a copy of from, a new file; what is zero there is a hole here.
func Copy(to, from string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, out.Close()); err != nil {
			err = errors.Join(fmt.Errorf("copy the image %s: %w", from, err), os.Remove(to))
		}
	}()
	if err := out.Truncate(info.Size()); err != nil {
		return err
	}
	for at := int64(0); at < info.Size(); {
		begin, err := unix.Seek(int(in.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // holes to the end
		}
		if err != nil {
			return err
		}
		if at, err = unix.Seek(int(in.Fd()), begin, unix.SEEK_HOLE); err != nil {
			return err
		}
		if err := copyRange(out, in, begin, at); err != nil {
			return err
		}
	}
	return nil
}

// copyRange copies bytes begin to end, but leaves out what is zero: mkfs.ext4
// writes plenty of that.
func copyRange(out, in *os.File, begin, end int64) error {
	chunk, zero := make([]byte, 64<<10), make([]byte, 64<<10)
	for at := begin; at < end; {
		piece := chunk[:min(end-at, int64(len(chunk)))]
		if _, err := in.ReadAt(piece, at); err != nil {
			return err
		}
		if !bytes.Equal(piece, zero[:len(piece)]) {
			if _, err := out.WriteAt(piece, at); err != nil {
				return err
			}
		}
		at += int64(len(piece))
	}
	return nil
}
