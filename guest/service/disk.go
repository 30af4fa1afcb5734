package service

// The control service's requests "disk …": they act on one mounted file system.
// Lock order: disk.mu is taken last and never held while something waits.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"

	"understudy/guest/diskspeed"
	"understudy/guest/diskwork"
)

// workDir is where the work's files are on the disk.
const workDir = "work"

// disk owns the work; close ends it.
type disk struct {
	dir  string       // where the file system is mounted, "" if there is none
	drop func() error // drops the kernel's caches
	mu   sync.Mutex
	work *diskwork.Work // nil before the first start
	runs bool

	measuring sync.Mutex // held while the disk's speed is measured
}

// handle carries out a request of one answer.
func (d *disk) handle(ctx context.Context, peer *conn, args []string) (string, error) {
	if d.dir == "" && (len(args) == 0 || args[0] != "speed" || !strings.Contains(strings.Join(args, " "), " device=")) {
		return "", errors.New("this guest has no disk mounted; boot it with understudy.disk=DEVICE:DIRECTORY")
	}
	verb, rest := "", []string(nil)
	if len(args) > 0 {
		verb, rest = args[0], args[1:]
	}
	switch request := strings.Join(args, " "); {
	case request == "work stop":
		d.stop()
		return "ok", nil
	case request == "work status":
		return d.status()
	case verb == "work" && len(rest) > 0 && rest[0] == "start":
		return "ok", d.start(rest[1:])
	case request == "check":
		return d.verify(ctx, nil)
	case verb == "verify" && len(rest) == 1:
		acks, err := readKnown(peer, rest[0])
		if err != nil {
			return "", err
		}
		return d.verify(ctx, acks)
	case verb == "acks" && len(rest) <= 1:
		return "", errors.Join(d.follow(ctx, peer, rest), io.EOF)
	case request == "sync":
		return "ok", d.sync()
	case request == "drop":
		if err := d.sync(); err != nil { // what is dirty cannot be dropped
			return "", err
		}
		return "ok", d.drop()
	case verb == "read" && len(rest) > 0:
		return d.read(ctx, rest)
	case verb == "speed":
		return d.speed(ctx, rest)
	}
	return "", fmt.Errorf("unknown request %q; known are disk work start, work status, work stop, check, verify, acks, sync, drop, read, speed", "disk "+strings.Join(args, " "))
}

func (d *disk) close() { d.stop() }

func (d *disk) start(args []string) error {
	o, err := parseWork(args)
	if err != nil {
		return err
	}
	d.stop()
	w, err := diskwork.Start(filepath.Join(d.dir, workDir), o)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.runs {
		w.Stop()
		return errors.New("another client has just started one")
	}
	d.work, d.runs = w, true
	return nil
}

func parseWork(args []string) (diskwork.Options, error) {
	var o diskwork.Options
	err := settings(args, map[string]func(key, value string) error{
		"files":   numberTo(&o.Files, 1, diskwork.MaxFiles),
		"size":    numberTo(&o.Size, 4096, 16<<20),
		"workers": numberTo(&o.Workers, 1, diskwork.MaxWorkers),
		"every": func(key, value string) (err error) {
			o.Every, err = duration(key, value, 0, time.Hour)
			return err
		},
	})
	return o, err
}

// settings hands each word key=value to its reader.
func settings(args []string, readers map[string]func(key, value string) error) error {
	seen := map[string]bool{}
	for _, arg := range args {
		key, value, _ := strings.Cut(arg, "=")
		reader, ok := readers[key]
		if !ok {
			return fmt.Errorf("%q is no setting of this request", key)
		}
		if seen[key] {
			return fmt.Errorf("%s is given twice", key)
		}
		seen[key] = true
		if err := reader(key, value); err != nil {
			return err
		}
	}
	return nil
}

func numberTo(to *int, low, high int64) func(key, value string) error {
	return func(key, value string) error {
		n, err := number(key, value, low, high)
		*to = int(n)
		return err
	}
}

func (d *disk) stop() {
	d.mu.Lock()
	w := d.work
	d.runs = false
	d.mu.Unlock()
	if w != nil {
		w.Stop()
	}
}

var errNoWork = errors.New("no work was started: disk work start")

func (d *disk) current() *diskwork.Work {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.work
}

