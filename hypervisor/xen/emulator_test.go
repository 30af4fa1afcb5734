package xen

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// monitor is a device model that notes what it is told, and saves what it is.
type monitor struct {
	told   []string
	state  []byte
	fails  map[string]error
	closed bool
}

func (m *monitor) Execute(_ context.Context, command string, arguments, _ any) error {
	said := command
	switch a := arguments.(type) {
	case map[string]bool:
		said += fmt.Sprint(" ", a["enable"])
	case map[string]any:
		if err := os.WriteFile(a["filename"].(string), m.state, 0o600); err != nil {
			return err
		}
		said += fmt.Sprint(" ", a["live"])
	}
	m.told = append(m.told, said)
	return m.fails[command]
}

func (m *monitor) Close() error { m.closed = true; return nil }

func left(t *testing.T, dir string) []string {
	found, err := filepath.Glob(filepath.Join(dir, "*"))
	must(t, err)
	return found
}

// A device model logs, is stopped with each pause, goes on after it, and its state is
// what it has saved last.
func TestADeviceModel(t *testing.T) {
	dir, ctx := t.TempDir(), t.Context()
	m := &monitor{fails: map[string]error{}}
	e, err := NewEmulator(m, dir)
	must(t, err)
	must(t, e.Log(ctx))
	for _, state := range []string{"a long first state", "short"} {
		m.state = []byte(state)
		must(t, e.Still(ctx))
		got, err := e.AppendState(ctx, []byte("before "))
		must(t, err)
		if string(got) != "before "+state {
			t.Errorf("its state is %q", got)
		}
		must(t, e.Go(ctx))
	}
	for name, bad := range map[string][]byte{"empty": nil, "large": bytes.Repeat([]byte{1}, maxEmulator+1)} {
		m.state = bad
		if got, err := e.AppendState(ctx, []byte("before ")); err == nil || string(got) != "before " {
			t.Errorf("%s: %d bytes, error %v", name, len(got), err)
		}
	}
	broken := errors.New("no more")
	for _, command := range []string{"stop", "cont", "xen-save-devices-state", "xen-set-global-dirty-log"} {
		m.fails[command] = broken
	}
	_, err = e.AppendState(ctx, nil)
	if !errors.Is(err, broken) || !errors.Is(e.Still(ctx), broken) || !errors.Is(e.Go(ctx), broken) || !errors.Is(e.Log(ctx), broken) {
		t.Error("what it refuses is not told")
	}
	must(t, e.Close(ctx)) // it may be gone
	if want := []string{"xen-set-global-dirty-log true", "stop", "xen-save-devices-state true", "cont"}; !slices.Equal(m.told[:4], want) || m.told[len(m.told)-1] != "xen-set-global-dirty-log false" || !m.closed {
		t.Errorf("it was told %q", m.told)
	}
	if _, err := NewEmulator(m, filepath.Join(dir, "nowhere")); err == nil {
		t.Error("its state can be saved nowhere")
	}
	if found := left(t, dir); len(found) != 0 {
		t.Errorf("left are %q", found)
	}
}
