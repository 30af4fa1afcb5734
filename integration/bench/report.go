package main

// The report: JSON for programs, a table for people.

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// targetRatio is what the pause may be at most, in floors.
const targetRatio = 1.3

// Report is all that was measured. Times are in microseconds.
type Report struct {
	Time    time.Time `json:"time"`
	Machine Machine   `json:"machine"`
	Notes   []string  `json:"notes"`
	// PauseToFloorRatio is the median over the scenarios of the median pause
	// over the median floor of the same run.
	PauseToFloorRatio float64        `json:"pause_to_floor_ratio"`
	WorstRatio        float64        `json:"worst_pause_to_floor_ratio"`
	Target            float64        `json:"pause_to_floor_target"`
	Pauses            []PauseReport  `json:"pauses,omitempty"`
	Wire              []WireScenario `json:"wire,omitempty"`
	Speed             []Compared     `json:"speed,omitempty"`
	Latency           []Compared     `json:"latency,omitempty"`
	Throughput        []Compared     `json:"throughput,omitempty"`
	Seconds           float64        `json:"seconds"`
}

// Machine is where it was measured.
type Machine struct {
	Processors int    `json:"processors"`
	Model      string `json:"model"`
	Kernel     string `json:"kernel"`
	QEMU       string `json:"qemu"`
	Go         string `json:"go"`
	GuestType  string `json:"guest_machine"`
	GuestCPUs  int    `json:"guest_cpus"`
	// Load is /proc/loadavg before anything was started.
	Load string `json:"load"`
}

func newReport(o *options) *Report {
	m := Machine{Processors: runtime.NumCPU(), Go: runtime.Version(), GuestType: o.machine, GuestCPUs: o.cpus, Load: strings.TrimSpace(read("/proc/loadavg"))}
	for line := range strings.Lines(read("/proc/cpuinfo")) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			m.Model = strings.TrimSpace(value)
			break
		}
	}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		m.Kernel = unix.ByteSliceToString(uts.Release[:])
	}
	if out, err := exec.Command("qemu-system-x86_64", "--version").Output(); err == nil {
		m.QEMU, _, _ = strings.Cut(string(out), "\n")
	}
	accelerator := "KVM where it works, else TCG"
	if o.accel != "auto" {
		accelerator = strings.ToUpper(o.accel)
	}
	return &Report{Time: time.Now().UTC().Truncate(time.Second), Machine: m, Target: targetRatio, Notes: []string{
		fmt.Sprintf("Guest, primary, backup and client share this machine's %d processors; on two hosts each side has its own.", m.Processors),
		fmt.Sprintf("Accelerator: %s. Pages per epoch are distinct 4 KiB pages of a working set of %d MiB (20000: %d MiB); half of each guest's memory was in use before.",
			accelerator, workingSet(1), workingSet(20_000)),
		"Floor: stop, empty scan, device state, one memcpy of the dirty pages, cont, one after the other, on the same guest in every other epoch.",
		"Overlapped floor: the same with the device state saved beside scan and memcpy.",
		"Migrate: stop, migrate with x-ignore-shared, cont, without copying a page.",
	}}
}

func read(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(text)
}

// conclude computes what follows from the scenarios.
func (r *Report) conclude() {
	ratios := pick(r.Pauses, func(p PauseReport) float64 { return p.Ratio })
	r.PauseToFloorRatio = median(ratios)
	for _, x := range ratios {
		r.WorstRatio = max(r.WorstRatio, x)
	}
}

