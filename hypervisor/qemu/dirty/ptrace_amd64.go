package dirty

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The helper's work, in order: find a syscall instruction in the target's
// vdso; stop the target's main thread; block its signals; step over that
// instruction with registers of ours; put signals and registers back; let go.

const (
	// stopLimit is how long the main thread may take to stop. It answers
	// within 0.4 ms unless it hangs in uninterruptible I/O.
	stopLimit = 5 * time.Second
	// userCS is the code segment of 64-bit user code on Linux.
	userCS = 0x33
	// maxSteps bounds the single steps for one instruction; group stops in
	// between cost one each.
	maxSteps = 16

	ptraceEventStop  = 128
	ptraceGetSigmask = 0x420a
	ptraceSetSigmask = 0x420b
	kernelSigsetSize = 8
)

var syscallInstruction = []byte{0x0f, 0x05}

// findSyscallInstruction returns the address of a syscall instruction in the
// target's vdso, which every process has and none changes.
func findSyscallInstruction(pid int) (uint64, error) {
	maps, err := ReadMaps(pid)
	if err != nil {
		return 0, err
	}
	for _, m := range maps {
		if m.Path != "[vdso]" || m.End-m.Start > 1<<20 {
			continue
		}
		code := make([]byte, m.End-m.Start)
		mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
		if err != nil {
			return 0, err
		}
		_, err = mem.ReadAt(code, int64(m.Start))
		_ = mem.Close()
		if err != nil {
			return 0, fmt.Errorf("read the vdso of process %d: %w", pid, err)
		}
		if i := bytes.Index(code, syscallInstruction); i >= 0 {
			return m.Start + uint64(i), nil
		}
	}
	return 0, fmt.Errorf("process %d has no vdso with a syscall instruction (kernel booted with vdso=0?)", pid)
}

// injectUserfaultfd runs userfaultfd(2) in the main thread of the target, by
// means of the syscall instruction at the given address. A descriptor of
// /dev/userfaultfd (-1 for none) is used for it, and closed: it is for us and
// not for whoever may break into the target.
func injectUserfaultfd(pid int, at uint64, device int) (made injected, err error) {
	runtime.LockOSThread() // ptrace knows its tracer by the thread
	defer runtime.UnlockOSThread()

	if err := stop(pid); err != nil {
		return injected{}, err
	}
	defer func() { err = errors.Join(err, wrap("detach", unix.PtraceDetach(pid))) }()

	var regs unix.PtraceRegs
	if err := unix.PtraceGetRegs(pid, &regs); err != nil {
		return injected{}, wrap("read registers", err)
	}
	if regs.Cs != userCS {
		return injected{}, fmt.Errorf("process %d does not run 64-bit code", pid)
	}
	var mask uint64
	if err := sigmask(ptraceGetSigmask, pid, &mask); err != nil {
		return injected{}, wrap("read signal mask", err)
	}
	// SIGTRAP must stay as it is: the kernel resets its handler when it has to
	// force it on a thread that blocks it.
	all := ^uint64(0)&^(1<<(unix.SIGTRAP-1)) | mask&(1<<(unix.SIGTRAP-1))
	if err := sigmask(ptraceSetSigmask, pid, &all); err != nil {
		return injected{}, wrap("block signals", err)
	}
	defer func() {
		err = errors.Join(err,
			wrap("restore registers", unix.PtraceSetRegs(pid, &regs)),
			wrap("restore signal mask", sigmask(ptraceSetSigmask, pid, &mask)))
	}()

	flags := uint64(unix.O_CLOEXEC | unix.O_NONBLOCK)
	result := -int64(unix.EPERM)
	if device >= 0 {
		result, err = call(pid, regs, at, unix.SYS_IOCTL, uint64(device), ioctlUffdNew, flags)
		if err == nil {
			_, err = call(pid, regs, at, unix.SYS_CLOSE, uint64(device))
		}
	}
	if err == nil && result < 0 {
		result, err = call(pid, regs, at, unix.SYS_USERFAULTFD, flags)
	}
	if err == nil && result == -int64(unix.EPERM) {
		// vm.unprivileged_userfaultfd is 0 and the target is not root. Faults
		// of the kernel then may not be *handled* in user space. Those of
		// tracking never are: asynchronous ones are resolved in place, the
		// kernel's too.
		made.userOnly = true
		result, err = call(pid, regs, at, unix.SYS_USERFAULTFD, flags|uffdUserModeOnly)
	}
	if err == nil && result < 0 {
		err = wrap("userfaultfd(2)", unix.Errno(-result))
	}
	made.fd = int(result)
	return made, err
}

