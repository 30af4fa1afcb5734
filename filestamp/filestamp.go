// Package filestamp tells whether a file is still the one that was read, for what
// is read anew when an operator has replaced it: certificates, tokens.
package filestamp

import (
	"os"
	"syscall"
)

// Stamp tells one content of a file from another, as far as its inode does. The
// zero Stamp is no file's.
type Stamp struct {
	device, inode uint64
	size          int64
	modified      syscall.Timespec
	changed       syscall.Timespec
}

// Of is the stamp of a file; the zero one where there is no such thing as an inode.
func Of(info os.FileInfo) Stamp {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return Stamp{} // not on Linux
	}
	return Stamp{uint64(st.Dev), st.Ino, st.Size, st.Mtim, st.Ctim} //nolint:unconvert // Dev differs between architectures
}

// All are the stamps of files by their paths. The error is the first file's that
// cannot be looked at.
func All(paths ...string) ([]Stamp, error) {
	all := make([]Stamp, len(paths))
	for i, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		all[i] = Of(info)
	}
	return all, nil
}
