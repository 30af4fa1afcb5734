package stream

// Xen's own verify-stream-v2 reads what is written here. It comes out of
// Debian's package, which is unpacked, not installed: it needs no Xen.

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const (
	// cache holds what is fetched once: see make clean.
	cache     = "../../../build/xen"
	xenUtils  = "xen-utils-4.17"
	verifier  = "usr/lib/xen-4.17/bin/verify-stream-v2"
	xenPython = "usr/lib/xen-4.17/lib/python"
)

// xenTools returns the directory into which Debian's package is unpacked.
func xenTools(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join(cache, xenUtils))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, verifier)); err == nil {
		return dir
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	fetched, err := os.MkdirTemp(cache, "fetch-")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(fetched) }()
	says := func(name string, args ...string) {
		t.Helper()
		c := exec.CommandContext(t.Context(), name, args...)
		c.Dir = fetched
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
	}
	says("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", xenUtils)
	debs, err := filepath.Glob(filepath.Join(fetched, "*.deb"))
	if err != nil || len(debs) != 1 {
		t.Fatalf("apt-get download made %q, %v", debs, err)
	}
	says("dpkg-deb", "-x", filepath.Base(debs[0]), "root")
	if err := os.Rename(filepath.Join(fetched, "root"), dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// verify returns what Xen's tool says of a stream, and whether it takes it.
func verify(t *testing.T, format string, data []byte) (string, bool) {
	t.Helper()
	tools := xenTools(t)
	c := exec.CommandContext(t.Context(), "python3", filepath.Join(tools, verifier), "--verbose", "--format", format)
	c.Env = append(os.Environ(), "PYTHONPATH="+filepath.Join(tools, xenPython), "PYTHONDONTWRITEBYTECODE=1")
	path := filepath.Join(t.TempDir(), "stream") // of a pipe it reads no large record
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }() // it was only read
	c.Stdin = in
	out, err := c.CombinedOutput()
	return string(out), err == nil
}

func TestXenVerifiesWhatIsWritten(t *testing.T) {
	head, err := SaveFile{Config: []byte(`{"c_info":{"type":"pvh","name":"web"}}`), JSON: true}.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	for seed := range 4 {
		records := plain(domains().Example(seed))
		file := bytes.NewBuffer(bytes.Clone(head))
		write(t, file, false, records)
		if out, ok := verify(t, "xl", file.Bytes()); !ok {
			t.Errorf("%v (example %d):\n%s", records[0], seed, out)
		}
		bare := new(bytes.Buffer)
		write(t, bare, true, withoutLibxl(records))
		if out, ok := verify(t, "libxc", bare.Bytes()); !ok {
			t.Errorf("%v alone (example %d):\n%s", records[0], seed, out)
		}
	}
}

// plain leaves out what Xen's tool cannot read: checkpoints, after which libxl's
// records come, and keys of an emulator (it compares a byte with a character,
// which no Python 3 finds equal).
func plain(records []Record) []Record {
	var out []Record
	for i := 0; i < len(records); i++ {
		if _, ok := records[i].(Checkpoint); ok {
			out = append(out, Verify{})
			for records[i] != (CheckpointEnd{}) {
				i++
			}
			continue
		}
		if store, ok := records[i].(EmulatorStore); ok {
			records[i] = EmulatorStore{Emulator: store.Emulator}
		}
		out = append(out, records[i])
	}
	return out
}

// The golden streams are Xen's, too; and its tool does find what is wrong.
func TestXenVerifiesTheGoldenStreams(t *testing.T) {
	pvh, pv := golden(t, "pvh"), golden(t, "pv")
	for _, c := range []struct {
		name, format string
		data         []byte
		want         string
		ok           bool
	}{
		{"pvh", "xl", pvh, "Libxc Record: HVM params, length 24", true},
		{"pv", "libxc", pv, "64bit guest, 4 levels of pagetables", true},
		{"a cut one", "xl", pvh[:len(pvh)-8], "Stream truncated", false},
		{"another version", "libxc", append(append(bytes.Clone(pv[:15]), 4), pv[16:]...), "Unknown image version", false},
	} {
		out, ok := verify(t, c.format, c.data)
		if ok != c.ok || !strings.Contains(out, c.want) {
			t.Errorf("%s: taken: %v, want %v and %q:\n%s", c.name, ok, c.ok, c.want, out)
		}
	}
}
