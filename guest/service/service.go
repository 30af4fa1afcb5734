// Package service is what the test guest does for the world: four plain text
// services over TCP. They show whether a guest went on after a failover exactly
// where its clients saw it stop, and they give it work to do.
//
// A request is one line of at most 512 bytes ending in "\n" (a "\r" before it
// is dropped); a refused request is answered "error <reason>\n" and, except on
// the control port, ends the connection. Durations are written as in Go
// ("10ms", "1.5s"), numbers are decimal.
//
// Counter, port 7000. Shows repeats, gaps and take-backs.
//
//	> stream <interval>             1ms to 1m
//	< boot <boot id>                /proc/sys/kernel/random/boot_id
//	< 1, 2, 3 …                     one line at each interval, for ever; each
//	                                connection starts at 1 and grows by 1
//
// Control, port 7001. Any number of requests per connection, one answer each.
//
//	> boot                          < boot <boot id>
//	> uptime                        < uptime <CLOCK_MONOTONIC ns> <wall clock, ns since 1970>
//	> dirty pages=<n> every=<interval> pattern=seq|random [area=<MiB>] [bytes=<8..4096>]
//	                                < ok area=<MiB>
//	    From now on writes to exactly n distinct pages of 4096 bytes at each
//	    interval (1ms to 1h), walking through an area of touched memory (64 MiB
//	    unless told) in order or in a fixed shuffled order. A visit overwrites the
//	    first bytes (8 unless told, a multiple of 8) of the page with a stamp that
//	    is different at each visit. The area is written once before the answer.
//	    A second dirty request replaces the first.
//	> dirty stop                    < ok
//	> dirty                         < dirty intervals=<n> pages=<n> late=<n>
//	    late counts intervals that began after the next one was due.
//	> work <duration>               < work <iterations> <ns it took>
//	    A loop that does nothing but compute, 1ms to 1h: the guest's speed.
//	> speed start, speed stop       < ok
//	> speed                         < speed <iterations> <CLOCK_MONOTONIC ns>
//	    The same loop in the background at the lowest priority. The count goes
//	    on growing over stop and start.
//	> check                         < ok pages=<n> dirty=<n>
//	    Compares every byte of a static area with the pattern it was filled with,
//	    and every stamp of the dirty area with the one last written there. A page
//	    that a failover lost, or took from another epoch, shows:
//	                                < corrupt area=static|dirty page=<n> of=<n> bad=<n>
//	> disk work start [files=<1..4096>] [size=<4096..16777216>] [every=<pause>] [workers=<1..16>]
//	                                < ok
//	    From now on writes and reads back files on the disk (package diskwork says
//	    how): 48 of 64 KiB with 2 workers and no pause, unless told. A second start
//	    replaces the first; files of an earlier work are checked and go on with
//	    their next version.
//	> disk work status              < work rounds=<n> acked=<n> errors=<n> [text of the first error]
//	> disk work stop                < ok
//	> disk acks [from=<n>]          < ack <n> <file> <version> <xxh3 of the file, hexadecimal>, for ever
//	    A line for each write of which fsync has returned, from the next one or from
//	    n on, without a gap; 16384 are kept. Ends with "end" when the work is stopped.
//	> disk check                    < ok files=<n> bytes=<n>
//	    Reads every file of the work from the page cache, after dropping it and past
//	    it, and compares it with what was last written; after a reboot, each sector
//	    with itself. What is wrong:   < damage <text>
//	> disk verify <n>, then n lines <file> <version> <xxh3>
//	                                < as for check
//	    Compares with acknowledgements that the client has kept as well: none of
//	    those writes may be lost.
//	> disk sync                     < ok, when all that was written is on the disk
//	> disk drop                     < ok: syncs and drops what the kernel caches
//	> disk read <path>…, disk read all
//	                                < ok files=<n> bytes=<n> sum=<xxh3 of all bytes>
//	    Reads files, and what is below directories, through the page cache.
//	> disk speed [mode=read|write|randread|randwrite] [bs=<512..4194304>] [depth=<1..128>]
//	        [sync=0|1] [time=<10ms..10m>] [size=<MiB>] [device=/dev/<name>]
//	                                < speed iops=<n> kbs=<1000 bytes/s> p50=<ns> p99=<ns> ops=<n> bytes=<n> ns=<took>
//	    Measures with O_DIRECT (package diskspeed), on a file of 64 MiB that is written
//	    for it, or on a device, which must not be mounted if it is written to: random
//	    reads of 4096 bytes, one at a time, for a second, unless told.
//	> run <workload> [<setting>=<number>…]
//	                                < out <line>, as often as it likes, then
//	                                < done <workload> <seconds> <ops>, or error
//	    Runs one of package workload's on the disk, one at a time.
//	> poweroff, reboot, panic       < ok, then it happens
//
// Echo, port 7002: every byte comes back. Latency.
//
// Throughput, port 7003. Any number of requests per connection, up to 1 TiB each.
//
//	> source <bytes>                < that many bytes
//	> sink <bytes>, then the bytes  < ok <bytes> <ns from first to last>
package service

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"understudy/guest"
)

const (
	// maxLine bounds a request line, in bytes.
	maxLine = 512
	// maxConnections bounds the open connections of one service.
	maxConnections = 128
)

// PowerAction is a request to end this life of the machine.
type PowerAction string

const (
	Poweroff PowerAction = "poweroff"
	Reboot   PowerAction = "reboot"
	Panic    PowerAction = "panic"
)

