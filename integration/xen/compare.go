package main

// The story of what saving a guest costs beside xl: a whole Debian on its disk, the
// same work, the same file system for the files, one Xen host, in turn.
//
//	pvh, hvm: a guest that the daemon serves, and one that xl serves
//	          ─> work in both ─> checkpoint save, xl save -c, again ─> the next work
//	pv:       one guest, under xl ─> work
//	          ─> xl save -c; checkpoint import --domain, export --run; again ─> …
//
// Each save is timed in the host, from the command until the file is durable.
// comparison.go makes figures of them.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"understudy/checkpoint"
	"understudy/config"
	"understudy/demo/world"
	"understudy/guest"
	"understudy/guest/client"
	"understudy/guest/image"
)

// comparedMemory is that of each guest: two have to fit into the host.
const comparedMemory = 384 * config.MiB

// comparedHost is the memory of the host, in MiB.
const comparedHost = 3584

// workTime bounds one piece of work in the emulation.
const workTime = 15 * time.Minute

// pv is a kind of domain that only xl runs.
const pv = "pv"

// Block devices of the host, each a Debian that nobody else writes to.
const (
	oursDevice = "/dev/vdc"
	xlDevice   = "/dev/vdd"
)

// xlAddress and xlMAC are those of the guest that xl serves.
var (
	xlAddress = netip.MustParsePrefix("10.77.0.21/24")
	xlMAC     = config.MAC{0x52, 0x54, 0, 0x77, 0, 0x21}
)

// work is what a guest does before it is saved.
type work struct {
	name, title string
	steps       []string // of package workload
}

func works() []work {
	return []work{
		{"boot", "boot", nil},
		{"read", "reading a source tree", []string{"read-tree files=3000"}},
		{"compile", "a compile job", []string{"compile files=4"}},
		{"mail", "a mail spool (PostMark's parameters)", []string{"postmark"}},
		{"database", "a database load", []string{"database ops=200"}},
		{"idle", "idle", []string{"idle seconds=3"}},
	}
}

// sample is one save.
type sample struct {
	bytes uint64
	took  time.Duration // until the file was durable
	stood time.Duration // that the guest stood still, where it is known
	pages checkpoint.Counts
}

// compareAll tells the story of each kind, and writes the report.
func compareAll(ctx context.Context, o options, dom0 image.Dom0) error {
	big, err := image.Big(ctx, o.boots)
	if err != nil {
		return err
	}
	report := newComparison(o)
	for _, kind := range strings.Split(o.kind, ",") {
		one := o
		one.kind, one.debian = kind, big
		if err = inWorld(ctx, one, dom0, func(s *story) error {
			bounded, cancel := within(ctx, o.limit)
			defer cancel()
			rows, err := s.compare(bounded, one)
			report.Rows = append(report.Rows, rows...)
			return err
		}); err != nil {
			break
		}
	}
	report.conclude(time.Now())
	return errors.Join(err, report.write(o.report)) // what was measured of a run that failed, too
}

// compare measures the rows of one kind of guest.
func (s *story) compare(ctx context.Context, o options) (rows []ComparedRow, err error) {
	s.tell("%s guests of %d MiB boot", o.kind, comparedMemory/config.MiB)
	guests, err := s.comparedGuests(ctx, o)
	if err != nil {
		return nil, err
	}
	save := s.saveBoth
	if o.kind == pv {
		save = s.savePV
	}
	for _, w := range works() {
		if err := s.work(ctx, w, guests); err != nil {
			return rows, err
		}
		var ours, xls []sample
		for range o.repeat {
			mine, other, err := save(ctx)
			if err != nil {
				return rows, fmt.Errorf("%s, %s: %w", o.kind, w.title, err)
			}
			ours, xls = append(ours, mine), append(xls, other)
		}
		row := newComparedRow(o.kind, w, ours, xls)
		rows = append(rows, row)
		s.tell("%s, %s: %.1f MB in %.2f s; xl save %.1f MB in %.2f s", o.kind, w.title, row.Ours.Bytes/1e6, row.Ours.Seconds, row.Xl.Bytes/1e6, row.Xl.Seconds)
	}
	return rows, nil
}

