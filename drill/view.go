package drill

// What all hosts say at one time, and what follows from it for a drill: the
// conditions. Preconditions, MakePlan and Foretell all go by a View.

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"understudy/host"
	"understudy/ownership"
	"understudy/primary"
)

// View is what the hosts said when all were asked.
type View struct {
	At      time.Time
	Members []Member
	Seen    map[ownership.HostID]Seen
	Silent  map[ownership.HostID]string // who did not answer, and why
	Busy    map[ownership.HostID]string // drills under way
	// Strikes are the hosts that let themselves be struck, Struck those that are
	// being struck just now.
	Strikes, Struck map[ownership.HostID]bool
	Facts           map[string]Facts // of guests
}

// askTime bounds one question to one host.
const askTime = 2 * time.Second

// Look asks all hosts at once about some guests.
func Look(ctx context.Context, c Cluster, guests ...string) View {
	v := View{At: time.Now(), Members: c.Members(), Seen: map[ownership.HostID]Seen{}, Silent: map[ownership.HostID]string{},
		Busy: map[ownership.HostID]string{}, Facts: map[string]Facts{}, Strikes: map[ownership.HostID]bool{}, Struck: map[ownership.HostID]bool{}}
	for _, g := range guests {
		if f, ok := c.Facts(g); ok {
			v.Facts[g] = f
		}
	}
	var mu sync.Mutex
	var asking sync.WaitGroup
	for _, m := range v.Members {
		asking.Go(func() {
			call, cancel := context.WithTimeout(ctx, askTime)
			defer cancel()
			seen, err := c.Status(call, m.Host)
			busy, allowed, left := "", false, []Struck(nil)
			if err == nil {
				allowed, left, err = c.Strikes(call, m.Host)
			}
			if err == nil && m.Host != c.Self() {
				busy, err = c.Busy(call, m.Host)
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				v.Silent[m.Host] = err.Error()
				return
			}
			v.Seen[m.Host], v.Strikes[m.Host], v.Struck[m.Host] = seen, allowed, len(left) > 0
			if busy != "" {
				v.Busy[m.Host] = busy
			}
		})
	}
	asking.Wait()
	return v
}

// log is the newest word of the ownership log on a guest that any host has.
func (v *View) log(guest string) (newest ownership.Guest, known bool) {
	for _, s := range v.Seen {
		if g, ok := s.Guest(guest); ok && (!known || g.Log.Revision > newest.Revision) {
			newest, known = g.Log, true
		}
	}
	return newest, known
}

// at is what a host says of a guest.
func (v *View) at(h ownership.HostID, guest string) (host.GuestStatus, bool) {
	s, ok := v.Seen[h]
	if !ok {
		return host.GuestStatus{}, false
	}
	return s.Guest(guest)
}

// leader is who leads the ownership log, by the youngest word of it.
func (v *View) leader() ownership.HostID {
	var best ownership.HostID
	var age time.Duration
	for _, m := range v.Members {
		s, ok := v.Seen[m.Host]
		if !ok || s.Leader == "" || s.LogAge == nil {
			continue
		}
		if best == "" || *s.LogAge < age {
			best, age = s.Leader, *s.LogAge
		}
	}
	return best
}

// lease is the length of a lease, as any host knows it.
func (v *View) lease() time.Duration {
	for _, s := range v.Seen {
		if s.Lease > 0 {
			return s.Lease
		}
	}
	return 0
}

