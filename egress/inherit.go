package egress

// This file passes a TAP on to the next process: the interface stays, with its
// place on the bridge and the frames that wait in it, as long as a descriptor of it
// is open.

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Keep returns another descriptor of the interface, which keeps it alive when the
// TAP is closed. The caller closes it.
func (t *TAP) Keep() (*os.File, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.closed {
		return nil, net.ErrClosed
	}
	fd, err := unix.FcntlInt(uintptr(t.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("keeping TAP %s: %w", t.name, err)
	}
	return os.NewFile(uintptr(fd), t.name), nil
}

// InheritTAP is OpenTAP of an interface that a former process has kept. It takes
// file over, also when it fails.
func InheritTAP(file *os.File, c TAPConfig) (*TAP, error) {
	fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err = errors.Join(err, file.Close()); err != nil {
		return nil, fmt.Errorf("inheriting TAP %s: %w", c.Name, err)
	}
	req, err := unix.NewIfreq(c.Name)
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.TUNGETIFF, req)
	}
	if err == nil && req.Name() != c.Name {
		err = fmt.Errorf("the descriptor is of interface %s", req.Name())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("inheriting TAP %q: %w", c.Name, err), unix.Close(fd))
	}
	p, err := newPollFD(fd, c.Name)
	if err != nil {
		return nil, err
	}
	t := &TAP{pollFD: p, name: c.Name}
	link, err := netlink.LinkByName(c.Name)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("finding TAP %s: %w", c.Name, err), p.Close())
	}
	t.index = link.Attrs().Index
	return t, nil
}
