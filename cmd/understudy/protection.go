package main

// pause, resume, unprotect, protect, failback: the operator's switch of a guest's
// protection, and the way home.

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"understudy/host"
	"understudy/ownership"
)

func pauseCommand(f *common) *cobra.Command {
	c := operation(f, "pause", "Stop protecting a guest for a while; its backup keeps its image", func(guest string, g ownership.Guest) string {
		return fmt.Sprintf("guest %s runs on host %s without protection until `understudy resume %s` (generation %d)", guest, g.Owner, guest, g.Generation)
	})
	c.Example = "  understudy pause web"
	c.Long = `Stop protecting a guest for a while, for work on its backup's host or on the network between.

The guest runs on. What it says and writes does not wait for anybody any more, and if its host is lost,
it is lost: nobody takes it over. Its backup keeps the image, so that resume has to send only what has
changed meanwhile, as long as neither daemon is started anew. The ownership log remembers the pause:
it outlasts daemons and hosts, and ends only with resume.`
	return c
}

func resumeCommand(f *common) *cobra.Command {
	c := operation(f, "resume", "Protect a guest again that was paused", protectedAgain)
	c.Example, c.Long = "  understudy resume web", backAgain
	return c
}

func protectCommand(f *common) *cobra.Command {
	c := operation(f, "protect", "Protect a guest again whose protection was given up or paused", protectedAgain)
	c.Example, c.Long = "  understudy protect web", backAgain
	return c
}

const backAgain = `Protect a guest again: its host connects to the backup at once. Until the backup is in sync the guest runs
unprotected; "understudy status" shows how far that is. After a pause only what has changed is sent, after
unprotect, or when the backup's daemon was started anew, everything.`

func protectedAgain(guest string, g ownership.Guest) string {
	return fmt.Sprintf("guest %s is to be protected again, and is once its backup is in sync: see understudy status (generation %d)", guest, g.Generation)
}

func unprotectCommand(f *common) *cobra.Command {
	c := operation(f, "unprotect", "Give a guest's protection up; its backup frees image and memory", func(guest string, g ownership.Guest) string {
		return fmt.Sprintf("guest %s runs on host %s without protection until `understudy protect %s` (generation %d)", guest, g.Owner, guest, g.Generation)
	})
	c.Example = "  understudy unprotect web"
	c.Long = `Give a guest's protection up until protect is said.

The guest runs on. What it says and writes does not wait for anybody any more, and if its host is lost,
it is lost: nobody takes it over. Its backup ends the waiting machine and frees the image and its memory,
so that protecting it again begins with a full synchronisation. The ownership log remembers it: it
outlasts daemons and hosts.`
	return c
}

func failbackCommand(f *common) *cobra.Command {
	c := operation(f, "failback", "Bring a guest back to the host that the configuration names for it", func(guest string, g ownership.Guest) string {
		return fmt.Sprintf("guest %s is back on host %s (generation %d)", guest, g.Owner, g.Generation)
	})
	c.Example = "  understudy failback web"
	c.Long = `Bring a guest back to the host that the configuration names for it ("host"), by a switchover:
nothing is lost. That host has to be its backup in sync; if it is not, the guest stays where it is,
and what is in the way is said.

With failback = "auto" in its [[guest]] section the daemon does so by itself, once that host has
protected the guest for failback_after without a break.`
	return c
}

// notWanted says what the operator has said of a guest's protection, and when;
// "" if it is on.
func notWanted(g host.GuestStatus, now time.Time) string {
	p := g.Log.Protection
	if p == ownership.ProtectionOn {
		return ""
	}
	said := fmt.Sprintf("protection is %s by an operator", p)
	if g.Log.ProtectionSince > 0 {
		at := time.UnixMilli(g.Log.ProtectionSince)
		said += fmt.Sprintf(" since %s", at.UTC().Format("2006-01-02 15:04:05 MST"))
		if ago := now.Sub(at); ago > 0 {
			said += fmt.Sprintf(" (%v)", ago.Round(time.Second))
		}
	}
	return said
}
