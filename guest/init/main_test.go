package main

import (
	"net/netip"
	"testing"

	"understudy/guest"
)

func TestCommandLineIsReadBack(t *testing.T) {
	b := guest.Boot{
		Address: netip.MustParsePrefix("10.77.0.50/24"),
		Gateway: netip.MustParseAddr("10.77.0.1"),
		Disk:    guest.Disk{Device: guest.FirstDisk, Dir: guest.DataDir},
		Shell:   true,
	}
	got, err := parseCommandLine(b.CommandLine())
	want := settings{address: b.Address, gateway: b.Gateway, disk: b.Disk, shell: true}
	if err != nil || got != want {
		t.Errorf("%q is read as %+v, %v", b.CommandLine(), got, err)
	}
}

func TestWrongWordsAreNamedAndTheRestIsUsed(t *testing.T) {
	for _, c := range []struct{ line, complaint string }{
		{"understudy.ip=10.0.0.1 understudy.shell", `kernel command line: understudy.ip=10.0.0.1: netip.ParsePrefix("10.0.0.1"): no '/'`},
		{"understudy.shell understudy.ip=fd00::1/64", "kernel command line: understudy.ip=fd00::1/64: only IPv4 is set up"},
		{"understudy.shell understudy.gw=fd00::1", "kernel command line: understudy.gw=fd00::1: only IPv4 is set up"},
		{"understudy.disk=/dev/vda understudy.shell", "kernel command line: understudy.disk=/dev/vda: want DEVICE:DIRECTORY, such as /dev/vda:/data"},
		{"understudy.disk=/dev/../etc/x:/data understudy.shell", "kernel command line: understudy.disk=/dev/../etc/x:/data: want DEVICE:DIRECTORY, such as /dev/vda:/data"},
		{"understudy.disk=/dev/vda:/proc understudy.shell", "kernel command line: understudy.disk=/dev/vda:/proc: the directory is neither /data nor /root"},
	} {
		s, err := parseCommandLine(c.line)
		if err == nil || err.Error() != c.complaint {
			t.Errorf("%q: %v, want %s", c.line, err, c.complaint)
		}
		if s != (settings{shell: true}) {
			t.Errorf("%q is read as %+v", c.line, s)
		}
	}
}
