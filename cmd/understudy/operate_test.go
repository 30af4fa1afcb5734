package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy/backup"
	"understudy/disk"
	"understudy/exclusion"
	"understudy/host"
	"understudy/ownership"
	"understudy/primary"
	"understudy/status"
)

func TestSizesAreForPeople(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0 B", 1: "1 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB",
		1<<20 - 1: "1024.0 KiB", 1 << 20: "1.0 MiB", 5 << 30: "5.0 GiB", 3 << 40: "3.0 TiB", 1 << 50: "1.0 PiB",
		1 << 60: "1.0 EiB", ^uint64(0): "16.0 EiB",
	} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q, want %q", n, got, want)
		}
	}
}

const (
	ms = time.Millisecond
	us = time.Microsecond
)

// report is a host that runs one guest, stands by for another, and has trouble
// with a third; of a fourth it knows nothing yet.
func report() status.Report {
	return status.Report{
		Version: status.Version, Host: "alpha", Leader: "witness", Lease: time.Second,
		Exits: map[string][]status.Exit{"web": {
			{Device: "network 52:54:00:12:34:56", Treatment: "held until its epoch is committed"},
			{Device: "disk /srv/web.raw", Treatment: "read only"},
		}},
		Guests: []host.GuestStatus{
			{Name: "db", Host: "alpha", Role: "backup", Protected: host.ProtectedUnknown,
				Log:    ownership.Guest{Generation: 3, Owner: "beta", Phase: ownership.PhaseActive, Desired: ownership.Running},
				Backup: &backup.Status{State: "fed", Epoch: 77, EpochAge: 12*ms + 300*us, InSync: true}},
			{Name: "mail", Host: "alpha", Role: "booting", Protected: host.ProtectedUnknown, Problem: "start the guest: no such kernel",
				Log: ownership.Guest{Generation: 1, Owner: "alpha", Phase: ownership.PhaseActive, Desired: ownership.Running}},
			{Name: "new", Host: "alpha", Protected: host.ProtectedUnknown},
			{Name: "web", Host: "alpha", Role: "primary", Protected: host.ProtectedYes,
				Log: ownership.Guest{Generation: 2, Owner: "alpha", Phase: ownership.PhaseActive, Desired: ownership.Running, InSync: true},
				Primary: &primary.Status{Mode: primary.ModeProtected, ModeFor: 90 * time.Second, Backup: "beta",
					Epoch: 4711, EpochAge: 21 * ms, Pause: primary.Percentiles{Median: 1234 * us, P99: 5678 * us},
					Lag: primary.Percentiles{Median: 2500 * us, P99: 9 * ms}, Held: 3, HeldBytes: 4242,
					Totals: primary.Totals{RawBytes: 10 << 20, WireBytes: 1 << 20, ZeroPages: 5, SamePages: 6}, LinkError: "session closed by the peer"},
				Excluded: &exclusion.Stats{Mapped: 1200, Indexed: 30, Copied: 4, Unknown: 77, Changed: 8, Overwritten: 9},
				Disks: &disk.Status{Mode: "hold", Writes: 12, Bytes: 48 << 10, Limit: 64 << 20, Problem: "disk 0: no space left on device",
					Disks: []disk.DiskStatus{{Sectors: 8 << 20, Store: "replicated", Writer: true, Differ: 64 << 10}}}},
		},
	}
}

// TestACertificateThatRunsOutIsSpokenOfInTime: not while it has more than a month.
func TestACertificateThatRunsOutIsSpokenOfInTime(t *testing.T) {
	now := time.Date(2020, 3, 1, 12, 0, 0, 0, time.UTC)
	r := status.Report{Host: "alpha", Certificates: []status.Certificate{
		{Of: "host", Until: now.Add(expiryNotice - time.Hour)}, {Of: "authority", Until: now.Add(expiryNotice)}, {Of: "endpoint", Until: now.Add(-time.Hour)},
	}}
	want := []string{
		"host alpha's certificate runs out on 2020-03-31 (see the guide)",
		"the certificate of host alpha's status endpoint ran out on 2020-03-01: nobody new can connect (see the guide)",
	}
	if got := runningOut(r, now); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	var b, all bytes.Buffer
	if err := errors.Join(printStatus(&b, r), printAll(&all, []hostStatus{{Host: "alpha", Report: &r}})); err != nil {
		t.Fatal(err)
	}
	for _, said := range want {
		past := strings.Replace(said, "runs out on 2020-03-31", "ran out on 2020-03-31: nobody new can connect", 1)
		if !strings.Contains(b.String(), past) || !strings.Contains(all.String(), past) {
			t.Errorf("%q is missing from\n%s\nor from\n%s", past, b.String(), all.String())
		}
	}
}

