package service_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy/guest/client"
	"understudy/guest/diskspeed"
	"understudy/guest/diskwork"
)

func TestDiskWorkIsFollowedCheckedAndStopped(t *testing.T) {
	m := start(t)
	ctx := t.Context()
	control := client.NewControl(dial(t, m.Control))
	if _, err := control.DiskProgress(ctx); err == nil || !strings.Contains(err.Error(), "no work was started") {
		t.Errorf("progress of nothing: %v", err)
	}
	if c, err := control.CheckDisk(ctx); err != nil || c.Files != 0 {
		t.Errorf("check of an empty disk: %+v, %v", c, err)
	}
	if err := control.StartDiskWork(ctx, client.DiskWork{Files: 4, Size: 8192, Workers: 2, Every: time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	acks, err := client.FollowAcks(ctx, dial(t, m.Control), 1)
	if err != nil {
		t.Fatal(err)
	}
	for want := uint64(1); want <= 30; want++ {
		if a, err := acks.Next(ctx); err != nil || a.N != want {
			t.Fatalf("acknowledgement %d is %+v, %v", want, a, err)
		}
	}
	if len(acks.Newest()) != 4 {
		t.Errorf("the newest: %+v", acks.Newest())
	}
	if c, err := control.VerifyDisk(ctx, acks.Newest()); err != nil || c != (diskwork.Checked{Files: 4, Bytes: 3 * 4 * 8192}) {
		t.Errorf("verify: %+v, %v", c, err)
	}
	var damage *diskwork.Damage
	future := []diskwork.Ack{{File: 2, Version: 1 << 40, Sum: 1}}
	if _, err := control.VerifyDisk(ctx, future); !errors.As(err, &damage) {
		t.Errorf("a write that never was: %v", err)
	}
	if err := control.StopDiskWork(ctx); err != nil {
		t.Fatal(err)
	}
	p, err := control.DiskProgress(ctx)
	if err != nil || p.Errors != 0 || p.First != "" || p.Acked < 30 || p.Rounds != p.Acked {
		t.Errorf("progress: %+v, %v", p, err)
	}
	for err == nil { // the rest, then the end
		_, err = acks.Next(ctx)
	}
	if int64(acks.Last()) != p.Acked {
		t.Errorf("followed to %d of %d: %v", acks.Last(), p.Acked, err)
	}
	file := filepath.Join(m.disk, "work", "000001")
	if err := os.WriteFile(file, make([]byte, 8192), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := control.CheckDisk(ctx); !errors.As(err, &damage) || !strings.Contains(err.Error(), "file 1") {
		t.Errorf("a damaged file: %v", err)
	}
	if err := errors.Join(control.SyncDisk(ctx), control.DropCaches(ctx)); err != nil {
		t.Error(err)
	}
}

func TestDiskIsReadButNothingOutsideOfIt(t *testing.T) {
	m := start(t)
	control := client.NewControl(dial(t, m.Control))
	if err := errors.Join(
		os.MkdirAll(filepath.Join(m.disk, "a", "b"), 0o755),
		os.WriteFile(filepath.Join(m.disk, "a", "one"), []byte("one"), 0o644),
		os.WriteFile(filepath.Join(m.disk, "a", "b", "two"), []byte("twotwo"), 0o644),
		os.Symlink("/etc/passwd", filepath.Join(m.disk, "a", "link"))); err != nil {
		t.Fatal(err)
	}
	all, err := control.ReadDisk(t.Context())
	if err != nil || all.Files != 2 || all.Bytes != 9 {
		t.Errorf("all: %+v, %v", all, err)
	}
	if some, err := control.ReadDisk(t.Context(), "a/b/two", "a/one"); err != nil || some != all {
		t.Errorf("in the order of all: %+v, %v", some, err)
	}
	for _, path := range []string{"../etc", "/etc/passwd", "a/link/x", "none"} {
		if _, err := control.ReadDisk(t.Context(), path); err == nil {
			t.Errorf("%s is read", path)
		}
	}
}

func TestDiskSpeedIsMeasured(t *testing.T) {
	m := start(t)
	control := client.NewControl(dial(t, m.Control))
	o := diskspeed.Options{Mode: diskspeed.RandWrite, Block: 4096, Depth: 2, Sync: true, Time: 20 * time.Millisecond, Size: 1 << 20}
	if r, err := control.MeasureDisk(t.Context(), o, ""); err != nil || r.Ops == 0 || r.Bytes != r.Ops*4096 || r.P50 == 0 || r.Took < o.Time {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := control.MeasureDisk(t.Context(), o, "/dev/null"); err == nil {
		t.Error("/dev/null has a speed")
	}
}

func TestAWorkloadTellsWhatItDoes(t *testing.T) {
	m := start(t)
	control := client.NewControl(dial(t, m.Control))
	var said []string
	done, err := control.Run(t.Context(), []string{"postmark", "files=5", "transactions=7"}, func(line string) { said = append(said, line) })
	if err != nil || done.Name != "postmark" || done.Ops != 7 || len(said) != 2 || !strings.HasPrefix(said[0], "made 5 files") {
		t.Errorf("%q, %+v, %v", said, done, err)
	}
	for _, words := range []string{"", "sleep", "postmark files=x", "database"} {
		var refused *client.Refused
		if _, err := control.Run(t.Context(), strings.Fields(words), nil); !errors.As(err, &refused) {
			t.Errorf("%q: %v", words, err)
		}
	}
}

func TestDiskRequestsHaveBounds(t *testing.T) {
	m := start(t)
	conn := dial(t, m.Control)
	answers := bufio.NewReader(conn)
	for _, c := range []struct{ request, answer string }{
		{"disk", "error unknown request"},
		{"disk work", "error unknown request"},
		{"disk work start files=0", `error files "0" is not a number between 1 and 4096`},
		{"disk work start files=4 files=4", "error files is given twice"},
		{"disk work start size=4095", "error size"},
		{"disk work start size=5000", "error files of 5000 bytes"},
		{"disk work start every=2h", "error every"},
		{"disk work start colour=red", `error "colour" is no setting`},
		{"disk verify x", "error number of files"},
		{"disk verify 4097", "error number of files"},
		{"disk verify 2\n1 2\n1 1 0000000000000001", "error line 1: 2 words"},
		{"disk verify 1\n1 1 0000000000000001", "damage file 1 is gone"},
		{"disk acks from=0", "error from"},
		{"disk speed mode=erase", `error mode "erase"`},
		{"disk speed bs=1000", "error requests of 1000 bytes"},
		{"disk speed depth=129", "error depth"},
		{"disk speed time=11m", "error time"},
		{"disk speed device=/etc/passwd", "error device"},
		{"disk read", "error unknown request"},
		{"boot", "boot " + bootID}, // still in step
	} {
		if _, err := fmt.Fprintln(conn, c.request); err != nil {
			t.Fatal(err)
		}
		answer, err := answers.ReadString('\n')
		if err != nil || !strings.HasPrefix(answer, c.answer) {
			t.Errorf("%q: %q, %v, want %q", c.request, answer, err, c.answer)
		}
		if strings.HasPrefix(c.request, "disk acks") {
			if _, err := answers.ReadByte(); !errors.Is(err, io.EOF) {
				t.Errorf("a refused stream goes on: %v", err)
			}
			conn = dial(t, m.Control)
			answers = bufio.NewReader(conn)
		}
	}
}
