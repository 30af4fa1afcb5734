package service_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"understudy/guest/client"
	"understudy/guest/service"
	"understudy/guest/workload"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const bootID = "2e355bc9-96bd-4a7c-9ff9-f2eab6808ac1"

// machine is a machine that serves on loopback.
type machine struct {
	service.Listeners
	power chan service.PowerAction
	disk  string // the directory that stands for the mounted disk
}

func start(t *testing.T) machine {
	t.Helper()
	m := machine{power: make(chan service.PowerAction, 1), disk: t.TempDir()}
	for _, l := range []*net.Listener{&m.Counter, &m.Control, &m.Echo, &m.Throughput} {
		opened, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		*l = opened
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- service.Run(ctx, m.Listeners, service.Config{
			BootID:      bootID,
			StaticPages: 16,
			Disk:        m.disk,
			Drop:        func() error { return nil },
			Run: func(ctx context.Context, words []string, out io.Writer) error {
				return workload.Run(ctx, m.disk, words, out)
			},
			Power: func(a service.PowerAction) { m.power <- a },
			Log:   slog.New(slog.DiscardHandler),
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("services ended with %v", err)
		}
	})
	return m
}

func dial(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestCounterStartsAtOneForEachClientAndLeavesNothingOut(t *testing.T) {
	m := start(t)
	for range 2 {
		s, err := client.OpenStream(t.Context(), dial(t, m.Counter), time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		if s.Boot() != bootID {
			t.Errorf("boot id %q, want %q", s.Boot(), bootID)
		}
		for want := uint64(1); want <= 20; want++ {
			if got, err := s.Next(t.Context()); err != nil || got != want {
				t.Fatalf("number %d is %d, %v", want, got, err)
			}
		}
	}
}

func TestClientSeesABrokenSequence(t *testing.T) {
	for _, c := range []struct {
		name, lines string
		got         uint64
	}{
		{"gap", "1\n2\n4\n", 4}, {"repeat", "1\n2\n2\n", 2}, {"take-back", "1\n2\n1\n", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			here, there := net.Pipe()
			go func() {
				_, _ = bufio.NewReader(there).ReadString('\n')
				_, _ = fmt.Fprintf(there, "boot x\n%s", c.lines)
				_ = there.Close()
			}()
			s, err := client.OpenStream(t.Context(), here, time.Second)
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if _, err := s.Next(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			_, err = s.Next(t.Context())
			var broken *client.BrokenSequence
			if !errors.As(err, &broken) || broken.Want != 3 || broken.Got != c.got {
				t.Errorf("Next says %v, want 3 expected and %d seen", err, c.got)
			}
		})
	}
}

func TestClientGivesUpWhenItsContextEnds(t *testing.T) {
	m := start(t)
	s, err := client.OpenStream(t.Context(), dial(t, m.Counter), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := s.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Next says %v, want %v", err, context.DeadlineExceeded)
	}
}

func TestControl(t *testing.T) {
	m := start(t)
	ctx := t.Context()
	c := client.NewControl(dial(t, m.Control))

	if id, err := c.Boot(ctx); err != nil || id != bootID {
		t.Errorf("boot is %q, %v", id, err)
	}
	before, wall, err := c.Uptime(ctx)
	if err != nil || time.Since(wall).Abs() > time.Minute {
		t.Errorf("uptime is %s, %s, %v", before, wall, err)
	}
	if after, _, err := c.Uptime(ctx); err != nil || after <= before {
		t.Errorf("uptime went from %s to %s, %v", before, after, err)
	}
	n, took, err := c.Work(ctx, 10*time.Millisecond)
	if err != nil || n <= 0 || took < 10*time.Millisecond {
		t.Errorf("work gave %d iterations in %s, %v", n, took, err)
	}
	if pages, err := c.Check(ctx); err != nil || pages != 16 {
		t.Errorf("check saw %d pages, %v", pages, err)
	}

	for _, random := range []bool{false, true} {
		load := client.Dirty{Pages: 100, Every: time.Millisecond, Random: random, AreaMiB: 1, Bytes: 64}
		if err := c.Dirty(ctx, load); err != nil {
			t.Fatal(err)
		}
		for { // more than one round through the area of 256 pages
			p, err := c.DirtyProgress(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if p.Pages != 100*p.Intervals {
				t.Fatalf("%d pages in %d intervals of 100", p.Pages, p.Intervals)
			}
			if pages, err := c.Check(ctx); err != nil || pages != 16+256 {
				t.Fatalf("check saw %d pages, %v", pages, err)
			}
			if p.Intervals > 5 {
				break
			}
		}
	}
	if err := c.StopDirty(ctx); err != nil {
		t.Error(err)
	}

	if err := c.StartSpeed(ctx); err != nil {
		t.Fatal(err)
	}
	for {
		n, _, err := c.Speed(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if n > 0 {
			break
		}
	}
	if err := c.StopSpeed(ctx); err != nil {
		t.Error(err)
	}
}

func TestServicesEndWithWorkStillUnderWay(t *testing.T) {
	m := start(t)
	c := client.NewControl(dial(t, m.Control))
	if err := c.Dirty(t.Context(), client.Dirty{Pages: 1, Every: time.Millisecond, AreaMiB: 1}); err != nil {
		t.Fatal(err)
	}
	if err := c.StartSpeed(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The clean-up waits for all of it.
}

func TestPowerRequestIsAnsweredThenCarriedOut(t *testing.T) {
	for _, want := range []service.PowerAction{service.Poweroff, service.Reboot, service.Panic} {
		m := start(t)
		c := client.NewControl(dial(t, m.Control))
		var err error
		switch want {
		case service.Poweroff:
			err = c.Poweroff(t.Context())
		case service.Reboot:
			err = c.Reboot(t.Context())
		case service.Panic:
			err = c.Panic(t.Context())
		}
		if err != nil {
			t.Errorf("%s: %v", want, err)
			continue
		}
		select {
		case got := <-m.power:
			if got != want {
				t.Errorf("%s led to %s", want, got)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s was not carried out", want)
		}
	}
}

func TestRefusedRequestsSayWhy(t *testing.T) {
	m := start(t)
	for _, c := range []struct {
		listener net.Listener
		request  string
		reason   string
	}{
		{m.Counter, "stream", "want: stream <interval>"},
		{m.Counter, "stream 1us", "not between 1ms and 1m0s"},
		{m.Counter, "stream soon", "no duration"},
		{m.Control, "", "unknown request"},
		{m.Control, "format c:", "unknown request"},
		{m.Control, "dirty pages=1 every=1ms", "pattern= is missing"},
		{m.Control, "dirty pages=1 pages=2", "given twice"},
		{m.Control, "dirty pages=257 every=1ms pattern=seq area=1", "do not fit in an area of 1 MiB"},
		{m.Control, "dirty pages=-1 every=1ms pattern=seq", "not a number between 0"},
		{m.Control, "dirty pages=1 every=1ms pattern=zigzag", "neither seq nor random"},
		{m.Control, "dirty pages=1 every=1ms pattern=seq bytes=12", "not a multiple of 8"},
		{m.Control, "dirty pages=1 every=1ms pattern=seq area=65536", "does not fit"},
		{m.Control, "dirty pages=1 every=1ms pattern=seq speed=9", "none of pages"},
		{m.Control, "work forever", "no duration"},
		{m.Throughput, "source", "want: source <bytes>"},
		{m.Throughput, "sink 99999999999999999999", "not a number between"},
		{m.Throughput, "sink -1", "not a number between"},
		{m.Control, strings.Repeat("x", 600), "at most 512 bytes"},
	} {
		conn := dial(t, c.listener)
		if _, err := fmt.Fprintf(conn, "%s\n", c.request); err != nil {
			t.Fatal(err)
		}
		answer, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil || !strings.HasPrefix(answer, "error ") || !strings.Contains(answer, c.reason) {
			t.Errorf("%.40q is answered %q, %v, want an error with %q", c.request, answer, err, c.reason)
		}
	}
}

func TestOneClientTooManyIsRefused(t *testing.T) {
	m := start(t)
	for range 128 {
		conn := dial(t, m.Echo)
		if _, err := client.Echo(t.Context(), conn, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	answer, err := bufio.NewReader(dial(t, m.Echo)).ReadString('\n')
	if err != nil || !strings.HasPrefix(answer, "error 128 connections") {
		t.Errorf("the next client is told %q, %v", answer, err)
	}
}

func TestEchoSourceSink(t *testing.T) {
	m := start(t)
	echo := dial(t, m.Echo)
	for _, size := range []int{1, 1000, 100_000} {
		if took, err := client.Echo(t.Context(), echo, bytes.Repeat([]byte("e"), size)); err != nil || took <= 0 {
			t.Errorf("echo of %d bytes: %s, %v", size, took, err)
		}
	}
	through := dial(t, m.Throughput)
	for _, size := range []int64{0, 1, 1 << 20} {
		if _, err := client.Source(t.Context(), through, size); err != nil {
			t.Error(err)
		}
		if _, err := client.Sink(t.Context(), through, size); err != nil {
			t.Error(err)
		}
	}
}
