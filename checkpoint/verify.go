package checkpoint

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"understudy/epoch"
)

// MaxDamages is how many damages a Report names.
const MaxDamages = 20

// Damage is something that keeps pages from being restored.
type Damage struct {
	// Page is the first of Pages pages that are concerned.
	Page  epoch.GFN
	Pages uint64
	// Place is the block of the disk that is not as it was; nil: it is a file
	// that is damaged.
	Place *Place
	// Err says what is wrong, and in which file or on which disk.
	Err error
}

// MarshalJSON writes the damage for people's scripts.
func (d Damage) MarshalJSON() ([]byte, error) {
	v := struct {
		Page   epoch.GFN     `json:"page"`
		Pages  uint64        `json:"pages"`
		Disk   *epoch.DiskID `json:"disk,omitempty"`
		Sector *uint64       `json:"sector,omitempty"`
		Error  string        `json:"error"`
	}{Page: d.Page, Pages: d.Pages, Error: d.Err.Error()}
	if d.Place != nil {
		v.Disk, v.Sector = &d.Place.Disk, &d.Place.Sector
	}
	return json.Marshal(v)
}

// Checked counts the pages of an image by what was looked at.
type Checked struct {
	Zero       uint64 `json:"zero"`       // nothing to look at
	Stored     uint64 `json:"stored"`     // in this file or one it builds on
	References uint64 `json:"references"` // on a disk
}

// Report is what Verify found.
type Report struct {
	Checked
	// BlocksRead says that the disks were looked at.
	BlocksRead bool `json:"blocks_read"`
	// BadPages counts pages that cannot be restored: for a damaged file, and
	// for a block that was overwritten or cannot be read.
	BadPages  uint64 `json:"bad_pages"`
	BadBlocks uint64 `json:"bad_blocks"`
	// Damages are MaxDamages of them, those of files first.
	Damages []Damage `json:"damages,omitempty"`
}

// Err returns nil if everything was well, or what was not.
func (r *Report) Err() error {
	if r.BadPages+r.BadBlocks == 0 && len(r.Damages) == 0 {
		return nil
	}
	errs := []error{fmt.Errorf("%d pages are damaged in the file, %d blocks of the disks are not as they were", r.BadPages, r.BadBlocks)}
	for _, d := range r.Damages {
		errs = append(errs, d.Err)
	}
	return errors.Join(errs...)
}

// Verify reads all that a restore of this file would need: its states, every
// page in it and in the files it builds on, and, unless blocks is nil, every
// referenced block of the disks. What is wrong is in the report; the error is
// for a walk that could not be finished.
func (f *File) Verify(ctx context.Context, blocks Blocks, progress Progress) (Report, error) {
	r := Report{BlocksRead: blocks != nil}
	var files, disks []Damage
	note := func(d Damage) error {
		into := &files
		if d.Place != nil {
			r.BadBlocks++
			into = &disks
		} else {
			r.BadPages += d.Pages
		}
		if len(*into) < MaxDamages {
			*into = append(*into, d)
		}
		return nil
	}
	for _, s := range []section{sectionMachine, sectionDevice, sectionDisk} {
		if _, err := f.state(s); err != nil {
			_ = note(Damage{Err: err}) // never fails
		}
	}
	w := &walk{file: f, blocks: blocks, fault: note, progress: progress}
	err := w.run(ctx)
	r.Damages = slices.Concat(files, disks)
	r.Damages = r.Damages[:min(len(r.Damages), MaxDamages)]
	if err != nil {
		return r, fmt.Errorf("verify checkpoint file %s: %w", f.path, err)
	}
	r.Checked = w.seen
	return r, nil
}
