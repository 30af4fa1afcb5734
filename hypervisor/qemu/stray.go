package qemu

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// A daemon that dies between the start of a QEMU and the record of it leaves a
// process that no record names. Clean knows it by its command line.

// killUnrecorded ends every QEMU whose memory file lies in our image directory.
func (d *Driver) killUnrecorded() error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	mark := ",mem-path=" + d.cfg.ImageDir + "/"
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || !isOurs(pid, mark) {
			continue
		}
		if err := d.killStray(pid, mark); err != nil {
			return err
		}
	}
	return nil
}

// isOurs reports whether a process is a QEMU on a memory file of this guest.
func isOurs(pid int, mark string) bool {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return false // ended meanwhile, or not ours to see
	}
	for arg := range strings.SplitSeq(string(line), "\x00") {
		if strings.HasPrefix(arg, "memory-backend-file,id=ram,") && strings.Contains(arg, mark) {
			return true
		}
	}
	return false
}

func (d *Driver) killStray(pid int, mark string) error {
	id, err := identify(pid)
	if err == nil {
		var p *process
		if p, err = find(id); err == nil {
			defer p.letGo()
			// We hold it now; look again, so that no other is hit.
			if isOurs(pid, mark) {
				d.log.Warn("ending a QEMU that no record names", "pid", pid)
				err = p.kill()
			}
		}
	}
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// Machines returns the process numbers of the QEMUs whose memory file lies in
// imageDir (Config.ImageDir): a guest's machine, or its standbys. They may have
// ended since.
func Machines(imageDir string) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var found []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && isOurs(pid, ",mem-path="+imageDir+"/") {
			found = append(found, pid)
		}
	}
	return found, nil
}
