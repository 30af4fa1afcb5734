package bubble

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"understudy/epoch"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is an image in memory.
type memory struct {
	mu sync.Mutex
	b  []byte
}

func newMemory(pages int) *memory { return &memory{b: make([]byte, pages*epoch.PageSize)} }

func (m *memory) Pages() uint64 { return uint64(len(m.b)) / epoch.PageSize }

func (m *memory) ReadPages(first epoch.GFN, dst []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(dst, m.b[uint64(first)*epoch.PageSize:])
	return nil
}

func (m *memory) WritePages(first epoch.GFN, data []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(m.b[uint64(first)*epoch.PageSize:], data)
	return nil
}

// TestCommitsBesideTheCopier: whoever is first copies a page, and it is the old one.
func TestCommitsBesideTheCopier(t *testing.T) {
	const pages = 4096
	image, into := newMemory(pages), newMemory(pages)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range image.b {
		image.b[i] = byte(random.Uint32())
	}
	was := bytes.Clone(image.b)
	f := NewFork(t.Context(), into)
	f.Begin(Commit{At: epoch.Position{Number: 7}}, image, nil, time.Now())
	copied := make(chan error, 1)
	go func() { copied <- f.Copy(nil) }()
	page := make([]byte, 16*epoch.PageSize)
	for n := 0; ; n++ {
		first, count := epoch.GFN(random.IntN(pages)), uint64(1+random.IntN(16))
		count = min(count, pages-uint64(first))
		f.Before(first, count)
		for i := range page {
			page[i] = byte(n)
		}
		if err := image.WritePages(first, page[:count*epoch.PageSize]); err != nil {
			t.Fatal(err)
		}
		f.Committed(time.Microsecond)
		select {
		case err := <-copied:
			if err != nil || !bytes.Equal(into.b, was) {
				t.Errorf("after %d commits: %v, equal: %v", n, err, bytes.Equal(into.b, was))
			}
			var r Result
			f.account(&r)
			if r.Commits != uint64(n+1) || r.Epoch != 7 || r.Pages != pages || r.HeldUpMost != time.Microsecond {
				t.Errorf("%+v after %d commits", r, n+1)
			}
			f.End(errDone)
			if err := f.Copy(nil); !errors.Is(err, errDone) {
				t.Errorf("a copy of what is over: %v", err)
			}
			return
		default:
		}
	}
}

func TestOneMoreCommitIsAwaited(t *testing.T) {
	f := NewFork(t.Context(), newMemory(1))
	f.Begin(Commit{}, newMemory(1), nil, time.Now())
	got := make(chan error, 1)
	go func() { got <- f.AwaitCommit(t.Context()) }()
	for done := false; !done; {
		f.Committed(0)
		select {
		case err := <-got:
			if err != nil {
				t.Error(err)
			}
			done = true
		default:
		}
	}
	go func() { got <- f.AwaitCommit(t.Context()) }()
	f.End(ErrNotFed)
	if err := <-got; !errors.Is(err, ErrNotFed) {
		t.Errorf("the session was lost: %v", err)
	}
}

// TestBeforeCostsNothingOnceAllIsCopied: nor does it allocate while it copies.
func TestBeforeAllocatesNothing(t *testing.T) {
	image := newMemory(256)
	f := NewFork(t.Context(), newMemory(256))
	defer f.End(errDone)
	f.Begin(Commit{}, image, nil, time.Now())
	next := epoch.GFN(0)
	if n := testing.AllocsPerRun(100, func() { f.Before(next, 2); next += 2 }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestSpecs(t *testing.T) {
	good := Spec{Check: []string{"/bin/true"}, Timeout: time.Minute, Hold: time.Second, Address: "192.0.2.1/24"}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	if err := (Spec{}).Validate(); err != nil {
		t.Error(err)
	}
	for want, spoil := range map[string]func(s *Spec){
		"time limit":        func(s *Spec) { s.Timeout = time.Hour },
		"held for":          func(s *Spec) { s.Hold = -1 },
		"no program":        func(s *Spec) { s.Check = []string{""} },
		"65 words":          func(s *Spec) { s.Check = make([]string, 65); s.Check[0] = "x" },
		"word 1":            func(s *Spec) { s.Check = []string{"x", strings.Repeat("y", 5000)} },
		"prefix length":     func(s *Spec) { s.Address = "192.0.2.1" },
		"address \"::/64\"": func(s *Spec) { s.Address = "::/64" },
	} {
		s := good
		spoil(&s)
		if err := s.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", s, err, want)
		}
	}
}

func TestChecks(t *testing.T) {
	sh := func(script string) []string { return []string{"/bin/sh", "-c", script} }
	for name, c := range map[string]struct {
		argv []string
		want Check
	}{
		"well":         {sh("echo $UNDERSTUDY_GUEST; echo beside >&2"), Check{Output: "web\nbeside\n"}},
		"a status":     {sh("exit 3"), Check{Exit: 3}},
		"a signal":     {sh("kill -9 $$"), Check{Exit: -1}},
		"no program":   {[]string{"/no/such/program"}, Check{Exit: -1, Error: "no such file"}},
		"too much":     {sh("yes | head -c 100000"), Check{Output: strings.Repeat("y\n", MaxOutput/2), Truncated: true}},
		"other's rest": {sh("sleep 1000 & echo left"), Check{Output: "left\n"}},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			got := RunCheck(t.Context(), c.argv, []string{"UNDERSTUDY_GUEST=web"}, nil)
			if got.Exit != c.want.Exit || got.Output != c.want.Output || got.Truncated != c.want.Truncated ||
				got.TimedOut || !strings.Contains(got.Error, c.want.Error) {
				t.Errorf("%+v, want %+v", got, c.want)
			}
			if name != "other's rest" && got.Well() != (c.want.Exit == 0) {
				t.Errorf("well: %v", got.Well())
			}
		})
	}
}

// TestACheckThatHangsIsEndedWithAllItStarted.
func TestACheckThatHangsIsEndedWithAllItStarted(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pid")
	ctx, cancel := context.WithCancel(t.Context())
	limited, stop := context.WithDeadline(ctx, time.Now().Add(time.Hour))
	defer stop()
	defer cancel()
	result := make(chan Check, 1)
	go func() {
		result <- RunCheck(limited, []string{"/bin/sh", "-c", fmt.Sprintf("sleep 1000 & echo $! > %s.new; mv %s.new %s; wait", file, file, file)}, nil, nil)
	}()
	var pid int
	for deadline := time.Now().Add(10 * time.Second); pid == 0 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		text, err := os.ReadFile(file)
		if err == nil {
			pid, _ = strconv.Atoi(strings.TrimSpace(string(text)))
		}
	}
	cancel()
	if c := <-result; c.Well() {
		t.Errorf("%+v", c)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if pid == 0 || err != nil || strings.Contains(string(state), ") Z ") {
			break // gone, or nobody has reaped it
		}
		if time.Now().After(deadline) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			t.Fatalf("process %d has outlived its check", pid)
		}
	}
}
