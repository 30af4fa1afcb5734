package failover

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"understudy/ownership"
)

// TestASnapshotOfBeforeTheSwitchSaysOn: a voter that is started anew with a newer
// program reads what the older one wrote.
func TestASnapshotOfBeforeTheSwitchSaysOn(t *testing.T) {
	const before = `{"lease":{"length":1000000000,"longest":1000000000,"revision":1},"guests":{"web":{"state":{"generation":2,"revision":3,"owner":"alpha",` +
		`"phase":"active","desired":"running","backup":{"host":"beta","image":"01000000000000000000000000000000","epoch":7},"in_sync":true,` +
		`"last_command":"0f000000000000000000000000000000"},"recent":["0f000000000000000000000000000000"]}}}`
	f := newFSM(func(err error) { t.Error(err) })
	if err := f.Restore(io.NopCloser(bytes.NewReader(sealSnapshot([]byte(before))))); err != nil {
		t.Fatal(err)
	}
	if g := f.guest("web"); g.Protection != ownership.ProtectionOn || !g.InSync || g.Backup.Epoch != 7 {
		t.Errorf("read as %+v", g)
	}
	bad := strings.Replace(before, `"in_sync":true`, `"in_sync":true,"protection":"maybe"`, 1)
	if err := f.Restore(io.NopCloser(bytes.NewReader(sealSnapshot([]byte(bad))))); err == nil || !strings.Contains(err.Error(), `protection "maybe" is not known`) {
		t.Errorf("an unknown switch: %v", err)
	}
}

// TestTheSwitchIsInTheLog: an entry, a snapshot, and back.
func TestTheSwitchIsInTheLog(t *testing.T) {
	f := scripted(t)
	for _, k := range []ownership.Kind{ownership.Unprotect, ownership.Pause} {
		c := commandBy(f, hostA, k)
		c.At = 1234
		if res := put(t, f, entry{Kind: entryCommand, Command: &c, Session: session{1, 5}}); res.Refused != "" {
			t.Fatalf("%s: %s", k, res.Refused)
		}
	}
	s, err := f.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	back := newFSM(func(err error) { t.Error(err) })
	if err := back.Restore(io.NopCloser(bytes.NewReader(s.(frozen)))); err != nil {
		t.Fatal(err)
	}
	if g := back.guest(guest); g.Protection != ownership.ProtectionPaused || g.ProtectionSince != 1234 {
		t.Errorf("it came back as %+v", g)
	}
}
