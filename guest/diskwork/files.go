package diskwork

// The files of a work directory: their names, the three ways to write one and
// the three ways to read one.

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// blockSize is what direct reads and writes are aligned to, in bytes.
const blockSize = 4096

// How a file is written, by its number.
const (
	replaced    = iota // a temporary file, fsync, rename, fsync of the directory
	overwritten        // in place through the page cache, then fsync
	direct             // in place past the page cache (O_DIRECT), then fsync
	ways
)

func wayOf(file int) int    { return file % ways }
func inPlace(file int) bool { return wayOf(file) != replaced }

const temporarySuffix = ".new"

func nameOf(file int) string { return fmt.Sprintf("%06d", file) }

// fileOf is the number of the file with this name.
func fileOf(name string) (int, bool) {
	n, err := strconv.Atoi(name)
	return n, err == nil && n >= 0 && nameOf(n) == name
}

// aligned is a buffer of n bytes that direct input and output accepts.
func aligned(n int) []byte {
	b := make([]byte, n+blockSize)
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & (blockSize - 1)
	return b[skip : skip+n : skip+n]
}

// write makes data the content of a file and returns when it is on the disk.
func write(dir string, file int, data []byte) error {
	path := filepath.Join(dir, nameOf(file))
	way := wayOf(file)
	if info, err := os.Stat(path); err != nil || info.Size() != int64(len(data)) {
		way = replaced // there is nothing of this size to overwrite
	}
	switch way {
	case replaced:
		if err := writeTo(path+temporarySuffix, os.O_CREATE|os.O_TRUNC, data); err != nil {
			return err
		}
		if err := os.Rename(path+temporarySuffix, path); err != nil {
			return err
		}
		return syncDirectory(dir)
	case direct:
		return writeTo(path, unix.O_DIRECT, data)
	}
	return writeTo(path, 0, data)
}

func writeTo(path string, flags int, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|flags, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDirectory(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// How a file is read.
const (
	cached  = iota // from the page cache, if it is there
	dropped        // through the page cache, after dropping the file from it
	past           // past the page cache (O_DIRECT)
	readings
)

var readingNames = [readings]string{"from the page cache", "after dropping it from the page cache", "past the page cache"}

// read returns the content of a file, in buf if that is large enough.
func read(dir string, file, how int, buf []byte) ([]byte, error) {
	flags := os.O_RDONLY
	if how == past {
		flags |= unix.O_DIRECT
	}
	f, err := os.OpenFile(filepath.Join(dir, nameOf(file)), flags, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() > maxSize {
		return nil, fmt.Errorf("%s has %d bytes, no file of this work has more than %d", f.Name(), info.Size(), maxSize)
	}
	size := int(info.Size())
	if room := (size + blockSize - 1) / blockSize * blockSize; len(buf) < room {
		buf = aligned(room)
	}
	if how == dropped {
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			return nil, fmt.Errorf("drop %s from the page cache: %w", f.Name(), err)
		}
	}
	n := 0
	for n < size {
		got, err := f.Read(buf[n:])
		n += got
		if errors.Is(err, io.EOF) || (err == nil && got == 0) {
			return nil, fmt.Errorf("%s ends after %d of %d bytes", f.Name(), n, size)
		}
		if err != nil {
			return nil, err
		}
	}
	return buf[:size], nil
}

// list returns the numbers of the files in dir, ascending. Temporary files that
// a crash left are no files of the work.
func list(dir string) ([]int, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var files []int
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), temporarySuffix) {
			continue
		}
		n, ok := fileOf(e.Name())
		if !ok {
			return nil, &Damage{What: fmt.Sprintf("%s holds %q, which the work did not write", dir, e.Name())}
		}
		files = append(files, n)
	}
	return files, nil
}
