package checkpoint

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A series of files is removed from its newest on.
func TestAFileThatOthersBuildOnIsNotRemoved(t *testing.T) {
	rng := rand.New(rand.NewPCG(15, 16))
	d := newDisk(20, rng)
	m := mixed(100, d, rng)
	dir := t.TempDir()
	first, second, third := filepath.Join(dir, "old", "first"), filepath.Join(dir, "old", "second"), filepath.Join(dir, "third")
	if err := os.Mkdir(filepath.Dir(first), 0o700); err != nil {
		t.Fatal(err)
	}
	save(t, first, m, d, Options{})
	save(t, second, m, d, Options{Parent: mustOpen(t, first)})
	save(t, third, m, d, Options{Parent: mustOpen(t, second)})
	// What lies beside them and is none of them does not matter.
	if err := os.WriteFile(filepath.Join(dir, "notes"), []byte("UNDRCKPT, or so"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct{ path, needed string }{
		{first, second}, {second, third}, {third, ""}, {first, second}, {second, ""}, {first, ""},
	} {
		err := Remove(step.path)
		_, missing := os.Lstat(step.path)
		switch {
		case step.needed == "" && (err != nil || missing == nil):
			t.Fatalf("remove %s: %v, gone: %v", step.path, err, missing != nil)
		case step.needed != "" && (!errors.Is(err, ErrNeeded) || !strings.Contains(err.Error(), step.needed) || missing != nil):
			t.Fatalf("remove %s, on which %s builds: %v, gone: %v", step.path, step.needed, err, missing != nil)
		}
	}
	if err := Remove(first); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("remove what is not there: %v", err)
	}
}
