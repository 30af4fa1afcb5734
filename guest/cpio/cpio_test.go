package cpio

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestEntryIsWrittenByteForByte(t *testing.T) {
	var got bytes.Buffer
	w := NewWriter(&got)
	if err := w.File("bin/hi", 0o755, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	want := "070701" +
		"00000001" + "000081ED" + // inode, mode: regular file rwxr-xr-x
		"00000000" + "00000000" + "00000001" + "00000000" + // uid, gid, links, time
		"00000005" + // size
		"00000000" + "00000000" + "00000000" + "00000000" + // devices
		"00000007" + "00000000" + // name with NUL, checksum
		"bin/hi\x00" + "\x00\x00\x00" + "hello\x00\x00\x00" +
		"070701" + "00000000" + "00000000" + "00000000" + "00000000" + "00000001" + "00000000" +
		"00000000" + "00000000" + "00000000" + "00000000" + "00000000" +
		"0000000B" + "00000000" + "TRAILER!!!\x00" + "\x00\x00\x00"
	if got.String() != want {
		t.Errorf("archive is\n%q, want\n%q", got.String(), want)
	}
}

func TestBusyboxListsWhatWasWritten(t *testing.T) {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatalf("run scripts/setup first: %v", err)
	}
	var archive bytes.Buffer
	w := NewWriter(&archive)
	for _, err := range []error{
		w.Dir("dev", 0o755),
		w.CharDevice("dev/console", 0o600, 5, 1),
		w.File("init", 0o755, bytes.Repeat([]byte("x"), 4097)),
		w.Symlink("sh", "bin/busybox"),
		w.File("empty", 0o644, nil),
		w.Close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(busybox, "cpio", "-t", "-v")
	cmd.Stdin = &archive
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("busybox cpio: %v\n%s", err, out)
	}
	var got []string
	for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		f := strings.Fields(line) // mode owner size date time name [-> target]
		if len(f) >= 6 {
			got = append(got, f[0]+" "+f[2]+" "+strings.Join(f[5:], " "))
		}
	}
	want := []string{
		"drwxr-xr-x 0 dev",
		"crw------- 0 dev/console",
		"-rwxr-xr-x 4097 init",
		"lrwxrwxrwx 0 sh -> bin/busybox", // it lists the size of a link as 0,
		"-rw-r--r-- 0 empty",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("busybox lists\n%s\nfrom\n%s\nwant\n%s", strings.Join(got, "\n"), out, strings.Join(want, "\n"))
	}
}

func TestNamesTheKernelWouldSkipAreRefused(t *testing.T) {
	for _, name := range []string{"", "/init", "TRAILER!!!", "a\x00b", strings.Repeat("n", 4096)} {
		w := NewWriter(io.Discard)
		if err := w.File(name, 0o644, nil); err == nil {
			t.Errorf("name %.20q was accepted", name)
		}
		if err := w.Close(); err == nil {
			t.Errorf("after a refused name the archive was ended as if nothing were missing")
		}
	}
	w := NewWriter(io.Discard)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.Dir("late", 0o755); err == nil {
		t.Error("an entry was accepted after the trailer")
	}
}

// disk takes limited bytes, then is full.
type disk struct{ left int }

var errFull = errors.New("disk is full")

func (d *disk) Write(p []byte) (int, error) {
	if d.left < len(p) {
		return 0, errFull
	}
	d.left -= len(p)
	return len(p), nil
}

func TestFirstErrorOfTheDestinationStays(t *testing.T) {
	w := NewWriter(&disk{left: 200})
	_ = w.File("one", 0o644, []byte("1"))
	_ = w.File("two", 0o644, []byte("2"))
	if err := w.Close(); !errors.Is(err, errFull) {
		t.Errorf("Close says %v, want %v", err, errFull)
	}
}

// TestArchiveReadsBack reads random archives with an independent reader.
func TestArchiveReadsBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		names := rapid.SliceOfDistinct(rapid.StringMatching(`[a-z][a-z0-9_/]{0,40}`), rapid.ID[string]).Draw(t, "names")
		want := map[string]string{}
		var archive bytes.Buffer
		w := NewWriter(&archive)
		for i, name := range names {
			data := rapid.SliceOfN(rapid.Byte(), 0, 64).Draw(t, fmt.Sprintf("data %d", i))
			if len(data) > 0 && rapid.Bool().Draw(t, "long") {
				data = bytes.Repeat(data, 4096)
			}
			want[name] = string(data)
			if err := w.File(name, 0o644, data); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		got := read(t, archive.Bytes())
		if len(got) != len(want) {
			t.Fatalf("%d entries, want %d", len(got), len(want))
		}
		for name, data := range want {
			if got[name] != data {
				t.Fatalf("%s holds %q, want %q", name, got[name], data)
			}
		}
	})
}

// read is a reader of newc archives as the format's description has it.
func read(t *rapid.T, archive []byte) map[string]string {
	files := map[string]string{}
	for at := 0; ; {
		if at%4 != 0 || string(archive[at:at+6]) != "070701" {
			t.Fatalf("no header at %d", at)
		}
		field := func(n int) int {
			v, err := strconv.ParseUint(string(archive[at+6+8*n:at+14+8*n]), 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			return int(v)
		}
		size, nameSize := field(6), field(11)
		name, _, _ := strings.Cut(string(archive[at+110:at+110+nameSize]), "\x00")
		data := (at + 110 + nameSize + 3) &^ 3
		if name == "TRAILER!!!" {
			if data != len(archive) {
				t.Fatalf("%d bytes after the trailer", len(archive)-data)
			}
			return files
		}
		files[name] = string(archive[data : data+size])
		at = (data + size + 3) &^ 3
	}
}

func TestFilesOfAPageBeginAtASector(t *testing.T) {
	var archive bytes.Buffer
	w := NewWriter(&archive)
	sizes := []int{4096, 10, 5000, 4095, 70000, 4096}
	for i, size := range sizes {
		if err := w.File(fmt.Sprintf("dir/file%d", i), 0o644, bytes.Repeat([]byte{byte('A' + i)}, size)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for i, size := range sizes {
		at := bytes.Index(archive.Bytes(), bytes.Repeat([]byte{byte('A' + i)}, size))
		if at < 0 || size >= 4096 && at%512 != 0 {
			t.Errorf("the %d bytes of file %d begin at %d", size, i, at)
		}
	}
}
