package host

// A failover that an operator asks for, on the host that is to get the guest.
//
//	log names the image here as in sync   the backup asks by itself: waited for
//	it does not, and the operator insists  Force: from the image here if there is
//	                                       a whole one that fits the disks, else
//	                                       the guest is booted anew here
//
// FailoverCost says which it would be, and what would be lost. Whoever insists
// names what it said (Consent), so that nobody loses more than he was told.

import (
	"context"
	"errors"
	"fmt"
	"time"

	"understudy/backup"
	"understudy/epoch"
	"understudy/events"
	"understudy/ownership"
)

// The ways of a failover.
const (
	WayTakeover = "takeover" // the log grants it, and nothing that was let out is lost
	WayImage    = "image"    // by force, from an image that the log does not name
	WayBoot     = "boot"     // by force, booted anew
	WayNone     = "none"     // not possible on this host
)

// FailoverCost is what a failover to this host would be, and lose.
type FailoverCost struct {
	Guest string           `json:"guest"`
	Host  ownership.HostID `json:"host"`
	Owner ownership.HostID `json:"owner"`
	Log   ownership.Guest  `json:"log"`
	// Way is takeover, image, boot or none.
	Way string `json:"way"`
	// Why says why it is not a takeover; "" if it is.
	Why string `json:"why,omitempty"`
	// Epoch is the image's, EpochAge the time since it was committed here.
	Epoch    epoch.Number  `json:"epoch,omitempty"`
	EpochAge time.Duration `json:"epoch_age_ns,omitempty"`
	// Loses are sentences for people, the worst first.
	Loses []string `json:"loses"`
	// Consent is what a forced failover has to name as what it may lose.
	Consent string `json:"consent,omitempty"`
}

// FailoverRequest asks for a failover to this host.
type FailoverRequest struct {
	// Force takes the guest although something is lost by it.
	Force bool `json:"force"`
	// Lose is the Consent of a FailoverCost.
	Lose string `json:"lose"`
}

// FailoverCost says what a failover of the guest to this host would be.
func (h *Host) FailoverCost(ctx context.Context, guest string) (FailoverCost, error) {
	m, err := h.manager(guest)
	if err != nil {
		return FailoverCost{}, err
	}
	state, err := h.readLog(ctx, guest)
	if err != nil {
		return FailoverCost{}, err
	}
	return m.failoverCost(state), nil
}

func (m *manager) failoverCost(log ownership.Guest) FailoverCost {
	self := m.host.cfg.Self
	c := FailoverCost{Guest: m.Name, Host: self, Owner: log.Owner, Log: log, Way: WayNone, Loses: []string{}}
	m.mu.Lock()
	b := m.backup
	m.mu.Unlock()
	var image backup.Status
	if b != nil {
		image = b.Status()
	}
	inSync := log.InSync && log.Backup.Host == self
	switch {
	case log.Generation == 0:
		c.Why = fmt.Sprintf("guest %q was never started", m.Name)
		return c
	case log.Owner == self:
		c.Why = fmt.Sprintf("host %s owns guest %q already", self, m.Name)
		return c
	case log.Desired != ownership.Running:
		c.Why = fmt.Sprintf("guest %q is meant to be %s: start it instead", m.Name, log.Desired)
		return c
	case inSync && image.InSync && image.State == "fed":
		c.Way, c.Epoch, c.EpochAge = WayTakeover, image.Epoch, image.EpochAge
		c.Why = fmt.Sprintf("host %s runs the guest and is heard here: use `understudy switchover %s`, which loses nothing", log.Owner, m.Name)
		return c
	case inSync && image.InSync:
		c.Way, c.Epoch, c.EpochAge = WayTakeover, image.Epoch, image.EpochAge
		return c
	case log.Phase == ownership.PhaseActivating:
		c.Why = fmt.Sprintf("host %s was granted a takeover and has not recorded that the guest runs there", log.Owner)
	case log.Protection != ownership.ProtectionOn:
		c.Why = fmt.Sprintf("an operator has set the guest's protection to %s: the log names no backup in sync", log.Protection)
	case inSync:
		c.Why = fmt.Sprintf("the log names epoch %d of image %s as in sync, which is not here any more", log.Backup.Epoch, log.Backup.Image)
	default:
		c.Why = "the log names no backup in sync: the guest has run on alone since, and what it said has left"
	}
	if image.Whole && image.Image != "" && !m.Shared {
		c.Way, c.Epoch, c.EpochAge = WayImage, image.Epoch, image.EpochAge
		c.Consent = fmt.Sprintf("image %s generation %d", image.Image, log.Generation)
		c.Loses = append(c.Loses,
			fmt.Sprintf("the guest goes on from epoch %d, which was committed here %v ago: everything it did since is lost, also what the world has seen of it", c.Epoch, events.About(c.EpochAge)),
			"connections that went on since break; clients may hold answers that the guest knows nothing of")
	} else {
		c.Way, c.Consent = WayBoot, fmt.Sprintf("boot generation %d", log.Generation)
		c.Loses = append(c.Loses, "the guest is booted anew here: its memory, its processes and its connections are lost")
		switch {
		case m.Shared && image.Whole:
			c.Loses = append(c.Loses, "the image here is of no use: the guest wrote to the shared disk since, and would go on from a memory that does not fit it")
		case m.Copies && image.Image != "" && !image.Whole:
			c.Loses = append(c.Loses, "this host's copy of the disks was being synchronised: it is a mixture of old and new blocks, and may not boot")
		}
		if m.Copies {
			c.Loses = append(c.Loses, "this host's copy of the disks may be behind: what was written elsewhere since is lost")
		}
	}
	if m.Shared {
		c.Loses = append(c.Loses, fmt.Sprintf("while host %s stands still without being off it may still have the lock of the shared disk: the guest waits for it here (see `understudy fence`)", log.Owner))
	}
	if log.Fenced != log.Owner {
		c.Loses = append(c.Loses, fmt.Sprintf("it is granted only when the lease of host %s has run out: a host that is alive and reaches the voters keeps its guest", log.Owner))
	}
	if log.Protection != ownership.ProtectionOn {
		c.Loses = append(c.Loses, fmt.Sprintf("the guest's protection stays %s: `understudy protect %s` afterwards", log.Protection, m.Name))
	}
	return c
}

