package host

// This file makes checkpoint files of a guest that this host runs:
//
//	request ─> checkpoint.Create ─> primary.Save: pages while the guest runs, the
//	rest in a pause; the disks' stamps or pins in that pause ─> Final ─> Commit
//
// With Stop the guest does not run on: its disks are drained first, so that what
// the file refers to stays as it is without a pin. A file that cannot be
// completed leaves the guest running.

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"understudy/checkpoint"
	"understudy/epoch"
	"understudy/hypervisor"
	"understudy/ownership"
	"understudy/primary"
)

// History is what checkpoint files need of a guest's disks, beyond Disks: their
// stores' stamps and pins.
type History interface {
	// Finder finds pages on the disks by fingerprints of a key; nil: it cannot.
	Finder() (checkpoint.Finder, epoch.PrintKey)
	// Mark says what the disks are at this moment. With pins their stores keep,
	// from this moment on, what is overwritten, in files that PinPath names.
	// This host must be their writer.
	Mark(pins string) ([]checkpoint.Disk, error)
	// Sync makes durable what has been written.
	Sync() error
	// Conditions says what the disks are now, whoever may write to them.
	Conditions() ([]checkpoint.DiskCondition, error)
	// Blocks reads the disks as they were when marked, as far as that can be had,
	// until release.
	Blocks(marked []checkpoint.Disk) (b checkpoint.Blocks, release func(), err error)
	// Rollback makes the disks what they were when marked. Nobody uses them, and
	// this host owned the guest last, in generation g: still, asked when a disk is
	// locked and before it is changed, says whether that holds.
	Rollback(ctx context.Context, g epoch.Generation, marked []checkpoint.Disk, still func(ctx context.Context) error) error
	// Whole says why the guest must not be booted from the disks: a rollback was
	// begun and has not ended.
	Whole() error
	// Unpin ends the pins in files that PinPath names. g is as for Rollback, for
	// disks that this host is not the writer of now; 0: it must be.
	Unpin(ctx context.Context, g epoch.Generation, pins string) error
}

// PinPath is the file beside a checkpoint file in which the store of a disk keeps
// what is overwritten.
func PinPath(file string, disk epoch.DiskID) string {
	if disk == 0 {
		return file + ".pin"
	}
	return fmt.Sprintf("%s.pin.%d", file, disk)
}

// Progress is told how much of a stage of a task is done, in pages.
type Progress func(stage string, done, total uint64)

// The stages that a Progress is told of.
const (
	StageMemory  = "memory"   // pages, while the guest runs; once for each round
	StageFile    = "file"     // the file is completed
	StageDisks   = "disks"    // disks are rolled back, no measure
	StageVerify  = "verify"   // pages looked at
	StageRestore = "restore"  // pages of an eager restore
	StageStart   = "starting" // the machine, no measure
)

// of returns p for one stage.
func (p Progress) of(stage string) checkpoint.Progress {
	return func(done, total uint64) { p.tell(stage, done, total) }
}

func (p Progress) tell(stage string, done, total uint64) {
	if p != nil {
		p(stage, done, total)
	}
}

// SaveRequest says what to save where.
type SaveRequest struct {
	File          string `json:"file"`                     // absolute
	IncrementalTo string `json:"incremental_to,omitempty"` // absolute; "": a whole file
	Pin           bool   `json:"pin,omitempty"`
	Stop          bool   `json:"stop,omitempty"`
	Replace       bool   `json:"replace,omitempty"` // an existing file
}

// SaveResult is what became of it.
type SaveResult struct {
	checkpoint.Info
	// Host has the file: the guest's owner, whichever was asked.
	Host    ownership.HostID `json:"host"`
	Took    time.Duration    `json:"took_ns"`
	Pause   time.Duration    `json:"pause_ns"`   // 0 if the guest was stopped
	Rounds  int              `json:"rounds"`     // in which pages were copied, the pause's included
	Last    uint64           `json:"last_pages"` // copied in the pause
	Stopped bool             `json:"stopped"`
	// Pins are the files in which overwritten content is kept.
	Pins []string `json:"pins,omitempty"`
	// Note says what the operator should know.
	Note string `json:"note,omitempty"`
}

