package main

// What the scripts about checkpoint files need besides: a file that nobody's
// daemon made, and damage to it; and the bar, for which scripts have no terminal.

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"understudy/checkpoint"
	"understudy/epoch"
)

// onDisk says that one page's content is on a disk.
type onDisk struct{ print epoch.Fingerprint }

func (o onDisk) FindPrint(page epoch.GFN, print epoch.Fingerprint) (epoch.Reference, bool, bool) {
	return epoch.Reference{Page: page, Sector: 8, Print: print}, true, print == o.print
}

// checkpointFile makes a file of a guest "lonely": 1024 pages, of which two are
// stored and one is on a disk.
func checkpointFile(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: checkpointfile FILE")
	}
	const pages, key = 1024, epoch.PrintKey(7)
	content := func(b byte) []byte { return bytes.Repeat([]byte{b, 1, 2, 3}, epoch.PageSize/4) }
	w, err := checkpoint.Create(ts.MkAbs(args[0]), checkpoint.Head{Guest: "lonely", Hypervisor: "test", Created: time.Unix(1e9, 0).UTC(),
		Generation: 3, Pages: pages, Key: key, Machine: []byte("machine")}, checkpoint.Options{Finder: onDisk{key.Of(content('d'))}})
	ts.Check(err)
	defer func() { _ = w.Abort() }()
	memory := make([]byte, pages*epoch.PageSize)
	for page, b := range map[int]byte{3: 'a', 4: 'd', 500: 'b'} {
		copy(memory[page*epoch.PageSize:], content(b))
	}
	ts.Check(w.Pages(0, memory))
	ts.Check(w.Stale(epoch.NewPageSet(pages)))
	ts.Check(w.Final(checkpoint.Final{DeviceState: []byte("devices"),
		Disks: []checkpoint.Disk{{Name: "/srv/lonely.img", Store: "shared", Sectors: 2048, Stamp: "1"}}}))
	_, err = w.Commit(nil)
	ts.Check(err)
}

// damage turns over one byte of a file.
func damage(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: damage FILE OFFSET")
	}
	at, err := strconv.Atoi(args[1])
	ts.Check(err)
	b, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	b[at] ^= 0xff
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o600))
}

func TestTheBarIsWipedAway(t *testing.T) {
	var out strings.Builder
	b := &bar{w: &out}
	b.show("memory", 0, 1000)
	b.show("memory", 500, 1000)
	b.show("starting", 0, 0)
	b.end()
	screen := make([]byte, 0, 80)
	at := 0
	for _, c := range []byte(out.String()) { // a terminal
		if c == '\r' {
			at = 0
			continue
		}
		screen = append(screen[:at], append([]byte{c}, screen[min(len(screen), at+1):]...)...)
		at++
	}
	if left := strings.TrimSpace(string(screen)); left != "" {
		t.Errorf("left on the terminal: %q", left)
	}
	for _, want := range []string{"memory    [" + strings.Repeat("=", 15) + strings.Repeat(" ", 15) + "]  50% 3.9 MiB", "\rstarting "} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q has no %q", out.String(), want)
		}
	}
	silent := &bar{}
	silent.show("memory", 1, 2)
	silent.end()
}
