package daemon

// This file is the new daemon's side of an upgrade; see successor.go. It also holds
// what is passed on between the two, or within one whose upgrade failed: the
// guests' TAPs, with the frames that wait in them, and their hypervisors'
// connections to the disks.

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"understudy/status"
)

// TakeOverFlag is the hidden flag of understudyd by which a daemon starts the one
// that takes its place; its value is the number of a descriptor.
const TakeOverFlag = "take-over"

// waitTime bounds the wait for a predecessor that has been told that we are ready.
const waitTime = time.Minute

// maxKept bounds what is passed on: SCM_MAX_FD of Linux.
const maxKept = 253

// Predecessor is the daemon that this one takes the place of.
type Predecessor struct {
	conn    *net.UnixConn
	version string // once it has said so
}

// NewPredecessor takes the descriptor over.
func NewPredecessor(fd int) (*Predecessor, error) {
	c, err := packets(fd)
	if err != nil {
		return nil, err
	}
	return &Predecessor{conn: c}, nil
}

// await says that this daemon is ready, and returns when everything is its own.
func (p *Predecessor) await(ctx context.Context) (*inheritance, error) {
	hello, _, err := receiveWord(ctx, p.conn, readyTime)
	if err != nil {
		return nil, fmt.Errorf("the daemon to be replaced: %w", err)
	}
	p.version = hello.Version
	ours := formats()
	for what, theirs := range hello.Formats {
		if theirs != ours[what] {
			why := fmt.Sprintf("what %s has left as %q has format %d, version %s reads %d", hello.Version, what, theirs, status.Version, ours[what])
			return nil, errors.Join(errors.New(why), sendWord(p.conn, word{Kind: "refused", Version: status.Version, Why: why}, nil))
		}
	}
	if err := sendWord(p.conn, word{Kind: "ready", Version: status.Version}, nil); err != nil {
		return nil, fmt.Errorf("the daemon to be replaced: %w", err)
	}
	yours, files, err := receiveWord(ctx, p.conn, waitTime)
	if err != nil {
		return nil, fmt.Errorf("the daemon to be replaced has kept everything: %w", err)
	}
	in := &inheritance{files: map[string]*os.File{}}
	for i, name := range yours.Names {
		if in.files[name] != nil {
			_ = in.files[name].Close()
		}
		in.files[name] = files[i]
	}
	return in, nil
}

// up says that this daemon takes part. The other ends then.
func (p *Predecessor) up() error {
	return errors.Join(sendWord(p.conn, word{Kind: "up", Version: status.Version}, nil), p.conn.Close())
}

// inheritance is what was passed on. The nil inheritance is none.
type inheritance struct{ files map[string]*os.File }

// take returns what was passed on under a name, which is the caller's from there
// on; nil: nothing.
func (i *inheritance) take(name string) *os.File {
	if i == nil {
		return nil
	}
	f := i.files[name]
	delete(i.files, name)
	return f
}

// rest closes what nobody has taken.
func (i *inheritance) rest() {
	if i != nil {
		for name, f := range i.files {
			_ = f.Close() // nobody uses it
			delete(i.files, name)
		}
	}
}

// keeping is how to keep what can be passed on, by name. Guests come and go.
type keeping struct {
	mu    sync.Mutex
	names []string
	keep  []func() (*os.File, error)
}

func (k *keeping) add(name string, keep func() (*os.File, error)) {
	if k == nil { // nobody will ask
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.names, k.keep = append(k.names, name), append(k.keep, keep)
}

// kept is what was kept.
type kept struct {
	names []string
	files []*os.File
}

// all keeps everything. What cannot be kept is left out: it is made anew.
func (k *keeping) all() (*kept, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := &kept{}
	var errs []error
	for i, name := range k.names {
		if len(out.files) == maxKept {
			break
		}
		f, err := k.keep[i]()
		switch {
		case errors.Is(err, net.ErrClosed): // of a guest that was removed
		case err != nil:
			errs = append(errs, err)
		case f != nil:
			out.names, out.files = append(out.names, name), append(out.files, f)
		}
	}
	return out, errors.Join(errs...)
}

// ownAgain makes what was kept the inheritance of this process, after the new
// daemon has died with it. It may have stopped in the middle of a message to or from
// a hypervisor, which then has to come back; a TAP knows only whole frames.
func (k *kept) ownAgain() *inheritance {
	in := &inheritance{files: map[string]*os.File{}}
	for i, name := range k.names {
		if strings.HasPrefix(name, tapPrefix) {
			in.files[name] = k.files[i]
		} else {
			_ = k.files[i].Close() // nobody uses it
		}
	}
	return in
}

func (k *kept) close() {
	if k != nil {
		closeFiles(k.files)
	}
}

const tapPrefix = "tap/"

func tapName(guest string, i int) string  { return fmt.Sprintf(tapPrefix+"%s/%d", guest, i) }
func diskName(guest string, i int) string { return fmt.Sprintf("disk/%s/%d", guest, i) }
