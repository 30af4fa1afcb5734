//go:build xen

// Command dom0 runs in the first domain of the Xen host of the comparison. It makes one
// guest, and protects it in turn by stock Remus and by our own engine, with every
// interval and load that it is asked for:
//
//	main.go   the guest, and what is measured of it in which order
//	stock.go  by libxl_domain_remus_start (../stock), into a pipe that is drained
//	ours.go   by package primary, to a backup outside of this host
//	timed.go  our driver's steps, with the time
//	watch.go  how long the guest does not run
//
// What it has measured goes to a file, a cell.Run as JSON on each line.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"understudy/epoch"
	"understudy/hypervisor"
	"understudy/hypervisor/xen"
	"understudy/hypervisor/xen/xenctl"
	"understudy/integration/xen/remus/cell"
)

type options struct {
	kernel, initrd string
	memory         int // MiB
	stock          string
	backup, tls    string
	out            string
	intervals      list[time.Duration]
	loads          list[cell.Load]
	epochs         int
	settle         time.Duration
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == watchCommand {
		exit(watchMain(os.Args[2:]))
	}
	o := options{intervals: list[time.Duration]{parse: time.ParseDuration}, loads: list[cell.Load]{parse: parseLoad}}
	flag.StringVar(&o.kernel, "kernel", "", "the guest's kernel")
	flag.StringVar(&o.initrd, "initrd", "", "its initramfs, with ../guest as /guest")
	flag.IntVar(&o.memory, "memory", 128, "its memory, in MiB")
	flag.StringVar(&o.stock, "stock", "", "../stock, compiled")
	flag.StringVar(&o.backup, "backup", "", "address of the backup's host")
	flag.StringVar(&o.tls, "tls", "", "directory of certificates")
	flag.StringVar(&o.out, "out", "", "file that gets the results")
	flag.Var(&o.intervals, "intervals", "times between a resume and the next suspend")
	flag.Var(&o.loads, "loads", "PAGES:BYTES, pages per second and bytes written in each")
	flag.IntVar(&o.epochs, "epochs", 60, "checkpoints that are measured of each run")
	flag.DurationVar(&o.settle, "settle", 3*time.Second, "how long a run goes on before they are")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o)
	stop()
	exit(err)
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "dom0:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// list is a flag of values with commas between them.
type list[T any] struct {
	all   []T
	parse func(string) (T, error)
}

func (l *list[T]) String() string { return fmt.Sprint(l.all) }

// Set parses the list.
func (l *list[T]) Set(text string) error {
	l.all = nil
	for _, word := range strings.Split(text, ",") {
		one, err := l.parse(word)
		if err != nil {
			return err
		}
		l.all = append(l.all, one)
	}
	return nil
}

func parseLoad(text string) (l cell.Load, err error) {
	pages, bytes, _ := strings.Cut(text, ":")
	if l.Pages, err = strconv.Atoi(pages); err != nil {
		return l, err
	}
	l.Bytes, err = strconv.Atoi(bytes)
	return l, err
}

