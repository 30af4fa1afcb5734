package qemu

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"understudy/epoch"
	"understudy/hypervisor"
	"understudy/hypervisor/qemu/dirty"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "dirty-helper" {
		os.Exit(dirty.HelperMain(os.Args[2:]))
	}
	if len(os.Args) > 2 && os.Args[1] == "die-with-guest" {
		fmt.Fprintln(os.Stderr, dieWithGuest(os.Args[2]))
		os.Exit(1)
	}
	if len(os.Args) > 2 && strings.HasPrefix(os.Args[1], "unfilled-") {
		fmt.Fprintln(os.Stderr, unfilled(os.Args[2], os.Args[1] == "unfilled-end"))
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// countingCode is a guest of a few instructions, assembled like trialCode from
// testdata/guest.S: it writes "boot" to its serial port, counts up at 2 MiB,
// writes the count to one of 1024 pages from 4 MiB on in turn, and looks at
// the keyboard: p powers off, r resets, k reports a panic.
const countingCode = "" +
	"fabc00003000c7050000200000000000c7050400200000000000be95001000e8" +
	"640000008305000020000183150400200000a10000200089c181e1ff030000c1" +
	"e10c898100004000a9ff03000075d5e4643cff74cfa80174cbe4603c1974113c" +
	"1374193c2575bd66ba0505b001eeebb466ba040666b8002066efeba866baf90c" +
	"b002eeb006eeeb9c66baf803ac84c07403eeebf8c3626f6f740a00"

const counterPage = 0x200000 / epoch.PageSize

// kernelFile writes the counting guest where QEMU's account can read it. Its
// code may be changed first.
func kernelFile(t testing.TB, change ...func(code []byte)) string {
	t.Helper()
	code, err := hex.DecodeString(countingCode)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range change {
		f(code)
	}
	path := filepath.Join(openDir(t), "kernel")
	if err := os.WriteFile(path, pvhKernel(code), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// openDir is a temporary directory that QEMU's account can pass through; a
// short name leaves room for sockets.
func openDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "usq")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	return dir
}

func memoryDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "usq")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	return dir
}

// testConfig is a small counting guest on a host of its own.
func testConfig(t testing.TB, machine string) Config {
	t.Helper()
	return Config{
		Name: "counting", Memory: 16 * mib, CPUs: 1, Machine: machine, Accel: AccelTCG,
		Kernel: kernelFile(t), RunDir: filepath.Join(openDir(t), "run"), ImageDir: memoryDir(t),
		// A program built with the race detector sleeps for a second at its end.
		Helper: []string{"/usr/bin/env", "GORACE=atexit_sleep_ms=0", os.Args[0], "dirty-helper"},
	}
}

// onAnotherHost is the same guest with the paths of another host.
func onAnotherHost(t testing.TB, c Config) Config {
	t.Helper()
	c.RunDir, c.ImageDir = filepath.Join(openDir(t), "run"), memoryDir(t)
	if c.Console != "" {
		c.Console = filepath.Join(openDir(t), "console")
	}
	return c
}

func testLog(t testing.TB) *slog.Logger {
	if testing.Verbose() {
		return slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	return discardLog()
}

func discardLog() *slog.Logger { return slog.New(slog.DiscardHandler) }

func newDriver(t testing.TB, c Config) *Driver {
	t.Helper()
	d, err := NewDriver(c, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Clean(context.Background()); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	return d
}

func readCounter(_ context.Context, image hypervisor.Image) (uint64, error) {
	page := make([]byte, epoch.PageSize)
	if err := image.ReadPages(counterPage, page); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(page), nil
}

// waitCounting waits until a running guest counts.
func waitCounting(ctx context.Context, g hypervisor.Guest) error {
	var first uint64
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		n, err := readCounter(ctx, g)
		if err != nil {
			return err
		}
		if first == 0 {
			first = n
		}
		if n > first && first != 0 || n < first {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait until the guest counts: %w", ctx.Err())
		}
	}
}

// press sends a key to the guest.
func press(ctx context.Context, g hypervisor.Guest, key string) error {
	type keyValue struct {
		Type string `json:"type"`
		Data string `json:"data"`
	}
	args := struct {
		Keys []keyValue `json:"keys"`
	}{[]keyValue{{"qcode", key}}}
	return g.(*Guest).vm.client.Execute(ctx, "send-key", args, nil)
}
