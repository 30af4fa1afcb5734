package qemu

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"understudy/hypervisor"
)

// account is who QEMU runs as. The zero account is ourselves.
type account struct {
	set      bool
	uid, gid uint32
	name     string
}

// account looks the configured user up.
func (c *Config) account() (account, error) {
	if c.User == "" || os.Geteuid() != 0 {
		return account{}, nil
	}
	u, err := user.Lookup(c.User)
	if err != nil {
		return account{}, fmt.Errorf("account for QEMU: %w: create it (useradd --system %s) or name another", err, c.User)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return account{}, fmt.Errorf("account for QEMU: %s has the user id %q", c.User, u.Uid)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return account{}, fmt.Errorf("account for QEMU: %s has the group id %q", c.User, u.Gid)
	}
	if uid == 0 {
		return account{}, &hypervisor.Refusal{
			What:   fmt.Sprintf("QEMU would run as %s, which is root", c.User),
			Remedy: "name an unprivileged account",
		}
	}
	return account{set: true, uid: uint32(uid), gid: uint32(gid), name: c.User}, nil
}

// own gives a path to the account.
func (a account) own(path string) error {
	if !a.set {
		return nil
	}
	return os.Chown(path, int(a.uid), int(a.gid))
}

// Permission bits, as the last of three groups has them.
const (
	mayRead os.FileMode = 4
	mayPass os.FileMode = 1
)

// canRead checks that the account can read a file.
func (a account) canRead(path string) error { return a.may(path, mayRead) }

// canPass checks that the account can reach what lies in a directory.
func (a account) canPass(dir string) error { return a.may(dir, mayPass) }

// may checks the permission bits of a path and of each directory above it.
// QEMU's own message would name neither the account nor the directory.
func (a account) may(path string, bit os.FileMode) error {
	if !a.set {
		_, err := os.Stat(path)
		return err
	}
	for at := filepath.Clean(path); ; at, bit = filepath.Dir(at), mayPass {
		info, err := os.Stat(at)
		if err != nil {
			return err
		}
		mode := info.Mode().Perm()
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid == a.uid {
			mode >>= 6
		} else if ok && st.Gid == a.gid {
			mode >>= 3
		}
		if mode&bit == 0 {
			return fmt.Errorf("%s: QEMU's account %s is kept out by the permissions %v of %s", path, a.name, info.Mode(), at)
		}
		if at == "/" {
			return nil
		}
	}
}

// files lists what QEMU reads by its path.
func (c *Config) files() (paths []string) {
	for _, p := range []string{c.Kernel, c.Initrd} {
		if p != "" {
			paths = append(paths, p)
		}
	}
	for _, d := range c.Disks {
		paths = append(paths, d.Path)
	}
	return paths
}
