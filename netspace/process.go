package netspace

// Who is in a namespace.

import (
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Processes lists the processes, but this one, in the namespace of that name.
func Processes(name string) ([]int, error) {
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
		in, err := isIn(pid, name)
		if err != nil {
			return nil, err
		}
		if in {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// isIn reports whether a process is in a namespace. A process or a namespace that
// is gone is not; a zombie has left its namespace.
func isIn(pid int, name string) (bool, error) {
	var of, at unix.Stat_t
	if err := unix.Stat(Path(name), &at); err != nil {
		if err == unix.ENOENT {
			return false, nil
		}
		return false, err
	}
	if err := unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &of); err != nil {
		// A process with more rights than this one is none that this one started.
		if err == unix.ENOENT || err == unix.ESRCH || err == unix.EACCES {
			return false, nil
		}
		return false, err
	}
	return of.Dev == at.Dev && of.Ino == at.Ino, nil
}

// killTime is how long Kill waits for processes to be gone. One in the midst of a
// core dump or of a device's reply may take a while.
const killTime = 10 * time.Second

// Kill sends SIGKILL to every process but this one in the namespace of that name,
// and returns when there is none.
func Kill(name string) error {
	deadline := time.Now().Add(killTime)
	for {
		pids, err := Processes(name)
		if err != nil {
			return fmt.Errorf("look for processes in %s: %w", name, err)
		}
		if len(pids) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v in %s are still there %v after SIGKILL", pids, name, killTime)
		}
		for _, pid := range pids {
			if err := kill(pid, name, deadline); err != nil {
				return fmt.Errorf("kill process %d in %s: %w", pid, name, err)
			}
		}
	}
}

// kill kills one process if it is in the namespace, and waits for its end. The
// descriptor keeps its number from meaning another process.
func kill(pid int, name string, deadline time.Time) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH || err == unix.EINVAL {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if in, err := isIn(pid, name); err != nil || !in {
		return err
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
		return err
	}
	set := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return nil // Kill says so
		}
		if _, err := unix.Poll(set, int(left.Milliseconds())+1); err != unix.EINTR {
			return err
		}
	}
}
