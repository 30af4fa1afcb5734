package checkpoint

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"understudy/epoch"
	"understudy/hypervisor"
)

// A Writer takes a guest's pages while the guest runs, in as many rounds as its
// owner likes; a page that comes again replaces the one that came before. The
// last round is taken while the guest stands still:
//
//	Create → Image or Pages, Zero … → [pause] Stale, Image, Zero, Final [resume]
//	→ Commit
//
// All that is known of a page is in memory, 25 bytes for each; records are
// written as they fill up. A record whose pages were replaced stays where it is:
// if at Commit such pages are more than Options.MaxWaste of the file, it is
// copied without them (commit.go), which costs nothing while the guest stands
// still and keeps the format free of holes and of lists of free space.

// Options says how a file is made.
type Options struct {
	// Parent makes the file incremental: pages that the parent has are left
	// out. It must stay open until Commit or Abort. The file must lie in the
	// parent's directory, or above it.
	Parent *File
	// Finder finds pages on the guest's disks, by fingerprints with Head.Key;
	// nil: nothing is referenced.
	Finder Finder
	// Workers is how many goroutines take pages; 0 means 2.
	Workers int
	// MaxWaste is the percentage of replaced pages in the records from which
	// on the file is copied without them; 0 means 20.
	MaxWaste int
	// Replace allows to take the place of an existing file.
	Replace bool
}

// Final is what belongs to the moment at which the guest stood still.
type Final struct {
	// DeviceState is of 1 to epoch.MaxDeviceState bytes.
	DeviceState []byte
	// DiskState is what the disks need beyond their content: requests in
	// flight, writes not on the disk yet. At most MaxDiskState bytes.
	DiskState []byte
	// Disks are the disks at that moment, in ascending order of their ID.
	Disks []Disk
}

// Writer makes one checkpoint file. Its methods are called by one goroutine at
// a time. After an error only Abort makes sense.
type Writer struct {
	path string
	head Head
	opts Options
	salt salt
	temp *os.File
	out  *output // of records to temp

	entries []entry // of a record: its slot, and its number instead of its offset
	prints  []epoch.Fingerprint
	reasons []Reason
	known   epoch.Known // for the next Image
	workers []*worker
	copies  *copyTable

	mu      sync.Mutex // what workers share
	end     uint64     // of what is written
	records []record

	summary Summary
	judged  bool // Stale has been called
	unasked bool // of references that the parent has
	losses  uint64
	synced  time.Duration
	final   *Final
	err     error // what ended it
}

// record is a record in the file, by number.
type record struct {
	offset uint64
	size   uint32
	pages  uint8
	used   uint16 // bit i: page i of it counts; known at Commit
}

var errDone = errors.New("the checkpoint file is committed or aborted already")

// Create begins a file. Nothing is to be seen under path before Commit; until
// then there is a file beside it whose name begins with a dot. head needs no
// Parent and no Disks.
func Create(path string, head Head, opts Options) (*Writer, error) {
	w, err := create(path, head, opts)
	if err != nil {
		return nil, fmt.Errorf("create checkpoint file %s: %w", path, err)
	}
	return w, nil
}