const noteKey = "the earlier file was made by another host, or before this host's daemon was started: pages that are on a disk were saved whole"

// SaveCheckpoint saves a guest that runs on this host.
func (h *Host) SaveCheckpoint(ctx context.Context, guest string, req SaveRequest, progress Progress) (SaveResult, error) {
	m, p, err := h.asPrimary(guest)
	if err != nil {
		return SaveResult{}, err
	}
	began := time.Now()
	s, err := m.newSave(p, req, progress)
	if err != nil {
		return SaveResult{}, err
	}
	defer s.close()
	switch {
	case req.Stop:
		var from ownership.Guest
		if from, err = h.readLog(ctx, guest); err == nil {
			_, err = p.SaveAndStop(ctx, s, s.complete)
		}
		if err == nil {
			s.result.Stopped = true
			_, err = m.stopped(ctx, p, from)
		}
	default:
		var moment primary.Moment
		if moment, err = p.Save(ctx, s, s.mark); err == nil {
			s.result.Pause = moment.Pause
			err = s.commit(ctx, moment)
		}
	}
	if err != nil {
		return SaveResult{}, errors.Join(err, s.abort(ctx))
	}
	s.result.Took, s.result.Host = time.Since(began), h.cfg.Self
	return s.result, nil
}

// save is one file in the making. It is the primary.Saver.
type save struct {
	m        *manager
	p        *primary.Primary
	req      SaveRequest
	progress Progress
	parent   *checkpoint.File
	w        *checkpoint.Writer
	disks    []checkpoint.Disk
	machine  []byte
	done     bool // the file is there
	result   SaveResult
}

func (m *manager) newSave(p *primary.Primary, req SaveRequest, progress Progress) (_ *save, err error) {
	if !filepath.IsAbs(req.File) || req.IncrementalTo != "" && !filepath.IsAbs(req.IncrementalTo) {
		return nil, errors.New("the daemon needs absolute paths of checkpoint files")
	}
	if req.Pin && req.Stop {
		return nil, errors.New("a guest that is stopped needs no pin: its disks stay as they are; leave one of the two out")
	}
	if _, err := os.Lstat(PinPath(req.File, 0)); err == nil {
		return nil, fmt.Errorf("%s belongs to an earlier checkpoint file: `understudy checkpoint remove` ends its pin", PinPath(req.File, 0))
	}
	s := &save{m: m, p: p, req: req, progress: progress}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	spec := p.Guest.Spec()
	s.machine = spec.Machine
	state, _ := m.host.applied(m.Name)
	head := checkpoint.Head{Guest: m.Name, Hypervisor: m.Hypervisor, Created: time.Now().UTC(), Generation: state.Generation,
		Pages: spec.Pages, Machine: spec.Machine}
	opts := checkpoint.Options{Replace: req.Replace}
	opts.Finder, head.Key = m.finder()
	if req.IncrementalTo != "" {
		if s.parent, err = checkpoint.Open(req.IncrementalTo); err != nil {
			return nil, err
		}
		opts.Parent = s.parent
		if key := s.parent.Head().Key; key != head.Key {
			if opts.Finder != nil {
				s.result.Note = noteKey
			}
			head.Key, opts.Finder = key, nil
		}
	}
	s.w, err = checkpoint.Create(req.File, head, opts)
	return s, err
}

func (m *manager) finder() (checkpoint.Finder, epoch.PrintKey) {
	if m.History != nil {
		return m.History.Finder()
	}
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	return nil, epoch.PrintKey(binary.LittleEndian.Uint64(b[:]))
}

// blocks is what is known to be on the disks, for pages that a save need not read;
// nil: nothing.
func (m *manager) blocks() primary.Blocks {
	f, _ := m.finder()
	b, _ := f.(primary.Blocks)
	return b
}

