package drill

// What would happen if a host or a link failed now, and why: `simulate --fail`.
// A pure function of what the hosts say; what they do not say is not assumed.

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"understudy/host"
	"understudy/ownership"
	"understudy/primary"
)

// Failure is one host that is gone, or one link between two.
type Failure struct {
	Host ownership.HostID
	A, B ownership.HostID
}

const linkPrefix = "link:"

// ParseFailure reads "HOST" or "link:A-B".
func ParseFailure(text string, members []Member) (Failure, error) {
	var known []string
	for _, m := range members {
		known = append(known, string(m.Host))
	}
	rest, link := strings.CutPrefix(text, linkPrefix)
	if !link {
		if !slices.Contains(known, text) {
			return Failure{}, fmt.Errorf("there is no host %.40q: the hosts are %s", text, strings.Join(known, ", "))
		}
		return Failure{Host: ownership.HostID(text)}, nil
	}
	for _, a := range known {
		// Names may have dashes: any two hosts that make the text are meant.
		if b, ok := strings.CutPrefix(rest, a+"-"); ok && a != b && slices.Contains(known, b) {
			return Failure{A: ownership.HostID(a), B: ownership.HostID(b)}, nil
		}
	}
	return Failure{}, fmt.Errorf("%.80q is no link between two hosts, like link:%s: the hosts are %s", text, strings.Join(known[:min(2, len(known))], "-"), strings.Join(known, ", "))
}

func (f Failure) String() string {
	if f.Host != "" {
		return string(f.Host)
	}
	return linkPrefix + string(f.A) + "-" + string(f.B)
}

// Forecast is what would happen.
type Forecast struct {
	Fail string    `json:"fail"`
	At   time.Time `json:"at"` // when the hosts were asked
	// Voters that would be left and reach another; Majority: they can decide.
	Voters   []ownership.HostID `json:"voters"`
	Majority bool               `json:"majority"`
	Leader   string             `json:"leader"`
	Guests   []Fate             `json:"guests"`
	// Unknown is what could not be asked now.
	Unknown []string `json:"unknown,omitempty"`
}

// Outcome is what becomes of a guest.
type Outcome string

const (
	Unaffected  Outcome = "unaffected"  // and protected as before
	Unprotected Outcome = "unprotected" // it goes on without its backup
	FailsOver   Outcome = "fails-over"  // it goes on at its backup
	Waits       Outcome = "waits"       // it stands still until the failure is over
	Lost        Outcome = "lost"        // what it had in memory is gone
	NotRunning  Outcome = "not-running" // it was not
	NotKnown    Outcome = "not-known"   // too little is known to say
)

// Fate is what becomes of one guest.
type Fate struct {
	Guest   string           `json:"guest"`
	Outcome Outcome          `json:"outcome"`
	Owner   ownership.HostID `json:"owner,omitempty"`
	To      ownership.HostID `json:"to,omitempty"` // where it goes
	// After is how long its clients hear nothing, missing if that does not end
	// by itself, or is not known.
	After *time.Duration `json:"after_ns,omitempty"`
	Loses string         `json:"loses"`
	Why   []string       `json:"why"`
}

// Foretell says what would happen to some guests.
func Foretell(f Failure, guests []string, v View) Forecast {
	out := Forecast{Fail: f.String(), At: v.At, Voters: []ownership.HostID{}, Guests: []Fate{}}
	n := newMesh(f, v)
	for _, m := range v.Members {
		if n.deciding[m.Host] {
			out.Voters = append(out.Voters, m.Host)
		}
	}
	out.Majority = len(out.Voters) > 0
	leader := v.leader()
	switch {
	case !out.Majority:
		out.Leader = "none: no two voters would reach each other"
	case leader == "":
		out.Leader = "not known"
	case leader == f.Host:
		out.Leader = fmt.Sprintf("%s is lost: one of %s is elected, some hundred milliseconds later, and waits out a lease of %v before it grants anything", leader, list(out.Voters), v.lease())
	default:
		out.Leader = fmt.Sprintf("%s goes on leading the ownership log", leader)
	}
	for _, m := range v.Members {
		if why, silent := v.Silent[m.Host]; silent {
			out.Unknown = append(out.Unknown, fmt.Sprintf("%s does not answer now, and is taken to be down: %s", m.Host, clip(why, 200)))
		}
	}
	for _, g := range guests {
		fate := Fate{Guest: g, Why: []string{}}
		(&teller{n: n, v: v, f: f, fate: &fate, facts: v.Facts[g]}).tell(g)
		out.Guests = append(out.Guests, fate)
	}
	return out
}

func list(all []ownership.HostID) string {
	var s []string
	for _, h := range all {
		s = append(s, string(h))
	}
	return strings.Join(s, " and ")
}