// comparedGuests begins what is compared and returns the ways to them.
func (s *story) comparedGuests(ctx context.Context, o options) (guests []world.Reach, err error) {
	cmdline := guest.Boot{Address: xlAddress, Disk: guest.Disk{Device: "/dev/xvda", Dir: guest.RootDir}, Extra: "console=hvc0"}.CommandLine()
	if err := s.world.xl(ctx, hostA, xlGuest{Name: xlName, Kind: o.kind, Kernel: share + "/vmlinuz", Initrd: share + "/initrd", Append: cmdline,
		Memory: comparedMemory, Disk: xlDevice, MAC: xlMAC}); err != nil {
		return nil, err
	}
	addresses := []netip.Prefix{xlAddress}
	if o.kind != pv {
		addresses = []netip.Prefix{xlAddress, guestAddress}
	}
	for _, address := range addresses {
		r := reachAt(address)
		r.Limit = workTime
		if err := r.Control(ctx, func(ctx context.Context, c *client.Control) error { return c.SyncDisk(ctx) }); err != nil {
			return nil, err
		}
		guests = append(guests, r)
	}
	if o.kind != pv {
		err = s.alone(ctx)
	}
	return guests, err
}

// work has each guest do it.
func (s *story) work(ctx context.Context, w work, guests []world.Reach) error {
	for i, g := range guests {
		err := g.Control(ctx, func(ctx context.Context, c *client.Control) error {
			for _, step := range w.steps {
				d, err := c.Run(ctx, strings.Fields(step), nil)
				if err != nil {
					return err
				}
				s.tell("guest %d: %s: %d operations in %.1f s", i+1, step, d.Ops, d.Took.Seconds())
			}
			return c.SyncDisk(ctx)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Files of the comparison, on the host.
const (
	ownFile   = kept + "/own.ckpt"
	stockFile = kept + "/stock.save"
)

// timed has the host carry out a command that makes a file, and wait for the disk. The
// command's words are the answer.
func (s *story) timed(ctx context.Context, command, file string) (sample, string, error) {
	line := fmt.Sprintf("rm -f %s; sync; began=$(date +%%s%%N); %s >/run/said 2>&1 && sync %[1]s || { cat /run/said; exit 1; }; echo $(($(date +%%s%%N)-began)) $(stat -c %%s %[1]s); cat /run/said", file, command)
	text, err := said(ctx, s.world.hosts[hostA], hostA, line)
	if err != nil {
		return sample{}, "", err
	}
	first, rest, _ := strings.Cut(text, "\n")
	took, size, _ := strings.Cut(first, " ")
	nanoseconds, err := strconv.ParseInt(took, 10, 64)
	bytes, sizeErr := strconv.ParseUint(size, 10, 64)
	if err = errors.Join(err, sizeErr); err != nil {
		return sample{}, "", fmt.Errorf("%s: %w", command, err)
	}
	return sample{took: time.Duration(nanoseconds), bytes: bytes}, rest, nil
}

// saveXl is what a guest under xl costs. It stands still for all of it.
func (s *story) saveXl(ctx context.Context) (sample, error) {
	one, _, err := s.timed(ctx, "xl save -c "+xlName+" "+stockFile, stockFile)
	if err == nil {
		err = s.order(ctx, "rm "+stockFile)
	}
	return one, err
}

// saveBoth saves the daemon's guest, and xl's; both run on.
func (s *story) saveBoth(ctx context.Context) (ours, xls sample, err error) {
	var r struct {
		checkpoint.Info
		Pause time.Duration `json:"pause_ns"`
	}
	if ours, err = s.saved(ctx, "checkpoint save "+guestName+" "+ownFile, &r); err != nil {
		return ours, xls, err
	}
	ours.stood, ours.pages = r.Pause, r.Summary.Pages
	if err := s.order(ctx, "rm "+ownFile); err != nil {
		return ours, xls, err
	}
	xls, err = s.saveXl(ctx)
	return ours, xls, err
}

// savePV saves one guest both ways. Ours ends it, so that it has to come back.
func (s *story) savePV(ctx context.Context) (ours, xls sample, err error) {
	if xls, err = s.saveXl(ctx); err != nil {
		return ours, xls, err
	}
	var r struct {
		checkpoint.Info
		Stood time.Duration `json:"stood_ns"`
	}
	if ours, err = s.saved(ctx, "checkpoint import "+xlName+" "+ownFile+" --domain --disk "+xlDevice, &r); err != nil {
		return ours, xls, err
	}
	ours.stood, ours.pages = r.Stood, r.Summary.Pages
	err = s.order(ctx, s.words("checkpoint export "+ownFile+" --run")+" && rm "+ownFile)
	return ours, xls, err
}

// saved is timed, of a command of the operator's.
func (s *story) saved(ctx context.Context, words string, answer any) (sample, error) {
	one, text, err := s.timed(ctx, s.words(words), ownFile)
	if err != nil {
		return one, err
	}
	if err := json.Unmarshal([]byte(text), answer); err != nil {
		return one, fmt.Errorf("understudy %s: %w: %.200q", words, err, text)
	}
	return one, nil
}
