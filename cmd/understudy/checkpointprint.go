package main

// What the checkpoint commands say to people: tables, and a bar on a terminal.

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"understudy/checkpoint"
	"understudy/epoch"
	"understudy/host"
)

func printSaved(w io.Writer, r host.SaveResult) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	p := func(format string, a ...any) { _, _ = fmt.Fprintf(t, format, a...) } // Flush tells errors
	p("saved\tguest %s, generation %d, to %s on host %s\n", r.Guest, r.Generation, r.Path, r.Host)
	p("  size\t%s for %s of memory%s\n", size(r.FileBytes), size(r.ImageBytes), less(r.FileBytes, r.ImageBytes))
	if r.Stopped {
		p("  time\t%v; the guest is stopped\n", r.Took.Round(time.Millisecond))
	} else {
		p("  time\t%v, of which the guest stood still %v\n", r.Took.Round(time.Millisecond), r.Pause.Round(10*time.Microsecond))
	}
	for _, pin := range r.Pins {
		p("  pin\t%s keeps what is overwritten\n", pin)
	}
	written := func(d checkpoint.Disk) bool { return d.Store != checkpoint.StoreBoot }
	if !r.Stopped && len(r.Pins) == 0 && slices.ContainsFunc(r.Disks, written) {
		p("  note\tthe guest runs on without a pin: its next write to a disk makes this file useless\n")
	}
	if r.Note != "" {
		p("  note\t%s\n", r.Note)
	}
	return t.Flush()
}

// plain keeps what a file says from speaking to the terminal.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// less says how much smaller a file is than what it holds.
func less(file, image uint64) string {
	if image == 0 || file > image {
		return ""
	}
	return fmt.Sprintf(" (%.1f%% smaller)", 100*(1-float64(file)/float64(image)))
}

func printInfo(w io.Writer, i inspected) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	p := func(format string, a ...any) { _, _ = fmt.Fprintf(t, format, a...) } // Flush tells errors
	p("checkpoint\tof guest %s on %s, generation %d, %s\n", plain(i.Guest), plain(i.Hypervisor), i.Generation, i.Created.Format(time.RFC3339))
	p("  file\t%s, id %s, version %d\n", i.Path, i.ID, i.Version)
	if i.Machine != "" {
		p("  machine\t%s\n", plain(i.Machine))
	}
	p("  size\t%s for %s of memory%s\n", size(i.FileBytes), size(i.ImageBytes), less(i.FileBytes, i.ImageBytes))
	p("  made of\tpages %s, index %s, machine %s, devices %s, disks %s\n",
		size(i.RecordBytes), size(i.IndexBytes), size(i.MachineBytes), size(i.DeviceBytes), size(i.DiskBytes))
	for _, l := range i.Chain[min(1, len(i.Chain)):] {
		p("  builds on\t%s, %s, %s\n", plain(l.Path), l.Created.Format(time.RFC3339), size(l.Bytes))
	}
	for _, d := range i.Disks {
		kept := "must be unchanged"
		if d.Pin != "" {
			kept = "pinned"
		}
		p("  disk %d\t%s (%s), %s, %s\n", d.ID, plain(d.Name), plain(d.Store), size(d.Sectors*epoch.SectorSize), kept)
	}
	p("\n  pages\t%d\t\n", i.Pages)
	c := i.Summary.Pages
	for _, row := range []struct {
		what  string
		pages uint64
	}{
		{"left out: a hole", c.Hole}, {"left out: zero", c.Zero},
		{"left out: on a disk, known by traced requests", c.Mapped}, {"left out: on a disk, found by content", c.Content},
		{"left out: a copy of another", c.Copy}, {"left out: as in the earlier file", c.Unchanged},
		{"saved, packed", c.Packed}, {"saved as they are", c.Raw},
	} {
		if row.pages > 0 {
			p("  %s\t%d\t%.1f%%\n", row.what, row.pages, 100*float64(row.pages)/float64(max(1, i.Pages)))
		}
	}
	return t.Flush()
}

func printVerified(w io.Writer, r host.VerifyFileResult) error {
	p := func(format string, a ...any) error { _, err := fmt.Fprintf(w, format, a...); return err }
	verdict := "all well"
	if !r.Well() {
		verdict = "DAMAGED"
		if r.BadPages == 0 && len(r.Damages) == int(r.BadBlocks) {
			verdict = "NOT RESTORABLE: the disks are not as they were"
		}
	}
	if err := p("%d pages in files, %d on disks, %d zero: %s\n", r.Stored, r.References, r.Zero, verdict); err != nil {
		return err
	}
	if !r.BlocksRead && r.References > 0 {
		if err := p("the disks were not looked at\n"); err != nil {
			return err
		}
	}
	if r.Pinned {
		if err := p("disks were written since; their pins have what they held: a restore rolls them back\n"); err != nil {
			return err
		}
	}
	if r.Disks != "" {
		if err := p("%s\n", r.Disks); err != nil {
			return err
		}
	}
	for _, d := range r.Damages {
		if err := p("%s\n", d.Error); err != nil {
			return err
		}
	}
	if more := r.BadBlocks + r.BadPages; more > uint64(len(r.Damages)) && len(r.Damages) > 0 {
		return p("… in all %d pages of the file, %d blocks of disks\n", r.BadPages, r.BadBlocks)
	}
	return nil
}

func printRestored(w io.Writer, guest string, r host.RestoreResult) error {
	how := "all of its memory is there"
	if r.Lazy {
		how = "the rest of its memory follows behind it"
	}
	back := ""
	if r.RolledBack {
		back = fmt.Sprintf(", its disks were rolled back in %v", r.Disks.Round(time.Millisecond))
	}
	_, err := fmt.Fprintf(w, "guest %s runs on host %s (generation %d) after %v%s; %s\n", guest, r.Log.Owner, r.Log.Generation,
		r.Ready.Round(time.Millisecond), back, how)
	return err
}

// bar shows how far something is, in one line of a terminal that is written over.
type bar struct {
	w     io.Writer // nil: nobody looks
	shown int
	since time.Time
	stage string
}

// newBar returns a bar that is silent unless the file is a terminal and the
// output is for people.
func newBar(f *common, to *os.File) *bar {
	b := &bar{}
	if _, err := unix.IoctlGetTermios(int(to.Fd()), unix.TCGETS); err == nil && f.output == "table" {
		b.w = to
	}
	return b
}

const barWidth = 30

func (b *bar) show(stage string, done, total uint64) {
	if b.w == nil {
		return
	}
	if stage != b.stage {
		b.stage, b.since = stage, time.Now()
	}
	line := stage
	if total > 0 {
		full := int(barWidth * done / total)
		line = fmt.Sprintf("%-9s [%s%s] %3d%% %s", stage, strings.Repeat("=", full), strings.Repeat(" ", barWidth-full),
			100*done/total, size(total*epoch.PageSize))
		if spent := time.Since(b.since); done > 0 && done < total && spent > 2*time.Second {
			line += fmt.Sprintf(", %v left", (time.Duration(float64(spent)/float64(done)*float64(total-done)) + time.Second).Truncate(time.Second))
		}
	}
	_, _ = fmt.Fprintf(b.w, "\r%-*s", b.shown, line) // only decoration
	b.shown = len(line)
}

// end wipes the bar away.
func (b *bar) end() {
	if b.w != nil && b.shown > 0 {
		_, _ = fmt.Fprintf(b.w, "\r%-*s\r", b.shown, "")
	}
}
