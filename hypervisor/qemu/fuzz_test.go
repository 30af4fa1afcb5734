package qemu

import (
	"strings"
	"testing"
)

// FuzzHostFacts feeds bytes to what reads the answers of QEMU's program and of
// /proc: no panic, and nothing that was not said.
func FuzzHostFacts(f *testing.F) {
	f.Add("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)")
	f.Add("QEMU emulator version 8.2 (x)")
	f.Add("QEMU emulator version .")
	f.Add("Supported machines are:\npc   Standard PC (i440FX) (alias of pc-i440fx-7.2)\nmicrovm  microvm (i386)\n")
	f.Add("1 (qemu) system) S 1 1 1 0 -1 4194560 1 0 0 0 1 1 0 0 20 0 5 0 123456 1 1")
	f.Add("1 ((()) R")
	f.Fuzz(func(t *testing.T, text string) {
		if major, minor, err := parseVersion(text); err == nil && !strings.HasPrefix(text, "QEMU emulator version ") {
			t.Errorf("%q is version %d.%d", text, major, minor)
		}
		for name, full := range parseMachines([]byte(text)) {
			if !strings.Contains(text, name) || !strings.Contains(text, full) {
				t.Errorf("%q has a machine %q, which is %q", text, name, full)
			}
		}
		if start, err := parseStat([]byte(text)); err == nil && !strings.Contains(text, ")") {
			t.Errorf("%q began at %d", text, start)
		}
	})
}