// Known says of pages what they hold.
func (s *save) Known(known epoch.Known) error { return s.w.Known(known) }

// Image takes pages of the guest.
func (s *save) Image(ctx context.Context, image hypervisor.Image, set *epoch.PageSet) error {
	s.result.Last = set.Count()
	s.result.Rounds++
	return s.w.Image(ctx, image, set, s.progress.of(StageMemory))
}

// Stale adds pages that must be taken again.
func (s *save) Stale(set *epoch.PageSet) error { return s.w.Stale(set) }

// mark takes down what the disks are; the guest stands still.
func (s *save) mark(primary.Moment) (err error) {
	if s.m.History == nil {
		return nil
	}
	pins := ""
	if s.req.Pin {
		pins = s.req.File
	}
	s.disks, err = s.m.History.Mark(pins)
	return err
}

// complete makes the file of a guest that is stopping: nothing is written to its
// disks any more.
func (s *save) complete(ctx context.Context, moment primary.Moment) error {
	if err := s.mark(moment); err != nil {
		return err
	}
	return s.commit(ctx, moment)
}

// commit completes the file. The guest may run already.
func (s *save) commit(ctx context.Context, moment primary.Moment) error {
	state, err := encodeDisks(moment.DiskState, moment.Writes)
	if err != nil {
		return err
	}
	if !bytes.Equal(s.p.Guest.Spec().Machine, s.machine) {
		return errors.New("the guest's machine changed while it was saved (a reboot, or a device): save it again")
	}
	if err := s.w.Final(checkpoint.Final{DeviceState: moment.Device, DiskState: state, Disks: s.disks}); err != nil {
		return err
	}
	if s.m.History != nil {
		// What is referred to must outlive this host.
		if err := s.m.History.Sync(); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	info, err := s.w.Commit(s.progress.of(StageFile))
	if err != nil {
		return err
	}
	s.done, s.result.Info = true, info
	for _, d := range s.disks {
		if d.Pin != "" {
			s.result.Pins = append(s.result.Pins, PinPath(s.req.File, d.ID))
		}
	}
	s.m.slog.Info("checkpoint file made", "file", s.req.File, "bytes", info.FileBytes, "pause", moment.Pause, "stop", s.req.Stop, "pins", len(s.result.Pins))
	return nil
}

// abort takes back what a failed save has done beside the file.
func (s *save) abort(ctx context.Context) error {
	if s.done {
		return fmt.Errorf("the checkpoint file %s is whole", s.req.File)
	}
	if s.req.Pin && s.disks != nil {
		return s.m.History.Unpin(context.WithoutCancel(ctx), 0, s.req.File)
	}
	return nil
}

func (s *save) close() {
	if s.w != nil && !s.done {
		if err := s.w.Abort(); err != nil {
			s.m.slog.Warn("what was written of a checkpoint file is left", "file", s.req.File, "err", err)
		}
	}
	if s.parent != nil {
		_ = s.parent.Close() // it was only read
	}
}

// VerifyFileResult is what was found of a checkpoint file.
type VerifyFileResult struct {
	checkpoint.Checked
	// BlocksRead says that the disks were looked at.
	BlocksRead bool         `json:"blocks_read"`
	BadPages   uint64       `json:"bad_pages"`
	BadBlocks  uint64       `json:"bad_blocks"`
	Damages    []FileDamage `json:"damages,omitempty"` // the first of them
	// Disks says why the file cannot be restored on the disks as they are; "":
	// it can.
	Disks string `json:"disks_problem,omitempty"`
	// Pinned: disks have been written since, and their old content was kept.
	Pinned bool `json:"pinned,omitempty"`
}

// FileDamage is something that keeps pages from being restored.
type FileDamage struct {
	Page   epoch.GFN     `json:"page"` // the first of Pages
	Pages  uint64        `json:"pages"`
	Disk   *epoch.DiskID `json:"disk,omitempty"` // nil: it is a file that is damaged
	Sector *uint64       `json:"sector,omitempty"`
	Error  string        `json:"error"`
}

// FoundInFile makes a result of a report.
func FoundInFile(r checkpoint.Report) VerifyFileResult {
	v := VerifyFileResult{Checked: r.Checked, BlocksRead: r.BlocksRead, BadPages: r.BadPages, BadBlocks: r.BadBlocks}
	for _, d := range r.Damages {
		f := FileDamage{Page: d.Page, Pages: d.Pages, Error: d.Err.Error()}
		if d.Place != nil {
			f.Disk, f.Sector = &d.Place.Disk, &d.Place.Sector
		}
		v.Damages = append(v.Damages, f)
	}
	return v
}

// Well reports whether nothing is wrong.
func (r *VerifyFileResult) Well() bool {
	return r.BadPages+r.BadBlocks == 0 && len(r.Damages) == 0 && r.Disks == ""
}

// VerifyCheckpoint reads all that a restore of a file on this host would need.
func (h *Host) VerifyCheckpoint(ctx context.Context, guest, path string, progress Progress) (r VerifyFileResult, err error) {
	m, file, err := h.open(guest, path)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	head := file.Head()
	var blocks checkpoint.Blocks
	var problem string
	pinned := false
	if m.History != nil {
		now, err := m.History.Conditions()
		if err != nil {
			return r, err
		}
		if err := checkpoint.CheckDisks(head, now); err != nil {
			problem = err.Error()
		}
		pinned = problem == "" && !unchanged(head.Disks, now)
		var release func()
		if blocks, release, err = m.History.Blocks(head.Disks); err != nil {
			return r, err
		}
		defer release()
	} else if err := checkpoint.CheckDisks(head, nil); err != nil {
		problem = err.Error()
	}
	report, err := file.Verify(ctx, blocks, progress.of(StageVerify))
	r = FoundInFile(report)
	r.Disks, r.Pinned = problem, pinned
	return r, err
}

// open opens a file that must be of the guest as this host has it.
func (h *Host) open(guest, path string) (*manager, *checkpoint.File, error) {
	m, err := h.manager(guest)
	if err != nil {
		return nil, nil, err
	}
	if !filepath.IsAbs(path) {
		return nil, nil, errors.New("the daemon needs absolute paths of checkpoint files")
	}
	file, err := checkpoint.Open(path)
	if err != nil {
		return nil, nil, err
	}
	if head := file.Head(); head.Guest != guest || head.Hypervisor != m.Hypervisor {
		_ = file.Close() // it was only read
		return nil, nil, fmt.Errorf("%s is a checkpoint of guest %q on %s, not of %q on %s", path, head.Guest, head.Hypervisor, guest, m.Hypervisor)
	}
	return m, file, nil
}

// unchanged reports whether every disk has the stamp it was marked with.
func unchanged(marked []checkpoint.Disk, now []checkpoint.DiskCondition) bool {
	for _, d := range marked {
		for _, c := range now {
			if c.ID == d.ID && c.Stamp != d.Stamp {
				return false
			}
		}
	}
	return true
}

// RemoveCheckpoint ends the pins of a file and, unless keep, removes it.
func (h *Host) RemoveCheckpoint(ctx context.Context, guest, path string, keep bool) error {
	m, file, err := h.open(guest, path)
	if err != nil {
		return err
	}
	pinned := false
	for _, d := range file.Head().Disks {
		pinned = pinned || d.Pin != ""
	}
	if err := file.Close(); err != nil {
		return err
	}
	if !keep {
		// Before its pins are gone.
		if err := checkpoint.Removable(path); err != nil {
			return err
		}
	}
	if pinned && m.History != nil {
		state, err := h.readLog(ctx, guest)
		if err != nil {
			return err
		}
		if state.Owner != h.cfg.Self {
			return fmt.Errorf("the disks of guest %q belong to host %s: remove the file there", guest, state.Owner)
		}
		if err := m.History.Unpin(ctx, state.Generation, path); err != nil {
			return err
		}
	}
	if keep {
		return nil
	}
	return checkpoint.Remove(path)
}
