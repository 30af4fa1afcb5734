package main

// checkpoint export, import: between checkpoint files and what Xen's own xl saves
// and restores. Nothing of Xen is needed for either: xl makes the one file and
// takes the other.
//
//	export: checkpoint file, disks ─> every page ─> xen.Export ─> OUT, for xl restore
//	import: disks ─> checkpoint.Scan; XLFILE ─> xen.Saved ─> checkpoint.Writer ─> every
//	        page that is left out is compared once more with its disk
//
// Of a PV domain that runs here the toolstack writes the same stream into a pipe, and
// reads it out of one (xendomain.go): that needs Xen's libraries.

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"understudy/checkpoint"
	"understudy/cmd/daemon"
	"understudy/config"
	"understudy/disk"
	"understudy/epoch"
	"understudy/host"
	"understudy/hypervisor/xen"
	"understudy/ownership"
	"understudy/status"
)

// exported is what became of an export.
type exported struct {
	File    string        `json:"file,omitempty"`
	Domain  uint32        `json:"domain,omitempty"` // of this host
	Guest   string        `json:"guest"`
	Machine string        `json:"machine"`
	Bytes   uint64        `json:"bytes"`
	Took    time.Duration `json:"took_ns"`
	Disks   []string      `json:"disks"`
	Note    string        `json:"note,omitempty"`
}

