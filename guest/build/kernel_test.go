package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// compileModule makes an object file with a section .modinfo, as a module has it.
func compileModule(t *testing.T, depends string) []byte {
	t.Helper()
	source, object := filepath.Join(t.TempDir(), "m.c"), filepath.Join(t.TempDir(), "m.ko")
	text := `const char info[] __attribute__((section(".modinfo"))) = "license=GPL\0depends=` + depends + `";` + "\n"
	if err := os.WriteFile(source, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("gcc", "-c", "-o", object, source).CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	data, err := os.ReadFile(object)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestModulesComeAfterWhatTheyDependOn(t *testing.T) {
	modules := map[string][]byte{}
	for name, depends := range map[string]string{
		"virtio_ring": "", "virtio": "virtio_ring", "virtio_pci": "virtio,virtio_ring",
		"virtio_rng": "virtio", "unwanted": "", "loop_a": "loop_b", "loop_b": "loop_a",
	} {
		modules[name] = compileModule(t, depends)
	}
	read := func(name string) ([]byte, error) {
		if data, ok := modules[name]; ok {
			return data, nil
		}
		return nil, errors.New("no module " + name)
	}
	order, err := loadOrder([]string{"virtio_pci", "virtio-rng"}, read)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range order {
		names = append(names, m.name)
	}
	if got := strings.Join(names, " "); got != "virtio_ring virtio virtio_pci virtio_rng" {
		t.Errorf("order is %q", got)
	}
	if _, err := loadOrder([]string{"loop_a"}, read); err == nil || !strings.Contains(err.Error(), "depends on itself") {
		t.Errorf("a circle gives %v", err)
	}
	if _, err := loadOrder([]string{"vhost"}, read); err == nil {
		t.Error("a missing module is no error")
	}
}

func TestWhatIsNoModuleIsRefused(t *testing.T) {
	if _, err := depends([]byte("#!/bin/sh\n")); err == nil {
		t.Error("a script passes for a module")
	}
}

func TestBusyboxHasToBeStatic(t *testing.T) {
	shell, err := exec.LookPath("bash") // linked with libraries on every Debian
	if err != nil {
		t.Fatal(err)
	}
	if _, err := readBusybox(shell); err == nil || !strings.Contains(err.Error(), "busybox-static") {
		t.Errorf("a dynamically linked program gives %v", err)
	}
	if _, err := readBusybox(""); err != nil {
		t.Error(err)
	}
}
