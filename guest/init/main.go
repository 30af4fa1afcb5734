// Command init is PID 1 of the test guest. It goes through these steps once:
// mount the kernel's file systems, load the drivers' modules, set up the
// network and mount the disk from the kernel's command line, serve (package service), say
// guest.ReadyLine on the console. Then it reaps orphans and waits for a request
// to end.
//
// It reads from the kernel's command line
//
//	understudy.ip=ADDRESS/LENGTH   eth0's IPv4 address
//	understudy.gw=ADDRESS          the default route
//	understudy.disk=DEVICE:DIR     an ext4 disk to mount on /data or /root
//	understudy.shell               a shell on the serial console
//
// and heeds the signals that busybox's poweroff (SIGUSR2) and reboot (SIGTERM)
// send to PID 1. A step that fails is told on the console; the rest goes on, so
// that a guest without a network still shows why.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"understudy/guest"
	"understudy/guest/service"
)

func main() {
	if os.Getpid() != 1 && len(os.Args) > 2 && os.Args[1] == "workload" {
		os.Exit(asWorkload(os.Args[2:]))
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "init: this is PID 1 of the test guest and does nothing elsewhere; build the guest with: make guest")
		os.Exit(2)
	}
	mounts := mountAll()
	console := openConsole()
	log := slog.New(slog.NewTextHandler(console, nil))
	report := func(err error) {
		if err != nil {
			log.Error(err.Error())
		}
	}
	report(mounts)
	report(loadModules("/modules"))
	cmdline, err := os.ReadFile("/proc/cmdline")
	report(err)
	settings, err := parseCommandLine(string(cmdline))
	report(err)
	report(network(settings))
	if err := mountDisk(settings.disk); err != nil {
		report(err)
		settings.disk = guest.Disk{} // the services must not take the initramfs for it
	}

	ends := make(chan service.PowerAction, 1)
	end := func(action service.PowerAction) {
		select {
		case ends <- action:
		default: // one is under way
		}
	}
	var services sync.WaitGroup
	orphans := &children{again: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	report(serve(ctx, &services, settings.disk.Dir, orphans, end, log))
	_, _ = fmt.Fprintln(console, guest.ReadyLine)

	var shell int
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGCHLD, unix.SIGTERM, unix.SIGUSR2, unix.SIGINT)
	if settings.shell {
		shell, err = startShell()
		report(err)
	}
	collect := func() {
		if orphans.collect(shell) {
			shell, err = startShell()
			report(err)
		}
	}
	for {
		select {
		case <-orphans.again:
			collect()
		case action := <-ends:
			cancel()
			services.Wait()
			if action != service.Panic { // a crash leaves what it leaves
				report(unmountDisk(settings.disk))
			}
			report(finish(action))
		case sig := <-signals:
			switch sig {
			case unix.SIGTERM, unix.SIGINT:
				end(service.Reboot)
			case unix.SIGUSR2:
				end(service.Poweroff)
			case unix.SIGCHLD:
				collect()
			}
		}
	}
}

// mountAll mounts what the kernel offers. The initramfs has the directories.
func mountAll() error {
	var all error
	for _, m := range []struct{ kind, dir string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"},
	} {
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil {
			all = errors.Join(all, fmt.Errorf("mount %s on %s: %w", m.kind, m.dir, err))
		}
	}
	return all
}

// openConsole opens the console anew, as the one the kernel gave us may have
// been opened before there was a driver.
func openConsole() io.Writer {
	f, err := os.OpenFile("/dev/console", os.O_WRONLY|syscall.O_NOCTTY, 0)
	if err != nil {
		return os.Stdout
	}
	return f
}

// loadModules loads every module that dir/order lists, in that order: what a
// module depends on stands before it (guest/build sees to that).
func loadModules(dir string) error {
	order, err := os.ReadFile(dir + "/order")
	if err != nil {
		return fmt.Errorf("load modules: %w", err)
	}
	var all error
	for _, name := range strings.Fields(string(order)) {
		if err := loadModule(dir + "/" + name); err != nil {
			all = errors.Join(all, fmt.Errorf("load module %s: %w", name, err))
		}
	}
	return all
}

// loadModule loads one module. That there is nothing for it to do on this machine
// (ENODEV: Xen's, on any other) is no error.
func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}

// serve opens the services' ports and serves until ctx ends.
func serve(ctx context.Context, running *sync.WaitGroup, disk string, orphans *children, end func(service.PowerAction), log *slog.Logger) error {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return fmt.Errorf("read the boot id: %w", err)
	}
	listeners, err := service.Listen("")
	if err != nil {
		return err
	}
	running.Go(func() {
		err := service.Run(ctx, listeners, service.Config{
			BootID: strings.TrimSpace(string(id)),
			Disk:   disk,
			Drop:   dropCaches,
			Run:    orphans.workload(disk),
			// Not at once: Run waits for the connection that asks.
			Power: end,
			Log:   log,
		})
		if err != nil {
			log.Error("services ended", "error", err)
		}
	})
	return nil
}

// startShell runs a shell on the serial console, in a session of its own so
// that job control works.
func startShell() (pid int, err error) {
	tty, err := os.OpenFile("/dev/ttyS0", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return 0, fmt.Errorf("start a shell: %w", err)
	}
	defer func() { _ = tty.Close() }()
	fd := tty.Fd()
	pid, err = syscall.ForkExec("/bin/sh", []string{"-sh"}, &syscall.ProcAttr{
		Dir:   "/",
		Env:   []string{"PATH=/bin", "HOME=/", "TERM=vt102"},
		Files: []uintptr{fd, fd, fd},
		Sys:   &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0},
	})
	if err != nil {
		return 0, fmt.Errorf("start a shell: %w", err)
	}
	return pid, nil
}

// reap collects every child that has ended, ours and orphans, and reports
// whether the shell was among them.
func reap(shell int) (shellEnded bool) {
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return shellEnded
		}
		shellEnded = shellEnded || pid == shell
	}
}

// finish ends this life of the machine; it returns only if that fails.
func finish(action service.PowerAction) error {
	unix.Sync()
	var err error
	switch action {
	case service.Poweroff:
		err = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	case service.Reboot:
		err = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	case service.Panic:
		err = os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
	}
	return fmt.Errorf("%s: %w", action, err)
}