// TestStatusTable is a golden table: what an operator reads first comes first.
func TestStatusTable(t *testing.T) {
	const want = `host alpha, ownership led by witness, lease 1s

guest          db
  now          stands by here, 12ms behind the owner beta; a failover now would go on from epoch 77
  protected    unknown here (ask host beta, the owner)
  owner        beta, generation 3, active, meant to be running
  here         backup
  image        fed, epoch 77, committed 12ms ago, could take over: true
guest          mail
  now          booting here, NOT protected
  protected    unknown here (ask host alpha, the owner)
  owner        alpha, generation 1, active, meant to be running
  here         booting
  problem      start the guest: no such kernel
guest          new
  now          starting here; nothing of it was heard from the ownership log yet
  protected    unknown here (nothing of it was heard from the ownership log yet)
  owner        not known: nothing of it was heard from the ownership log yet
  here         starting
guest          web
  now          protected by beta, 21ms behind; a failover now: granted within 1s (what is left of the lease), set back by 21ms at most; no output that was seen is lost
  protected    yes, by host beta, for 1m30s
  owner        alpha, generation 2, active, meant to be running
  here         primary
  last commit  epoch 4711, 21ms ago
  pause        1.23ms median, 5.68ms p99
  commit lag   2.5ms median, 9ms p99
  sent         1.0 MiB for 10.0 MiB of dirty pages (90% left out)
  not sent     1200 pages read from the disk, 30 found on it by content, 4 equal to another, 5 zero, 6 unchanged
  sent all the same 77 on no disk, 8 changed since, 9 whose block was overwritten, 0 not verified there, 0 past the limit
  held output  3 frames, 4.1 KiB
  last trouble session closed by the peer
  held writes  12, 48.0 KiB of at most 64.0 MiB (hold)
  disk 0       4.0 GiB, replicated, written here; the backup's copy: 0 B to compare, 64.0 KiB to send
  disk trouble disk 0: no space left on device
  way out      network 52:54:00:12:34:56: held until its epoch is committed
  way out      disk /srv/web.raw: read only
`
	var b bytes.Buffer
	if err := printStatus(&b, report()); err != nil {
		t.Fatal(err)
	}
	// The width of the first column is the tabwriter's business.
	squeeze := func(s string) string {
		lines := strings.Split(s, "\n")
		for i, l := range lines {
			trimmed := strings.TrimLeft(l, " ")
			lines[i] = l[:len(l)-len(trimmed)] + strings.Join(strings.Fields(trimmed), " ")
		}
		return strings.Join(lines, "\n")
	}
	if got := squeeze(b.String()); got != squeeze(want) {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
	// And the columns stand under each other.
	column := -1
	for _, l := range strings.Split(b.String(), "\n") {
		if rest, ok := strings.CutPrefix(l, "guest"); ok {
			at := len(l) - len(strings.TrimLeft(rest, " "))
			if column >= 0 && at != column {
				t.Errorf("the guests' names stand in columns %d and %d:\n%s", column, at, b.String())
			}
			column = at
		}
	}
}

func TestProtectionIsToldInOneLine(t *testing.T) {
	for _, c := range []struct {
		about string
		p     primary.Status
		want  string
	}{
		{"no backup", primary.Status{Mode: primary.ModeAlone, ModeFor: 3 * time.Second}, "NO: alone for 3s"},
		{"first synchronisation", primary.Status{Mode: primary.ModeSyncing, Pages: 1000, Remaining: 250}, "NO: syncing, 75% done"},
		{"the last of it", primary.Status{Mode: primary.ModeEntering, ModeFor: time.Second, Pages: 1000}, "NO: entering for 1s"},
		{"a lost backup", primary.Status{Mode: primary.ModeDetaching, ModeFor: 2 * time.Second}, "NO: detaching for 2s"},
	} {
		g := host.GuestStatus{Name: "web", Protected: host.ProtectedNo, Primary: &c.p}
		if got := protectedText(g); got != c.want {
			t.Errorf("%s: %q, want %q", c.about, got, c.want)
		}
	}
}

// answering is a daemon's socket that answers every request with v.
func answering(t *testing.T, code int, v any) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "us") // short: it holds a Unix socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket = filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(v) // the client tells if it did not come
	})}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	t.Cleanup(func() { _, _ = s.Close(), <-ended })
	return socket
}

