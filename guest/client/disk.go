package client

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"understudy/guest/diskspeed"
	"understudy/guest/diskwork"
	"understudy/guest/workload"
)

// DiskWork is a load on the guest's disk that checks what it reads. Zero values
// are what package service says.
type DiskWork struct {
	Files, Size, Workers int
	Every                time.Duration
}

// StartDiskWork starts a load, in the place of one that is there.
func (c *Control) StartDiskWork(ctx context.Context, d DiskWork) error {
	request := "disk work start"
	for _, s := range []struct {
		key   string
		value int
	}{{"files", d.Files}, {"size", d.Size}, {"workers", d.Workers}} {
		if s.value != 0 {
			request += fmt.Sprintf(" %s=%d", s.key, s.value)
		}
	}
	if d.Every != 0 {
		request += " every=" + d.Every.String()
	}
	_, err := c.ask(ctx, request, "ok")
	return err
}

// DiskProgress is how far a load on the disk has come.
type DiskProgress struct {
	Rounds, Acked, Errors int64
	// First is the first error's text; failed reads and writes and damage count.
	First string
}

// DiskProgress tells how far the load has come.
func (c *Control) DiskProgress(ctx context.Context) (DiskProgress, error) {
	const request = "disk work status"
	words, err := c.ask(ctx, request, "work")
	if err != nil {
		return DiskProgress{}, err
	}
	var p DiskProgress
	if len(words) < 3 {
		return p, fmt.Errorf("ask the guest %q: the answer is %q", request, words)
	}
	for i, to := range []*int64{&p.Rounds, &p.Acked, &p.Errors} {
		_, value, _ := strings.Cut(words[i], "=")
		if *to, err = strconv.ParseInt(value, 10, 64); err != nil {
			return p, fmt.Errorf("ask the guest %q: in the answer %q: %w", request, words, err)
		}
	}
	p.First = strings.Join(words[3:], " ")
	return p, nil
}

// StopDiskWork ends the load; its files stay.
func (c *Control) StopDiskWork(ctx context.Context) error {
	_, err := c.ask(ctx, "disk work stop", "ok")
	return err
}

// CheckDisk has the guest read every file of the load again and compare it with
// what it last wrote. Damage is a *diskwork.Damage.
func (c *Control) CheckDisk(ctx context.Context) (diskwork.Checked, error) {
	return c.checked(ctx, "disk check")
}

// VerifyDisk is CheckDisk and compares with acks too, which the caller kept: none
// of those writes may be lost. The last one of each file is enough.
func (c *Control) VerifyDisk(ctx context.Context, acks []diskwork.Ack) (diskwork.Checked, error) {
	var request strings.Builder
	fmt.Fprintf(&request, "disk verify %d", len(acks))
	for _, a := range acks {
		request.WriteString("\n" + a.Known())
	}
	return c.checked(ctx, request.String())
}

func (c *Control) checked(ctx context.Context, request string) (diskwork.Checked, error) {
	var answer string
	err := c.during(ctx, func() error {
		_, err := fmt.Fprintf(c.conn, "%s\n", request)
		if err == nil {
			answer, err = c.read()
		}
		return err
	})
	what, _, _ := strings.Cut(request, "\n")
	if err != nil {
		return diskwork.Checked{}, fmt.Errorf("ask the guest %q: %w", what, err)
	}
	if text, damaged := strings.CutPrefix(answer, "damage "); damaged {
		return diskwork.Checked{}, &diskwork.Damage{What: text}
	}
	if reason, refused := strings.CutPrefix(answer, "error "); refused {
		return diskwork.Checked{}, &Refused{what, reason}
	}
	var d diskwork.Checked
	if _, err := fmt.Sscanf(answer, "ok files=%d bytes=%d", &d.Files, &d.Bytes); err != nil {
		return d, fmt.Errorf("ask the guest %q: answer %q: %w", what, answer, err)
	}
	return d, nil
}

// SyncDisk returns when all that was written is on the disk.
func (c *Control) SyncDisk(ctx context.Context) error {
	_, err := c.ask(ctx, "disk sync", "ok")
	return err
}

// DropCaches syncs the disk and empties the guest's page cache.
func (c *Control) DropCaches(ctx context.Context) error {
	_, err := c.ask(ctx, "disk drop", "ok")
	return err
}

// DiskRead is what the guest read.
type DiskRead struct {
	Files int
	Bytes int64
	// Sum is the xxh3 of all bytes in the order of the files' names.
	Sum uint64
}

