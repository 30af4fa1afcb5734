package qemu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"understudy/epoch"
	"understudy/hypervisor"
)

// CheckHost goes through what a host needs, one check after the other, the
// cheap ones first; the last one protects a small machine for real.

// Status is the outcome of one check.
type Status string

// A host with a failed check cannot protect the guest. One with a warning can,
// with the drawback that the check names.
const (
	StatusOK   Status = "ok"
	StatusWarn Status = "warn"
	StatusFail Status = "fail"
)

// Check is one thing that was looked at.
type Check struct {
	Name   string `json:"name"`
	Status Status `json:"status"`
	Detail string `json:"detail"`           // what was found
	Remedy string `json:"remedy,omitempty"` // what the operator can do
}

// Report is what CheckHost found.
type Report struct {
	Guest  string  `json:"guest"`
	Checks []Check `json:"checks"`
	// Facts must be equal on both hosts; see HostFacts.Compare. They are zero
	// as far as they could not be found out.
	Facts HostFacts `json:"facts"`
}

// OK reports whether no check failed.
func (r Report) OK() bool {
	for _, c := range r.Checks {
		if c.Status == StatusFail {
			return false
		}
	}
	return true
}

func (r *Report) add(name string, status Status, detail, remedy string) {
	if status == StatusOK {
		remedy = ""
	}
	r.Checks = append(r.Checks, Check{Name: name, Status: status, Detail: detail, Remedy: remedy})
}

// result adds a check that failed if err is not nil.
func (r *Report) result(name string, err error, detail, remedy string) bool {
	var refusal *hypervisor.Refusal
	switch {
	case err == nil:
		r.add(name, StatusOK, detail, "")
	case errors.As(err, &refusal):
		r.add(name, StatusFail, refusal.What, refusal.Remedy)
	default:
		r.add(name, StatusFail, err.Error(), remedy)
	}
	return err == nil
}

// overhead is what a protected guest takes beside its memory: QEMU itself, the
// capture and send buffers, held frames and writes.
const overhead = 256 * mib

// CheckHost finds out whether this host can run, protect and take over the
// configured guest. A failed check is in the report; the error is only for a
// context that ended.
func CheckHost(ctx context.Context, cfg Config) (Report, error) {
	c := cfg.withDefaults()
	r := &Report{Guest: c.Name}
	valid := r.result("configuration", c.validate(), "consistent", "correct the guest's configuration")
	checkKernel(r)
	checkPrivileges(r)
	checkTunnel(r)
	checkFirewall(r)
	checkSwap(r)
	as, err := c.account()
	known := r.result("account", err, "QEMU runs as "+c.User, "create the account or name another")
	if known {
		checkFiles(r, c, as)
	}
	checkImageDir(r, c)
	checkMemory(r, c)
	p := checkQEMU(ctx, r, c)
	if valid && known && p != nil {
		d := &Driver{cfg: *c, as: as, log: slog.New(slog.DiscardHandler), sums: map[string]sum{}, ours: map[place]bool{}}
		accel := checkAccelerator(ctx, r, d)
		if accel != "" {
			checkTrial(ctx, r, c, accel)
		}
		facts, err := c.facts(p, accel)
		if err != nil {
			r.add("facts", StatusFail, err.Error(), "make kernel, initrd and QEMU's program readable")
		}
		r.Facts = facts
	}
	return *r, ctx.Err()
}

func checkKernel(r *Report) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		r.add("kernel", StatusFail, err.Error(), "")
		return
	}
	release := unix.ByteSliceToString(u.Release[:])
	major, minor := kernelVersion(release)
	status := StatusOK
	if major < 6 || major == 6 && minor < 7 {
		status = StatusFail
	}
	r.add("kernel", status, "Linux "+release, "boot Linux 6.7 or later: it tracks writes asynchronously (PAGEMAP_SCAN, userfaultfd WP_ASYNC)")
}

// kernelVersion reads "6.18.44-…"; what it cannot read is 0.
func kernelVersion(release string) (major, minor int) {
	first, rest, _ := strings.Cut(release, ".")
	second := rest[:len(rest)-len(strings.TrimLeft(rest, "0123456789"))]
	major, _ = strconv.Atoi(first)
	minor, _ = strconv.Atoi(second)
	return major, minor
}

func checkPrivileges(r *Report) {
	text, err := os.ReadFile("/proc/sys/kernel/yama/ptrace_scope")
	if err == nil && strings.TrimSpace(string(text)) == "3" {
		r.add("tracing", StatusFail, "no process may trace another (kernel.yama.ptrace_scope is 3)", "set it to 2 or less, which takes a reboot")
		return
	}
	if os.Geteuid() != 0 {
		r.add("tracing", StatusWarn, "not running as root: QEMU then runs as the same account as we do", "run as root, so that QEMU can run as another account")
		return
	}
	r.add("tracing", StatusOK, "allowed", "")
}

func checkTunnel(r *Report) {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err == nil {
		err = f.Close()
	}
	r.result("network devices", err, "/dev/net/tun opens", "load the module tun, and run as root")
}

func checkFirewall(r *Report) {
	c, err := nftables.New()
	if err == nil {
		_, err = c.ListTables()
	}
	r.result("nftables", err, "answers", "load the module nf_tables, and run as root")
}

func checkSwap(r *Report) {
	text, err := os.ReadFile("/proc/swaps")
	switch lines := strings.Count(strings.TrimSpace(string(text)), "\n"); {
	case err != nil:
		r.add("swap", StatusWarn, err.Error(), "")
	case lines > 0:
		r.add("swap", StatusWarn, fmt.Sprintf("%d swap areas: guest memory in them makes the pause long", lines), "swapoff, or keep this service's memory out of swap (MemorySwapMax=0)")
	default:
		r.add("swap", StatusOK, "none", "")
	}
}