const (
	// failoverTime bounds the wait for a takeover that the log would grant, and
	// for the guest to run after one was granted.
	failoverTime = 60 * time.Second
	// bootForce bounds the wait for the owner's lease.
	bootForce = 30 * time.Second
	// lookAgain is the pause between two looks whether the guest runs.
	lookAgain = 20 * time.Millisecond
)

// Failover brings the guest to this host: by the takeover that the log grants, or
// by force. It returns when the guest runs here.
func (h *Host) Failover(ctx context.Context, guest string, r FailoverRequest) (ownership.Guest, error) {
	m, err := h.manager(guest)
	if err != nil {
		return ownership.Guest{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, failoverTime)
	defer cancel()
	state, err := h.readLog(ctx, guest)
	if err != nil {
		return state, err
	}
	c := m.failoverCost(state)
	switch {
	case c.Way == WayNone || c.Way == WayTakeover && c.Why != "":
		return state, errors.New(c.Why)
	case c.Way == WayTakeover:
		return m.await(ctx, "the takeover", nil, func(now ownership.Guest) (bool, error) { return arrived(h.cfg.Self, state, now) })
	case !r.Force:
		return state, fmt.Errorf("no takeover by host %s would be granted: %s. By force (--force): %s", h.cfg.Self, c.Why, c.Loses[0])
	case r.Lose != c.Consent:
		return state, fmt.Errorf("what would be lost is not what was agreed to (%q, now %q): ask again", r.Lose, c.Consent)
	}
	if c.Way == WayImage {
		err = m.forceImage(ctx, state)
	} else {
		state, err = m.forceBoot(ctx, state)
	}
	if err != nil {
		return state, fmt.Errorf("failover of %s to %s by force: %w", guest, h.cfg.Self, err)
	}
	last, err := m.await(ctx, "the forced failover", nil, func(now ownership.Guest) (bool, error) { return arrived(h.cfg.Self, state, now) })
	for err == nil && !m.runs() {
		if sleep(ctx, lookAgain); ctx.Err() != nil {
			return last, fmt.Errorf("guest %q is owned by host %s, and does not run there yet: see its status: %w", guest, h.cfg.Self, ctx.Err())
		}
	}
	return m.host.newest(m.Name, last), err
}

// newest is what the log here has applied, or last if that is not to be had.
func (h *Host) newest(guest string, last ownership.Guest) ownership.Guest {
	if now, ok := h.applied(guest); ok && now.Revision > last.Revision {
		return now
	}
	return last
}

// arrived tells from the log whether the guest has come here, or does not.
func arrived(self ownership.HostID, from, now ownership.Guest) (done bool, err error) {
	switch {
	case now.Revision < from.Revision || now.Phase != ownership.PhaseActive:
		return false, nil
	case now.Owner == self:
		return true, nil
	case now.Generation > from.Generation:
		return false, fmt.Errorf("host %s has it: it was taken back, or came back by itself", now.Owner)
	case !now.InSync && from.InSync:
		return false, errors.New("the backup here is not in sync any more: its owner lives and goes on alone")
	}
	return false, nil
}

// runs reports whether this host has become the guest's primary.
func (m *manager) runs() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.primary != nil
}

func (m *manager) forceImage(ctx context.Context, state ownership.Guest) error {
	m.mu.Lock()
	b := m.backup
	m.mu.Unlock()
	if b == nil {
		return errors.New("this host does not stand by for the guest any more: ask again")
	}
	return b.Force(ctx, state)
}

// forceBoot makes this host the owner; its manager then finds no guest, and boots
// it, or goes on with the one that it keeps while another host takes it over.
func (m *manager) forceBoot(ctx context.Context, state ownership.Guest) (ownership.Guest, error) {
	if err := m.whole(); err != nil {
		return state, err
	}
	if err := m.putAway(state); err != nil {
		return state, err
	}
	call, cancel := context.WithTimeout(ctx, bootForce)
	defer cancel()
	next, err := m.host.cfg.Log.Propose(call, m.command(state, ownership.Force, ownership.Backup{}))
	if err != nil {
		return next, err
	}
	m.tell(events.Event{Kind: events.KindForced, Generation: next.Generation, Peer: state.Owner, Reason: events.ReasonBoot,
		Text: fmt.Sprintf("the guest is taken from %s by force, and booted anew here: its memory is lost", state.Owner)})
	return next, nil
}

// putAway says why a guest of an earlier generation may still be here. This host
// may hear of having lost the guest and of owning it again at once, and would then
// go on with what it has, which the world has left behind. A guest that is kept
// for a host which takes it over is as new as any: nothing of that one has left.
func (m *manager) putAway(state ownership.Guest) error {
	if state.KeptBy(m.host.cfg.Self) {
		return nil
	}
	m.mu.Lock()
	role, b := m.role, m.backup
	m.mu.Unlock()
	switch {
	case role == "released", role == "backup" && b != nil && b.Status().State != "asking":
		return nil
	}
	return fmt.Errorf("host %s has not put away yet what it had of the guest (its role here: %q): try again", m.host.cfg.Self, role)
}
