package workload

// The loads on a source tree.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
)

// Where the big image has its sources; package image puts them there.
const (
	// SourceTree is a large one to read: glibc.
	SourceTree = "usr/src/glibc"
	// CompileTree is one that compiles without being configured: newlib.
	CompileTree = "usr/src/newlib"
)

func readTree(ctx context.Context, j *job) (files int64, err error) {
	root, err := os.OpenRoot(j.root)
	if err != nil {
		return 0, err
	}
	defer func() { _ = root.Close() }()
	from := SourceTree
	if _, err := root.Stat(from); errors.Is(err, fs.ErrNotExist) {
		from = "."
	}
	bytes, chunk := int64(0), make([]byte, 256<<10)
	err = fs.WalkDir(root.FS(), from, func(name string, e fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		if most := j.settings["files"]; most > 0 && files == most {
			return fs.SkipAll
		}
		f, err := root.Open(name)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		for {
			n, err := f.Read(chunk)
			bytes += int64(n)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
		}
		files++
		return nil
	})
	j.tell("read %d files of %d MiB in %s", files, bytes>>20, from)
	return files, err
}

func archive(ctx context.Context, j *job) (int64, error) {
	said, err := j.program(ctx, nil, "/bin/sh", "-ec",
		"cd /"+SourceTree+"; tar -cf - . | gzip -1 >/var/tmp/archive.tar.gz; tar -tzf /var/tmp/archive.tar.gz | wc -l; stat -c %s /var/tmp/archive.tar.gz")
	if err != nil {
		return 0, err
	}
	var entries, bytes int64
	if _, err := fmt.Sscan(said, &entries, &bytes); err != nil {
		return 0, fmt.Errorf("tar and wc say %q: %w", said, err)
	}
	if entries < 2 {
		return 0, fmt.Errorf("the archive has %d entries", entries)
	}
	j.tell("packed %d entries to %d KiB", entries, bytes>>10)
	return entries, nil
}

// compile has each file compiled by a gcc of its own, as make would. The two
// files that need a configured tree are left out.
func compile(ctx context.Context, j *job) (int64, error) {
	root, err := os.OpenRoot(j.root)
	if err != nil {
		return 0, err
	}
	defer func() { _ = root.Close() }()
	base := CompileTree + "/newlib"
	var sources []string
	for _, dir := range []string{
		"libc/stdlib", "libc/string", "libc/stdio", "libm/common", "libm/math", "libm/mathfp", "libc/search", "libc/ctype", "libc/time", "libc/locale", "libc/misc",
	} {
		found, err := fs.Glob(root.FS(), path.Join(base, dir, "*.c"))
		if err != nil {
			return 0, err
		}
		for _, f := range found {
			if name := path.Base(f); name != "mallocr.c" && name != "gettzinfo.c" {
				sources = append(sources, strings.TrimPrefix(f, base+"/"))
			}
		}
	}
	if len(sources) == 0 {
		return 0, fmt.Errorf("no sources in /%s: this workload needs the big image", base)
	}
	const objects = "/var/tmp/objects"
	if _, err := j.program(ctx, nil, "/bin/sh", "-ec", "rm -rf "+objects+"; mkdir "+objects+"; cd "+objects+"; : >newlib.h; : >_newlib_version.h"); err != nil {
		return 0, err
	}
	sources = sources[:min(int64(len(sources)), j.settings["files"])]
	for i, source := range sources {
		object := strings.ReplaceAll(strings.TrimSuffix(source, ".c"), "/", "-") + ".o"
		if _, err := j.program(ctx, nil, "/bin/sh", "-ec", "cd /"+base+"; exec gcc -O1 -w -c -I"+objects+
			" -Ilibc/include -Ilibm/common -Ilibc/stdio -Ilibc/stdlib -o "+objects+"/"+object+" "+source); err != nil {
			return int64(i), fmt.Errorf("compile %s: %w", source, err)
		}
		if (i+1)%50 == 0 {
			j.tell("compiled %d of %d", i+1, len(sources))
		}
	}
	return int64(len(sources)), nil
}