// mesh is who would reach whom. A host that does not answer now is taken to be
// down.
type mesh struct {
	up       map[ownership.HostID]bool
	cut      Failure
	deciding map[ownership.HostID]bool // it reaches, if only by relay, a leader with a majority
}

func newMesh(f Failure, v View) mesh {
	n := mesh{up: map[ownership.HostID]bool{}, cut: f, deciding: map[ownership.HostID]bool{}}
	for _, m := range v.Members {
		_, answers := v.Seen[m.Host]
		n.up[m.Host] = answers && m.Host != f.Host
	}
	// Of three voters any two that reach each other are a majority; a third that
	// reaches one of them has its words relayed.
	for _, a := range v.Members {
		for _, b := range v.Members {
			if a != b && n.reach(a.Host, b.Host) && 2*2 > len(v.Members) {
				n.deciding[a.Host], n.deciding[b.Host] = true, true
			}
		}
	}
	return n
}

func (n mesh) reach(a, b ownership.HostID) bool {
	f := n.cut
	return n.up[a] && n.up[b] && !(f.A == a && f.B == b) && !(f.A == b && f.B == a)
}

// teller tells one guest's fate.
type teller struct {
	n     mesh
	v     View
	f     Failure
	fate  *Fate
	facts Facts
}

func (t *teller) is(o Outcome, loses string) {
	t.fate.Outcome, t.fate.Loses = o, loses
}

func (t *teller) why(format string, a ...any) {
	t.fate.Why = append(t.fate.Why, clip(fmt.Sprintf(format, a...), maxText))
}

func (t *teller) after(d time.Duration) { t.fate.After = &d }

const nothing = "nothing"

func (t *teller) tell(guest string) {
	log, known := t.v.log(guest)
	switch {
	case !known:
		t.is(NotKnown, "not known")
		t.why("no host that answers knows what the ownership log says of it")
		return
	case log.Owner == "" || log.Desired != ownership.Running:
		t.is(NotRunning, nothing)
		t.why("it is meant to be %s", orWord(string(log.Desired), "stopped"))
		return
	}
	t.fate.Owner = log.Owner
	if owner, ok := t.v.at(log.Owner, guest); ok && !log.InSync && owner.Protected == host.ProtectedYes {
		// The owner was told before what it has applied said so.
		log.InSync, log.Backup.Host = true, owner.Primary.Backup
	}
	if log.Phase != ownership.PhaseActive {
		t.is(NotKnown, "not known")
		t.why("it is changing hosts just now (%s): ask again in a moment", log.Phase)
		return
	}
	switch {
	case t.n.up[log.Owner] || t.f.Host != log.Owner && !t.answers(log.Owner):
		t.ownerLives(guest, log)
	default:
		t.ownerLost(guest, log)
	}
}

func (t *teller) answers(h ownership.HostID) bool {
	_, ok := t.v.Seen[h]
	return ok
}

// ownerLives: the owner is not what fails.
func (t *teller) ownerLives(guest string, log ownership.Guest) {
	lease := t.v.lease()
	owner, there := t.v.at(log.Owner, guest)
	if !there || owner.Primary == nil {
		t.is(NotKnown, "not known")
		t.why("%s owns it, and does not say that it runs it", log.Owner)
		return
	}
	if !t.n.deciding[log.Owner] {
		t.is(Waits, nothing)
		t.why("%s would reach no other voter: nothing can be decided, and its lease (%v at most, %s left now) is not renewed", log.Owner, lease, about(owner.Primary.LeaseLeft))
		t.why("the guest is paused before the lease ends, and goes on where it was when a second voter is reached again")
		return
	}
	if lost := t.v.leader(); lost != "" && lost == t.f.Host {
		t.why("%s leads the ownership log: the lease is renewed by a new leader, elected in some hundred milliseconds; should that take longer than the lease, the guest stands still meanwhile", lost)
	}
	if !log.InSync {
		t.is(Unaffected, nothing)
		t.why("it is not protected now: %s", unprotected(guest, log, t.v))
		return
	}
	if t.n.reach(log.Owner, log.Backup.Host) {
		t.is(Unaffected, nothing)
		t.why("%s and %s reach each other: checkpoints flow as before", log.Owner, log.Backup.Host)
		if t.f.Host == "" && !t.n.reach(log.Owner, t.v.leader()) && log.Owner != t.v.leader() && t.v.leader() != "" {
			t.why("the lease is renewed through %s, which relays", log.Backup.Host)
		}
		if len(t.alive()) < len(t.v.Members) {
			t.why("but with %s alone left to decide, one more failure stops everything", list(t.alive()))
		}
		return
	}
	wait := t.facts.DetachAfter
	t.is(Unprotected, nothing)
	if wait > 0 {
		t.after(wait)
		t.why("%s does not hear from its backup %s any more: output waits %v (detach_after), then the ownership log records that the guest goes on unprotected", log.Owner, log.Backup.Host, wait)
	} else {
		t.why("%s does not hear from its backup %s any more: output waits for detach_after, then the guest goes on unprotected", log.Owner, log.Backup.Host)
	}
	if t.n.up[log.Backup.Host] {
		t.why("%s asks for nothing meanwhile that it would get: %s renews its lease (%v)", log.Backup.Host, log.Owner, lease)
	}
}

