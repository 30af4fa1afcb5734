package drill

// The history: one file for each drill, ID.json, written whole or not at all.
//
//	drill → save → state_dir/drills/ID.json → load, list
//
// The oldest are removed when there are too many, or too much of them. A file
// that is not as it should be is refused with what is wrong with it.

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"
)

const (
	// MaxReport bounds a report's file, in bytes.
	MaxReport = 3 << 20
	// maxReports and maxHistory bound all of them: years of a weekly drill.
	maxReports = 500
	maxHistory = 256 << 20
	// maxListed bounds what is read of a directory that has become foreign.
	maxListed = 10_000

	extension = ".json"
)

// History is a directory of reports. One Runner writes it.
type History struct{ dir string }

// OpenHistory makes the directory if it is not there.
func OpenHistory(dir string) (*History, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("history of drills: %w", err)
	}
	return &History{dir}, nil
}

// ErrNoReport marks an ID that the history does not have.
var ErrNoReport = errors.New("no such drill in this host's history")

// NewID returns an ID for a drill that begins at t: its time, and what it is.
func NewID(t time.Time, s Spec, random string) string {
	what := s.Name
	if what == "" {
		what = string(s.Kind)
	}
	what = strings.Trim(what[:min(32, len(what))], "-")
	when := strings.Replace(t.UTC().Format("20060102t150405.000z"), ".", "", 1) // sorts by time
	return when + "-" + what + "-" + random
}

// CheckID says what is wrong with an ID.
func CheckID(id string) error {
	if !isName(id) {
		return fmt.Errorf("%.80q is not the ID of a drill: `understudy drill list` has them", id)
	}
	return nil
}

// Save writes a report.
func (h *History) Save(r Report) error {
	if err := CheckID(r.ID); err != nil {
		return err
	}
	text, err := json.Marshal(r)
	if err == nil && len(text) > MaxReport {
		err = fmt.Errorf("it has %d bytes, at most %d", len(text), MaxReport)
	}
	if err == nil {
		err = renameio.WriteFile(filepath.Join(h.dir, r.ID+extension), text, 0o600)
	}
	if err != nil {
		return fmt.Errorf("keep the report of %s: %w", r.ID, err)
	}
	return nil
}

// Load reads a report.
func (h *History) Load(id string) (Report, error) {
	if err := CheckID(id); err != nil {
		return Report{}, err
	}
	path := filepath.Join(h.dir, id+extension)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Report{}, fmt.Errorf("%w: %s", ErrNoReport, id)
	}
	if err != nil {
		return Report{}, fmt.Errorf("read the report: %w", err)
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return Report{}, fmt.Errorf("read the report: %s is no file", path)
	}
	text, err := io.ReadAll(io.LimitReader(f, MaxReport+1))
	if err != nil {
		return Report{}, fmt.Errorf("read the report: %w", err)
	}
	r, err := ParseReport(text)
	if err == nil && r.ID != id {
		err = fmt.Errorf("it is of drill %.80q", r.ID)
	}
	if err != nil {
		return Report{}, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

// ParseReport reads a report's JSON. Fields that it does not know are passed
// over: a later version may have written it.
func ParseReport(text []byte) (Report, error) {
	if len(text) > MaxReport {
		return Report{}, fmt.Errorf("the report has more than %d bytes", MaxReport)
	}
	var r Report
	d := json.NewDecoder(bytes.NewReader(text))
	if err := d.Decode(&r); err != nil {
		return Report{}, fmt.Errorf("the report: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Report{}, errors.New("the report: something follows it")
	}
	if err := CheckID(r.ID); err != nil {
		return Report{}, fmt.Errorf("the report: %w", err)
	}
	if err := r.Spec.Validate(); err != nil {
		return Report{}, fmt.Errorf("the report of %s: its drill: %w", r.ID, err)
	}
	if !slices.Contains([]State{Running, Held, Failed, Refused, Skipped, Aborted, Interrupted}, r.State) {
		return Report{}, fmt.Errorf("the report of %s: state %.40q is not known", r.ID, string(r.State))
	}
	if r.Began.IsZero() || r.Began.Year() < 1970 || r.Began.Year() > 9999 || r.Took < 0 {
		return Report{}, fmt.Errorf("the report of %s: it began %v and took %v", r.ID, r.Began, r.Took)
	}
	for _, one := range []struct {
		what      string
		has, most int
	}{
		{"lines of a timeline", len(r.Timeline), 2 * maxSteps}, {"samples", len(r.Samples), 2 * maxSamples}, {"knocks", len(r.Probe), 2 * maxKnocks},
		{"checks", len(r.Checks), maxSteps}, {"guarantees", len(r.Guarantees), maxSteps}, {"conditions", len(r.Conditions), maxSteps},
		{"clocks", len(r.Clocks), maxSteps}, {"things left over", len(r.Left), maxSteps},
	} {
		if one.has > one.most {
			return Report{}, fmt.Errorf("the report of %s: %d %s, at most %d", r.ID, one.has, one.what, one.most)
		}
	}
	return r, nil
}

// IDs returns the reports that there are, the newest first.
func (h *History) IDs() ([]string, error) {
	f, err := os.Open(h.dir)
	if err != nil {
		return nil, fmt.Errorf("history of drills: %w", err)
	}
	defer func() { _ = f.Close() }()
	names, err := f.Readdirnames(maxListed)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("history of drills: %w", err)
	}
	var ids []string
	for _, name := range names {
		if id, ok := strings.CutSuffix(name, extension); ok && CheckID(id) == nil {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b string) int { return cmp.Compare(b, a) })
	return ids, nil
}

// Prune removes the oldest reports while there are too many.
func (h *History) Prune() error {
	ids, err := h.IDs()
	if err != nil {
		return err
	}
	var all []error
	var sum int64
	for i, id := range ids {
		path := filepath.Join(h.dir, id+extension)
		if info, err := os.Lstat(path); err == nil {
			sum += info.Size()
		}
		if i > 0 && (i >= maxReports || sum > maxHistory) {
			all = append(all, os.Remove(path))
		}
	}
	return errors.Join(all...)
}
