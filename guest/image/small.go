package image

// The small image, by debugfs instead of mkfs.ext4 -d: that one takes over the
// change times and the directory order of the files it copies, so that no two
// images are equal.

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
)

const (
	smallSize = 256 * mib
	// libraryFiles of libraryFileSize bytes each lie in /library to be read.
	libraryFiles    = 64
	libraryFileSize = 512 << 10
	smallRecipe     = "small 1: 256 MiB, 64 library files of 512 KiB by ChaCha8, hash seed and times fixed"
)

// Small returns the path of the small image in dir, which it makes if it is not
// there: 256 MiB, with 32 MiB of files in /library that have the same bytes in
// every image, and an empty directory /work.
func Small(ctx context.Context, dir string) (string, error) {
	path, err := built(dir, "small", smallRecipe, func(path string) error { return makeSmall(ctx, path) })
	if err != nil {
		return "", fmt.Errorf("make the guest's small disk image: %w", err)
	}
	return path, nil
}

func makeSmall(ctx context.Context, path string) error {
	if err := Filesystem(ctx, path, "data", "", smallSize); err != nil {
		return err
	}
	files, err := os.MkdirTemp(filepath.Dir(path), "library-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(files) }()
	script := &strings.Builder{}
	_, _ = fmt.Fprintln(script, "mkdir library\nmkdir work\ncd library")
	content := rand.NewChaCha8([32]byte([]byte("the library of the small image..")))
	data := make([]byte, libraryFileSize)
	for i := range libraryFiles {
		_, _ = content.Read(data) // never fails
		file := filepath.Join(files, fmt.Sprintf("%02d", i))
		if err := os.WriteFile(file, data, 0o644); err != nil {
			return err
		}
		_, _ = fmt.Fprintf(script, "write %s %02d\n", file, i)
	}
	// It ends with status 0 whatever happens; a failed file shows in what it says.
	said, err := command(ctx, strings.NewReader(script.String()), fixedTime, "debugfs", "-w", path)
	if err != nil {
		return err
	}
	if n := strings.Count(said, "Allocated inode:"); n != libraryFiles {
		return fmt.Errorf("debugfs wrote %d of %d files:\n%s", n, libraryFiles, tail([]byte(said)))
	}
	return nil
}
