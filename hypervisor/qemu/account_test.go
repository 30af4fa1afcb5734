package qemu

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What keeps QEMU's account out is named: the file, the account and the
// directory.
func TestAccountIsKeptOut(t *testing.T) {
	open := openDir(t)
	closed := filepath.Join(open, "closed")
	must(t, os.Mkdir(closed, 0o700))
	readable, secret, inside := filepath.Join(open, "readable"), filepath.Join(open, "secret"), filepath.Join(closed, "file")
	must(t, os.WriteFile(readable, nil, 0o644))
	must(t, os.WriteFile(secret, nil, 0o600))
	must(t, os.WriteFile(inside, nil, 0o644))
	nobody := account{set: true, uid: 65534, gid: 65534, name: "nobody"}
	for path, culprit := range map[string]string{readable: "", secret: secret, inside: closed} {
		err := nobody.canRead(path)
		if culprit == "" && err != nil || culprit != "" && (err == nil || !strings.HasSuffix(err.Error(), culprit) || !strings.Contains(err.Error(), "nobody")) {
			t.Errorf("%s: got %v, want an error that ends in %q", path, err, culprit)
		}
	}
	owner := account{set: true, uid: uint32(os.Getuid()), gid: 0, name: "owner"}
	if err := owner.canRead(secret); err != nil {
		t.Error(err)
	}

	c := testConfig(t, "q35")
	c.NICs = []NIC{{MAC: guestMAC, GuestSocket: filepath.Join(closed, "g"), HostSocket: filepath.Join(closed, "h")}}
	if _, err := newDriver(t, c).Start(t.Context()); err == nil || !strings.Contains(err.Error(), closed) || !strings.Contains(err.Error(), "chmod") {
		t.Errorf("sockets where QEMU cannot go: %v", err)
	}
	c = testConfig(t, "q35")
	c.Kernel = secret
	if _, err := newDriver(t, c).Start(t.Context()); err == nil || !strings.Contains(err.Error(), secret) {
		t.Errorf("a kernel that QEMU cannot read: %v", err)
	}
}