func (d *disk) status() (string, error) {
	w := d.current()
	if w == nil {
		return "", errNoWork
	}
	s := w.Status()
	answer := fmt.Sprintf("work rounds=%d acked=%d errors=%d", s.Rounds, s.Acked, s.Errors)
	if s.First != nil {
		answer += " " + oneLine(s.First)
	}
	return answer, nil
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// verify compares the work's files with what this guest remembers, if it started
// a work, and with acks.
func (d *disk) verify(ctx context.Context, acks []diskwork.Ack) (string, error) {
	var c diskwork.Checked
	var err error
	if w := d.current(); w != nil {
		c, err = w.Verify(ctx, acks)
	} else {
		c, err = diskwork.Verify(ctx, filepath.Join(d.dir, workDir), acks)
	}
	var found *diskwork.Damage
	if errors.As(err, &found) {
		return "damage " + oneLine(found), nil
	}
	return fmt.Sprintf("ok files=%d bytes=%d", c.Files, c.Bytes), err
}

// readKnown reads the lines that follow a request to verify. A line that is none
// is an error only after all have been read: what follows are requests again.
func readKnown(peer *conn, count string) ([]diskwork.Ack, error) {
	n, err := number("number of files", count, 0, diskwork.MaxFiles)
	if err != nil {
		return nil, err
	}
	acks := make([]diskwork.Ack, 0, n)
	var wrong error
	for i := range n {
		words, err := peer.request()
		if err != nil {
			return nil, errors.Join(err, io.EOF)
		}
		a, err := diskwork.ParseKnown(words)
		if err != nil && wrong == nil {
			wrong = fmt.Errorf("line %d: %w", i+1, err)
		}
		acks = append(acks, a)
	}
	return acks, wrong
}

// follow writes acknowledgements to the client as they come, until the work ends.
func (d *disk) follow(ctx context.Context, peer *conn, args []string) error {
	next := uint64(0)
	if err := settings(args, map[string]func(key, value string) error{
		"from": func(key, value string) error {
			n, err := number(key, value, 1, 1<<62)
			next = uint64(n)
			return err
		},
	}); err != nil {
		return peer.refuse(err)
	}
	w := d.current()
	if w == nil {
		return peer.refuse(errNoWork)
	}
	// The client says nothing more; when it goes, so do we.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = io.Copy(io.Discard, peer.r)
		cancel()
	}()
	err := w.Follow(ctx, next, func(acks []diskwork.Ack) error {
		lines := make([]byte, 0, 48*len(acks))
		for _, a := range acks {
			lines = append(append(lines, a.String()...), '\n')
		}
		_, err := peer.Write(lines)
		return err
	})
	if err == nil {
		_, err = fmt.Fprintln(peer, "end")
	} else if ctx.Err() == nil {
		err = peer.refuse(err)
	}
	_ = peer.Close() // ends the reader
	<-gone
	return err
}

// sync returns when all that was written to the file system is on the disk.
func (d *disk) sync() error {
	f, err := os.Open(d.dir)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", d.dir, err)
	}
	return nil
}

// read reads files, and what is below directories, through the page cache.
func (d *disk) read(ctx context.Context, paths []string) (string, error) {
	root, err := os.OpenRoot(d.dir)
	if err != nil {
		return "", err
	}
	defer func() { _ = root.Close() }()
	if len(paths) == 1 && paths[0] == "all" {
		paths = []string{"."}
	}
	files, bytes, all := 0, int64(0), xxh3.New()
	chunk := make([]byte, 256<<10)
	for _, path := range paths {
		err := fs.WalkDir(root.FS(), filepath.Clean(path), func(name string, e fs.DirEntry, err error) error {
			if err == nil {
				err = ctx.Err()
			}
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			f, err := root.Open(name)
			if err != nil {
				return err
			}
			defer func() { _ = f.Close() }()
			n, err := io.CopyBuffer(all, onlyReader{f}, chunk)
			files++
			bytes += n
			return err
		})
		if err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("ok files=%d bytes=%d sum=%016x", files, bytes, all.Sum64()), nil
}

// speed measures the disk, on a file of its own or on a device.
func (d *disk) speed(ctx context.Context, args []string) (string, error) {
	o := diskspeed.Options{Mode: diskspeed.RandRead, Block: 4096, Depth: 1, Time: time.Second}
	device, size, synced := "", 0, 0
	err := settings(args, map[string]func(key, value string) error{
		"mode":  func(_, value string) error { o.Mode = diskspeed.Mode(value); return nil },
		"bs":    numberTo(&o.Block, 512, diskspeed.MaxBlock),
		"depth": numberTo(&o.Depth, 1, diskspeed.MaxDepth),
		"sync":  numberTo(&synced, 0, 1),
		"size":  numberTo(&size, 1, diskspeed.MaxSize>>20),
		"time": func(key, value string) (err error) {
			o.Time, err = duration(key, value, 10*time.Millisecond, diskspeed.MaxTime)
			return err
		},
		"device": func(key, value string) error {
			if device = filepath.Clean(value); filepath.Dir(device) != "/dev" {
				return fmt.Errorf("%s %q is not in /dev", key, value)
			}
			return nil
		},
	})
	if err != nil {
		return "", err
	}
	if !d.measuring.TryLock() {
		return "", errors.New("the disk's speed is being measured")
	}
	defer d.measuring.Unlock()
	o.Sync, o.Size = synced == 1, int64(size)<<20
	var r diskspeed.Result
	if device != "" {
		r, err = diskspeed.Device(ctx, device, o)
	} else {
		if size == 0 {
			o.Size = 64 << 20
		}
		r, err = diskspeed.File(ctx, filepath.Join(d.dir, "speed"), o)
	}
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("speed iops=%.0f kbs=%.0f p50=%d p99=%d ops=%d bytes=%d ns=%d", r.IOPS(), r.MBs()*1000,
		r.P50.Nanoseconds(), r.P99.Nanoseconds(), r.Ops, r.Bytes, r.Took.Nanoseconds()), nil
}

// onlyReader hides what would have io.CopyBuffer not use its buffer.
type onlyReader struct{ io.Reader }
