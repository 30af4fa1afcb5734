package main

// The file of a support bundle: a compressed tar, in its place only when it is
// whole, readable by its owner alone.

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/klauspost/compress/zstd"
)

// manifest is manifest.json.
type manifest struct {
	Made    time.Time `json:"made"`
	Files   []bundled `json:"files"`
	Missing []missing `json:"missing"`
}

// bundled is a file of the bundle.
type bundled struct {
	Name string `json:"name"`
	Size int    `json:"size"`
	// Cut bytes are missing at its beginning; Removed secrets were taken out.
	Cut     int `json:"cut,omitempty"`
	Removed int `json:"removed,omitempty"`
}

// missing is what is not in the bundle.
type missing struct {
	Name string `json:"name"`
	Why  string `json:"why"`
}

// table says it to people.
func (m manifest) table(path string) func(w io.Writer) error {
	return func(w io.Writer) error {
		total := 0
		for _, f := range m.Files {
			total += f.Size
		}
		_, err := fmt.Fprintf(w, "%s: %d files, %s before compression\n", path, len(m.Files), size(uint64(total)))
		for _, one := range m.Missing {
			if err == nil {
				_, err = fmt.Fprintf(w, "  not in it: %s: %s\n", one.Name, one.Why)
			}
		}
		return err
	}
}

// bundle is one that is being written.
type bundle struct {
	manifest
	root  string
	file  *renameio.PendingFile
	pack  io.WriteCloser
	tar   *tar.Writer
	total int
	err   error // of the first write that failed
}

func newBundle(path string) (*bundle, error) {
	root, zst := strings.CutSuffix(filepath.Base(path), ".tar.zst")
	root, gz := strings.CutSuffix(root, ".tar.gz")
	if !zst && !gz || root == "" {
		return nil, exitError{exitUsage, fmt.Errorf("%.200q: a bundle's name ends in .tar.zst or .tar.gz", path)}
	}
	if _, err := os.Lstat(path); err == nil {
		return nil, fmt.Errorf("%s is there already: nothing was written", path)
	}
	file, err := renameio.NewPendingFile(path, renameio.WithStaticPermissions(0o600))
	if err != nil {
		return nil, err
	}
	b := &bundle{root: root, file: file, manifest: manifest{Made: time.Now().UTC().Round(time.Second), Files: []bundled{}, Missing: []missing{}}}
	if zst {
		if b.pack, err = zstd.NewWriter(file); err != nil {
			return nil, errors.Join(err, file.Cleanup())
		}
	} else {
		b.pack = gzip.NewWriter(file)
	}
	b.tar = tar.NewWriter(b.pack)
	return b, nil
}

// giveUp removes what was not ended.
func (b *bundle) giveUp() { _ = b.file.Cleanup() }

// lack notes what is missing.
func (b *bundle) lack(name string, why error) {
	said, _ := scrub([]byte(why.Error()))
	b.Missing = append(b.Missing, missing{name, string(said)})
}

func (b *bundle) addJSON(name string, v any) {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		b.lack(name, err)
		return
	}
	b.add(name, append(text, '\n'))
}

// add adds a file, without secrets, and the end of it if it is too long.
func (b *bundle) add(name string, text []byte) {
	f := bundled{Name: name}
	text, f.Removed = scrub(text)
	if f.Cut = max(0, len(text)-maxBundleFile); f.Cut > 0 {
		if end := bytes.IndexByte(text[f.Cut:], '\n'); end >= 0 {
			f.Cut += end + 1
		}
		text = text[f.Cut:]
	}
	if f.Size = len(text); b.total+f.Size > maxBundle {
		b.lack(name, fmt.Errorf("the bundle would have more than %s", size(maxBundle)))
		return
	}
	b.total += f.Size
	b.Files = append(b.Files, f)
	b.write(name, text)
}

func (b *bundle) write(name string, text []byte) {
	if b.err == nil {
		b.err = b.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: b.root + "/" + name, Mode: 0o600, Size: int64(len(text)), ModTime: b.Made, Format: tar.FormatPAX})
	}
	if b.err == nil {
		_, b.err = b.tar.Write(text)
	}
}

// end adds the manifest and puts the file in its place.
func (b *bundle) end() (manifest, error) {
	text, err := json.MarshalIndent(b.manifest, "", "  ")
	if err == nil {
		b.write("manifest.json", append(text, '\n'))
		err = b.err
	}
	if err == nil {
		err = errors.Join(b.tar.Close(), b.pack.Close())
	}
	if err == nil {
		err = b.file.CloseAtomicallyReplace()
	}
	if err != nil {
		return b.manifest, fmt.Errorf("write the bundle: %w", err)
	}
	return b.manifest, nil
}

// tailWriter keeps the end of what is written to it.
type tailWriter struct {
	limit int
	kept  []byte
	cut   bool
}

func (t *tailWriter) Write(p []byte) (int, error) {
	t.kept = append(t.kept, p...)
	if len(t.kept) > 2*t.limit {
		t.cut = true
		t.kept = append(t.kept[:0], t.kept[len(t.kept)-t.limit:]...)
	}
	return len(p), nil
}

func (t *tailWriter) text() []byte {
	if len(t.kept) > t.limit {
		t.cut = true
		t.kept = t.kept[len(t.kept)-t.limit:]
	}
	if t.cut {
		return append([]byte("(what came before is left out)\n"), t.kept...)
	}
	return t.kept
}