// checkFiles checks that QEMU's account can read what it has to.
func checkFiles(r *Report, c *Config, as account) {
	for _, p := range c.files() {
		r.result("file "+p, as.canRead(p), "readable", "let the account "+c.User+" read it and pass the directories above it")
	}
}

func checkImageDir(r *Report, c *Config) {
	dir := c.ImageDir
	for dir != "/" {
		if _, err := os.Stat(dir); err == nil {
			break
		}
		dir = filepath.Dir(dir)
	}
	r.result("image directory", checkRoom(dir, c.Memory), fmt.Sprintf("%s has room for %d MiB", dir, c.Memory/mib),
		"name a directory on a tmpfs that is large enough")
}

func checkMemory(r *Report, c *Config) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		r.add("memory", StatusFail, err.Error(), "")
		return
	}
	available := memAvailable(string(text))
	need := c.Memory + overhead
	status := StatusOK
	if available < need {
		status = StatusFail
	}
	r.add("memory", status, fmt.Sprintf("%d MiB available; the guest or its standby takes up to %d MiB, %d MiB of it for QEMU, buffers and held output",
		available/mib, need/mib, uint64(overhead)/mib), "give the host more memory, or the guest less")
}

// memAvailable reads the bytes of MemAvailable from /proc/meminfo.
func memAvailable(text string) uint64 {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			fields := strings.Fields(value)
			if len(fields) == 2 && fields[1] == "kB" {
				n, _ := strconv.ParseUint(fields[0], 10, 53)
				return n << 10
			}
		}
	}
	return 0
}

func checkQEMU(ctx context.Context, r *Report, c *Config) *program {
	p, err := askProgram(ctx, c.QEMU)
	detail := ""
	if err == nil {
		detail = p.Version
		err = p.checkVersion()
	}
	if err == nil {
		_, err = p.resolve(c.Machine)
	}
	if !r.result("QEMU", err, detail, "install it (apt install qemu-system-x86)") {
		return nil
	}
	return p
}

func checkAccelerator(ctx context.Context, r *Report, d *Driver) string {
	accel, err := d.accelerator(ctx)
	if !r.result("accelerator", err, accel, "") {
		return ""
	}
	last := &r.Checks[len(r.Checks)-1]
	switch {
	case accel == AccelTCG && d.cfg.Accel == AccelAuto:
		last.Status = StatusWarn
		last.Detail = "KVM does not work here, the guest runs under TCG"
		last.Remedy = "enable virtualisation in the firmware, and load kvm_intel or kvm_amd"
	case accel == AccelKVM:
		last.Status = StatusWarn
		last.Detail = "KVM works; protection under KVM is experimental"
		last.Remedy = "run the self-test on this hardware before you rely on it"
	}
	return accel
}

// trialLimit bounds the trial.
const trialLimit = time.Minute

// checkTrial protects a small machine of the configured kind: QEMU starts in
// its sandbox as its account, is tracked, saved, and loaded into a standby.
func checkTrial(ctx context.Context, r *Report, c *Config, accel string) {
	ctx, cancel := context.WithTimeout(ctx, trialLimit)
	defer cancel()
	start := time.Now()
	err := trial(ctx, *c, accel)
	r.result("trial of protection", err, fmt.Sprintf("a small %s was started, tracked, saved and loaded in %v", c.Machine, time.Since(start).Round(time.Millisecond)),
		"correct what failed before it, then ask again")
}

func trial(ctx context.Context, c Config, accel string) (err error) {
	dir, err := os.MkdirTemp("", "understudy-check-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.Chmod(dir, 0o711); err != nil {
		return err
	}
	c.Kernel, c.Initrd, c.Append = filepath.Join(dir, "kernel"), "", ""
	if err := os.WriteFile(c.Kernel, trialKernel(), 0o644); err != nil {
		return err
	}
	c.Accel, c.Memory = accel, 32*mib
	c.Served, c.Disks, c.NICs, c.Console, c.Reserve = nil, nil, nil, "", false
	c.RunDir = filepath.Join(dir, "run")
	c.ImageDir = filepath.Join(c.ImageDir, "check")
	defer func() { err = errors.Join(err, os.RemoveAll(c.ImageDir)) }()
	d, err := NewDriver(c, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	g, err := d.Start(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.Destroy()) }()
	set := epoch.NewPageSet(g.Pages())
	if err := g.CollectDirty(set); err != nil {
		return err
	}
	set.Clear()
	if err := g.CollectDirty(set); err != nil {
		return err
	}
	if !set.Empty() {
		return fmt.Errorf("a machine that stands still was seen to write %d pages", set.Count())
	}
	state, err := g.AppendDeviceState(ctx, nil)
	if err != nil {
		return err
	}
	s, err := d.Standby(ctx, g.Spec())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Destroy()) }()
	return trialCopy(ctx, g, s, state)
}

// trialCopy copies the whole image and loads the state.
func trialCopy(ctx context.Context, g hypervisor.Guest, s hypervisor.Standby, state []byte) error {
	const chunk = 256
	buf := make([]byte, chunk*epoch.PageSize)
	for first := uint64(0); first < g.Pages(); first += chunk {
		part := buf[:min(chunk, g.Pages()-first)*epoch.PageSize]
		if err := g.ReadPages(epoch.GFN(first), part); err != nil {
			return err
		}
		if err := s.WritePages(epoch.GFN(first), part); err != nil {
			return err
		}
	}
	return s.Load(ctx, state, nil)
}
