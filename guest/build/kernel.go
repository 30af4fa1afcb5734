package main

// From Debian's package to <dir>/vmlinuz and <dir>/modules/*.ko.

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// metaPackage depends on the newest kernel made for virtual machines.
const metaPackage = "linux-image-cloud-amd64"

// fetchKernel fills dir; a dir that exists is replaced at the end, in one step.
func fetchKernel(ctx context.Context, dir string) error {
	work, err := os.MkdirTemp(filepath.Dir(dir), "kernel-new-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	deb, err := download(ctx, work)
	if err != nil {
		return err
	}
	tree := filepath.Join(work, "tree")
	if _, err := run(ctx, "", "dpkg-deb", "-x", deb, tree); err != nil {
		return err
	}
	ready := filepath.Join(work, "ready")
	if err := os.MkdirAll(filepath.Join(ready, "modules"), 0o755); err != nil {
		return err
	}
	if err := pickModules(ctx, tree, filepath.Join(ready, "modules")); err != nil {
		return err
	}
	images, err := filepath.Glob(filepath.Join(tree, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return fmt.Errorf("%s has %d files boot/vmlinuz-*, want one", filepath.Base(deb), len(images))
	}
	if err := os.Rename(images[0], filepath.Join(ready, "vmlinuz")); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	fmt.Println("kernel of", filepath.Base(deb))
	return os.Rename(ready, dir)
}

// download asks apt which package metaPackage depends on and gets it. Lists
// that are missing or too old are updated once.
func download(ctx context.Context, dir string) (deb string, err error) {
	if _, err := exec.LookPath("apt-get"); err != nil {
		return "", errors.New("there is no apt-get here; put a Linux kernel image at build/guest/kernel/vmlinuz " +
			"and its modules virtio_pci, virtio_mmio, virtio_net, virtio_blk with all they depend on in build/guest/kernel/modules (*.ko)")
	}
	try := func() error {
		depends, err := run(ctx, "", "apt-cache", "depends", metaPackage)
		if err != nil {
			return err
		}
		name := regexp.MustCompile(`Depends: (linux-image-[0-9]\S+)`).FindStringSubmatch(depends)
		if name == nil {
			return fmt.Errorf("apt knows no kernel that %s depends on", metaPackage)
		}
		// As root apt would drop to a user that may not write here.
		_, err = run(ctx, dir, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", name[1])
		return err
	}
	if err = try(); err != nil {
		if _, uerr := run(ctx, "", "apt-get", "-q", "update"); uerr != nil {
			return "", errors.Join(err, uerr)
		}
		if err = try(); err != nil {
			return "", err
		}
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(debs) != 1 {
		return "", fmt.Errorf("apt-get download left %d packages in %s, want one", len(debs), dir)
	}
	return debs[0], nil
}

// pickModules copies the wanted modules, and what they depend on, from an
// unpacked package to dir, uncompressed, and writes dir/order: their file names
// in an order in which they can be loaded.
func pickModules(ctx context.Context, tree, dir string) error {
	paths := map[string]string{} // by module name
	err := filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if file := d.Name(); strings.HasSuffix(file, ".ko") || strings.HasSuffix(file, ".ko.xz") {
			paths[moduleName(file)] = path
		}
		return nil
	})
	if err != nil {
		return err
	}
	read := func(name string) ([]byte, error) {
		path, ok := paths[name]
		if !ok {
			return nil, fmt.Errorf("the kernel package has no module %s", name)
		}
		if strings.HasSuffix(path, ".xz") {
			data, err := run(ctx, "", "xz", "-dc", path)
			return []byte(data), err
		}
		return os.ReadFile(path)
	}
	order, err := loadOrder(modules, read)
	if err != nil {
		return err
	}
	var files []string
	for _, m := range order {
		files = append(files, m.name+".ko")
		if err := os.WriteFile(filepath.Join(dir, m.name+".ko"), m.data, 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "order"), []byte(strings.Join(files, "\n")+"\n"), 0o644)
}

// moduleName is the name that modules call each other by: file names may have
// "-" where the module has "_".
func moduleName(file string) string {
	name, _, _ := strings.Cut(file, ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

type module struct {
	name string
	data []byte
}

// loadOrder returns wanted and everything it depends on, dependencies first.
func loadOrder(wanted []string, read func(name string) ([]byte, error)) ([]module, error) {
	var order []module
	const underWay, done = 1, 2
	state := map[string]int{}
	var add func(name string) error
	add = func(name string) error {
		name = moduleName(name)
		switch state[name] {
		case done:
			return nil
		case underWay:
			return fmt.Errorf("module %s depends on itself", name)
		}
		state[name] = underWay
		data, err := read(name)
		if err != nil {
			return err
		}
		needs, err := depends(data)
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		for _, need := range needs {
			if err := add(need); err != nil {
				return err
			}
		}
		state[name] = done
		order = append(order, module{name, data})
		return nil
	}
	for _, name := range wanted {
		if err := add(name); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// depends reads what a module depends on from its section .modinfo: strings
// key=value, each ended by a NUL (include/linux/moduleparam.h).
func depends(ko []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(ko))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("no section .modinfo: this is no kernel module")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for _, entry := range strings.Split(string(info), "\x00") {
		if list, ok := strings.CutPrefix(entry, "depends="); ok && list != "" {
			return strings.Split(list, ","), nil
		}
	}
	return nil, nil
}

// run runs a program in dir and returns its standard output.
func run(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