func exportCommand(f *common) *cobra.Command {
	var x exporting
	c := &cobra.Command{
		Use:   "export FILE --xl OUT | --run",
		Short: "Write a Xen guest's checkpoint file as one that xl restore takes",
		Long: `Write the checkpoint file of a Xen guest as OUT, whole, as "xl save" would have:
"xl restore OUT" lets the guest go on, without understudy. Pages that the file left
out are read from the disks, which must be as they were; where they are elsewhere
now, --disk says so, in the order of the guest's disks.

xl serves the guest's disks then, as xvda and so on, from the same paths. Say in a
configuration of xl's what else it needs, its network above all: "xl restore
CONFIG OUT". A file that "checkpoint import" made is written with the configuration
that it came with.

With --run the toolstack makes the domain at once, without a file in between.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (x.out == "") == !x.run {
				return exitError{exitUsage, errors.New("--xl OUT: say which file to write, or --run")}
			}
			x.f = f
			r, err := x.export(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return f.print(cmd.OutOrStdout(), r, func(w io.Writer) error { return printExported(w, r) })
		},
	}
	c.Flags().StringVar(&x.out, "xl", "", "the `file` to write, for xl restore")
	c.Flags().BoolVar(&x.run, "run", false, "let the domain go on here, under xl")
	c.Flags().StringArrayVar(&x.disks, "disk", nil, "where a disk is, by `path`; once for each, in their order (default: where they were)")
	return c
}

func printExported(w io.Writer, r exported) error {
	what, next := r.File, "`xl restore` takes it"
	if r.File == "" {
		what, next = fmt.Sprintf("domain %d", r.Domain), "it runs under xl"
	}
	_, err := fmt.Fprintf(w, "%s: guest %s, %s, %s after %v; %s\n", what, plain(r.Guest), r.Machine, size(r.Bytes), r.Took.Round(time.Millisecond), next)
	if err == nil && r.Note != "" {
		_, err = fmt.Fprintf(w, "note: %s\n", r.Note)
	}
	return err
}

// exporting is one export.
type exporting struct {
	f     *common
	out   string
	run   bool // there is no out
	disks []string
}

// export gives a file's guest to xl.
func (x *exporting) export(ctx context.Context, path string) (r exported, err error) {
	began := time.Now()
	file, err := checkpoint.Open(path)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	head := file.Head()
	kept, err := keptIn(file)
	if err != nil {
		return r, err
	}
	state, err := file.DiskState()
	if err != nil {
		return r, err
	}
	switch unwritten, err := host.Unwritten(state); {
	case err != nil:
		return r, fmt.Errorf("%s: %w", path, err)
	case unwritten > 0:
		return r, fmt.Errorf("%s: the guest had been told of %d writes that were not on its disks yet, and xl knows nothing of them: restore it here, then save it with --stop", path, unwritten)
	}
	disks, err := openKept(file, x.disks)
	if err != nil {
		return r, err
	}
	defer disks.close()
	boot := xen.Boot{Name: head.Guest, Disks: disks.paths}
	for _, d := range head.Disks {
		switch d.ID {
		case disk.KernelID:
			boot.Kernel = d.Name
		case disk.InitrdID:
			boot.Initrd = d.Name
		}
	}
	config, err := kept.Configuration(boot)
	if err != nil {
		return r, err
	}
	bar := newBar(x.f, os.Stderr)
	defer bar.end()
	r = exported{File: x.out, Guest: head.Guest, Machine: kept.String(), Disks: disks.paths, Note: disks.note}
	front := config
	if x.run {
		front = nil // the toolstack is told apart
	}
	write := func(to io.Writer) error {
		e, err := kept.Export(to, front)
		if err != nil {
			return err
		}
		progress := func(done, total uint64) { bar.show(host.StageFile, done, total) }
		if err := file.Pages(ctx, disks, e.Pages, e.Zero, progress); err != nil {
			return err
		}
		return e.End()
	}
	if x.run {
		sum := &summed{}
		r.Domain, err = startDomain(ctx, config, func(to io.Writer) error { return write(io.MultiWriter(sum, to)) })
		r.Bytes = sum.bytes
	} else {
		r.Bytes, err = writeWhole(x.out, write)
	}
	r.Took = time.Since(began)
	return r, err
}

// summed counts what is written.
type summed struct{ bytes uint64 }

func (s *summed) Write(b []byte) (int, error) {
	s.bytes += uint64(len(b))
	return len(b), nil
}

// keptIn reads what a checkpoint file says of a Xen guest's machine.
func keptIn(file *checkpoint.File) (*xen.Kept, error) {
	if head := file.Head(); head.Hypervisor != string(config.Xen) {
		return nil, fmt.Errorf("%s is a checkpoint of guest %q on %s: only a Xen guest's can be written for xl", file.Path(), head.Guest, head.Hypervisor)
	}
	spec, err := file.Spec()
	if err != nil {
		return nil, err
	}
	state, err := file.DeviceState()
	if err != nil {
		return nil, err
	}
	kept, err := xen.ParseKept(spec, state)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file.Path(), err)
	}
	return kept, nil
}

// imported is what became of an import.
type imported struct {
	checkpoint.Info
	Machine string        `json:"machine"`
	Took    time.Duration `json:"took_ns"`
	// Stood is how long a domain has stood still; 0: it was read from a file.
	Stood time.Duration `json:"stood_ns,omitempty"`
	// Known: the file can be restored as a guest of the configuration.
	Known bool `json:"configured"`
}

func importCommand(f *common) *cobra.Command {
	var guest string
	var disks []string
	var replace, domain bool
	c := &cobra.Command{
		Use:   "import XLFILE|DOMAIN FILE",
		Short: "Make a checkpoint file of what xl save wrote, or of a PV domain",
		Long: `Make a checkpoint FILE of XLFILE, which Xen's "xl save" wrote of a PVH or PV domain.
Pages that are on its disks are left out: the disks are read whole for that, and must
not be written to, before the domain goes on.

  --guest GUEST  a Xen guest of the configuration: its disks and its kernel are
                 looked at, and "checkpoint restore GUEST FILE" lets it go on under
                 understudy. It must be stopped, and shaped like the domain.
  --disk PATH    without: the domain's disks, xvda first. "checkpoint export" gives
                 the domain back to xl.

A PV domain cannot be protected (Xen as Debian builds it cannot log its writes); this
is how one is kept in a checkpoint file. With --domain one that runs here is suspended
and ends with its file, as with "xl save", and no other file is written; if that
fails, it goes on.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if guest != "" && len(disks) > 0 {
				return exitError{exitUsage, errors.New("--guest and --disk: the configuration says which disks the guest has, leave one out")}
			}
			if guest != "" && domain {
				return exitError{exitUsage, errors.New("--guest and --domain: a PV domain cannot be a guest of the configuration, leave one out")}
			}
			i := importing{f: f, path: args[1], replace: replace, domain: domain}
			var err error
			if guest != "" {
				err = i.configured(cmd.Context(), guest)
			} else {
				err = i.given(disks)
			}
			defer i.disks.close()
			if err != nil {
				return err
			}
			r, err := i.run(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return f.print(cmd.OutOrStdout(), r, func(w io.Writer) error { return printImported(w, r) })
		},
	}
	c.Flags().StringVar(&guest, "guest", "", "the `guest` of the configuration that it is to be")
	c.Flags().StringArrayVar(&disks, "disk", nil, "one of the domain's disks, by `path`; once for each, in their order")
	c.Flags().BoolVar(&domain, "domain", false, "the first argument names a PV domain that runs here")
	c.Flags().BoolVar(&replace, "replace", false, "replace FILE if it exists")
	return c
}

