package main

// What goes into the packages, gathered in one directory.

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// stager gathers files.
type stager struct {
	options
	dir      string
	contents []content
}

// content is a file or directory of a package, as nfpm has it.
type content struct {
	Source      string `json:"src,omitempty"`
	Destination string `json:"dst"`
	Type        string `json:"type,omitempty"`
	Packager    string `json:"packager,omitempty"` // "": both
	FileInfo    info   `json:"file_info"`
}

type info struct {
	Mode  uint32 `json:"mode"`
	Owner string `json:"owner"`
	Group string `json:"group"`
	Mtime string `json:"mtime"`
}

// files are taken as they are: from the module, to the package.
var files = []struct{ from, to string }{
	{"packaging/systemd/understudyd.service", "/usr/lib/systemd/system/understudyd.service"},
	{"packaging/systemd/understudy.sysusers", "/usr/lib/sysusers.d/understudy.conf"},
	{"packaging/systemd/understudy.tmpfiles", "/usr/lib/tmpfiles.d/understudy.conf"},
	{"packaging/grafana/understudy.json", "/usr/share/understudy/grafana/understudy.json"},
	{"packaging/prometheus/alerts.yaml", "/usr/share/understudy/prometheus/alerts.yaml"},
	{"packaging/prometheus/rules.yaml", "/usr/share/understudy/prometheus/rules.yaml"},
	{"README.md", "/usr/share/doc/understudy/README.md"},
	{"ARCHITECTURE.md", "/usr/share/doc/understudy/ARCHITECTURE.md"},
	{"PROTOCOL.md", "/usr/share/doc/understudy/PROTOCOL.md"},
	{"status/METRICS.md", "/usr/share/doc/understudy/METRICS.md"},
	{"status/openapi.yaml", "/usr/share/doc/understudy/openapi.yaml"},
	{"packaging/prometheus/runbook.md", "/usr/share/doc/understudy/runbook.md"},
	{"LICENSE", "/usr/share/doc/understudy/LICENSE"},
	{"packaging/copyright", "/usr/share/doc/understudy/copyright"},
}

// trees are directories all of whose files are taken.
var trees = []struct{ from, to string }{
	{"docs", "/usr/share/doc/understudy/docs"},
	{"packaging/examples", "/usr/share/doc/understudy/examples"},
}

// programs builds the programs into the stage. They need no library.
func (s *stager) programs(ctx context.Context) error {
	flags := "-s -w"
	if s.version != "" {
		flags += " -X understudy/status.Version=" + s.version
	}
	into, err := filepath.Abs(s.dir)
	if err != nil {
		return err
	}
	_, err = command(ctx, s.root, []string{"CGO_ENABLED=0", "GOFLAGS=-trimpath -buildvcs=false"}, "go", "build", "-ldflags", flags, "-o", into+"/", "./cmd/understudy", "./cmd/understudyd")
	if err != nil {
		return err
	}
	s.add("understudy", "/usr/bin/understudy", 0o755, "")
	s.add("understudyd", "/usr/sbin/understudyd", 0o755, "")
	if s.version == "" {
		out, err := command(ctx, "", nil, filepath.Join(s.dir, "understudy"), "version")
		if err != nil {
			return err
		}
		words := strings.Fields(string(out))
		if len(words) < 2 {
			return fmt.Errorf("understudy version says %q", out)
		}
		s.version = words[1]
	}
	return nil
}

// fill gathers everything else.
func (s *stager) fill(ctx context.Context) error {
	if err := s.manual(ctx); err != nil {
		return err
	}
	if err := s.completion(ctx); err != nil {
		return err
	}
	for _, f := range files {
		if err := s.take(f.from, f.to); err != nil {
			return err
		}
	}
	for _, tree := range trees {
		found, err := os.ReadDir(filepath.Join(s.root, tree.from))
		if err != nil {
			return err
		}
		for _, e := range found {
			if err := s.take(tree.from+"/"+e.Name(), tree.to+"/"+e.Name()); err != nil {
				return err
			}
		}
	}
	s.contents = append(s.contents, content{Destination: "/etc/understudy", Type: "dir", FileInfo: s.info(0o755)})
	return nil
}

// manual writes the pages, packed as a distribution packs them.
func (s *stager) manual(ctx context.Context) error {
	dir := filepath.Join(s.dir, "man")
	for _, program := range []string{"understudy", "understudyd"} {
		if _, err := command(ctx, "", nil, filepath.Join(s.dir, program), "man", "--dir", dir, "--date", s.date.Format(time.DateOnly)); err != nil {
			return err
		}
	}
	pages, err := filepath.Glob(filepath.Join(dir, "man*", "*"))
	if err != nil {
		return err
	}
	for _, p := range pages {
		text, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(s.dir, p)
		if err != nil {
			return err
		}
		if err := s.write(name+".gz", packed(text)); err != nil {
			return err
		}
		s.add(name+".gz", "/usr/share/"+name+".gz", 0o644, "")
	}
	return nil
}

// packed is text as gzip -9n packs it.
func packed(text []byte) []byte {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err == nil {
		_, err = w.Write(text)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		panic(err) // a buffer takes everything, and the level is one
	}
	return b.Bytes()
}

func (s *stager) completion(ctx context.Context) error {
	for _, c := range []struct{ shell, to, packager string }{
		{"bash", "/usr/share/bash-completion/completions/understudy", ""},
		{"zsh", "/usr/share/zsh/vendor-completions/_understudy", "deb"},
		{"zsh", "/usr/share/zsh/site-functions/_understudy", "rpm"},
		{"fish", "/usr/share/fish/vendor_completions.d/understudy.fish", ""},
	} {
		text, err := command(ctx, "", nil, filepath.Join(s.dir, "understudy"), "completion", c.shell)
		if err != nil {
			return err
		}
		if err := s.write("completion."+c.shell, text); err != nil {
			return err
		}
		s.add("completion."+c.shell, c.to, 0o644, c.packager)
	}
	return nil
}

// take copies a file of the module into the stage.
func (s *stager) take(from, to string) error {
	text, err := os.ReadFile(filepath.Join(s.root, from))
	if err != nil {
		return err
	}
	name := filepath.Join("files", from)
	if err := s.write(name, text); err != nil {
		return err
	}
	s.add(name, to, 0o644, "")
	return nil
}

func (s *stager) write(name string, text []byte) error {
	path := filepath.Join(s.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o600)
}

// add puts a staged file into the packages.
func (s *stager) add(name, to string, mode uint32, packager string) {
	s.contents = append(s.contents, content{Source: filepath.Join(s.dir, name), Destination: to, Packager: packager, FileInfo: s.info(mode)})
}

func (s *stager) info(mode uint32) info {
	return info{Mode: mode, Owner: "root", Group: "root", Mtime: s.date.Format(time.RFC3339)}
}
