package sim

import (
	"errors"
	"slices"
	"sync"

	"understudy/hypervisor"
)

// Errors of a machine that is not there any more.
var (
	// ErrHostDown is returned by everything on a host that was killed.
	ErrHostDown = errors.New("the simulated host is down")

	errGone    = errors.New("the guest is gone")
	errCrashed = errors.New("the simulated hypervisor crashed")
	errLetGo   = errors.New("this handle was detached, or another one has adopted the guest")
)

// Host stands for one host: what it holds outlives the Driver (the daemon) and
// ends when the host is killed. Each machine is registered here from the moment
// it exists until it is gone.
type Host struct {
	name string

	mu       sync.Mutex
	down     bool
	starts   uint64
	machines []*machine // in the order they were added
}

// NewHost returns a host that is up and empty.
func NewHost(name string) *Host { return &Host{name: name} }

// Name returns the name the host was made with.
func (h *Host) Name() string { return h.name }

// Kill takes the power from the host: every machine ends between two steps,
// its memory is lost, and it sends nothing more. It returns after that. All
// calls on its guests and standbys then fail with ErrHostDown.
func (h *Host) Kill() {
	h.mu.Lock()
	h.down = true
	machines := slices.Clone(h.machines)
	h.mu.Unlock()
	for _, m := range machines {
		m.end(ErrHostDown, nil)
	}
}

// PowerOn brings a killed host back, with nothing on it.
func (h *Host) PowerOn() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.down = false
}

// Crash ends every machine of one guest as if its hypervisor's process had
// died: the owner sees EventExited, and then a closed channel.
func (h *Host) Crash(guest string) {
	for _, m := range h.all(guest) {
		m.end(errCrashed, &hypervisor.Event{Kind: hypervisor.EventExited, Detail: errCrashed.Error()})
	}
}

// Machines lists what is on the host, as "guest NAME" or "standby NAME".
func (h *Host) Machines() []string {
	h.mu.Lock()
	machines := slices.Clone(h.machines)
	h.mu.Unlock()
	list := make([]string, 0, len(machines))
	for _, m := range machines {
		list = append(list, m.String())
	}
	return list
}

// add registers a machine and returns how many there have been on this host.
func (h *Host) add(m *machine) (uint64, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.down {
		return 0, ErrHostDown
	}
	if m.phase != phaseWaiting {
		if h.find(m.cfg.Name) != nil {
			return 0, errors.New("it is on this host already: adopt it, or clean it up first")
		}
	}
	h.starts++
	h.machines = append(h.machines, m)
	return h.starts, nil
}

// remove forgets a machine. Removing twice is no error.
func (h *Host) remove(m *machine) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.machines = slices.DeleteFunc(h.machines, func(other *machine) bool { return other == m })
}

// guest returns the guest (not a standby) of this name.
func (h *Host) guest(name string) (*machine, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.down {
		return nil, ErrHostDown
	}
	if m := h.find(name); m != nil {
		return m, nil
	}
	return nil, hypervisor.ErrNoGuest
}

// find returns the guest of this name, or nil. The host's lock is held; it is
// taken before a machine's, never after.
func (h *Host) find(name string) *machine {
	for _, m := range h.machines {
		if m.cfg.Name == name && m.isGuest() {
			return m
		}
	}
	return nil
}

// all returns every machine of this name.
func (h *Host) all(name string) []*machine {
	h.mu.Lock()
	defer h.mu.Unlock()
	var list []*machine
	for _, m := range h.machines {
		if m.cfg.Name == name {
			list = append(list, m)
		}
	}
	return list
}