// stop seizes a thread and waits until it stands still. If that fails the
// thread goes on untouched as soon as this process ends.
func stop(tid int) error {
	if err := unix.PtraceSeize(tid); err != nil {
		return fmt.Errorf("trace process %d (is a debugger attached?): %w", tid, err)
	}
	if err := unix.PtraceInterrupt(tid); err != nil {
		return wrap("interrupt", err)
	}
	deadline := time.Now().Add(stopLimit)
	for pause := 20 * time.Microsecond; ; pause = min(2*pause, time.Millisecond) {
		status, stopped, err := wait(tid, unix.WNOHANG)
		switch {
		case err != nil:
			return err
		case stopped && status>>16 == ptraceEventStop:
			return nil
		case stopped:
			// A signal was on its way: hand it over, our stop comes next.
			if err := unix.PtraceCont(tid, int(unix.WaitStatus(status).StopSignal())); err != nil {
				return wrap("pass a signal on", err)
			}
		case time.Now().After(deadline):
			return fmt.Errorf("thread %d did not stop within %v; it may hang in I/O", tid, stopLimit)
		default:
			time.Sleep(pause) // the kernel offers a tracer nothing to poll on
		}
	}
}

// call runs one system call in a stopped thread and returns its raw result.
// It leaves the registers changed.
func call(tid int, regs unix.PtraceRegs, at, number uint64, args ...uint64) (int64, error) {
	regs.Rip, regs.Rax = at, number
	for i, to := range []*uint64{&regs.Rdi, &regs.Rsi, &regs.Rdx}[:len(args)] {
		*to = args[i]
	}
	regs.Orig_rax = ^uint64(0) // else the kernel "restarts" the interrupted call on our registers
	if err := unix.PtraceSetRegs(tid, &regs); err != nil {
		return 0, wrap("set registers", err)
	}
	for range maxSteps {
		if err := unix.PtraceSingleStep(tid); err != nil {
			return 0, wrap("step", err)
		}
		status, _, err := wait(tid, 0)
		if err != nil {
			return 0, err
		}
		if err := unix.PtraceGetRegs(tid, &regs); err != nil {
			return 0, wrap("read result", err)
		}
		if regs.Rip == at+uint64(len(syscallInstruction)) {
			return int64(regs.Rax), nil
		}
		if regs.Rip != at {
			return 0, fmt.Errorf("thread %d went astray while stepping: at %#x, want %#x (wait status %#x)", tid, regs.Rip, at, status)
		}
	}
	return 0, fmt.Errorf("thread %d did not step over the syscall instruction at %#x", tid, at)
}

// wait collects one stop of a traced thread.
func wait(tid, options int) (status uint32, stopped bool, err error) {
	var ws unix.WaitStatus
	for {
		got, err := unix.Wait4(tid, &ws, unix.WALL|options, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, false, wrap("wait for the target", err)
		case got == 0:
			return 0, false, nil
		case !ws.Stopped():
			return 0, false, fmt.Errorf("process %d ended meanwhile", tid)
		}
		return uint32(ws), true, nil
	}
}

func sigmask(request uintptr, tid int, mask *uint64) error {
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, request, uintptr(tid), kernelSigsetSize, uintptr(unsafe.Pointer(mask)), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}
