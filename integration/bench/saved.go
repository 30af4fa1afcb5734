package main

// bench checkpoint: what checkpoint files cost beside QEMU's own migrate and
// savevm, and what leaving pages out saves when a guest is protected.
//
//	options ─> place (place.go), a copy of the Debian image (served.go)
//	─> for each row (rows.go): the same work in a guest of ours (own.go) and in
//	   QEMU's (stockguest.go), saves in turn; at the end, restores in turn
//	─> for each load (protection.go): protected with and without exclusion
//	─> figures (savedreport.go), plot (plot.go)

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"time"

	"understudy/guest"
	"understudy/guest/client"
	"understudy/guest/image"
	"understudy/hypervisor/qemu"
	"understudy/lab"
)

// checkpointCommand is the first argument that leads here.
const checkpointCommand = "checkpoint"

// The second guest's place in the network.
const (
	stockMAC = "52:54:00:be:ac:02"
	stockTAP = "usbench1"
)

var stockAddress = netip.MustParsePrefix("10.99.0.101/24")

// savedOptions are what the command line says.
type savedOptions struct {
	options
	mib    int
	rows   []string
	repeat int
	plot   string
	tmpfs  bool
	free   string // whose guest tells of free memory
	extra  string // kernel parameters
}

const savedHelp = `bench checkpoint measures checkpoint files of a real Linux guest of 1 GiB with a
Debian on its disk beside QEMU's own migrate and savevm, and continuous protection
with and without leaving pages out.

  make guest-big && make bench-checkpoint            in full, under 20 minutes
  make bench-checkpoint BENCH_FLAGS=--quick          once, with less work
  go run ./integration/bench checkpoint --rows read,protect

It runs as root. Everything it starts or makes is gone when it ends.

`

// protectRow is the name of the last part.
const protectRow = "protect"

func parseSavedOptions(args []string, w io.Writer) (savedOptions, error) {
	o := savedOptions{}
	var names []string
	for _, w := range works() {
		names = append(names, w.name)
	}
	names = append(names, protectRow)
	var which string
	f := flag.NewFlagSet("bench checkpoint", flag.ContinueOnError)
	f.SetOutput(w)
	f.Usage = func() {
		_, _ = io.WriteString(w, savedHelp)
		f.PrintDefaults()
	}
	f.IntVar(&o.mib, "memory", 1024, "memory of the guest in `MiB`")
	f.StringVar(&which, "rows", strings.Join(names, ","), "which `rows` to measure")
	f.IntVar(&o.repeat, "repeat", 0, "saves and restores of each kind (0: 3, quick 1)")
	f.BoolVar(&o.quick, "quick", false, "once, with less work")
	f.BoolVar(&o.tmpfs, "tmpfs", false, "keep the files in memory, disks as well: no figure has a disk's speed in it")
	f.StringVar(&o.free, "free-pages", "both", "`whose` guest tells its host of free memory (balloon): both, ours or none")
	f.StringVar(&o.extra, "kernel-args", "", "more `parameters` of both guests' kernels, such as init_on_free=1")
	f.StringVar(&o.machine, "machine", "q35", "QEMU machine `type`")
	f.IntVar(&o.cpus, "cpus", 1, "virtual processors")
	f.StringVar(&o.accel, "accel", "tcg", "accelerator: kvm or tcg")
	f.StringVar(&o.images, "guest-dir", "build/guest", "`directory` that make guest-big wrote")
	f.StringVar(&o.report, "report", "", "write the report as JSON to this `file`")
	f.StringVar(&o.plot, "plot", "", "write a plot as SVG to this `file`")
	f.StringVar(&o.output, "output", "text", "what to print: text or json")
	f.StringVar(&o.profile, "cpuprofile", "", "write a profile of this process's saves to this `file`")
	f.BoolVar(&o.verbose, "verbose", false, "log to standard error")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	var errs []error
	if f.NArg() > 0 {
		errs = append(errs, fmt.Errorf("argument %q is not known: see --help", f.Arg(0)))
	}
	for _, r := range strings.Split(which, ",") {
		if !slices.Contains(names, r) {
			errs = append(errs, fmt.Errorf("--rows: %q: want some of %s", r, strings.Join(names, ",")))
		}
		o.rows = append(o.rows, r)
	}
	if o.mib < 256 || o.mib > 1<<16 {
		errs = append(errs, fmt.Errorf("--memory %d: want 256 to 65536", o.mib))
	}
	if o.accel != "tcg" && o.accel != "kvm" {
		errs = append(errs, fmt.Errorf("--accel %q: want tcg or kvm", o.accel))
	}
	if o.output != "text" && o.output != "json" {
		errs = append(errs, fmt.Errorf("--output %q: want text or json", o.output))
	}
	if o.free != "both" && o.free != "ours" && o.free != "none" {
		errs = append(errs, fmt.Errorf("--free-pages %q: want both, ours or none", o.free))
	}
	switch {
	case o.repeat < 0:
		errs = append(errs, errors.New("--repeat: want 1 or more"))
	case o.repeat == 0 && o.quick:
		o.repeat = 1
	case o.repeat == 0:
		o.repeat = 3
	}
	var err error
	if o.images, err = filepath.Abs(o.images); err != nil {
		errs = append(errs, err)
	}
	return o, errors.Join(errs...)
}

