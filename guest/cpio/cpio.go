// Package cpio writes archives in the "newc" format, the one the Linux kernel
// unpacks as an initramfs (Documentation/driver-api/early-userspace/buffer-format.rst).
//
// Each entry is a 110-byte header of hexadecimal fields, the name with its NUL
// padded to 4 bytes, then the data padded to 4 bytes; an entry named
// TRAILER!!! ends the archive. Owner, group and times are zero, so that equal
// input gives an equal archive.
//
// The data of a file of a page or more begins at a sector, as with gen_init_cpio
// --data-align=512 of Linux: further NULs belong to the name before it. So the
// pages of an unpacked file are found, sector by sector, in the archive.
package cpio

import (
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
)

// File types of the mode field (inode(7)).
const (
	typeDir     = 0o040000
	typeChar    = 0o020000
	typeRegular = 0o100000
	typeSymlink = 0o120000
)

const (
	magic   = "070701"
	trailer = "TRAILER!!!"
	// maxName is PATH_MAX of Linux, including the NUL; the kernel skips
	// entries with longer names without a word.
	maxName = 4096
	// Files of at least alignFrom bytes begin at a multiple of alignTo.
	alignFrom = 4096
	alignTo   = 512
	headSize  = 110
)

// Writer writes one archive. Its first error stays and is returned by every
// later call.
type Writer struct {
	w     io.Writer
	at    int // bytes written
	inode uint32
	err   error
}

// NewWriter returns a Writer to w. Close ends the archive, it does not close w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Dir adds a directory. Directories come before what they hold.
func (w *Writer) Dir(name string, perm uint32) error {
	return w.entry(name, typeDir|perm&0o7777, 2, 0, 0, nil)
}

// File adds a regular file.
func (w *Writer) File(name string, perm uint32, data []byte) error {
	return w.entry(name, typeRegular|perm&0o7777, 1, 0, 0, data)
}

// Symlink adds a symbolic link called name that points to target.
func (w *Writer) Symlink(name, target string) error {
	return w.entry(name, typeSymlink|0o777, 1, 0, 0, []byte(target))
}

// CharDevice adds a character device node.
func (w *Writer) CharDevice(name string, perm, major, minor uint32) error {
	return w.entry(name, typeChar|perm&0o7777, 1, major, minor, nil)
}

// Close writes the trailer.
func (w *Writer) Close() error {
	if w.err != nil {
		return w.err
	}
	w.write(trailer, 0, 1, 0, 0, nil)
	if w.err != nil {
		return w.err
	}
	w.err = errors.New("cpio: archive is closed")
	return nil
}

func (w *Writer) entry(name string, mode, links, major, minor uint32, data []byte) error {
	if w.err != nil {
		return w.err
	}
	switch {
	case name == "" || name == trailer || strings.HasPrefix(name, "/") || strings.ContainsRune(name, 0):
		w.err = fmt.Errorf("cpio: %q is no name for an entry (relative, not empty, no NUL)", name)
	case len(name)+1 > maxName:
		w.err = fmt.Errorf("cpio: name of %d bytes, at most %d", len(name), maxName-1)
	case uint64(len(data)) > math.MaxUint32:
		w.err = fmt.Errorf("cpio: %s has %d bytes, the format ends at %d", name, len(data), uint32(math.MaxUint32))
	default:
		w.inode++
		w.write(name, mode, links, major, minor, data)
	}
	return w.err
}

// write emits header, name and data, each padded to 4 bytes. The header of 110
// bytes and the name share one padding.
func (w *Writer) write(name string, mode, links, major, minor uint32, data []byte) {
	inode := w.inode
	if name == trailer {
		inode = 0
	}
	nuls := 1
	if end := w.at + headSize + len(name) + nuls; len(data) >= alignFrom && len(name)+nuls+alignTo <= maxName {
		nuls += (alignTo - end%alignTo) % alignTo
	}
	header := fmt.Sprintf("%s%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s%s",
		magic, inode, mode,
		0, 0, // uid, gid
		links,
		0, // modification time
		len(data),
		0, 0, // device the file was on
		major, minor,
		len(name)+nuls,
		0, // checksum, unused in newc
		name, strings.Repeat("\x00", nuls))
	for _, part := range [][]byte{pad([]byte(header)), pad(data)} {
		if w.err == nil {
			var n int
			n, w.err = w.w.Write(part)
			w.at += n
		}
	}
}

// pad returns b followed by NULs up to a multiple of 4 bytes.
func pad(b []byte) []byte {
	if rest := len(b) % 4; rest != 0 {
		return append(b[:len(b):len(b)], make([]byte, 4-rest)...)
	}
	return b
}