// Conditions are what has to hold before a drill, and whether it does.
func Conditions(s Spec, v View) []Condition {
	var all []Condition
	is := func(name string, holds bool, format string, a ...any) {
		all = append(all, Condition{name, holds, clip(fmt.Sprintf(format, a...), maxText)})
	}
	facts, known := v.Facts[s.Guest]
	if !known {
		is("the guest is configured", false, "no [[guest]] is named %q", s.Guest)
		return all
	}
	is("the guest is configured", true, "on %s and %s", facts.Host, facts.Backup)
	voters(is, v)
	var busy []string
	for h, id := range v.Busy {
		busy = append(busy, fmt.Sprintf("%s runs %s", h, id))
	}
	slices.Sort(busy)
	if len(busy) > 0 {
		is("no other drill runs", false, "%s: wait, or `understudy drill abort ID`", strings.Join(busy, ", "))
	} else {
		is("no other drill runs", true, "no host that answers runs one")
	}
	for _, m := range v.Members {
		if v.Struck[m.Host] {
			is("no host is being struck", false, "%s is: it ends by itself, or with its daemon's next start", m.Host)
		}
	}
	log, known := v.log(s.Guest)
	switch {
	case !known:
		is("the guest runs", false, "no host knows what the ownership log says of it")
		return all
	case log.Desired != ownership.Running || log.Owner == "":
		is("the guest runs", false, "it is meant to be %s: `understudy start %s`", orWord(string(log.Desired), "stopped"), s.Guest)
		return all
	case log.Phase != ownership.PhaseActive:
		is("the guest runs", false, "it is changing hosts just now (%s)", log.Phase)
		return all
	}
	is("the guest runs", true, "on %s, generation %d", log.Owner, log.Generation)
	protection(is, s.Guest, log, v)
	if s.Kind == Failover {
		switch _, ok := v.Seen[log.Owner]; {
		case !ok:
			is("the owner lets itself be struck", false, "%s does not answer", log.Owner)
		case !v.Strikes[log.Owner]:
			is("the owner lets itself be struck", false, "%s has strikes = false in [drills]", log.Owner)
		default:
			is("the owner lets itself be struck", true, "%s does", log.Owner)
		}
		if facts.Shared && s.Fault != Kill && !facts.Unfenced {
			is("the disk is let go of", false, "a shared disk stays locked by a host that is only stopped or cut off: drill with a kill, or say `unfenced`")
		}
	}
	return all
}

// voters: all answer, know a leader and have heard of it lately.
func voters(is func(string, bool, string, ...any), v View) {
	var trouble []string
	for _, m := range v.Members {
		seen, ok := v.Seen[m.Host]
		switch {
		case !ok:
			trouble = append(trouble, fmt.Sprintf("%s does not answer (%s)", m.Host, clip(v.Silent[m.Host], 200)))
		case seen.Leader == "":
			trouble = append(trouble, fmt.Sprintf("%s knows no leader of the ownership log", m.Host))
		case seen.LogAge == nil || *seen.LogAge > 2*max(seen.Lease, time.Second):
			trouble = append(trouble, fmt.Sprintf("%s has not heard of the ownership log lately", m.Host))
		}
	}
	if len(trouble) > 0 {
		is("all voters are well", false, "%s", strings.Join(trouble, "; "))
		return
	}
	is("all voters are well", true, "%d answer; %s leads the ownership log", len(v.Members), v.leader())
}

// protection: the log names a backup in sync, the owner feeds it, and it says so.
func protection(is func(string, bool, string, ...any), guest string, log ownership.Guest, v View) {
	const name = "the guest is protected"
	why := unprotected(guest, log, v)
	if why != "" {
		is(name, false, "%s", why)
		return
	}
	is(name, true, "by %s, since epoch %d", log.Backup.Host, log.Backup.Epoch)
}

// unprotected says why a guest that runs is not protected, "" if it is.
func unprotected(guest string, log ownership.Guest, v View) string {
	owner, there := v.at(log.Owner, guest)
	switch {
	case log.Protection != ownership.ProtectionOn:
		return fmt.Sprintf("its protection is %s: `understudy resume %s`", log.Protection, guest)
	case !there:
		return fmt.Sprintf("%s, its owner, does not answer", log.Owner)
	case owner.Primary == nil:
		return fmt.Sprintf("%s owns it and does not run it yet (%s)%s", log.Owner, owner.Role, problem(owner.Problem))
	case !log.InSync && owner.Primary.Mode == primary.ModeSyncing:
		return fmt.Sprintf("its backup is being synchronised: %d of %d pages are left", owner.Primary.Remaining, owner.Primary.Pages)
	case !log.InSync:
		return fmt.Sprintf("no backup is in sync: the owner is %s%s", owner.Primary.Mode, problem(owner.Primary.LinkError))
	case owner.Protected != host.ProtectedYes:
		return fmt.Sprintf("%s, its backup, does not answer its owner%s", log.Backup.Host, problem(owner.Primary.LinkError))
	}
	backup, there := v.at(log.Backup.Host, guest)
	switch {
	case !there:
		return fmt.Sprintf("%s, its backup, does not answer", log.Backup.Host)
	case backup.Backup == nil || !backup.Backup.Whole:
		return fmt.Sprintf("%s has no whole image of it (%s)%s", log.Backup.Host, backup.Role, problem(backup.Problem))
	case owner.Problem != "":
		return owner.Problem
	}
	return ""
}

func problem(text string) string {
	if text == "" {
		return ""
	}
	return ": " + text
}

func orWord(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// missing returns the first condition that does not hold.
func missing(all []Condition) (Condition, bool) {
	i := slices.IndexFunc(all, func(c Condition) bool { return !c.Holds })
	if i < 0 {
		return Condition{}, false
	}
	return all[i], true
}
