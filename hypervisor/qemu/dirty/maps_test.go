package dirty

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"understudy/epoch"
)

const sampleMaps = `55d0c0a00000-55d0c0a21000 r--p 00000000 fe:00 1048605                    /usr/bin/qemu-system-x86_64
7f0000000000-7f0008000000 rw-s 00000000 00:19 7                          /dev/shm/ram file (deleted)
7f0008000000-7f0010000000 rw-s 08000000 00:19 7                          /dev/shm/ram file (deleted)
7f0010000000-7f0010021000 rw-p 00000000 00:00 0 
7ffd1b5f2000-7ffd1b5f4000 r-xp 00000000 00:00 0                          [vdso]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
`

func TestParseMaps(t *testing.T) {
	maps, err := ParseMaps(strings.NewReader(sampleMaps))
	must(t, err)
	if len(maps) != 6 {
		t.Fatalf("%d mappings, want 6", len(maps))
	}
	second := Mapping{Start: 0x7f0008000000, End: 0x7f0010000000, Read: true, Write: true, Shared: true,
		Offset: 0x8000000, Minor: 0x19, Inode: 7, Path: "/dev/shm/ram file (deleted)"}
	if maps[2] != second {
		t.Fatalf("got %+v, want %+v", maps[2], second)
	}
	if maps[3].Path != "" || maps[4].Path != "[vdso]" || !maps[4].Exec {
		t.Fatalf("got %+v and %+v", maps[3], maps[4])
	}
}

func TestParseMapsRefuses(t *testing.T) {
	line := "7f0000000000-7f0008000000 rw-s 00000000 00:19 7 /x\n"
	cases := map[string]string{
		"no fields":         "hello\n",
		"no inode":          "7f0000000000-7f0008000000 rw-s 00000000 00:19\n",
		"odd permissions":   strings.Replace(line, "rw-s", "rw-x", 1),
		"short permissions": strings.Replace(line, "rw-s", "rw", 1),
		"backwards":         strings.Replace(line, "7f0008000000", "7e0000000000", 1),
		"empty range":       strings.Replace(line, "7f0008000000", "7f0000000000", 1),
		"part of a page":    strings.Replace(line, "7f0008000000", "7f0008000010", 1),
		"address too long":  strings.Replace(line, "7f0000000000", "17f0000000000000000", 1),
		"not a number":      strings.Replace(line, " 7 ", " seven ", 1),
		"out of order":      line + line,
		"endless line":      strings.TrimSpace(line) + strings.Repeat("y", maxMapsLine) + "\n",
	}
	for name, text := range cases {
		t.Run(name, func(t *testing.T) {
			if maps, err := ParseMaps(strings.NewReader(text)); err == nil {
				t.Fatalf("parsed as %+v", maps)
			}
		})
	}
}

func FuzzParseMaps(f *testing.F) {
	f.Add(sampleMaps)
	f.Add("0-1000 ---p 0 0:0 0")
	f.Fuzz(func(t *testing.T, text string) {
		maps, err := ParseMaps(strings.NewReader(text))
		if err != nil {
			return
		}
		var end uint64
		for _, m := range maps {
			if m.Start < end || m.End <= m.Start || (m.Start|m.End)%epoch.PageSize != 0 {
				t.Fatalf("accepted %+v after %#x", m, end)
			}
			end = m.End
		}
	})
}

// A file mapped in pieces, out of order and with a part twice, is found whole.
func TestFileRegions(t *testing.T) {
	const page = epoch.PageSize
	f := shmFile(t, 16)
	mapAt := func(offset, length int64) uint64 {
		b, err := unix.Mmap(int(f.Fd()), offset, int(length), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		must(t, err)
		t.Cleanup(func() { must(t, unix.Munmap(b)) })
		return address(b)
	}
	high := mapAt(8*page, 8*page)
	if _, err := FileRegions(os.Getpid(), f, 0); err == nil {
		t.Fatal("half a file was accepted")
	}
	low := mapAt(0, 8*page)
	alias := mapAt(2*page, page)
	regions, err := FileRegions(os.Getpid(), f, 100)
	must(t, err)

	at := func(addr uint64) epoch.GFN {
		for _, r := range regions {
			if addr >= r.Addr && addr < r.end() {
				return r.FirstPage + epoch.GFN((addr-r.Addr)/page)
			}
		}
		return 0
	}
	for addr, frame := range map[uint64]epoch.GFN{low: 100, low + 7*page: 107, high: 108, high + 7*page: 115, alias: 102} {
		if at(addr) != frame {
			t.Errorf("address %#x is frame %d, want %d (regions %v)", addr, at(addr), frame, regions)
		}
	}
	if _, err := FileRegions(os.Getpid(), shmFile(t, 1), 0); err == nil {
		t.Fatal("a file that is not mapped was accepted")
	}
}

func TestCovered(t *testing.T) {
	maps, err := ParseMaps(strings.NewReader(sampleMaps))
	must(t, err)
	for _, c := range []struct {
		addr, length uint64
		ok           bool
	}{
		{0x7f0000000000, 0x10000000, true},
		{0x7f0007fff000, 0x2000, true},
		{0x7f0000000000, 0x10022000, false}, // one page past the end
		{0x7effffffe000, 0x4000, false},     // two pages before the start
		{0x1000, 0x1000, false},
	} {
		if err := covered(maps, Region{Addr: c.addr, Length: c.length}); (err == nil) != c.ok {
			t.Errorf("%#x+%#x: %v", c.addr, c.length, err)
		}
	}
}
