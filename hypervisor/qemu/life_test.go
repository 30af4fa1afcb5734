package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy/epoch"
	"understudy/hypervisor"
	"understudy/hypervisor/qemu/qmp"
)

// dieWithGuest is another process of this program: it starts a guest, tracks
// it, lets it run and dies without a word.
func dieWithGuest(config string) error {
	var c Config
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	d, err := NewDriver(c, discardLog())
	if err != nil {
		return err
	}
	g, err := d.Start(ctx)
	if err != nil {
		return err
	}
	if _, err := d.Standby(ctx, g.Spec()); err != nil {
		return err // it is left behind as well
	}
	if err := g.CollectDirty(epoch.NewPageSet(g.Pages())); err != nil {
		return err
	}
	if err := g.Resume(ctx); err != nil {
		return err
	}
	if err := waitCounting(ctx, g); err != nil {
		return err
	}
	fmt.Println(g.(*Guest).vm.proc.identity.PID)
	return unix.Kill(os.Getpid(), unix.SIGKILL)
}

// A daemon that is killed leaves its guest running; the next one adopts it,
// and loses nothing of it.
func TestGuestOutlivesItsDaemon(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := testConfig(t, "q35")
	hosts := newPair(t, c)
	c = hosts.a.cfg
	text, err := json.Marshal(c)
	must(t, err)
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, os.Args[0], "die-with-guest", string(text))
	cmd.Stdout, cmd.Stderr = &said, os.Stderr
	err = cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Exited() {
		t.Fatalf("the other daemon was not killed: %v", err)
	}

	g, err := hosts.a.Adopt(ctx)
	must(t, err)
	drain(t, g)
	if pid := fmt.Sprintln(g.(*Guest).vm.proc.identity.PID); pid != said.String() {
		t.Fatalf("adopted process %sthe other daemon started %s", pid, said.String())
	}
	if left, err := filepath.Glob(filepath.Join(c.ImageDir, "*.ram")); err != nil || len(left) != 1 {
		t.Fatalf("after the adoption there are the memory files %q (%v), want the guest's only", left, err)
	}
	at, err := readCounter(ctx, g)
	must(t, err)
	must(t, g.Resume(ctx))
	must(t, waitCounting(ctx, g))
	if now, err := readCounter(ctx, g); err != nil || now < at {
		t.Fatalf("the guest went from %d to %d (%v)", at, now, err)
	}
	sb, err := hosts.b.Standby(ctx, g.Spec())
	must(t, err)
	t.Cleanup(func() { must(t, sb.Destroy()) })
	state := commit(ctx, t, g, sb)
	if d := differs(t, g, sb); len(d) != 0 {
		t.Fatalf("after the commit %d pages differ", len(d))
	}
	must(t, sb.Load(ctx, state, nil))
}

// A guest that reboots while it is protected stays protected: what its firmware
// writes anew travels too, and the standby takes over the booted machine.
func TestRebootStaysProtected(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	hosts := newPair(t, testConfig(t, "pc"))
	g, err := hosts.a.Start(ctx)
	must(t, err)
	drain(t, g)
	must(t, g.Resume(ctx))
	must(t, waitCounting(ctx, g))
	sb, err := hosts.b.Standby(ctx, g.Spec())
	must(t, err)
	t.Cleanup(func() { must(t, sb.Destroy()) })
	commit(ctx, t, g, sb)
	must(t, g.Resume(ctx))

	must(t, press(ctx, g, "r"))
	// Commits fall into the middle of the boot as well.
	for round := 0; ; round++ {
		commit(ctx, t, g, sb)
		if round%5 == 0 { // to compare everything takes longer than the rest
			if d := differs(t, g, sb); len(d) != 0 {
				t.Fatalf("commit %d: %d pages differ, the first is %d", round, len(d), d[0])
			}
		}
		must(t, g.Resume(ctx))
		said, err := os.ReadFile(hosts.consoleA)
		must(t, err)
		if bytes.Count(said, []byte("boot")) == 2 {
			break
		}
		must(t, ctx.Err())
	}
	must(t, waitCounting(ctx, g))
	must(t, sb.Load(ctx, commit(ctx, t, g, sb), nil))
	at, err := readCounter(ctx, g)
	must(t, err)
	must(t, g.Destroy())
	next, err := sb.Run(ctx)
	must(t, err)
	drain(t, next)
	must(t, waitCounting(ctx, next))
	if now, err := readCounter(ctx, next); err != nil || now <= at {
		t.Fatalf("the guest went on at %d (%v), the commit was at %d", now, err, at)
	}
}

