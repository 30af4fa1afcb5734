package main

// This file is a guest that xl runs, by itself: no daemon knows of it.

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"text/template"

	"understudy/config"
)

// xlGuest is such a guest.
type xlGuest struct {
	Name, Kind             string
	Kernel, Initrd, Append string
	Memory                 config.Size
	Disk                   string // a block device of the host
	MAC                    config.MAC
}

var xlTemplate = template.Must(template.New("xl").Parse(`name = "{{.Name}}"
type = "{{.Kind}}"
kernel = "{{.Kernel}}"
ramdisk = "{{.Initrd}}"
extra = "{{.Append}}"
memory = {{.MiB}}
maxmem = {{.MiB}}
vcpus = 1
disk = [ "phy:{{.Disk}},xvda,w" ]
vif = [ "mac={{.MAC}},bridge=br0{{if eq .Kind "hvm"}},type=vif{{end}}" ]
{{if eq .Kind "hvm"}}vga = "none"
vnc = 0
{{end}}on_crash = "preserve"
`))

// MiB is the guest's memory.
func (g xlGuest) MiB() uint64 { return uint64(g.Memory) >> 20 }

// xl has a host's toolstack begin a guest.
func (w *pair) xl(ctx context.Context, host string, g xlGuest) error {
	var text bytes.Buffer
	if err := xlTemplate.Execute(&text, g); err != nil {
		return err
	}
	name := g.Name + ".cfg"
	if err := os.WriteFile(filepath.Join(w.dir, name), text.Bytes(), 0o644); err != nil {
		return err
	}
	return order(ctx, w.hosts[host], host, "xl create "+share+"/"+name)
}