func create(path string, head Head, opts Options) (*Writer, error) {
	head.Parent, head.Disks = nil, nil
	if opts.Parent != nil {
		if err := adopt(path, &head, opts.Parent); err != nil {
			return nil, err
		}
	}
	if err := head.check(); err != nil {
		return nil, err
	}
	if _, err := os.Lstat(path); err == nil && !opts.Replace {
		return nil, fmt.Errorf("%w: choose another name, or ask for it to be replaced", os.ErrExist)
	}
	if opts.Workers <= 0 {
		opts.Workers = 2
	}
	if opts.MaxWaste <= 0 {
		opts.MaxWaste = 20
	}
	w := &Writer{
		path: path, head: head, opts: opts,
		entries: make([]entry, head.Pages),
		prints:  make([]epoch.Fingerprint, head.Pages),
		reasons: make([]Reason, head.Pages),
		copies:  newCopyTable(head.Pages),
	}
	w.unasked = opts.Parent != nil
	if c, ok := opts.Finder.(Constant); ok {
		w.losses = c.Losses()
	}
	rand.Read(w.salt[:])
	first, reason := entry(kindAbsent), reasonAbsent
	if opts.Parent != nil {
		first, reason = entry(kindParent), Unchanged
	}
	for i := range w.entries {
		w.entries[i], w.reasons[i] = first, reason
	}
	for range opts.Workers {
		w.workers = append(w.workers, newWorker(w))
	}
	if err := sweep(path); err != nil {
		return nil, err
	}
	temp, err := w.newTemp()
	if err != nil {
		return nil, err
	}
	w.temp, w.end = temp, prefaceSize
	if w.out, err = newOutput(temp, appendPreface(nil, w.salt), opts.Workers); err != nil {
		return nil, errors.Join(err, discard(temp))
	}
	return w, nil
}

// adopt makes a head that of a child of parent.
func adopt(path string, head *Head, parent *File) error {
	p := parent.Head()
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return err
	}
	at, err := filepath.Abs(parent.path)
	if err != nil {
		return err
	}
	rel, err := filepath.Rel(dir, at)
	if err != nil {
		return err
	}
	if err := matches(head, &p); err != nil {
		return fmt.Errorf("%w; save a file without a parent", err)
	}
	switch {
	case parent.Depth() >= MaxChain:
		return fmt.Errorf("its parent %s builds on %d files already: save a file without a parent", parent.path, MaxChain)
	case !filepath.IsLocal(rel):
		return fmt.Errorf("its parent %s must be in the same directory, or in one below it", parent.path)
	}
	for f := parent; f != nil; f = f.parent {
		is, err := f.f.Stat()
		if err != nil {
			return err
		}
		if there, err := os.Stat(path); err == nil && os.SameFile(is, there) {
			return fmt.Errorf("it cannot replace %s, on which it builds", f.path)
		}
	}
	head.Parent = &Parent{File: rel, ID: parent.id}
	return nil
}

// matches says why a file with such a head cannot build on one with p.
func matches(head, p *Head) error {
	switch {
	case p.Guest != head.Guest || p.Hypervisor != head.Hypervisor:
		return fmt.Errorf("its parent is of guest %s on %s, it is of %s on %s", p.Guest, p.Hypervisor, head.Guest, head.Hypervisor)
	case p.Pages != head.Pages:
		return fmt.Errorf("its parent has an image of %d pages, it has %d", p.Pages, head.Pages)
	case p.Key != head.Key:
		return errors.New("its parent's fingerprints have another key")
	}
	return nil
}

// newTemp makes a file beside path and writes the preface. Its lock says that
// somebody still works on it.
func (w *Writer) newTemp() (*os.File, error) {
	f, err := os.CreateTemp(filepath.Dir(w.path), tempPrefix(w.path)+"*"+tempSuffix)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), discard(f))
	}
	if _, err := f.Write(appendPreface(nil, w.salt)); err != nil {
		return nil, errors.Join(err, discard(f))
	}
	return f, nil
}

const tempSuffix = ".tmp"

func tempPrefix(path string) string { return "." + filepath.Base(path) + "." }

// sweep removes what writers of the same path left that died under it: files
// that nobody has locked. A file that was made this very moment and is not locked
// yet has no content.
func sweep(path string) error {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() || !strings.HasPrefix(e.Name(), tempPrefix(path)) || !strings.HasSuffix(e.Name(), tempSuffix) {
			continue
		}
		f, err := os.OpenFile(filepath.Join(filepath.Dir(path), e.Name()), os.O_RDWR, 0)
		if err != nil {
			continue // it is gone, or not ours
		}
		info, err := f.Stat()
		if err == nil && info.Size() > 0 && unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			err = discard(f)
		} else {
			err = errors.Join(err, f.Close())
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove what an earlier save left: %w", err)
		}
	}
	return nil
}

