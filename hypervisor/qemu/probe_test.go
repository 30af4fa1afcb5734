package qemu

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// The trial guest finishes its work under TCG: a host where it does not under
// KVM has a KVM that is slower than emulation, or none.
func TestTrialGuestFinishes(t *testing.T) {
	kernel := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(kernel, trialKernel(), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	start := time.Now()
	out, _ := exec.CommandContext(ctx, defaultQEMU, trialArguments(AccelTCG, kernel)...).Output()
	if !bytes.Contains(out, []byte(trialWord)) {
		t.Fatalf("the trial guest said %q", out)
	}
	t.Logf("trial guest under TCG: %v", time.Since(start))
}

func TestKVMTrialEnds(t *testing.T) {
	start := time.Now()
	err := tryKVM(context.Background(), defaultQEMU)
	t.Logf("KVM: %v after %v", err, time.Since(start))
	if took := time.Since(start); took > probeLimit+5*time.Second {
		t.Fatalf("the trial took %v", took)
	}
}