// Config is what the services need of the machine they run on.
type Config struct {
	// BootID is what "boot" tells; the guest reads it from the kernel.
	BootID string
	// StaticPages is the size of the static area that "check" compares, in
	// pages of 4096 bytes. Zero means 1024 (4 MiB).
	StaticPages int
	// Disk is the directory where the guest's disk is mounted; "" if there is
	// none.
	Disk string
	// Drop drops what the kernel caches of files; "disk drop" calls it.
	Drop func() error
	// Run runs a workload (package workload) on the disk and writes to out what it
	// says. It returns soon after ctx ends.
	Run func(ctx context.Context, words []string, out io.Writer) error
	// Power carries out a power request, after it was answered. It is called
	// by one connection's goroutine.
	Power func(PowerAction)
	Log   *slog.Logger
}

// Listeners are the sockets of the services.
type Listeners struct {
	Counter, Control, Echo, Throughput net.Listener
}

// Listen opens the services' well-known ports on host ("" for every address of
// the machine).
func Listen(host string) (Listeners, error) {
	var l Listeners
	ports := []struct {
		port int
		to   *net.Listener
	}{
		{guest.CounterPort, &l.Counter},
		{guest.ControlPort, &l.Control},
		{guest.EchoPort, &l.Echo},
		{guest.ThroughputPort, &l.Throughput},
	}
	for _, p := range ports {
		opened, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(p.port)))
		if err != nil {
			l.close()
			return Listeners{}, fmt.Errorf("open a port of the guest's services: %w", err)
		}
		*p.to = opened
	}
	return l, nil
}

func (l Listeners) close() {
	for _, one := range []net.Listener{l.Counter, l.Control, l.Echo, l.Throughput} {
		if one != nil {
			_ = one.Close() // closing twice is fine
		}
	}
}

// Run serves until ctx ends; then it closes the listeners and every connection,
// waits for its goroutines and returns nil. It returns earlier, with an error,
// if it cannot start.
func Run(ctx context.Context, l Listeners, cfg Config) error {
	if cfg.StaticPages == 0 {
		cfg.StaticPages = 1024
	}
	static, err := newStaticArea(cfg.StaticPages)
	if err != nil {
		l.close()
		return err
	}
	defer static.close()
	control := &control{cfg: cfg, static: static, disk: disk{dir: cfg.Disk, drop: cfg.Drop}, loads: loads{dir: cfg.Disk, run: cfg.Run}}
	defer control.close()

	var all sync.WaitGroup
	stop := context.AfterFunc(ctx, l.close)
	defer stop()
	for _, s := range []struct {
		name     string
		listener net.Listener
		handle   func(context.Context, *conn) error
	}{
		{"counter", l.Counter, counter(cfg.BootID)},
		{"control", l.Control, control.handle},
		{"echo", l.Echo, echo},
		{"throughput", l.Throughput, throughput},
	} {
		all.Go(func() { accept(ctx, s.listener, cfg.Log.With("service", s.name), s.handle) })
	}
	all.Wait()
	return nil
}

// accept owns one goroutine per connection and returns when the listener is
// closed and all of them have ended.
func accept(ctx context.Context, l net.Listener, log *slog.Logger, handle func(context.Context, *conn) error) {
	var open sync.WaitGroup
	defer open.Wait()
	slots := make(chan struct{}, maxConnections)
	for {
		accepted, err := l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed) || ctx.Err() != nil:
			return
		case err != nil: // out of descriptors or memory: give it time to pass
			log.Warn("accept a connection", "error", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			_, _ = fmt.Fprintf(accepted, "error %d connections are open, no more are taken\n", maxConnections)
			_ = accepted.Close()
			continue
		}
		open.Go(func() {
			defer func() { <-slots }()
			defer func() { _ = accepted.Close() }()
			stop := context.AfterFunc(ctx, func() { _ = accepted.Close() })
			defer stop()
			c := &conn{Conn: accepted, r: bufio.NewReaderSize(accepted, maxLine)}
			if err := handle(ctx, c); err != nil && !errors.Is(err, io.EOF) && ctx.Err() == nil {
				log.Debug("connection ended", "peer", accepted.RemoteAddr(), "error", err)
			}
		})
	}
}

// conn is one client's connection, read by lines.
type conn struct {
	net.Conn
	r *bufio.Reader
}

// request reads one line and splits it at blanks.
func (c *conn) request() ([]string, error) {
	line, err := c.r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return nil, c.refuse(fmt.Errorf("a request has at most %d bytes", maxLine))
	}
	if err != nil {
		return nil, err
	}
	return strings.Fields(string(line)), nil
}

// refuse answers with an error and returns it.
func (c *conn) refuse(err error) error {
	if _, werr := fmt.Fprintf(c, "error %s\n", err); werr != nil {
		return werr
	}
	return err
}

// duration reads a duration between low and high, both included.
func duration(what, text string, low, high time.Duration) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("%s %q is no duration like 10ms", what, text)
	}
	if d < low || d > high {
		return 0, fmt.Errorf("%s %s is not between %s and %s", what, d, low, high)
	}
	return d, nil
}

// number reads a decimal number between low and high, both included.
func number(what, text string, low, high int64) (int64, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < low || n > high {
		return 0, fmt.Errorf("%s %q is not a number between %d and %d", what, text, low, high)
	}
	return n, nil
}