// TestExitStatusTellsTheOutcome: scripts go by it, so it must be honest.
func TestExitStatusTellsTheOutcome(t *testing.T) {
	unprotected := report()
	unprotected.Guests[3].Protected = host.ProtectedNo
	paused := report()
	paused.Guests[3].Protected = host.ProtectedNo
	paused.Guests[3].Log.Protection, paused.Guests[3].Log.ProtectionSince = ownership.ProtectionPaused, time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).UnixMilli()
	paused.Guests[3].Primary.Mode = primary.ModeAlone
	elsewhere := ownership.Guest{Generation: 5, Owner: "beta", Phase: ownership.PhaseActive, Desired: ownership.Running}
	refused := map[string]string{"error": `guest "web" is not protected (alone)`}
	for _, c := range []struct {
		about  string
		args   []string
		code   int
		answer any
		status int // 0: no error
		want   string
	}{
		{"all is well", []string{"status"}, 200, report(), 0, "protected"},
		{"a guest is not protected", []string{"status"}, 200, unprotected, exitUnprotected, "guest web is not protected"},
		{"the same as JSON", []string{"status", "-o", "json"}, 200, unprotected, exitUnprotected, `"protected": "no"`},
		{"paused by an operator", []string{"status"}, 200, paused, exitUnprotected, "guest web is not protected: its protection is paused by an operator since 2026-01-02 03:04:05 UTC"},
		{"and its table says so", []string{"status"}, 200, paused, exitUnprotected, "NO: paused by an operator"},
		{"given up", []string{"unprotect", "web"}, 200, elsewhere, 0, "without protection until `understudy protect web`"},
		{"paused", []string{"pause", "web"}, 200, elsewhere, 0, "without protection until `understudy resume web`"},
		{"resumed", []string{"resume", "web"}, 200, elsewhere, 0, "guest web is to be protected again"},
		{"protected again", []string{"protect", "web"}, 200, elsewhere, 0, "guest web is to be protected again"},
		{"brought home", []string{"failback", "web"}, 200, elsewhere, 0, "guest web is back on host beta (generation 5)"},
		{"not brought home", []string{"failback", "web"}, 409, map[string]string{"error": `guest "web" cannot go back to alpha`}, exitFailed, "cannot go back to alpha"},
		{"moved", []string{"switchover", "web"}, 200, elsewhere, 0, "guest web runs on host beta (generation 5)"},
		{"not moved", []string{"switchover", "web"}, 409, refused, exitFailed, "is not protected (alone)"},
		{"stopped", []string{"stop", "web"}, 200, elsewhere, 0, "guest web is stopped"},
		{"started", []string{"start", "web"}, 200, elsewhere, 0, "guest web is starting on host beta"},
		{"identical", []string{"verify", "web"}, 200, primary.VerifyResult{Pages: 9, Epochs: 2, First: 4, Last: 5, Identical: true}, 0,
			"9 pages compared over 2 checkpoints (4 to 5): identical"},
		{"different", []string{"verify", "web"}, 200, primary.VerifyResult{Pages: 9, Epochs: 2, First: 4, Last: 5}, exitDiffers, "DIFFERENT"},
	} {
		t.Run(c.about, func(t *testing.T) {
			out, err := command(t, append(c.args, "--socket", answering(t, c.code, c.answer))...)
			got := 0
			if err != nil {
				got = exitOf(err)
				out += err.Error()
			}
			if got != c.status || !strings.Contains(out, c.want) {
				t.Errorf("exit status %d and %q; want %d and %q", got, out, c.status, c.want)
			}
		})
	}
}
