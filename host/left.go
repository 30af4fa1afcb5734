package host

// This file keeps, beside a guest that a daemon has left to the next one, what the
// next one has to know to go on with it as it was (primary.Left):
//
//	write (the guest stands still) ─> file ─ take (it is read once, and gone) ─>
//	   the guest is adopted ─> primary.Deps.Left
//
// The file is a line of JSON on a tmpfs. It says nothing that is still true once
// the guest has run again, so it is removed before that.

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"understudy/epoch"
	"understudy/ownership"
	"understudy/primary"
)

// LeftFormat is the version of the file.
const LeftFormat = 1

// maxLeft bounds the file, in bytes. Past it a guest begins its protection anew.
const maxLeft = 16 << 20

// left is the file's content.
type left struct {
	Format     int              `json:"format"`
	Generation epoch.Generation `json:"generation"`
	Backup     ownership.HostID `json:"backup"`
	At         epoch.Position   `json:"at"`
	PrintKey   epoch.PrintKey   `json:"print_key"`
	Pages      uint64           `json:"pages"` // of the image
	// Dirty has for each run of pages how many are between it and the one before,
	// and how many it is: unsigned varints (encoding/binary).
	Dirty []byte `json:"dirty"`
}

// WriteLeft makes the file, whole or not at all.
func WriteLeft(path string, l primary.Left) error {
	f := left{Format: LeftFormat, Generation: l.Generation, Backup: l.Backup, At: l.At, PrintKey: l.PrintKey, Pages: l.Dirty.Pages()}
	end := epoch.GFN(0)
	for first, count := range l.Dirty.Runs {
		f.Dirty = binary.AppendUvarint(f.Dirty, uint64(first-end))
		f.Dirty = binary.AppendUvarint(f.Dirty, count)
		end = first + epoch.GFN(count)
	}
	text, err := json.Marshal(f)
	if err == nil && len(text) > maxLeft {
		err = fmt.Errorf("%d bytes, at most %d", len(text), maxLeft)
	}
	if err == nil {
		err = os.WriteFile(path+".new", text, 0o600)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("note what is left to the next daemon: %w", err), removeLeft(path+".new"))
	}
	return nil
}

// ReadLeft reads the file; pages is the size of the largest image that it may be
// of. Without a file, or a path, the error is os.ErrNotExist.
func ReadLeft(path string, pages uint64) (primary.Left, error) {
	if path == "" {
		return primary.Left{}, os.ErrNotExist
	}
	info, err := os.Stat(path)
	if err != nil {
		return primary.Left{}, err
	}
	if info.Size() > maxLeft {
		return primary.Left{}, fmt.Errorf("%s has %d bytes, at most %d are allowed", path, info.Size(), maxLeft)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return primary.Left{}, err
	}
	l, err := parseLeft(text, pages)
	if err != nil {
		return primary.Left{}, fmt.Errorf("what a former daemon has left, %s: %w", path, err)
	}
	return l, nil
}

func parseLeft(text []byte, pages uint64) (primary.Left, error) {
	var f left
	if err := json.Unmarshal(text, &f); err != nil {
		return primary.Left{}, err
	}
	switch {
	case f.Format != LeftFormat:
		return primary.Left{}, fmt.Errorf("format %d, this program knows %d", f.Format, LeftFormat)
	case f.Pages == 0 || f.Pages > min(pages, epoch.MaxPages):
		return primary.Left{}, fmt.Errorf("an image of %d pages, at most %d are possible", f.Pages, pages)
	case f.At.Image.IsZero() || f.At.Number == 0 || f.Generation == 0:
		return primary.Left{}, errors.New("it names no image that could be continued from")
	}
	l := primary.Left{Generation: f.Generation, Backup: f.Backup, At: f.At, PrintKey: f.PrintKey, Dirty: epoch.NewPageSet(f.Pages)}
	for at, rest := uint64(0), f.Dirty; len(rest) > 0; {
		skip, n := binary.Uvarint(rest)
		if n <= 0 {
			return primary.Left{}, errors.New("its runs of pages end half-way")
		}
		count, m := binary.Uvarint(rest[n:])
		if m <= 0 || skip > f.Pages-at || count == 0 || count > f.Pages-at-skip {
			return primary.Left{}, fmt.Errorf("a run of pages that is not in the image, behind page %d", at)
		}
		l.Dirty.AddRange(epoch.GFN(at+skip), count)
		at, rest = at+skip+count, rest[n+m:]
	}
	return l, nil
}

// takeLeft reads the file and removes it: whatever comes of it, it holds no more.
// It returns nil if there is nothing to go on from.
func (m *manager) takeLeft() *primary.Left {
	pages := m.LeftPages
	l, err := ReadLeft(m.LeftFile, pages)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if gone := removeLeft(m.LeftFile); gone != nil {
		m.slog.Warn("what a former daemon has left is not used: it could not be removed", "err", gone)
		return nil
	}
	if err != nil {
		m.slog.Warn("the guest's protection begins anew", "err", err)
		return nil
	}
	return &l
}

func removeLeft(path string) error {
	if path == "" {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
