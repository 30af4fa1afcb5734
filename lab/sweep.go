package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Leftovers lists the namespaces, and the processes in them, of every lab with
// this prefix, whether its owner lives or not: after all labs are closed there
// is nothing. An empty list and no error is what a test wants to see.
func Leftovers(prefix string) ([]string, error) {
	spaces, err := spacesOf(prefix)
	if err != nil {
		return nil, err
	}
	var left []string
	for _, name := range spaces {
		path := filepath.Join(netnsDir, name)
		left = append(left, "namespace "+name)
		pids, err := processesIn(path)
		if err != nil {
			return left, err
		}
		for _, pid := range pids {
			comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)) // only to tell it to a person
			left = append(left, fmt.Sprintf("process %d (%.15s) in %s", pid, comm, name))
		}
	}
	return left, nil
}

// Sweep removes every lab with this prefix whose owner has died, with all
// processes in it, and returns the namespaces it removed. It leaves the labs
// of living processes alone.
func Sweep(prefix string) ([]string, error) {
	spaces, err := spacesOf(prefix)
	if err != nil {
		return nil, err
	}
	var removed []string
	var errs []error
	for _, name := range spaces {
		pid, start, _ := owner(prefix, name)
		if now, err := startTime(pid); err == nil && now == start {
			continue
		}
		path := filepath.Join(netnsDir, name)
		if err := killAll(path); err != nil {
			errs = append(errs, err)
		}
		if err := removeNamespace(path); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, name)
	}
	return removed, errors.Join(errs...)
}

func spacesOf(prefix string) ([]string, error) {
	entries, err := os.ReadDir(netnsDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing network namespaces: %w", err)
	}
	var names []string
	for _, e := range entries {
		if _, _, ok := owner(prefix, e.Name()); ok {
			names = append(names, e.Name())
		}
	}
	sort.Strings(names)
	return names, nil
}

// killTime is how long killAll waits for processes to be gone. One in the
// midst of a core dump or of a device's reply may take a while.
const killTime = 10 * time.Second

// killAll kills every process but this one in the namespace mounted at path,
// until there is none.
func killAll(path string) error {
	deadline := time.Now().Add(killTime)
	for {
		pids, err := processesIn(path)
		if err != nil {
			return fmt.Errorf("looking for processes in %s: %w", path, err)
		}
		if len(pids) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v in %s are still there %v after SIGKILL", pids, path, killTime)
		}
		for _, pid := range pids {
			if err := kill(pid, path, time.Until(deadline)); err != nil {
				return fmt.Errorf("killing process %d in %s: %w", pid, path, err)
			}
		}
	}
}

// kill kills one process if it is in the namespace, and waits for its end. The
// descriptor keeps its number from meaning another process.
func kill(pid int, path string, patience time.Duration) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH || err == unix.EINVAL {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if in, err := isIn(pid, path); err != nil || !in {
		return err
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
		return err
	}
	set := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	_, err = unix.Poll(set, int(patience.Milliseconds()))
	if err == unix.EINTR {
		err = nil // looked at again by killAll
	}
	return err
}

// processesIn lists the processes, but this one, in the namespace at path.
func processesIn(path string) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		in, err := isIn(pid, path)
		if err != nil {
			return nil, err
		}
		if in {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// isIn reports whether a process is in the namespace at path. A process or a
// namespace that is gone is not; a zombie has left its namespace.
func isIn(pid int, path string) (bool, error) {
	var of, at unix.Stat_t
	if err := unix.Stat(path, &at); err != nil {
		if err == unix.ENOENT {
			return false, nil
		}
		return false, err
	}
	if err := unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &of); err != nil {
		// A process with more rights than this one is none that a lab started.
		if err == unix.ENOENT || err == unix.ESRCH || err == unix.EACCES {
			return false, nil
		}
		return false, err
	}
	return of.Dev == at.Dev && of.Ino == at.Ino, nil
}