// A record that names a process number which now belongs to another process
// adopts nothing and kills nothing.
func TestStaleRecordHitsNobody(t *testing.T) {
	ctx := t.Context()
	d := newDriver(t, testConfig(t, "q35"))
	must(t, d.Prepare())
	other := exec.Command("/bin/sleep", "60")
	must(t, other.Start())
	t.Cleanup(func() { _ = other.Process.Kill(); _ = other.Wait() })
	real, err := identify(other.Process.Pid)
	must(t, err)
	earlier, boot := real, real
	earlier.Start--
	boot.Boot = "another"
	for name, id := range map[string]identity{"started at another time": earlier, "of another boot": boot} {
		at, err := newPlace(&d.cfg)
		must(t, err)
		must(t, at.save(record{Role: roleGuest, Process: id}))
		if _, err := d.Adopt(ctx); !errors.Is(err, hypervisor.ErrNoGuest) {
			t.Fatalf("%s: adopt gave %v", name, err)
		}
		must(t, d.Clean(ctx))
		if now, err := identify(other.Process.Pid); err != nil || now != real {
			t.Fatalf("%s: the other process was hit: %v", name, err)
		}
		if _, err := os.Stat(at.dir); !os.IsNotExist(err) {
			t.Fatalf("%s: the record is still there: %v", name, err)
		}
	}
}

// A QEMU that was started just before its daemon died is in no record. Clean
// finds it by its memory file.
func TestCleanEndsUnrecordedMachine(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	d := newDriver(t, testConfig(t, "microvm"))
	g, err := d.Start(ctx)
	must(t, err)
	drain(t, g)
	must(t, os.Remove(filepath.Join(g.(*Guest).vm.place.dir, "record")))
	must(t, d.Clean(ctx))
	must(t, g.(*Guest).vm.proc.waitGone(ctx))
	for _, dir := range []string{d.cfg.RunDir, d.cfg.ImageDir} {
		if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 0 {
			t.Errorf("%q are left", left)
		}
	}
}

// What QEMU itself refuses is told in its own words.
func TestStartSaysWhyQEMURefused(t *testing.T) {
	c := testConfig(t, "q35")
	c.ExtraArgs = []string{"-device", "VGA,frobnicate=on"}
	d := newDriver(t, c)
	_, err := d.Start(t.Context())
	if err == nil || !bytes.Contains([]byte(err.Error()), []byte("frobnicate")) {
		t.Fatalf("got %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(c.RunDir, "vm-*")); len(left) != 0 {
		t.Errorf("%q are left", left)
	}
}

// QEMU runs as the unprivileged account, in a session of its own, with a
// system call filter.
func TestQEMUIsConfined(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	d := newDriver(t, testConfig(t, "q35"))
	g, err := d.Start(ctx)
	must(t, err)
	drain(t, g)
	pid := g.(*Guest).vm.proc.identity.PID
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	for _, want := range []string{"Uid:\t65534\t65534\t65534\t65534", "Gid:\t65534\t65534\t65534\t65534", "Groups:\t \n", "CapEff:\t0000000000000000", "Seccomp:\t2"} {
		if !bytes.Contains(status, []byte(want)) {
			t.Errorf("no %q in the status of QEMU:\n%s", want, status)
		}
	}
	if sid, err := unix.Getsid(pid); err != nil || sid != pid {
		t.Errorf("QEMU is in session %d (%v), not in its own", sid, err)
	}
}

func TestInterpretEvents(t *testing.T) {
	tests := []struct {
		name, data string
		want       hypervisor.EventKind
	}{
		{"SHUTDOWN", `{"guest":true,"reason":"guest-shutdown"}`, hypervisor.EventShutdown},
		{"SHUTDOWN", `{"guest":false,"reason":"host-signal"}`, 0},
		{"RESET", `{"guest":true,"reason":"guest-reset"}`, hypervisor.EventReset},
		{"RESET", `{"guest":false,"reason":"host-qmp-system-reset"}`, hypervisor.EventReset},
		{"GUEST_PANICKED", `{"action":"pause"}`, hypervisor.EventPanic},
		{"GUEST_PANICKED", `{"action":"run"}`, 0},
		{"BLOCK_IO_ERROR", `{"action":"stop","device":"disk0"}`, hypervisor.EventFault},
		{"BLOCK_IO_ERROR", `{"action":"report","device":"disk0"}`, 0},
		{"STOP", ``, 0}, {"RESUME", ``, 0}, {"NONE_OF_THESE", `{"guest":true}`, 0}, {"SHUTDOWN", `[]`, 0},
	}
	for _, test := range tests {
		if got, _ := interpret(qmp.Event{Name: test.name, Data: json.RawMessage(test.data)}); got != test.want {
			t.Errorf("%s %s means %v, want %v", test.name, test.data, got, test.want)
		}
	}
}