func (t *teller) alive() []ownership.HostID {
	var all []ownership.HostID
	for _, m := range t.v.Members {
		if t.n.up[m.Host] {
			all = append(all, m.Host)
		}
	}
	return all
}

// ownerLost: the owner is the host that fails.
func (t *teller) ownerLost(guest string, log ownership.Guest) {
	lease := t.v.lease()
	owner, _ := t.v.at(log.Owner, guest)
	if !log.InSync {
		t.is(Lost, "all that it has in memory, and what its disks had not been told")
		t.why("%s", t.notInSync(guest, log, owner))
		t.why("when %s comes back the guest is booted anew there", log.Owner)
		return
	}
	to := log.Backup.Host
	backup, there := t.v.at(to, guest)
	switch {
	case !t.n.up[to]:
		t.is(Waits, "nothing, if "+string(to)+" comes back with its daemon alive; else all that it has in memory")
		t.why("the log names %s in sync, and that does not answer", to)
		return
	case !there || backup.Backup == nil || !backup.Backup.Whole:
		t.is(Waits, "all that it has in memory, if neither host can go on")
		t.why("the log names %s in sync, which has no whole image now (%s)%s", to, backup.Role, problem(backup.Problem))
		return
	case !t.n.deciding[to]:
		t.is(Waits, nothing)
		t.why("%s has the guest's memory, and reaches no other voter: nobody may grant it the guest. It goes on when a second voter is there", to)
		return
	}
	t.fate.To = to
	t.is(FailsOver, fmt.Sprintf("nothing that anybody outside has seen; the guest itself is set back to its last commit, %s old now", about(backup.Backup.EpochAge)))
	left := lease
	if owner.Primary != nil && owner.Primary.LeaseLeft > 0 {
		t.why("%s holds a lease of %v, %s of it is left now and it is renewed all the time: it has to run out before anything is granted", log.Owner, lease, about(owner.Primary.LeaseLeft))
	} else {
		t.why("the owner's lease of at most %v has to run out before anything is granted", lease)
	}
	if t.v.leader() == log.Owner {
		left += lease
		t.why("%s leads the ownership log as well: a new leader is elected, and waits out a lease of its own (%v)", log.Owner, lease)
	}
	t.after(left + loading)
	t.why("%s has epoch %d whole, and loads it beside that wait; then it runs within some milliseconds (%v allowed for here)", to, backup.Backup.Epoch, loading)
	if owner.Primary != nil && owner.Primary.Held > 0 {
		t.why("%d frames (%d bytes) wait for their commit on %s and would never be sent; clients send again what was not answered", owner.Primary.Held, owner.Primary.HeldBytes, log.Owner)
	}
	t.disks(log, owner, backup)
	if alive := t.alive(); len(alive) < len(t.v.Members) {
		t.why("afterwards it is not protected until %s is back; %s decide", log.Owner, list(alive))
	}
}

// notInSync says why there is nothing to go on from.
func (t *teller) notInSync(guest string, log ownership.Guest, owner host.GuestStatus) string {
	if owner.Primary != nil && owner.Primary.Mode == primary.ModeSyncing && owner.Primary.Pages > 0 {
		return fmt.Sprintf("its backup is being synchronised, %d of %d pages are left: there is nothing whole to go on from", owner.Primary.Remaining, owner.Primary.Pages)
	}
	return fmt.Sprintf("it is not protected (%s): there is nothing to go on from", unprotected(guest, log, t.v))
}

// disks: a shared disk has to be let go of.
func (t *teller) disks(log ownership.Guest, owner, backup host.GuestStatus) {
	shared := t.facts.Shared
	for _, s := range []host.GuestStatus{owner, backup} {
		if s.Disks != nil {
			for _, d := range s.Disks.Disks {
				shared = shared || d.Store == "shared"
			}
		}
	}
	switch {
	case !shared:
	case t.facts.Unfenced:
		t.why("its shared disk is taken unfenced: the guest runs at once, and what it writes stays in memory until %s has let go of the lock", log.Owner)
	default:
		t.why("its shared disk is locked by %s. If that host dies, its lock goes with it (as soon as the file server notices); if it is only frozen or cut off, the lock is kept: the takeover waits for some seconds, is given back, and the guest stands still until %s is back or is fenced", log.Owner, log.Owner)
	}
	if backup.Disks != nil {
		for i, d := range backup.Disks.Disks {
			if d.Waiting {
				t.why("disk %d still waits for a lock of an earlier takeover", i)
			}
		}
	}
}
