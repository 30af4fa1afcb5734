package main

// The packages themselves, which nfpm writes.

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"time"
)

// format is a kind of package.
type format struct {
	name       string
	depends    []string
	recommends []string
	suggests   []string
	scripts    map[string]string // nfpm's name → a file in packaging/scripts
}

// A witness needs no QEMU, so that is recommended only.
var formats = []format{
	{"deb", nil, []string{"qemu-system-x86", "nftables", "iproute2"}, []string{"qemu-utils", "bash-completion"},
		map[string]string{"postinstall": "deb.postinst", "preremove": "deb.prerm", "postremove": "deb.postrm"}},
	{"rpm", nil, []string{"qemu-system-x86-core", "nftables", "iproute"}, []string{"bash-completion"},
		map[string]string{"postinstall": "rpm.post", "preremove": "rpm.preun", "postremove": "rpm.postun"}},
}

const description = `Keeps virtual machines running when their host is lost
understudy takes a checkpoint of a running guest many times a second, sends what
has changed to a standby host, and when the guest's host is lost the guest goes on
there from the last committed checkpoint, with its memory, its processes and its
connections. Nothing that the outside world has seen is ever taken back.`

// pack makes one package and returns its path.
func (s *stager) pack(ctx context.Context, f format) (string, error) {
	scripts := map[string]string{}
	for when, name := range f.scripts {
		scripts[when] = filepath.Join(s.root, "packaging", "scripts", name)
	}
	// JSON is YAML as well.
	text, err := json.MarshalIndent(map[string]any{
		"name": "understudy", "arch": "amd64", "platform": "linux", "version": s.version, "release": "1", "section": "admin", "priority": "optional",
		"maintainer": "understudy <root@localhost>", "description": description, "license": "Apache-2.0",
		"mtime": s.date.Format(time.RFC3339), "recommends": f.recommends, "suggests": f.suggests, "depends": f.depends,
		"contents": s.contents, "scripts": scripts, "deb": map[string]any{"compression": "zstd"},
		"rpm": map[string]any{"compression": "zstd", "buildhost": "localhost", "group": "System Environment/Daemons", "summary": "Keeps virtual machines running when their host is lost"},
	}, "", "  ")
	if err != nil {
		return "", err
	}
	config := filepath.Join(s.dir, f.name+".json")
	if err := os.WriteFile(config, text, 0o600); err != nil {
		return "", err
	}
	target := filepath.Join(s.out, packageName(f.name, s.version))
	if _, err := command(ctx, "", nil, s.nfpm, "package", "--config", config, "--packager", f.name, "--target", target); err != nil {
		return "", err
	}
	return target, nil
}

func packageName(format, version string) string {
	if format == "deb" {
		return "understudy_" + version + "-1_amd64.deb"
	}
	return "understudy-" + version + "-1.x86_64.rpm"
}
