package main

// A support bundle holds what it says, and nothing that opens anything: the files
// with keys and tokens that a host has are set up around it, a daemon is played
// that blurts out its own, and then every byte of the bundle is looked at.

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"pgregory.net/rapid"

	"understudy/config"
	"understudy/status"
)

// unpack returns the files of a bundle, without their common directory.
func unpack(t *testing.T, path string) map[string][]byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var plain io.Reader
	if strings.HasSuffix(path, ".zst") {
		z, err := zstd.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		defer z.Close()
		plain = z
	} else if plain, err = gzip.NewReader(f); err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for r := tar.NewReader(plain); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		_, name, _ := strings.Cut(h.Name, "/")
		if files[name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNoKeyAndNoTokenGetsIntoABundle(t *testing.T) {
	dir, err := os.MkdirTemp("", "us") // short: it holds a Unix socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if _, err := command(t, "init", "--dir", dir, "--host-address", "a=127.0.0.1:1", "--host-address", "b=127.0.0.1:2", "--host-address", "w=127.0.0.1:3"); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "understudy.toml")
	c, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	c.API.Tokens, c.API.Listen = filepath.Join(dir, "tokens"), "127.0.0.1:7443"
	if len(c.Guests) > 0 {
		c.Guests[0].Kernel, c.Guests[0].Append = "/boot/vmlinuz", "console=ttyS0 rootpw=hunter2-append"
	}
	c.TLS = filepath.Join(dir, "tls")
	if err := os.WriteFile(file, append([]byte("# the password of the switch is hunter2-comment\n"), c.Render()...), 0o600); err != nil {
		t.Fatal(err)
	}
	secret, err := command(t, "token", "add", "ops", "--level", "operate", "--config", file, "--host", "a", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var made madeToken
	if err := json.Unmarshal([]byte(secret), &made); err != nil {
		t.Fatal(err)
	}
	secrets := []string{made.Token, "hunter2"}
	keys, err := filepath.Glob(filepath.Join(dir, "tls", "*key.pem"))
	if err != nil || len(keys) != 4 {
		t.Fatalf("keys %q, %v", keys, err)
	}
	var blurted string
	for _, k := range append(keys, c.API.Tokens) {
		text, err := os.ReadFile(k)
		if err != nil {
			t.Fatal(err)
		}
		blurted += string(text)
		for line := range strings.Lines(string(text)) {
			if line = strings.TrimSpace(line); !strings.HasPrefix(line, "-----") && k != c.API.Tokens {
				secrets = append(secrets, line)
			}
		}
	}
	blurted += "\nAuthorization: Bearer " + made.Token + "\nhttps://root:hunter2-url@example.org/ --password hunter2\nipmi_password=hunter2-env \"api_key\": \"hunter2 json\"\n"
	socket := playedDaemon(t, dir, blurted)

	for _, name := range []string{"x.tar.zst", "x.tar.gz"} {
		path := filepath.Join(dir, name)
		if out, err := command(t, "support-bundle", path, "--config", file, "--host", "a", "--socket", socket); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", info.Mode(), err)
		}
		files := unpack(t, path)
		for file, text := range files {
			for _, s := range secrets {
				if bytes.Contains(text, []byte(s)) {
					t.Errorf("%s: %s holds %.20q", name, file, s)
				}
			}
			if bytes.Contains(text, []byte("PRIVATE KEY-----\nM")) {
				t.Errorf("%s: %s holds a key", name, file)
			}
		}
		var m manifest
		if err := json.Unmarshal(files["manifest.json"], &m); err != nil {
			t.Fatal(err)
		}
		if len(m.Files)+1 != len(files) {
			t.Errorf("the manifest has %d files, the bundle %d", len(m.Files), len(files))
		}
		taken := 0
		for _, f := range m.Files {
			taken += f.Removed
			if len(files[f.Name]) != f.Size {
				t.Errorf("%s has %d bytes, not %d", f.Name, len(files[f.Name]), f.Size)
			}
		}
		if taken == 0 {
			t.Error("nothing was removed, although the daemon told everything")
		}
		for _, want := range []string{"understudy.toml", "versions.json", "system/kernel.txt", "hosts/a/status.json", "hosts/a/metrics.txt", "hosts/a/events.jsonl", "hosts/a/drills/d1.json"} {
			if len(files[want]) == 0 {
				t.Errorf("there is no %s", want)
			}
		}
		if !bytes.Contains(files["understudy.toml"], []byte("[api]")) || !bytes.Contains(files["hosts/a/events.jsonl"], []byte(`"seq":3`)) {
			t.Errorf("what is in it is not what it should be")
		}
		why := ""
		for _, one := range m.Missing {
			if one.Name == "hosts/b/status.json" {
				why = one.Why
			}
		}
		if !strings.Contains(why, "host b does not answer") {
			t.Errorf("why nothing of b is in it: %q", why)
		}
	}
	// A bundle of a host whose daemon is dead has what there is.
	out, err := command(t, "support-bundle", filepath.Join(dir, "dead.tar.gz"), "--config", file, "--host", "a", "--socket", filepath.Join(dir, "none"))
	if err != nil || !strings.Contains(out, "not in it: hosts: ") || !strings.Contains(out, "no daemon answers") {
		t.Errorf("without a daemon: %v, %s", err, out)
	}
	if files := unpack(t, filepath.Join(dir, "dead.tar.gz")); len(files["understudy.toml"]) == 0 || len(files["system/kernel.txt"]) == 0 {
		t.Error("without a daemon there is nothing")
	}
	left, err := filepath.Glob(filepath.Join(dir, ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

// playedDaemon answers as a daemon of host a does, with text in everything; host
// b does not answer.
func playedDaemon(t *testing.T, dir, text string) (socket string) {
	t.Helper()
	socket = filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	send := func(w http.ResponseWriter, v any) { _ = json.NewEncoder(w).Encode(v) } // the client tells if it did not come
	s := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path, onA := strings.CutPrefix(r.URL.Path, "/api/v1/hosts/a")
		switch {
		case r.URL.Path == "/api/v1/hosts":
			send(w, map[string]any{"host": "a", "hosts": []string{"a", "b"}})
		case !onA:
			w.WriteHeader(http.StatusBadGateway)
			send(w, status.Problem{Error: "host b does not answer: token=hunter2-problem"})
		case path == "/api/v1/events":
			events := []json.RawMessage{}
			if r.URL.Query().Get("since") != "3" {
				said, _ := json.Marshal(text)
				events = append(events, json.RawMessage(`{"seq":3,"text":`+string(said)+`}`))
			}
			send(w, status.EventList{Events: events, Last: 3})
		case path == "/api/v1/drills":
			send(w, map[string]any{"drills": []map[string]string{{"id": "d1"}, {"id": "../../etc/passwd"}}})
		case path == "/metrics":
			_, _ = io.WriteString(w, text)
		default:
			send(w, map[string]string{"said": text, "private_key": "hunter2 in json"})
		}
	})}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	t.Cleanup(func() { _, _ = s.Close(), <-ended })
	return socket
}

// TestASecretIsRemovedWhateverIsAroundIt, and what JSON was stays JSON.
func TestASecretIsRemovedWhateverIsAroundIt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		secret := rapid.StringMatching(`[A-Za-z0-9]{24,40}Zq7`).Draw(t, "secret")
		form := rapid.SampledFrom([]func() string{
			func() string { return "us_" + secret },
			func() string { return "Authorization: Bearer " + secret },
			func() string { return "https://user:" + secret + "@host/path" },
			func() string { return "db_password=" + secret },
			func() string { return "Passphrase: '" + secret + " and more'" },
			func() string { return "token = \"" + secret + "\"" },
			func() string {
				return "-----BEGIN EC PRIVATE KEY-----\n" + secret + "\n" + secret + "\n-----END EC PRIVATE KEY-----"
			},
			func() string { return "-----BEGIN PRIVATE KEY-----\n" + secret },
		}).Draw(t, "form")()
		before := rapid.StringMatching(`[a-z {}:,.\n]{0,60}`).Draw(t, "before")
		after := rapid.StringMatching(`[a-z {}:,.\n]{0,60}`).Draw(t, "after")
		text := before + " " + form + " " + after
		plain, n := scrub([]byte(text))
		if n == 0 || bytes.Contains(plain, []byte(secret)) {
			t.Fatalf("%q became %q (%d)", text, plain, n)
		}
		quoted, err := json.Marshal(map[string]string{"said": text, "token": secret, "z": "end"})
		if err != nil {
			t.Fatal(err)
		}
		out, n := scrub(quoted)
		if n < 1 || bytes.Contains(out, []byte(secret)) {
			t.Fatalf("%s became %s (%d)", quoted, out, n)
		}
		if !strings.Contains(form, "PRIVATE KEY") || strings.Contains(form, "END") {
			if !json.Valid(out) {
				t.Fatalf("%s is no JSON any more: %s", quoted, out)
			}
		}
		again, n := scrub(plain)
		if n > 0 && !bytes.Equal(again, plain) {
			t.Fatalf("scrubbed again %q became %q", plain, again)
		}
	})
	const harmless = `{"name":"web","generation":3,"path":"/api/v1/guests","tokens":5,"url":"http://192.0.2.1:7070/x@y","keys":["a"]}`
	if out, n := scrub([]byte(harmless)); n > 0 || string(out) != harmless {
		t.Errorf("%s became %s", harmless, out)
	}
}

func TestAFileThatIsTooLongKeepsItsEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.tar.gz")
	b, err := newBundle(path)
	if err != nil {
		t.Fatal(err)
	}
	defer b.giveUp()
	b.add("log.txt", append(bytes.Repeat([]byte("an old line\n"), maxBundleFile/12+10), "the last line\n"...))
	m, err := b.end()
	if err != nil || len(m.Files) != 1 || m.Files[0].Cut == 0 {
		t.Fatalf("%+v, %v", m, err)
	}
	text := unpack(t, path)["log.txt"]
	if len(text) > maxBundleFile || !bytes.HasPrefix(text, []byte("an old line\n")) || !bytes.HasSuffix(text, []byte("the last line\n")) {
		t.Errorf("%d bytes: %.20q … %q", len(text), text, text[max(0, len(text)-20):])
	}
	w := &tailWriter{limit: 10}
	for range 100 {
		_, _ = w.Write([]byte("0123456"))
	}
	if got := string(w.text()); !strings.HasSuffix(got, "6") || len(w.kept) > 10 || !strings.Contains(got, "left out") {
		t.Errorf("%q", got)
	}
}
