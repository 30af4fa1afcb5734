package main

// What the commands say at length, for --help and the manual, where it is not
// beside their code: those that are made by one function (operation), and the
// exit statuses that only some commands have.

import (
	"strings"

	"github.com/spf13/cobra"

	"understudy/cmd/manual"
)

// text is what there is to say of a command.
type text struct {
	long, example, exits string
}

const programText = `understudy keeps virtual machines running when their host is lost: it takes
a checkpoint of a running guest many times a second and sends what has changed to
a standby host. When the guest's host is lost, the guest goes on there, with its
memory, its processes and its connections.

This is the operator's tool. Each host has a daemon, understudyd; the commands ask
that of this host through a socket which only root may open. Begin with

  understudy init          a configuration and certificates for two hosts and a witness
  understudy config check  what is wrong with it
  understudy check-host    whether this host can run and stand by for its guests
  understudy status        whether the guests are protected

Every command takes --output json.`

// texts are found by a command's path, without the program's name.
var texts = map[string]text{
	"": {long: programText},
	"status": {
		long: `Say of each guest of this host whether it is protected and by whom, who owns it,
how old the last commit is, how long its pauses are, what is held, what is wrong
with it, and each way out that it has. What a host cannot know it does not say: ask
the owner.`,
		example: "  understudy status\n  understudy status --output json | jq '.guests[] | {name, protected}'",
		exits:   "3 A guest that this host runs is not protected.",
	},
	"config": {long: "Work on the configuration, one TOML file that is the same on every host."},
	"config check": {
		long:    `Read the configuration and list everything that is wrong with it, not only the first. It asks no daemon and changes nothing.`,
		example: "  understudy config check --config /etc/understudy/understudy.toml",
	},
	"check-host": {example: "  understudy check-host\n  understudy check-host --against alpha.json"},
	"switchover": {
		long: `Let a guest that is protected go on at its backup. It is paused, its last epoch is
committed there, and it runs on: nothing is lost, and no connection is reset. The
host that had it becomes the backup.`,
		example: "  understudy switchover web",
	},
	"stop": {
		long: `End a guest on purpose: commit a last epoch, let its output out, end its machine, and
record that it is meant to be stopped, so that nobody takes it over.`,
		example: "  understudy stop web",
	},
	"start": {
		long: `Boot a guest that was stopped, on this host. A replicated guest starts where it ran
last: only that host's disks are known to be complete.`,
		example: "  understudy start web",
	},
	"upgrade": {
		long: `Start the daemon's program anew, or another with --binary, beside the one that runs, and
have it take everything over: no failover, no connection is reset. A guest that runs
here stands still for some tenths of a second, and stays protected all the time. One
whose backup is here is unprotected until its image is made anew: so upgrade one host
after the other, and wait for "protected" in between. A new daemon that cannot start,
refuses the configuration or cannot read what the old one would leave to it changes
nothing.`,
		example: "  understudy upgrade\n  understudy upgrade --binary /opt/understudy-1.1/understudyd",
	},
	"verify": {
		long: `Compare a guest's whole memory on both hosts, page by page, while it runs. If it
differs, the backup's image is given up and made anew; the guest is unprotected
until then.`,
		example: "  understudy verify web",
		exits:   "4 Memory differs.",
	},
	"drill run":   {exits: "6 It ran, and a check or a guarantee did not hold."},
	"bubble":      {exits: "4 The check found something wrong with the copy."},
	"config diff": {exits: "7 Something would change, or hosts differ."},
	"checkpoint": {
		long: `A checkpoint file holds a guest's memory and devices, but not what is on its disks:
pages that are on a disk are referred to. So it is worth something only with the
disks as they were at that moment; "checkpoint save" tells of the ways to keep them.`,
	},
	"checkpoint save": {
		example: `  understudy checkpoint save web before-upgrade.ckpt --pin
  understudy checkpoint save web later.ckpt --incremental-to before-upgrade.ckpt`,
	},
	"checkpoint inspect": {
		long:    `Tell of which guest and moment a checkpoint file is, how large, which disks and kernel it needs, and how many pages were left out for which reason. It reads the file alone.`,
		example: "  understudy checkpoint inspect before-upgrade.ckpt",
	},
	"checkpoint verify": {
		long: `Read all that a restore would need: the file's every checksum, and through the daemon
the disk blocks that it refers to, each compared by its fingerprint.`,
		example: "  understudy checkpoint verify before-upgrade.ckpt",
		exits:   "4 The file cannot be restored here.",
	},
	"checkpoint restore": {example: "  understudy stop web && understudy checkpoint restore web before-upgrade.ckpt"},
	"checkpoint remove":  {example: "  understudy checkpoint remove before-upgrade.ckpt"},
	"checkpoint export":  {example: "  understudy checkpoint export web.ckpt --xl web.save && xl restore web.save"},
	"checkpoint import": {
		example: `  xl save web web.save && understudy checkpoint import web.save web.ckpt --disk /srv/web.img
  understudy checkpoint import web.save web.ckpt --guest web && understudy checkpoint restore web web.ckpt`,
	},
	"demo":     {example: "  understudy demo --guest sim\n  understudy demo --repeat 50 --seed 7"},
	"selftest": {example: "  understudy selftest"},
}

// explain gives the commands beneath root their texts; what a command says
// itself stays.
func explain(root *cobra.Command) {
	for _, c := range manual.Commands(root) {
		t, ok := texts[strings.TrimPrefix(strings.TrimPrefix(c.CommandPath(), root.Name()), " ")]
		if !ok {
			continue
		}
		if c.Long == "" {
			c.Long = t.long
		}
		if c.Example == "" {
			c.Example = t.example
		}
		if t.exits != "" {
			if c.Annotations == nil {
				c.Annotations = map[string]string{}
			}
			c.Annotations[manual.ExitKey] = t.exits
		}
	}
}