// discard removes an unfinished file, which may be closed already.
func discard(f *os.File) error {
	err := f.Close()
	if errors.Is(err, os.ErrClosed) {
		err = nil
	}
	return errors.Join(err, os.Remove(f.Name()))
}

// Pages takes a run of pages with their content, starting at first. data is
// not kept.
func (w *Writer) Pages(first epoch.GFN, data []byte) error {
	count := uint64(len(data) / epoch.PageSize)
	if err := w.ready(first, count); err != nil {
		return err
	}
	if len(data)%epoch.PageSize != 0 {
		return w.fail(fmt.Errorf("%d bytes at page %d are no whole pages", len(data), first))
	}
	if count > takePages {
		set := epoch.NewPageSet(w.head.Pages)
		set.AddRange(first, count)
		return w.take(context.Background(), memory{first, data}, set, nil)
	}
	k := w.workers[0]
	for ; len(data) > 0; first, data = first+1, data[epoch.PageSize:] {
		if w.entries[first].kind() == kindOpen {
			if err := k.flush(); err != nil {
				return w.fail(err)
			}
		}
		if err := k.page(first, data[:epoch.PageSize:epoch.PageSize]); err != nil {
			return w.fail(err)
		}
	}
	return nil
}

// Known says of pages what they hold, for the next Image alone, whose set they
// are in: those that are on a disk or in the parent are not read. It must have been
// true when the dirty pages were collected that come with later rounds. Fingerprints
// of another key than Head.Key say nothing.
func (w *Writer) Known(known epoch.Known) error {
	if err := w.ready(0, 0); err != nil {
		return err
	}
	if known.Pages == nil || known.Key != w.head.Key {
		return nil
	}
	if known.Pages.Pages() != w.head.Pages || uint64(len(known.Prints)) != w.head.Pages {
		return w.fail(fmt.Errorf("%d fingerprints for a set over %d pages, the file is for %d", len(known.Prints), known.Pages.Pages(), w.head.Pages))
	}
	w.known = known
	return nil
}

// Image takes the pages of a set out of an image, by several goroutines, each
// of which calls image.ReadPages: this is the quickest way. A page that was torn
// because the guest wrote it meanwhile must come again. set is not changed.
func (w *Writer) Image(ctx context.Context, image hypervisor.Image, set *epoch.PageSet, progress Progress) error {
	if err := w.ready(0, 0); err != nil {
		return err
	}
	if set.Pages() != w.head.Pages || image.Pages() != w.head.Pages {
		return w.fail(fmt.Errorf("an image of %d pages and a set over %d, the file is for %d", image.Pages(), set.Pages(), w.head.Pages))
	}
	err := w.take(ctx, image, set, progress)
	w.known = epoch.Known{}
	return err
}

// Zero takes pages that are known to be zero without a look at them: holes of
// the guest's memory.
func (w *Writer) Zero(first epoch.GFN, count uint64) error {
	if err := w.ready(first, count); err != nil {
		return err
	}
	for f := first; f < first+epoch.GFN(count); f++ {
		if w.entries[f].kind() == kindOpen {
			if err := w.flush(); err != nil {
				return w.fail(err)
			}
		}
		w.workers[0].set(f, entry(kindZero), epoch.Fingerprint{}, Hole)
	}
	w.summary.Given += count
	return nil
}

