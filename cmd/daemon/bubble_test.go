package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"understudy/config"
)

// TestABubbleNeedsRoom: beside images that have yet to grow into theirs.
func TestABubbleNeedsRoom(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "understudy-room") // a tmpfs, as run directories are
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	q := &qemuGround{guests: dir, g: config.Guest{Memory: 16 * config.MiB}}
	if err := q.room(); err != nil {
		t.Errorf("a small one: %v", err)
	}
	q.g.Memory = 1 << 50
	if err := q.room(); err == nil || !strings.Contains(err.Error(), "1PiB") && !strings.Contains(err.Error(), "1024TiB") {
		t.Errorf("a large one: %v", err)
	}
	q.g.Memory = 16 * config.MiB
	for _, image := range []string{"db/memory/1.ram", "db/bubble/memory/2.ram"} {
		path := filepath.Join(dir, image)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, 1<<50); err != nil { // all of it a hole
			t.Fatal(err)
		}
		if err := q.room(); err == nil || !strings.Contains(err.Error(), "images that may still grow") && !strings.Contains(err.Error(), "memory available") {
			t.Errorf("beside %s: %v", image, err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}
