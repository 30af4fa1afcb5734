package lab

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// A lab's name is PREFIX-PID-START-RANDOM: the process it belongs to, by its
// number and start time, so that a number used again is not taken for it, and
// something of its own. A namespace's name is the lab's and "-HOST".

// maxWord bounds a prefix and a host's name.
const maxWord = 16

func validWord(s string, digits bool) bool {
	for _, c := range s {
		if (c < 'a' || c > 'z') && (!digits || c < '0' || c > '9') {
			return false
		}
	}
	return s != "" && len(s) <= maxWord
}

func newName(prefix string) (string, error) {
	start, err := startTime(os.Getpid())
	if err != nil {
		return "", fmt.Errorf("naming a lab: %w", err)
	}
	var r [4]byte
	rand.Read(r[:]) // never fails, see crypto/rand
	return fmt.Sprintf("%s-%d-%d-%s", prefix, os.Getpid(), start, hex.EncodeToString(r[:])), nil
}

// owner takes the name of a namespace apart. It is false for a name that is
// not a lab's with this prefix.
func owner(prefix, namespace string) (pid int, start uint64, ok bool) {
	parts := strings.Split(namespace, "-")
	if len(parts) != 5 || parts[0] != prefix {
		return 0, 0, false
	}
	pid, err := strconv.Atoi(parts[1])
	if err != nil || pid <= 0 {
		return 0, 0, false
	}
	start, err = strconv.ParseUint(parts[2], 10, 64)
	return pid, start, err == nil
}

// startTime returns when a process started, in clock ticks since boot:
// field 22 of /proc/PID/stat (proc(5)).
func startTime(pid int) (uint64, error) {
	path := fmt.Sprintf("/proc/%d/stat", pid)
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	// The command's name, field 2, is in brackets and may contain anything.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 20 {
		return 0, fmt.Errorf("%s has %d fields after the name: want 20", path, len(fields))
	}
	if fields[0] == "Z" || fields[0] == "X" {
		return 0, fmt.Errorf("process %d: %w", pid, os.ErrProcessDone)
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: start time: %w", path, err)
	}
	return start, nil
}
