package main

import (
	"testing"
)

// FuzzParseCommandLine: no panic, and what is set up can be set up.
func FuzzParseCommandLine(f *testing.F) {
	f.Add("console=ttyS0 understudy.ip=10.0.0.2/24 understudy.gw=10.0.0.1 understudy.shell")
	f.Add("understudy.disk=/dev/vda")
	f.Add("understudy.ip=fe80::1/64 understudy.gw=::1")
	f.Add("understudy.ip=10.0.0.2/33 understudy.disk= understudy.shell=no")
	f.Fuzz(func(t *testing.T, line string) {
		s, err := parseCommandLine(line)
		if s.address.IsValid() && !s.address.Addr().Is4() || s.gateway.IsValid() && !s.gateway.Is4() {
			t.Errorf("%q set up %v by %v (%v)", line, s.address, s.gateway, err)
		}
	})
}