// ReadDisk has the guest read files, and what is below directories, through its
// page cache; no path means everything.
func (c *Control) ReadDisk(ctx context.Context, paths ...string) (DiskRead, error) {
	if len(paths) == 0 {
		paths = []string{"all"}
	}
	request := "disk read " + strings.Join(paths, " ")
	words, err := c.ask(ctx, request, "ok")
	if err != nil {
		return DiskRead{}, err
	}
	var r DiskRead
	if _, err := fmt.Sscanf(strings.Join(words, " "), "files=%d bytes=%d sum=%x", &r.Files, &r.Bytes, &r.Sum); err != nil {
		return r, fmt.Errorf("ask the guest %q: answer %q: %w", request, words, err)
	}
	return r, nil
}

// MeasureDisk has the guest measure a disk: the device, if there is one, or else
// a file on the mounted disk. Of a Size, whole MiB count.
func (c *Control) MeasureDisk(ctx context.Context, o diskspeed.Options, device string) (diskspeed.Result, error) {
	synced := 0
	if o.Sync {
		synced = 1
	}
	request := fmt.Sprintf("disk speed mode=%s bs=%d depth=%d sync=%d time=%s", o.Mode, o.Block, o.Depth, synced, o.Time)
	if o.Size != 0 {
		request += fmt.Sprintf(" size=%d", o.Size>>20)
	}
	if device != "" {
		request += " device=" + device
	}
	n, err := c.numbers(ctx, request, "speed", 7)
	if err != nil {
		return diskspeed.Result{}, err
	}
	return diskspeed.Result{P50: time.Duration(n[2]), P99: time.Duration(n[3]), Ops: n[4], Bytes: n[5], Took: time.Duration(n[6])}, nil
}

// Run has the guest run a workload: its name and settings, as package workload
// has them. Each line that it says goes to tell, if that is not nil.
func (c *Control) Run(ctx context.Context, words []string, tell func(string)) (workload.Done, error) {
	request := "run " + strings.Join(words, " ")
	var done workload.Done
	err := c.during(ctx, func() error {
		if _, err := fmt.Fprintf(c.conn, "%s\n", request); err != nil {
			return err
		}
		for {
			answer, err := c.read()
			if err != nil {
				return err
			}
			if reason, refused := strings.CutPrefix(answer, "error "); refused {
				return &Refused{request, reason}
			}
			said, out := strings.CutPrefix(answer, "out ")
			if !out {
				done, err = workload.ParseDone(answer)
				return err
			}
			if tell != nil {
				tell(said)
			}
		}
	})
	if err != nil {
		return done, fmt.Errorf("have the guest run %s: %w", strings.Join(words, " "), err)
	}
	return done, nil
}

// Acks is a connection on which the guest tells of every write of the load that
// the disk has. It keeps the newest of each file, and knows it when the guest is
// lost.
type Acks struct {
	line
	last   uint64
	newest map[int]diskwork.Ack
}

// FollowAcks asks for the acknowledgements from number from on; 0 means from the
// next one on. The load has to be running.
func FollowAcks(ctx context.Context, conn net.Conn, from uint64) (*Acks, error) {
	a := &Acks{line: newLine(conn), newest: map[int]diskwork.Ack{}}
	request := "disk acks"
	if from > 0 {
		request += fmt.Sprintf(" from=%d", from)
		a.last = from - 1
	}
	return a, a.during(ctx, func() error {
		_, err := fmt.Fprintf(conn, "%s\n", request)
		return err
	})
}

// Next waits for the next acknowledgement. The error is a *BrokenSequence if its
// number is not the one after the last.
func (a *Acks) Next(ctx context.Context) (diskwork.Ack, error) {
	var text string
	err := a.during(ctx, func() (err error) {
		text, err = a.read()
		return err
	})
	if err != nil {
		return diskwork.Ack{}, fmt.Errorf("wait for acknowledgement %d of a write: %w", a.last+1, err)
	}
	if reason, refused := strings.CutPrefix(text, "error "); refused {
		return diskwork.Ack{}, &Refused{"disk acks", reason}
	}
	ack, err := diskwork.ParseAck(text)
	if err != nil {
		return ack, err
	}
	if a.last != 0 && ack.N != a.last+1 {
		return ack, &BrokenSequence{Want: a.last + 1, Got: ack.N}
	}
	a.last = ack.N
	a.newest[ack.File] = ack
	return ack, nil
}

// Last is the number of the last acknowledgement, 0 before the first.
func (a *Acks) Last() uint64 { return a.last }

// Newest is the last acknowledgement of each file, by file: what VerifyDisk wants.
func (a *Acks) Newest() []diskwork.Ack {
	list := make([]diskwork.Ack, 0, len(a.newest))
	for _, ack := range a.newest {
		list = append(list, ack)
	}
	slices.SortFunc(list, func(x, y diskwork.Ack) int { return x.File - y.File })
	return list
}

// Close ends the connection.
func (a *Acks) Close() error { return a.conn.Close() }
