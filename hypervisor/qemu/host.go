package qemu

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"understudy/hypervisor"
)

// askLimit bounds a question to the QEMU program that it answers without
// starting a machine.
const askLimit = 10 * time.Second

// program is what the QEMU program says of itself.
type program struct {
	// Version is its version line, builder included.
	Version string
	// Major and Minor are taken from it.
	Major, Minor int
	// Machines maps each machine type to the versioned one it stands for.
	Machines map[string]string
	// Data lists where it looks for firmware, in that order.
	Data []string
}

// askProgram runs the program for its version, machine types and data directories.
func askProgram(ctx context.Context, qemu string) (*program, error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	out, err := exec.CommandContext(ctx, qemu, "--version").Output()
	if err != nil {
		return nil, fmt.Errorf("ask %s for its version: %w: is it installed (apt install qemu-system-x86)?", qemu, err)
	}
	p := &program{}
	p.Version, _, _ = strings.Cut(string(out), "\n")
	if p.Major, p.Minor, err = parseVersion(p.Version); err != nil {
		return nil, fmt.Errorf("ask %s for its version: %w", qemu, err)
	}
	if out, err = exec.CommandContext(ctx, qemu, "-machine", "help").Output(); err != nil {
		return nil, fmt.Errorf("ask %s for its machine types: %w", qemu, err)
	}
	p.Machines = parseMachines(out)
	if out, err = exec.CommandContext(ctx, qemu, "-L", "help").Output(); err != nil {
		return nil, fmt.Errorf("ask %s for its data directories: %w", qemu, err)
	}
	p.Data = strings.Fields(string(out))
	return p, nil
}

// answers are a program's, and which file gave them.
type answers struct {
	file os.FileInfo
	*program
}

// ask is askProgram, which takes some 0.1 s, unless the same file was asked
// before.
func (d *Driver) ask(ctx context.Context) (*program, error) {
	path, err := exec.LookPath(d.cfg.QEMU)
	if err != nil {
		return askProgram(ctx, d.cfg.QEMU) // it says what to do
	}
	file, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("look at %s: %w", path, err)
	}
	d.mu.Lock()
	said := d.said
	d.mu.Unlock()
	if said != nil && os.SameFile(said.file, file) && said.file.Size() == file.Size() && said.file.ModTime().Equal(file.ModTime()) {
		return said.program, nil
	}
	p, err := askProgram(ctx, d.cfg.QEMU)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	d.said = &answers{file, p}
	d.mu.Unlock()
	return p, nil
}

// parseVersion reads "QEMU emulator version 7.2.22 (Debian …)".
func parseVersion(line string) (major, minor int, err error) {
	rest, ok := strings.CutPrefix(line, "QEMU emulator version ")
	first, after, dot := strings.Cut(rest, ".")
	second, _, _ := strings.Cut(after, ".")
	second, _, _ = strings.Cut(second, " ")
	if ok && dot {
		if major, err = strconv.Atoi(first); err == nil {
			minor, err = strconv.Atoi(second)
		}
	}
	if !ok || !dot || err != nil {
		return 0, 0, fmt.Errorf("version line %.80q is not understood", line)
	}
	return major, minor, nil
}

// parseMachines reads lines like "pc   Standard PC (…) (alias of pc-i440fx-7.2)".
func parseMachines(text []byte) map[string]string {
	machines := map[string]string{}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		name, about, ok := strings.Cut(lines.Text(), " ")
		if !ok {
			continue
		}
		machines[name] = name
		if _, alias, ok := strings.Cut(about, "(alias of "); ok {
			machines[name], _, _ = strings.Cut(alias, ")")
		}
	}
	return machines
}

// checkVersion refuses a QEMU older than what all of this was proven on.
func (p *program) checkVersion() error {
	if p.Major > 7 || p.Major == 7 && p.Minor >= 2 {
		return nil
	}
	return &hypervisor.Refusal{What: p.Version, Remedy: "install QEMU 7.2 or later"}
}

// resolve returns the versioned machine type.
func (p *program) resolve(machineType string) (string, error) {
	if full, ok := p.Machines[machineType]; ok {
		return full, nil
	}
	return "", &hypervisor.Refusal{
		What:   fmt.Sprintf("machine type %q is unknown to %s", machineType, p.Version),
		Remedy: "use one that " + defaultQEMU + " -machine help lists, or the same QEMU on both hosts",
	}
}

// sum is a file's SHA-256, and which file that was.
type sum struct {
	file    os.FileInfo
	changed syscall.Timespec
	hex     string
}

// sum is hashFile, which takes a kernel some 10 ms, unless the file is the one
// that was read before: the same inode, of the same size, not written to and
// not changed otherwise since.
func (d *Driver) sum(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	file, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	st, ok := file.Sys().(*syscall.Stat_t)
	if !ok {
		return hashFile(path)
	}
	d.mu.Lock()
	old, known := d.sums[path]
	d.mu.Unlock()
	if known && os.SameFile(old.file, file) && old.file.Size() == file.Size() && old.file.ModTime().Equal(file.ModTime()) && old.changed == st.Ctim {
		return old.hex, nil
	}
	hex, err := hashFile(path)
	if err != nil {
		return "", err
	}
	d.mu.Lock()
	d.sums[path] = sum{file, st.Ctim, hex}
	d.mu.Unlock()
	return hex, nil
}

// hashFile returns the SHA-256 of a file in hexadecimal, "" for no file.
func hashFile(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