func run(ctx context.Context, o options) (err error) {
	out, err := os.Create(o.out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	b, err := begin(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	for _, load := range o.loads.all {
		b.page.Ask(load)
		for _, interval := range o.intervals.all {
			for _, measure := range []func(context.Context, time.Duration) (*cell.Run, error){b.stockRun, b.ourRun} {
				r, err := b.watched(ctx, interval, measure)
				if err != nil {
					return fmt.Errorf("%v, %+v: %w", interval, load, err)
				}
				r.Interval, r.Load = interval, load
				b.log.Info("measured", "side", r.Side, "interval", interval, "load", load, "epochs", len(r.Epochs))
				if err := json.NewEncoder(out).Encode(r); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// watched measures one side, with the guest's ticks watched.
func (b *bench) watched(ctx context.Context, interval time.Duration, measure func(context.Context, time.Duration) (*cell.Run, error)) (*cell.Run, error) {
	ended, err := b.watch()
	if err != nil {
		return nil, err
	}
	r, err := measure(ctx, interval)
	gaps, watchErr := ended()
	if err = errors.Join(err, watchErr); err != nil {
		return nil, err
	}
	r.Gaps, err = cell.Match(r.Epochs, gaps)
	return r, err
}

const guestName = "web"

// bench is the guest, with those who protect it.
type bench struct {
	options
	log    *slog.Logger
	host   *xenctl.Host
	steps  *steps
	driver *xen.Driver
	domain uint32
	frame  uint64 // of the guest's page
	page   cell.Page
	mapped *xenctl.Mapping // of the page
}

// begin boots the guest.
func begin(ctx context.Context, o options) (_ *bench, err error) {
	b := &bench{options: o, log: slog.New(slog.NewTextHandler(os.Stderr, nil)), steps: &steps{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	if b.host, err = xenctl.OpenHost(ctx, nil); err != nil {
		return nil, err
	}
	config := xen.Config{Name: guestName, Type: xen.PVH, Memory: uint64(o.memory) << 20, VCPUs: 1, Kernel: o.kernel, Initrd: o.initrd, Append: "console=hvc0 quiet rdinit=/guest"}
	if b.driver, err = xen.NewDriver(config, &timedHost{b.host, b.steps}, b.log); err != nil {
		return nil, err
	}
	guest, err := b.driver.Start(ctx)
	if err != nil {
		return nil, err
	}
	if err := b.boot(ctx, guest); err != nil {
		return nil, errors.Join(err, guest.Destroy())
	}
	return b, guest.Detach()
}

// bootLimit bounds the wait for the guest.
const bootLimit = 2 * time.Minute

// boot lets the guest run until it is up, and maps its page.
func (b *bench) boot(ctx context.Context, guest hypervisor.Guest) error {
	follow(guest)
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	if err := guest.Resume(ctx); err != nil {
		return err
	}
	for {
		found, err := find(guest)
		if err != nil {
			return err
		}
		if found >= 0 {
			return b.mapPage(ctx, guest, epoch.GFN(found))
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return fmt.Errorf("the guest has no page of measurements: %w", ctx.Err())
		}
	}
}

// follow keeps reading a guest's events.
func follow(guest hypervisor.Guest) {
	go func() { // ends with the guest
		for range guest.Events() { //nolint:revive // nobody wants them
		}
	}()
}

// find looks for the guest's page; -1: it is not there yet.
func find(guest hypervisor.Guest) (int64, error) {
	memory := make([]byte, 256*epoch.PageSize)
	for first := uint64(0); first < guest.Pages(); first += 256 {
		part := memory[:min(256, guest.Pages()-first)*epoch.PageSize]
		if err := guest.ReadPages(epoch.GFN(first), part); err != nil {
			return 0, err
		}
		for i := 0; i < len(part); i += epoch.PageSize {
			if cell.IsPage(part[i:]) {
				return int64(first) + int64(i/epoch.PageSize), nil
			}
		}
	}
	return -1, nil
}

// mapPage maps the page for good. Nobody else than we would see what we write to it:
// that is done while nobody protects the guest.
func (b *bench) mapPage(ctx context.Context, guest hypervisor.Guest, page epoch.GFN) error {
	all, err := b.host.Domains(ctx)
	if err != nil {
		return err
	}
	for _, one := range all {
		if one.Name == guestName {
			b.domain = one.Domain
		}
	}
	spec, frames, err := xen.ParseSpec(guest.Spec())
	if err != nil || len(spec.Memory) == 0 {
		return fmt.Errorf("find the guest's frames: %w", err)
	}
	b.frame = frames.Frame(page)
	one, err := xen.NewFrames([]xen.Run{{First: b.frame, Count: 1}})
	if err != nil {
		return err
	}
	if b.mapped, err = b.host.Control().Map(b.domain, one, true); err != nil {
		return err
	}
	b.page = cell.NewPage(b.mapped.Bytes())
	b.log.Info("the guest is up", "domain", b.domain, "page", page)
	return nil
}

// close ends the guest.
func (b *bench) close() error {
	var errs []error
	if b.mapped != nil {
		errs = append(errs, b.mapped.Close())
	}
	if b.driver != nil {
		errs = append(errs, b.driver.Clean(context.Background()))
	}
	if b.host != nil {
		errs = append(errs, b.host.Close())
	}
	return errors.Join(errs...)
}