// savedBench is a run.
type savedBench struct {
	o     *savedOptions
	place *place
	image *copied
	own   *own
	stock *stockGuest
	say   func(string, ...any)
}

func runSaved(ctx context.Context, args []string) (err error) {
	o, err := parseSavedOptions(args, os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := o.checkGuest(); err != nil {
		return err
	}
	base, err := image.Big(ctx, o.images)
	if err != nil {
		return err
	}
	begin := time.Now()
	report := newSavedReport(&o)
	p, err := newPlace(newLog(o.verbose))
	if err != nil {
		return err
	}
	b := &savedBench{o: &o, place: p, say: func(format string, a ...any) {
		fmt.Fprintf(os.Stderr, "%6.1fs  %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, a...))
	}}
	if o.profile != "" {
		f, err := os.Create(o.profile)
		if err != nil {
			return errors.Join(err, p.close())
		}
		defer func() { _ = f.Close() }()
		if err := pprof.StartCPUProfile(f); err != nil {
			return errors.Join(err, p.close())
		}
		defer pprof.StopCPUProfile()
	}
	err = errors.Join(b.run(ctx, base, report), b.close(), p.close())
	if err != nil && len(report.Rows)+len(report.Protection) == 0 {
		return err
	}
	report.Seconds = time.Since(begin).Seconds()
	report.conclude()
	return errors.Join(err, report.write(&o)) // what was measured of a run that failed, too
}

func (b *savedBench) run(ctx context.Context, base string, report *SavedReport) error {
	if err := b.prepare(base); err != nil {
		return err
	}
	chosen := slices.DeleteFunc(works(), func(w work) bool { return !slices.Contains(b.o.rows, w.name) })
	if len(chosen) > 0 {
		rows, err := b.measureDay(ctx, chosen)
		report.Rows = rows
		if err != nil {
			return err
		}
	}
	if slices.Contains(b.o.rows, protectRow) {
		rows, err := b.measureProtection(ctx)
		report.Protection = rows
		if err != nil {
			return err
		}
	}
	return nil
}

// prepare makes the two guests' disks and ways out.
func (b *savedBench) prepare(base string) error {
	dir := b.place.Dir
	if b.o.tmpfs {
		dir = b.place.Images
	}
	b.say("copying the disk image")
	b.image = &copied{path: filepath.Join(dir, "disk.raw")}
	if err := image.Copy(b.image.path, base); err != nil {
		return err
	}
	mine, err := b.place.config(&b.o.options, b.o.mib, hostA)
	if err != nil {
		return err
	}
	root := guest.Disk{Device: guest.FirstDisk, Dir: guest.RootDir}
	mine.Served, mine.FreePageReporting = []qemu.ServedDisk{{}}, b.o.free != "none"
	mine.Append = guest.Boot{Address: guestAddress, Disk: root, Extra: b.o.extra}.CommandLine()
	if b.own, err = newOwn(b, mine, b.image); err != nil {
		return err
	}
	other := mine
	other.RunDir = filepath.Join(dir, "stock")
	other.FreePageReporting = b.o.free == "both"
	other.Served, other.NICs = nil, []qemu.NIC{{MAC: stockMAC}}
	other.Append = guest.Boot{Address: stockAddress, Disk: root, Extra: b.o.extra}.CommandLine()
	if b.stock, err = newStockGuest(b, other, base); err != nil {
		return err
	}
	return b.neighbours()
}

// neighbours tells the client both guests' addresses, so that no answer waits
// for its kernel to ask again.
func (b *savedBench) neighbours() error {
	for _, n := range []struct {
		at  netip.Prefix
		mac string
	}{{guestAddress, guestMAC}, {stockAddress, stockMAC}} {
		out, err := b.place.lab.Host("client").Command(context.Background(), "ip", "neigh", "replace", n.at.Addr().String(),
			"lladdr", n.mac, "nud", "permanent", "dev", lab.Bridge).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ip neigh: %w: %s", err, out)
		}
	}
	return nil
}

func (b *savedBench) close() error {
	var errs []error
	if b.own != nil {
		if b.own.gate != nil {
			errs = append(errs, b.own.gate.Close())
		}
		errs = append(errs, b.own.driver.Clean(context.Background()))
	}
	if b.stock != nil && b.stock.gate != nil {
		errs = append(errs, b.stock.gate.Close())
	}
	return errors.Join(errs...)
}

func control(c qemu.Config) string {
	at := guestAddress
	if c.NICs[0].MAC == stockMAC {
		at = stockAddress
	}
	return net.JoinHostPort(at.Addr().String(), strconv.Itoa(guest.ControlPort))
}

// control connects to a guest that boots.
func (b *savedBench) control(ctx context.Context, c qemu.Config) (*client.Control, error) {
	for {
		try, cancel := context.WithTimeout(ctx, time.Second)
		conn, err := b.place.lab.Host("client").Dial(try, "tcp", control(c))
		cancel()
		if err == nil {
			return client.NewControl(conn), nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("the guest does not come up: %w", errors.Join(err, ctx.Err()))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// whenAnswered begins to ask a guest that is being restored.
func (b *savedBench) whenAnswered(ctx context.Context, c qemu.Config, begin time.Time) <-chan answer {
	answered := make(chan answer, 1)
	go func() { // ends with ctx at the latest
		d, err := firstAnswer(ctx, b.place.lab.Host("client"), control(c), begin)
		answered <- answer{d, err}
	}()
	return answered
}
