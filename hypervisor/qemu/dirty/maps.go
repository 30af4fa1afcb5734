package dirty

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"understudy/epoch"
)

// Mapping is one line of /proc/PID/maps (proc_pid_maps(5)).
type Mapping struct {
	Start, End uint64 // addresses [Start, End)
	Read       bool
	Write      bool
	Exec       bool
	Shared     bool
	Offset     uint64 // of Start in the file
	Major      uint32 // device of the file; 0:0 for anonymous memory
	Minor      uint32
	Inode      uint64 // 0 for anonymous memory
	Path       string // as the kernel prints it: "[vdso]", "/dev/shm/x (deleted)", ""
}

const (
	// maxMapsLine bounds one line: a path of PATH_MAX bytes, each of which the
	// kernel may print as four, and the fields before it.
	maxMapsLine = 4*unix.PathMax + 256
	// maxMappings bounds a process: 16 times the kernel's default limit
	// (vm.max_map_count).
	maxMappings = 16 * 65530
)

// ReadMaps returns the mappings of a process, in ascending order.
func ReadMaps(pid int) ([]Mapping, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	maps, err := ParseMaps(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return maps, nil
}

// ParseMaps reads the text of /proc/PID/maps.
func ParseMaps(r io.Reader) ([]Mapping, error) {
	var maps []Mapping
	in := bufio.NewReaderSize(r, maxMapsLine)
	for {
		line, err := in.ReadSlice('\n')
		if errors.Is(err, io.EOF) && len(line) == 0 {
			return maps, nil
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			return nil, fmt.Errorf("line %d is longer than %d bytes", len(maps)+1, maxMapsLine)
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		if len(maps) == maxMappings {
			return nil, fmt.Errorf("more than %d mappings", maxMappings)
		}
		m, err := parseMapping(string(bytes.TrimSuffix(line, []byte("\n"))))
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", len(maps)+1, err)
		}
		if n := len(maps); n > 0 && m.Start < maps[n-1].End {
			return nil, fmt.Errorf("line %d: mapping at %#x is not above the one before", n+1, m.Start)
		}
		maps = append(maps, m)
	}
}

// parseMapping reads "start-end perms offset major:minor inode   path".
func parseMapping(line string) (Mapping, error) {
	var m Mapping
	var fields [5]string
	rest := line
	for i := range fields {
		var ok bool
		if fields[i], rest, ok = strings.Cut(rest, " "); !ok && i < 4 || fields[i] == "" {
			return m, fmt.Errorf("want five fields and a path: %.80q", line)
		}
	}
	m.Path = strings.TrimLeft(rest, " ")
	start, end, _ := strings.Cut(fields[0], "-")
	major, minor, _ := strings.Cut(fields[3], ":")
	perms := fields[1]
	if len(perms) != 4 || strings.Trim(perms[3:], "ps") != "" {
		return m, fmt.Errorf("permissions %.80q", perms)
	}
	m.Read, m.Write, m.Exec, m.Shared = perms[0] == 'r', perms[1] == 'w', perms[2] == 'x', perms[3] == 's'

	var bad error
	number := func(what, text string, base, bits int) uint64 {
		n, err := strconv.ParseUint(text, base, bits)
		if err != nil && bad == nil {
			bad = fmt.Errorf("%s: %w", what, err)
		}
		return n
	}
	m.Start = number("start", start, 16, 64)
	m.End = number("end", end, 16, 64)
	m.Offset = number("offset", fields[2], 16, 64)
	m.Major = uint32(number("major", major, 16, 32))
	m.Minor = uint32(number("minor", minor, 16, 32))
	m.Inode = number("inode", fields[4], 10, 64)
	if bad == nil && (m.End <= m.Start || (m.Start|m.End|m.Offset)%epoch.PageSize != 0) {
		bad = fmt.Errorf("range %#x-%#x at offset %#x is not made of whole pages", m.Start, m.End, m.Offset)
	}
	return m, bad
}

// FileRegions finds where a process has mapped a file shared, as regions whose
// frames count from first at the file's start. Every byte of the file must be
// mapped. A file mapped in several pieces gives several regions; pieces that
// join without a gap give one.
func FileRegions(pid int, file *os.File, first epoch.GFN) ([]Region, error) {
	var st unix.Stat_t
	info, err := file.Stat()
	if err == nil {
		err = fstat(file, &st)
	}
	if err != nil {
		return nil, fmt.Errorf("find mappings of %s: %w", file.Name(), err)
	}
	maps, err := ReadMaps(pid)
	if err != nil {
		return nil, fmt.Errorf("find mappings of %s: %w", file.Name(), err)
	}
	var found []Region
	for _, m := range maps {
		same := m.Inode == st.Ino && m.Major == unix.Major(st.Dev) && m.Minor == unix.Minor(st.Dev)
		if !same || !m.Shared {
			continue
		}
		r := Region{Addr: m.Start, Length: m.End - m.Start, FirstPage: first + epoch.GFN(m.Offset/epoch.PageSize)}
		if n := len(found); n > 0 && found[n-1].joins(r) {
			found[n-1].Length += r.Length
		} else {
			found = append(found, r)
		}
	}
	pages := uint64(info.Size()+epoch.PageSize-1) / epoch.PageSize
	covered := epoch.NewPageSet(pages)
	for _, r := range found {
		from := uint64(r.FirstPage - first)
		if from < pages {
			covered.AddRange(epoch.GFN(from), min(r.pages(), pages-from))
		}
	}
	if have := covered.Count(); have != pages {
		return nil, fmt.Errorf("process %d maps %d of the %d pages of %s: is it the guest's RAM file, opened with share=on?", pid, have, pages, file.Name())
	}
	return found, nil
}

// covered checks that every byte of a region is mapped.
func covered(maps []Mapping, r Region) error {
	at := r.Addr
	for _, m := range maps {
		if m.Start > at {
			break
		}
		if at < m.End {
			at = m.End
		}
		if at >= r.end() {
			return nil
		}
	}
	return fmt.Errorf("%v: no memory is mapped at %#x", r, at)
}

func fstat(file *os.File, st *unix.Stat_t) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var statErr error
	if err := raw.Control(func(fd uintptr) { statErr = unix.Fstat(int(fd), st) }); err != nil {
		return err
	}
	return os.NewSyscallError("fstat", statErr)
}
