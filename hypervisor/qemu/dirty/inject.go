package dirty

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// One userfaultfd(2) has to be made by the target itself, because the
// descriptor belongs to the memory of the process that made it. inject starts
// a helper process, which runs HelperMain, which runs the system call inside
// the target (ptrace_amd64.go). The descriptor stays open in the target: it is
// the anchor that keeps tracking alive when we die.
//
// Why a process of its own: while the target stands on foreign registers the
// death of its tracer would let it run on with them, and crash. A process that
// does nothing else, ignores every signal, sits in a session of its own and
// does not die with its parent is in that window for some 50 µs, once in a
// guest's life.

// HelperMain is the whole program of the helper process. A main function calls
// it, and exits with what it returns, when its command line says what
// Config.Helper says; args are the arguments after those.
func HelperMain(args []string) int {
	signal.Ignore()
	made, err := helper(args)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if _, err := fmt.Println(made.fd, made.userOnly); err != nil {
		return 1 // the parent is gone; the next one finds the anchor
	}
	return 0
}

// injected is a userfaultfd that was made inside the target.
type injected struct {
	fd int
	// userOnly says that faults of the kernel cannot be handled with it: the
	// target may not have more (vm.unprivileged_userfaultfd), and holds no
	// /dev/userfaultfd.
	userOnly bool
}

func helper(args []string) (injected, error) {
	if len(args) != 1 {
		return injected{}, fmt.Errorf("want one argument, a process id, not %q", args)
	}
	pid, err := strconv.Atoi(args[0])
	if err != nil || pid <= 0 {
		return injected{}, fmt.Errorf("want a process id, not %q", args[0])
	}
	at, err := findSyscallInstruction(pid)
	if err != nil {
		return injected{}, err
	}
	device, err := findDevice(pid)
	if err != nil {
		return injected{}, err
	}
	return injectUserfaultfd(pid, at, device)
}

// findDevice returns the number of a descriptor of /dev/userfaultfd that the
// process was started with, -1 for none. With it a process without rights can
// make a userfaultfd that handles all faults.
func findDevice(pid int) (int, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return -1, err
	}
	for _, e := range entries {
		if link, err := os.Readlink(dir + "/" + e.Name()); err == nil && link == "/dev/userfaultfd" {
			return strconv.Atoi(e.Name())
		}
	}
	return -1, nil
}

// inject makes a userfaultfd inside the target.
// It is not cut short by a context: the helper must not be killed, and bounds
// its own time.
func inject(pid int, argv []string) (injected, error) {
	if len(argv) == 0 {
		return injected{}, errors.New("no helper program configured")
	}
	cmd := exec.Command(argv[0], append(argv[1:len(argv):len(argv)], strconv.Itoa(pid))...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // and no Pdeathsig
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return injected{}, fmt.Errorf("helper %s: %w: %s", argv[0], err, strings.TrimSpace(string(exit.Stderr)))
		}
		return injected{}, fmt.Errorf("helper %s: %w", argv[0], err)
	}
	number, only, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
	fd, err := strconv.Atoi(number)
	userOnly, boolErr := strconv.ParseBool(only)
	if err != nil || boolErr != nil || fd < 0 {
		return injected{}, fmt.Errorf("helper %s did not print a descriptor but %.80q", argv[0], out)
	}
	return injected{fd, userOnly}, nil
}

// takeDescriptor copies descriptor number fd of the process into ours.
func takeDescriptor(pidfd, fd int) (int, error) {
	mine, err := unix.PidfdGetfd(pidfd, fd, 0)
	if err != nil {
		return -1, fmt.Errorf("copy descriptor %d of the target: %w", fd, err)
	}
	return mine, nil
}

// anchor is a userfaultfd found in the target's descriptor table.
type anchor struct {
	fd       int
	features uint64 // 0: no handshake yet
}

// ours reports whether the descriptor can track: it has our features, or none
// yet. One without WP_ASYNC would hang the target at its first write.
func (a anchor) ours() bool { return a.features == 0 || a.features&uffdFeatures == uffdFeatures }

// findAnchors lists the userfaultfds that a process has open.
func findAnchors(pid int) ([]anchor, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var found []anchor
	for _, e := range entries {
		link, err := os.Readlink(dir + "/" + e.Name())
		if err != nil || link != "anon_inode:[userfaultfd]" {
			continue // closed meanwhile, or something else
		}
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			return nil, fmt.Errorf("%s/%s: not a descriptor number", dir, e.Name())
		}
		features, err := anchorFeatures(pid, fd)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		found = append(found, anchor{fd, features})
	}
	return found, nil
}

// anchorFeatures reads the features of a userfaultfd from the line
// "API:<tab>aa:features:…" of its fdinfo, all in hexadecimal.
func anchorFeatures(pid, fd int) (uint64, error) {
	path := fmt.Sprintf("/proc/%d/fdinfo/%d", pid, fd)
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		value, ok := strings.CutPrefix(line, "API:")
		if !ok {
			continue
		}
		parts := strings.Split(strings.TrimSpace(value), ":")
		if len(parts) != 3 {
			break
		}
		features, err := strconv.ParseUint(parts[1], 16, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: features: %w", path, err)
		}
		return features, nil
	}
	return 0, fmt.Errorf("%s: no line of the form API:<tab>api:features:all", path)
}