func printImported(w io.Writer, r imported) error {
	if _, err := fmt.Fprintf(w, "%s: guest %s, %s, %s for %s of memory%s after %v\n", r.Path, plain(r.Guest), r.Machine,
		size(r.FileBytes), size(r.ImageBytes), less(r.FileBytes, r.ImageBytes), r.Took.Round(time.Millisecond)); err != nil {
		return err
	}
	if r.Stood > 0 {
		if _, err := fmt.Fprintf(w, "the domain has ended; it was suspended and saved within %v\n", r.Stood.Round(time.Millisecond)); err != nil {
			return err
		}
	}
	next := "understudy checkpoint export " + r.Path + " --xl FILE"
	if r.Known {
		next = "understudy checkpoint restore " + r.Guest + " " + r.Path
	}
	_, err := fmt.Fprintf(w, "next: %s\n", next)
	return err
}

// importing is one import.
type importing struct {
	f       *common
	path    string
	replace bool
	domain  bool          // it is not read from a file
	guest   *config.Guest // nil: none of the configuration
	disks   xlDisks
}

// configured finds the guest in the configuration, and its disks on this host.
func (i *importing) configured(ctx context.Context, name string) error {
	c, self, err := i.f.load()
	if err != nil {
		return err
	}
	at := slices.IndexFunc(c.Guests, func(g config.Guest) bool { return g.Name == name })
	if at < 0 || c.Guests[at].Hypervisor != config.Xen {
		return exitError{exitUsage, fmt.Errorf("%s has no Xen guest %q", i.f.config, name)}
	}
	i.guest = &c.Guests[at]
	if err := i.stopped(ctx, name); err != nil {
		return err
	}
	for _, d := range i.guest.Disks {
		if d.QCOW2(d.PathOn(self.Name)) {
			return fmt.Errorf("disk %s is a qcow2 image: only raw disks can be searched for pages", d.PathOn(self.Name))
		}
		if err := i.disks.add(d.PathOn(self.Name), string(d.Mode), filepath.Join(c.DirsOf(self).State, "disks")); err != nil {
			return err
		}
	}
	return nil
}

// stopped asks the daemon, if there is one: only of a guest that is stopped do its
// disks' records say what they will still be when it is restored.
func (i *importing) stopped(ctx context.Context, name string) error {
	c, err := i.f.client()
	if err != nil {
		return err
	}
	r, err := c.Status(ctx)
	if errors.Is(err, status.ErrNoDaemon) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, g := range r.Guests {
		if g.Name == name && g.Log.Desired != ownership.Stopped {
			return fmt.Errorf("guest %q is not stopped: its disks would change; stop it first", name)
		}
	}
	return nil
}

// given takes disks that nobody but xl serves.
func (i *importing) given(paths []string) error {
	for _, path := range paths {
		if err := i.disks.add(path, storeGiven, ""); err != nil {
			return err
		}
	}
	return nil
}

func (i *importing) run(ctx context.Context, from string) (r imported, err error) {
	began := time.Now()
	bar := newBar(i.f, os.Stderr)
	defer bar.end()
	scan := checkpoint.NewScan(newKey())
	search := func() error {
		return i.disks.scan(ctx, scan, func(done, total uint64) { bar.show(host.StageDisks, done, total) })
	}
	if i.domain {
		// A domain runs until it is its turn.
		if err := search(); err != nil {
			return r, err
		}
		saved, end, err := suspendDomain(ctx, from)
		if err != nil {
			return r, err
		}
		stood := time.Now()
		if r, err = i.keep(ctx, saved, scan, bar); err != nil {
			return r, errors.Join(fmt.Errorf("domain %s: %w", from, err), end(false))
		}
		r.Stood = time.Since(stood)
		err = end(true)
		r.Took = time.Since(began)
		return r, err
	}
	in, err := os.Open(from)
	if err != nil {
		return r, err
	}
	defer func() { _ = in.Close() }() // it was only read
	saved, err := openSaved(in)
	if err == nil {
		err = search()
	}
	if err == nil {
		r, err = i.keep(ctx, saved, scan, bar)
	}
	if err != nil {
		return r, fmt.Errorf("%s: %w", from, err)
	}
	r.Took = time.Since(began)
	return r, nil
}

// keep makes the file.
func (i *importing) keep(ctx context.Context, saved *xen.Saved, scan *checkpoint.Scan, bar *bar) (r imported, err error) {
	head := checkpoint.Head{Guest: saved.Name, Hypervisor: string(config.Xen), Created: time.Now().UTC(), Key: scan.Key()}
	if head.Guest == "" {
		head.Guest = "(no name)"
	}
	var shape json.RawMessage
	if r.Known = i.guest != nil; r.Known {
		head.Guest = i.guest.Name
		if shape, err = i.shapeOf(saved.Outline); err != nil {
			return r, err
		}
	}
	spec, err := saved.Spec(shape)
	if err != nil {
		return r, err
	}
	head.Pages, head.Machine = spec.Pages, spec.Machine
	w, err := checkpoint.Create(i.path, head, checkpoint.Options{Finder: scan, Replace: i.replace})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, w.Abort()) }()
	if err := i.fill(ctx, w, saved, spec.Pages, bar); err != nil {
		return r, err
	}
	if r.Info, err = i.verified(ctx, w, bar); err != nil {
		return r, err
	}
	kept, err := keptAt(i.path)
	if err == nil {
		r.Machine = kept.String()
	}
	return r, err
}

