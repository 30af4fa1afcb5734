package qemu

import (
	"bytes"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A killed machine is gone the moment it is killed, whatever time the kernel
// takes for its memory: who records that a takeover runs must not be told that
// it lives.
func TestAKilledProcessHasEnded(t *testing.T) {
	for round := range 5 {
		cmd := exec.Command("perl", "-e", `$memory = "x" x 256e6; sleep 60`)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		id, err := identify(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		p, err := watch(id, nil)
		if err != nil {
			t.Fatal(err)
		}
		waitForMemory(t, id.PID, 200<<20)
		if p.ended() {
			t.Fatalf("round %d: a process that lives has ended", round)
		}
		if err := unix.PidfdSendSignal(p.pidfd, unix.SIGKILL, nil, 0); err != nil {
			t.Fatal(err)
		}
		if !p.ended() {
			t.Errorf("round %d: a process that was killed has not ended", round)
		}
		<-p.gone
		if !p.ended() {
			t.Errorf("round %d: a process that is gone has not ended", round)
		}
		p.letGo()
		_ = cmd.Process.Release() // reaped already
	}
}

func waitForMemory(t *testing.T, pid int, bytesWanted uint64) {
	t.Helper()
	for limit := time.Now().Add(30 * time.Second); time.Now().Before(limit); time.Sleep(5 * time.Millisecond) {
		text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/statm")
		if err != nil {
			t.Fatal(err)
		}
		if f := bytes.Fields(text); len(f) > 1 {
			if pages, err := strconv.ParseUint(string(f[1]), 10, 64); err == nil && pages*4096 >= bytesWanted {
				return
			}
		}
	}
	t.Fatalf("process %d did not take %d bytes of memory", pid, bytesWanted)
}
