// Package netspace makes named network namespaces: what a laboratory of hosts and
// a network that nothing leaves are both built of.
//
//	New ── thread in a new namespace (sysctl, lo) ── AddBridge, Join, Up ──> links in it
//	Do: on that thread · Visit: on a thread that comes and goes
//	Processes, Kill, Remove: by name, also of a namespace that another process made
//
// The files: space.go (a namespace's life), thread.go (doing things inside it),
// link.go (its links), process.go (who is in it).
//
// It needs CAP_SYS_ADMIN (namespaces, mounts below /run/netns) and CAP_NET_ADMIN.
package netspace

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// dir is where named network namespaces are mounted (ip-netns(8)).
const dir = "/run/netns"

// Path is where the namespace of that name is mounted, if there is one.
func Path(name string) string { return filepath.Join(dir, name) }

// Names lists the named network namespaces whose names begin with prefix, sorted.
func Names(prefix string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// ErrClosed is returned by what needs a namespace that is closed.
var ErrClosed = errors.New("the network namespace is closed")

// Setting is a file below /proc/sys/net and what is written to it.
type Setting struct{ Path, Value string }

// Space is one network namespace, with a thread of this process in it. Its
// methods may be called from several goroutines.
type Space struct {
	name   string
	links  *netlink.Handle
	thread *thread

	life sync.RWMutex // held for reading while ns is used
	ns   netns.NsHandle
}

// New makes a namespace, writes the settings before it has links, and sets its
// loopback up. Bridges in it do not ask iptables. A setting that this kernel does
// not have needs no change.
func New(name string, settings ...Setting) (*Space, error) {
	s := &Space{name: name, ns: netns.None(), thread: newThread()}
	err := s.Do(func() (err error) {
		if s.ns, err = netns.NewNamed(name); err != nil {
			if !errors.Is(err, fs.ErrExist) {
				err = errors.Join(err, Remove(name)) // the file is made before the mount
			}
			return fmt.Errorf("make network namespace %s: %w (this needs root)", name, err)
		}
		return set(append(settings,
			Setting{"bridge/bridge-nf-call-iptables", "0"},
			Setting{"bridge/bridge-nf-call-ip6tables", "0"},
			Setting{"bridge/bridge-nf-call-arptables", "0"}))
	})
	if err == nil {
		if s.links, err = netlink.NewHandleAt(s.ns); err != nil {
			err = fmt.Errorf("a netlink socket in network namespace %s: %w", name, err)
		}
	}
	if err == nil {
		err = s.Up("lo")
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// set writes settings of the calling thread's namespace.
func set(settings []Setting) error {
	for _, s := range settings {
		if err := os.WriteFile("/proc/sys/net/"+s.Path, []byte(s.Value), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("set up a network namespace: %w", err)
		}
	}
	return nil
}

// Name is the namespace's name, as `ip netns` knows it.
func (s *Space) Name() string { return s.name }

// Use calls f with the namespace's descriptor, which stays open as long.
func (s *Space) Use(f func(ns int) error) error {
	s.life.RLock()
	defer s.life.RUnlock()
	if !s.ns.IsOpen() {
		return ErrClosed
	}
	return f(int(s.ns))
}

// Close ends the thread, and with it every process that asked for its parent's
// death signal, and removes the namespace's name. The namespace itself is gone
// with the last process in it; see Kill. A second call does nothing.
func (s *Space) Close() error {
	s.thread.stop()
	var errs []error
	s.life.Lock()
	defer s.life.Unlock()
	if s.links != nil {
		s.links.Close()
	}
	if s.ns.IsOpen() {
		errs = append(errs, s.ns.Close(), Remove(s.name))
	}
	return errors.Join(errs...)
}

// Remove unmounts and removes the name of a network namespace. One that is not
// there is no error.
func Remove(name string) error {
	err := netns.DeleteNamed(name)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	// A file whose mount failed or is gone already.
	if rm := os.Remove(Path(name)); rm == nil || errors.Is(rm, fs.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("remove network namespace %s: %w", name, err)
}