// openSaved reads what stands before a domain's memory. A PVH domain's is read whole,
// for which of it there is.
func openSaved(in *os.File) (*xen.Saved, error) {
	info, err := in.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("it is no regular file: it has to be read twice")
	}
	most := uint64(info.Size()) / 8 // bytes that each page of a PV domain takes, at least
	begin := func() (*xen.Saved, error) {
		if _, err := in.Seek(0, io.SeekStart); err != nil {
			return nil, err
		}
		return xen.OpenSaved(newReader(in), most)
	}
	saved, err := begin()
	if err != nil || saved.IsPV() {
		return saved, err
	}
	frames, err := saved.Survey()
	if err != nil {
		return nil, err
	}
	if saved, err = begin(); err == nil {
		saved.Located(frames)
	}
	return saved, err
}

// shapeOf makes sure that the domain is what the guest is configured to be.
func (i *importing) shapeOf(o xen.Outline) (json.RawMessage, error) {
	if string(o.Type) != i.guest.Type || o.Memory != uint64(i.guest.Memory) || o.VCPUs != i.guest.CPUs {
		return nil, fmt.Errorf("the domain is of type %s with %d KiB of memory and %d processors, guest %q is configured as %s with %d KiB and %d: correct the configuration",
			o.Type, o.Memory>>10, o.VCPUs, i.guest.Name, i.guest.Type, uint64(i.guest.Memory)>>10, i.guest.CPUs)
	}
	return daemon.XenShape(*i.guest)
}

// fill gives the writer all that a domain is.
func (i *importing) fill(ctx context.Context, w *checkpoint.Writer, saved *xen.Saved, pages uint64, bar *bar) error {
	state, err := saved.Copy(&counted{ctx: ctx, to: w, total: pages, bar: bar})
	if err == nil {
		err = w.Stale(epoch.NewPageSet(pages)) // finds nothing: a scan does not change
	}
	if err == nil {
		err = i.disks.mark()
	}
	if err != nil {
		return err
	}
	return w.Final(checkpoint.Final{DeviceState: state, Disks: i.disks.marks})
}

// counted is a writer that is told of on the way.
type counted struct {
	ctx         context.Context //nolint:containedctx // a Sink has none
	to          *checkpoint.Writer
	done, total uint64
	bar         *bar
}

func (c *counted) note(pages uint64) error {
	c.done += pages
	c.bar.show(host.StageMemory, min(c.done, c.total), c.total)
	return c.ctx.Err()
}

func (c *counted) Pages(first epoch.GFN, data []byte) error {
	if err := c.note(uint64(len(data) / epoch.PageSize)); err != nil {
		return err
	}
	return c.to.Pages(first, data)
}

func (c *counted) Zero(first epoch.GFN, count uint64) error {
	if err := c.note(count); err != nil {
		return err
	}
	return c.to.Zero(first, count)
}

// verified completes the file, and compares what it has left out with the disks: they
// may have been written to since they were searched.
func (i *importing) verified(ctx context.Context, w *checkpoint.Writer, bar *bar) (info checkpoint.Info, err error) {
	if info, err = w.Commit(func(done, total uint64) { bar.show(host.StageFile, done, total) }); err != nil {
		return info, err
	}
	file, err := checkpoint.Open(i.path)
	if err != nil {
		return info, err
	}
	report, err := file.Verify(ctx, &i.disks, func(done, total uint64) { bar.show(host.StageVerify, done, total) })
	if err = errors.Join(err, report.Err(), file.Close()); err != nil {
		return info, errors.Join(fmt.Errorf("its disks were written to while they were searched, import it again: %w", err), checkpoint.Remove(i.path))
	}
	return info, nil
}

func keptAt(path string) (*xen.Kept, error) {
	file, err := checkpoint.Open(path)
	if err != nil {
		return nil, err
	}
	kept, err := keptIn(file)
	return kept, errors.Join(err, file.Close())
}

// newKey draws a key of fingerprints.
func newKey() epoch.PrintKey {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	return epoch.PrintKey(binary.LittleEndian.Uint64(b[:]))
}
