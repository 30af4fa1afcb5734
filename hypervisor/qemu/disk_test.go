package qemu

import (
	"context"
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// bootSector is assembled from testdata/boot.S (as --32; ld -m elf_i386 -Ttext
// 0x7c00 --oformat binary): it writes "from disk" to the serial port and counts
// at 0x1000.
const bootSector = "fa31c08ed8baf803be1a7cac84c07403eeebf866ff060010ebf966726f6d206469736b0a00"

// A guest that boots from its disk does so again after a takeover, from the
// other host's copy.
func TestBootsFromDisk(t *testing.T) {
	code, err := hex.DecodeString(bootSector)
	must(t, err)
	image := make([]byte, mib)
	copy(image, code)
	image[510], image[511] = 0x55, 0xaa
	path := filepath.Join(openDir(t), "disk")
	must(t, os.WriteFile(path, image, 0o644))
	for name, disk := range map[string]Disk{"read-only": {Path: path, ReadOnly: true}, "snapshot": {Path: path, Snapshot: true}} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			c := testConfig(t, "q35")
			c.Kernel, c.Disks = "", []Disk{disk}
			hosts := newPair(t, c)
			g, err := hosts.a.Start(ctx)
			must(t, err)
			drain(t, g)
			must(t, g.Resume(ctx))
			waitConsole(ctx, t, hosts.consoleA, "from disk", 1)
			sb, err := hosts.b.Standby(ctx, g.Spec())
			must(t, err)
			t.Cleanup(func() { must(t, sb.Destroy()) })
			must(t, sb.Load(ctx, commit(ctx, t, g, sb), nil))
			must(t, g.Destroy())
			next, err := sb.Run(ctx)
			must(t, err)
			drain(t, next)
			systemReset(ctx, t, next)
			waitConsole(ctx, t, hosts.consoleB, "from disk", 1)
		})
	}
}
