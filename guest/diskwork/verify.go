package diskwork

// Reading everything again: after a failover, with what this run remembers; after
// a crash, with what somebody else has kept.

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// Checked is how much was compared.
type Checked struct {
	Files int
	Bytes int64
}

// examine reads every file of dir in all three ways and has judge look at what
// each reading found. What is wrong is a *Damage.
func examine(ctx context.Context, dir string, judge func(file int, found seen) error) (Checked, error) {
	var c Checked
	files, err := list(dir)
	if err != nil {
		return c, err
	}
	var buf []byte
	for _, file := range files {
		for how := range readings {
			if err := ctx.Err(); err != nil {
				return c, err
			}
			data, err := read(dir, file, how, buf)
			if err != nil {
				return c, fmt.Errorf("read file %d %s: %w", file, readingNames[how], err)
			}
			if cap(data) > cap(buf) {
				buf = data[:cap(data)]
			}
			found, err := inspect(file, data)
			if err == nil {
				err = judge(file, found)
			}
			if err != nil {
				return c, &Damage{fmt.Sprintf("file %d, read %s: %v", file, readingNames[how], err)}
			}
			c.Bytes += int64(len(data))
		}
		c.Files++
	}
	return c, nil
}

// Check compares every file with what this run last wrote, while the rounds wait.
// What is wrong is a *Damage.
func (w *Work) Check(ctx context.Context) (Checked, error) {
	return w.Verify(ctx, nil)
}

// Verify is Check and looks besides whether every write of acks is there: in its
// file is that version or a later one.
func (w *Work) Verify(ctx context.Context, acks []Ack) (Checked, error) {
	w.pause.Lock()
	defer w.pause.Unlock()
	for file, ack := range newest(acks) {
		if mine := w.files[file]; mine.version < ack.version {
			return Checked{}, &Damage{fmt.Sprintf("file %d: version %d was acknowledged, but the guest remembers only %d", file, ack.version, mine.version)}
		}
	}
	left := make(map[int]bool, len(w.files))
	for file := range w.files {
		left[file] = true
	}
	c, err := examine(ctx, w.dir, func(file int, found seen) error {
		delete(left, file)
		return judge(found, w.files[file], inPlace(file))
	})
	if err != nil {
		return c, err
	}
	return c, missing(left)
}

// Verify compares the files in dir, of which this run knows nothing, with acks:
// whatever was acknowledged has to be there, in that version or a later one, and
// whole. What is wrong is a *Damage. Call it only while no Work runs in dir.
func Verify(ctx context.Context, dir string, acks []Ack) (Checked, error) {
	need := newest(acks)
	left := make(map[int]bool, len(need))
	for file := range need {
		left[file] = true
	}
	c, err := examine(ctx, dir, func(file int, found seen) error {
		delete(left, file)
		return judge(found, need[file], inPlace(file))
	})
	if _, gone := os.Stat(dir); errors.Is(gone, fs.ErrNotExist) {
		err = nil // nothing was ever written, or everything is lost
	}
	if err != nil {
		return c, err
	}
	return c, missing(left)
}

// newest is the last version of each file that acks tell of.
func newest(acks []Ack) map[int]known {
	list := make(map[int]known)
	for _, a := range acks {
		if a.Version > list[a.File].version {
			list[a.File] = known{version: a.Version, sum: a.Sum}
		}
	}
	return list
}

func missing(left map[int]bool) error {
	for file := range left {
		return &Damage{fmt.Sprintf("file %d is gone, and %d more", file, len(left)-1)}
	}
	return nil
}
