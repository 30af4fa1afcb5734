package main

// A guest as QEMU alone runs and saves it: the same kernel, memory and disk
// content, QEMU's own virtio-blk on a qcow2 overlay of the image, and its memory
// its own. It is saved in two ways:
//
//	migrate  QEMU's stream into a file, while the guest runs; back by -incoming
//	savevm   into the overlay, while the guest stands still; back by -loadvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"understudy/hypervisor/qemu"
	"understudy/hypervisor/qemu/qmp"
)

// stock is a running QEMU of the bench's own.
type stock struct {
	cmd    *exec.Cmd
	ended  chan error
	client *qmp.Client
	drop   chan struct{} // closed when its events are no longer read
	dir    string
}

// stockArguments is the machine; it has what ours has but for the disk's back
// end and the memory's.
func stockArguments(c qemu.Config, append, disk, socket string) []string {
	guestSide, hostSide := c.NICSockets(0)
	args := []string{
		"-no-user-config", "-nodefaults", "-display", "none", "-machine", c.Machine, "-accel", c.Accel, "-cpu", "qemu64,enforce=on",
		"-smp", fmt.Sprint(c.CPUs), "-m", fmt.Sprintf("size=%dM", c.Memory>>20),
		"-kernel", c.Kernel, "-initrd", c.Initrd, "-append", append,
		"-drive", "if=none,id=disk0,format=qcow2,file=" + disk, "-device", "virtio-blk-pci,drive=disk0,disable-legacy=on",
		"-netdev", fmt.Sprintf("dgram,id=net0,local.type=unix,local.path=%s,remote.type=unix,remote.path=%s", guestSide, hostSide),
		"-device", fmt.Sprintf("virtio-net-pci,netdev=net0,mac=%s,romfile=", c.NICs[0].MAC),
		"-qmp", "unix:" + socket + ",server=on,wait=off", "-msg", "timestamp=off",
	}
	if c.FreePageReporting {
		args = slices.Concat(args, []string{"-device", "virtio-balloon-pci,free-page-reporting=on,disable-legacy=on"})
	}
	return args
}

// stockIncoming is the descriptor of the file that a machine is restored from.
const stockIncoming = 3

// startStock starts a QEMU, with more arguments. incoming, if not nil, is what it
// is restored from.
func startStock(c qemu.Config, disk string, incoming *os.File, more ...string) (*stock, error) {
	s := &stock{dir: c.RunDir, ended: make(chan error, 1), drop: make(chan struct{})}
	guestSide, _ := c.NICSockets(0)
	for _, path := range []string{s.socket(), guestSide} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	args := append(stockArguments(c, c.Append, disk, s.socket()), more...)
	s.cmd = exec.Command("qemu-system-x86_64", args...)
	s.cmd.Stderr = os.Stderr
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if incoming != nil {
		s.cmd.ExtraFiles = []*os.File{incoming}
		s.cmd.Args = append(s.cmd.Args, "-incoming", fmt.Sprintf("fd:%d", stockIncoming))
	}
	started := make(chan error)
	go func() { // ends with the QEMU, which ends with this goroutine's thread
		runtime.LockOSThread()
		err := s.cmd.Start()
		started <- err
		if err == nil {
			s.ended <- s.cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start QEMU: %w", err)
	}
	return s, nil
}

func (s *stock) socket() string { return filepath.Join(s.dir, "qmp") }

// connect opens the monitor.
func (s *stock) connect(ctx context.Context) error {
	for s.client == nil {
		client, err := qmp.Dial(ctx, s.socket())
		if err == nil {
			s.client = client
			break
		}
		select {
		case e := <-s.ended:
			s.ended <- e
			return fmt.Errorf("QEMU has ended: %w", errors.Join(e, err))
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
	go func() { // ends with the connection
		defer close(s.drop)
		for range s.client.Events() { //nolint:revive // nobody wants them
		}
	}()
	// Its default bandwidth, 128 MiB/s, is made for networks.
	return s.client.Execute(ctx, "migrate-set-parameters", map[string]any{"max-bandwidth": int64(1) << 40}, nil)
}

// monitor runs a command for people.
func (s *stock) monitor(ctx context.Context, line string) error {
	var said string
	err := s.client.Execute(ctx, "human-monitor-command", map[string]string{"command-line": line}, &said)
	if said = strings.TrimSpace(said); err == nil && said != "" {
		err = errors.New(said)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", line, err)
	}
	return nil
}

// migrate writes QEMU's stream to file. The guest stands still afterwards.
func (s *stock) migrate(ctx context.Context, file *os.File) error {
	if err := s.client.ExecuteWithFile(ctx, "getfd", map[string]string{"fdname": "stream"}, file, nil); err != nil {
		return err
	}
	if err := s.client.Execute(ctx, "migrate", map[string]string{"uri": "fd:stream"}, nil); err != nil {
		return err
	}
	for {
		var info struct {
			Status string `json:"status"`
			Why    string `json:"error-desc"`
		}
		if err := s.client.Execute(ctx, "query-migrate", nil, &info); err != nil {
			return err
		}
		switch info.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return fmt.Errorf("migrate %s: %s", info.Status, info.Why)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}

// cont lets the guest run on; for a moment after a migration QEMU refuses it.
func (s *stock) cont(ctx context.Context) error {
	for {
		var status struct {
			Status string `json:"status"`
		}
		if err := s.client.Execute(ctx, "query-status", nil, &status); err != nil {
			return err
		}
		if status.Status != "finish-migrate" {
			return s.client.Execute(ctx, "cont", nil, nil)
		}
		time.Sleep(time.Millisecond)
	}
}

// awaitRunning returns when a machine that is being restored runs.
func (s *stock) awaitRunning(ctx context.Context) error {
	if err := s.connect(ctx); err != nil {
		return err
	}
	for {
		var status struct {
			Running bool `json:"running"`
		}
		if err := s.client.Execute(ctx, "query-status", nil, &status); err != nil || status.Running {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}

// close ends the QEMU.
func (s *stock) close() error {
	if s.client != nil {
		_ = s.client.Close()
		<-s.drop
	}
	if err := s.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	var killed *exec.ExitError
	if err := <-s.ended; err != nil && !errors.As(err, &killed) {
		return err
	}
	return nil
}

// qemuImg runs a command on an image.
func qemuImg(ctx context.Context, args ...string) ([]byte, error) {
	out, err := exec.CommandContext(ctx, "qemu-img", args...).CombinedOutput()
	if err != nil {
		return out, fmt.Errorf("qemu-img %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return out, nil
}

// overlay makes a fresh qcow2 over a raw image.
func overlay(ctx context.Context, path, base string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	_, err := qemuImg(ctx, "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, path)
	return err
}

// snapshotBytes is the size of the machine's state in an overlay.
func snapshotBytes(ctx context.Context, path, name string) (uint64, error) {
	out, err := qemuImg(ctx, "info", "-U", "--output=json", path)
	if err != nil {
		return 0, err
	}
	var info struct {
		Snapshots []struct {
			Name string `json:"name"`
			Size uint64 `json:"vm-state-size"`
		} `json:"snapshots"`
	}
	if err := json.Unmarshal(out, &info); err != nil {
		return 0, err
	}
	for _, s := range info.Snapshots {
		if s.Name == name {
			return s.Size, nil
		}
	}
	return 0, fmt.Errorf("%s has no snapshot %s", path, name)
}