// Stale adds to set every page that must be given again although the guest has
// not written it: the block that was referenced in its place, here or in the
// parent, does not hold its content any more. It is called while the guest
// stands still, before the last Image, and earlier as often as one likes, which
// keeps what it finds then small. With a Constant finder that has lost nothing
// since, it returns at once.
func (w *Writer) Stale(set *epoch.PageSet) error {
	if err := w.ready(0, 0); err != nil {
		return err
	}
	if set.Pages() != w.head.Pages {
		return w.fail(fmt.Errorf("a set over %d pages, the file is for %d", set.Pages(), w.head.Pages))
	}
	w.judged = true
	if c, ok := w.opts.Finder.(Constant); ok {
		// Asked first: what is lost meanwhile counts for the next time.
		losses := c.Losses()
		if losses == w.losses && !w.unasked {
			return nil
		}
		w.losses, w.unasked = losses, false
	}
	for i, e := range w.entries {
		f := epoch.GFN(i)
		var print epoch.Fingerprint
		var was Place
		switch e.kind() {
		case kindBlock:
			print, was = w.prints[i], e.place()
		case kindParent:
			p, err := w.opts.Parent.resolve(f)
			if err != nil {
				return w.fail(fmt.Errorf("reading the parent: %w", err))
			}
			if p.entry.kind() != kindBlock {
				continue
			}
			print, was = p.print, p.entry.place()
		default:
			continue
		}
		at, mapped, ok := w.find(f, print)
		switch {
		case !ok:
			w.entries[i], w.reasons[i] = entry(kindAbsent), reasonAbsent
			set.Add(f)
		case at != was:
			w.entries[i], w.prints[i], w.reasons[i] = blockEntry(at), print, Content
			if mapped {
				w.reasons[i] = Mapped
			}
		}
	}
	return nil
}

// find asks the finder.
func (w *Writer) find(f epoch.GFN, print epoch.Fingerprint) (at Place, mapped, ok bool) {
	if w.opts.Finder == nil {
		return Place{}, false, false
	}
	ref, mapped, ok := w.opts.Finder.FindPrint(f, print)
	at = Place{Disk: ref.Disk, Sector: ref.Sector}
	return at, mapped, ok && ref.Print == print && at.Disk < epoch.MaxDisks && at.Sector <= epoch.MaxSectors-epoch.PageSectors
}

// Final takes what belongs to the moment at which the guest stands still; its
// slices are kept until Commit. From here on only Commit and Abort make sense,
// and the guest may run.
func (w *Writer) Final(final Final) error {
	if err := w.ready(0, 0); err != nil {
		return err
	}
	switch {
	case len(final.DeviceState) == 0 || len(final.DeviceState) > epoch.MaxDeviceState:
		return w.fail(fmt.Errorf("a device state of %d bytes, want 1 to %d", len(final.DeviceState), epoch.MaxDeviceState))
	case len(final.DiskState) > MaxDiskState:
		return w.fail(fmt.Errorf("a disk state of %d bytes, want at most %d", len(final.DiskState), MaxDiskState))
	case !w.judged && (w.opts.Finder != nil || w.opts.Parent != nil):
		return w.fail(errors.New("ask for pages whose reference is stale before the last round"))
	}
	if err := checkDiskList(final.Disks); err != nil {
		return w.fail(err)
	}
	w.final = &final
	return nil
}

// Abort ends the work on a file that is not committed and removes what was
// written. It may always be called, as often as one likes.
func (w *Writer) Abort() error {
	if w.temp == nil {
		return nil
	}
	err := errors.Join(w.out.end(), discard(w.temp))
	w.temp = nil
	if w.err == nil {
		w.err = errDone
	}
	if err != nil {
		return fmt.Errorf("remove the unfinished checkpoint file of %s: %w", w.path, err)
	}
	return nil
}

// Synced returns how long Commit waited for the disk alone (records on their way, fsync), at the end.
func (w *Writer) Synced() time.Duration { return w.synced }

// ready says why pages cannot be taken.
func (w *Writer) ready(first epoch.GFN, count uint64) error {
	switch {
	case w.err != nil:
		return w.err
	case w.final != nil:
		return w.fail(errors.New("pages come after the final round"))
	case uint64(first) > w.head.Pages || count > w.head.Pages-uint64(first):
		return w.fail(fmt.Errorf("pages %d+%d are outside the image of %d", first, count, w.head.Pages))
	}
	return nil
}

// fail ends the work on the file.
func (w *Writer) fail(err error) error {
	w.err = fmt.Errorf("save checkpoint file %s: %w", w.path, err)
	return w.err
}