// print writes the tables.
func (r *Report) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	line := func(format string, a ...any) { _, _ = fmt.Fprintf(t, format+"\n", a...) } // Flush tells of errors
	title := func(text string) {
		_ = t.Flush()
		line("\n%s", text)
		_ = t.Flush()
	}
	line("%s, %d processors, Linux %s\n%s, machine %s, %d vCPU, load before: %s", r.Machine.Model, r.Machine.Processors,
		r.Machine.Kernel, r.Machine.QEMU, r.Machine.GuestType, r.Machine.GuestCPUs, r.Machine.Load)
	for _, n := range r.Notes {
		line("%s", n)
	}
	if len(r.Pauses) > 0 {
		title("Pause in ms: median and p99, its steps (medians; device beside seal, scan and copy), the floor of the same run, one migrate")
		line("guest\tdirty\tpause\tp99\tstop\tseal\tscan\tcopy\tdevice\tresume\trest\tfloor\tp99\tstop\tscan\tcopy\tdevice\tcont\tpause/floor\t/overlapped\tmigrate\t")
		for _, p := range r.Pauses {
			s, f := p.Steps, p.Floor
			line("%d MiB\t%.0f\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%.2f\t%.2f\t%s\t", p.GuestMiB, p.Dirty.Median,
				ms(p.Pause.Median), ms(p.Pause.P99), ms(s.Stop), ms(s.Seal), ms(s.Scan), ms(s.Copy), ms(s.Device), ms(s.Resume), ms(s.Rest),
				ms(f.Median), ms(f.P99), ms(f.Stop), ms(f.Scan), ms(f.Copy), ms(f.Device), ms(f.Cont), p.Ratio, p.RatioOverlapped, ms(p.Migrate.Median))
		}
		title("On the wire, per epoch of these scenarios (8 bytes written in each page)")
		line("guest\tdirty\traw KiB\twire KiB\twire/raw\t")
		for _, p := range r.Pauses {
			line("%d MiB\t%.0f\t%s\t%s\t%.3f\t", p.GuestMiB, p.Dirty.Median, kib(p.Wire.RawBytes), kib(p.Wire.WireBytes), p.Wire.Ratio)
		}
	}
	if len(r.Wire) > 0 {
		title("On the wire, by how much of each page is written (content that does not compress)")
		line("bytes per page\traw KiB/epoch\twire KiB/epoch\twire/raw\tzero\tsame\tdelta\tpacked\traw pages\t")
		for _, p := range r.Wire {
			line("%d\t%s\t%s\t%.3f\t%d\t%d\t%d\t%d\t%d\t", p.BytesPerPage, kib(p.RawBytes), kib(p.WireBytes), p.Ratio,
				p.ZeroPages, p.SamePages, p.DeltaPages, p.PackedPages, p.RawPages)
		}
	}
	table := func(name, format string, rows []Compared) {
		if len(rows) == 0 {
			return
		}
		title(fmt.Sprintf("%s (%s)", name, rows[0].Unit))
		head := "load\tepochs\tunprotected\tprotected\tratio\t"
		if rows[0].Protected99 != 0 {
			head += "p99 unprotected\tp99 protected\tadded\t"
		}
		line("%s", head)
		for _, c := range rows {
			row := fmt.Sprintf("%s\t%s\t"+format+"\t"+format+"\t%.2f\t", c.Load, c.Epochs, c.Unprotected, c.Protected, c.Ratio)
			if c.Protected99 != 0 {
				row += fmt.Sprintf(format+"\t"+format+"\t"+format+"\t", c.Unprotected99, c.Protected99, c.Protected-c.Unprotected)
			}
			line("%s", row)
		}
	}
	table("Guest speed, left to a loop of the lowest priority", "%.1f", r.Speed)
	table("Latency of a request to the guest", "%.0f", r.Latency)
	table("Throughput of one TCP connection", "%.1f", r.Throughput)
	if len(r.Pauses) > 0 {
		title(fmt.Sprintf("pause_to_floor_ratio %.2f (worst scenario %.2f, target at most %.1f)", r.PauseToFloorRatio, r.WorstRatio, r.Target))
	}
	return t.Flush()
}

func ms(us float64) string { return fmt.Sprintf("%.2f", us/1000) }

func kib(bytes uint64) string { return fmt.Sprintf("%.1f", float64(bytes)/1024) }
