package workload

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// runs a workload to its end and returns all it said.
func runs(t *testing.T, root, words string) (string, Done) {
	t.Helper()
	var out bytes.Buffer
	if err := Run(t.Context(), root, strings.Fields(words), &out); err != nil {
		t.Fatal(err)
	}
	said := strings.TrimSuffix(out.String(), "\n")
	at := strings.LastIndexByte(said, '\n')
	done, err := ParseDone(said[at+1:])
	if err != nil {
		t.Fatal(err)
	}
	return said[:max(at, 0)], done
}

func TestReadTreeReadsEveryFile(t *testing.T) {
	root := t.TempDir()
	for _, name := range []string{"a/b/c", "a/d", "e"} {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, make([]byte, 1<<20), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc", filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	if said, done := runs(t, root, "read-tree"); done.Ops != 3 || done.Name != "read-tree" || !strings.Contains(said, "3 files of 3 MiB") {
		t.Errorf("%q, %+v", said, done)
	}
	if _, done := runs(t, root, "read-tree files=2"); done.Ops != 2 {
		t.Errorf("%d files instead of 2", done.Ops)
	}
	if err := errors.Join(os.MkdirAll(filepath.Join(root, SourceTree), 0o755), os.WriteFile(filepath.Join(root, SourceTree, "x.c"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	if _, done := runs(t, root, "read-tree"); done.Ops != 1 {
		t.Errorf("a source tree is there, yet %d files were read", done.Ops)
	}
}

func TestPostmarkDoesTheSameEachTimeAndCleansUp(t *testing.T) {
	root := t.TempDir()
	const small = "postmark files=60 transactions=80"
	one, done := runs(t, root, small)
	if done.Ops != 80 {
		t.Errorf("%+v", done)
	}
	if other, _ := runs(t, root, small); other != one {
		t.Errorf("first:\n%s\nthen:\n%s", one, other)
	}
	if other, _ := runs(t, root, small+" seed=1"); other == one {
		t.Error("another seed makes no difference")
	}
	if left, err := os.ReadDir(root); err != nil || len(left) != 0 {
		t.Errorf("left are %v, %v", left, err)
	}
	if said, _ := runs(t, root, "postmark files=3 transactions=100 read=10 create=0 low=1 high=1 block=1"); !strings.Contains(said, "appended to 0, created ") {
		t.Errorf("only reads and deletes were asked for: %s", said)
	}
}

func TestStatementsAreCompleteTransactions(t *testing.T) {
	var out bytes.Buffer
	w := bufio.NewWriter(&out)
	statements(w, 1003, 10, newChance(42))
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	sql := out.String()
	if b, c := strings.Count(sql, "BEGIN;"), strings.Count(sql, "COMMIT;"); b != 101 || c != 101 {
		t.Errorf("%d transactions begin, %d end", b, c)
	}
	if i, u := strings.Count(sql, "INSERT"), strings.Count(sql, "UPDATE"); i != 502 || u != 251 {
		t.Errorf("%d inserts, %d updates", i, u)
	}
}

func TestFioIsUnderstood(t *testing.T) {
	// What fio 3.33 said of a run of writes, cut after what is read.
	line := "3;fio-3.33;load;0;0" + strings.Repeat(";0", 41) + ";22528;5600;1400;4022;1"
	if ops, kbs, iops, err := parseFio(line, true); err != nil || kbs != 5600 || iops != 1400 || ops != 1400*4022/1000 {
		t.Errorf("%d %d %d %v", ops, kbs, iops, err)
	}
	for _, bad := range []string{"", "fio: no such engine", line[:60], strings.Replace(line, "5600", "x", 1)} {
		if _, _, _, err := parseFio(bad, true); err == nil {
			t.Errorf("%q is understood", bad)
		}
	}
}

func TestWordsHaveBounds(t *testing.T) {
	for _, words := range []string{"", "format", "postmark colour=1", "postmark files", "postmark files=-1", "postmark files=10000001", "read-tree colour=3"} {
		if err := Check(strings.Fields(words)); err == nil {
			t.Errorf("%q is accepted", words)
		}
	}
	for _, words := range []string{"postmark files=0", "postmark low=9 high=8", "postmark block=0", "postmark read=11", "compile", "archive", "database", "fio"} {
		if err := Run(t.Context(), t.TempDir(), strings.Fields(words), &bytes.Buffer{}); err == nil {
			t.Errorf("%q runs", words)
		}
	}
}

func TestAWorkloadEndsWhenItIsTold(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, words := range []string{"idle", "postmark", "read-tree"} {
		root := t.TempDir()
		if err := os.WriteFile(filepath.Join(root, "file"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := Run(ctx, root, strings.Fields(words), &bytes.Buffer{}); !errors.Is(err, context.Canceled) {
			t.Errorf("%s ends with %v", words, err)
		}
	}
}

func FuzzParseDone(f *testing.F) {
	f.Add("done postmark 1.500 500")
	f.Add("done x NaN 1")
	f.Fuzz(func(t *testing.T, line string) {
		if d, err := ParseDone(line); err == nil && (d.Took < 0 || d.Took > 1e6*time.Second) {
			t.Errorf("%q is %+v", line, d)
		}
	})
}

func FuzzParseFio(f *testing.F) {
	f.Add("3;fio-3.33;load;0;0;5;6;7;8;9", false)
	f.Add("3;", true)
	f.Fuzz(func(t *testing.T, said string, writes bool) {
		_, _, _, _ = parseFio(said, writes)
	})
}
