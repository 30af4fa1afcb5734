package packaging

// A stranger's path, from a package to its removal, on four machines that are clean
// roots with a real guest under QEMU: what the guide says, step by step, and what a
// client of the guest sees of it, on one connection from the first step to the last.
//
//	alpha, beta   the pair        witness   votes        judge   takes the witness's place
//	client        counts the guest's lines, on the same network

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"understudy/demo/world"
	"understudy/drill"
	"understudy/guest"
	"understudy/guest/image"
	"understudy/lab"
	"understudy/status"
)

const strangerPrefix = "uspath"

// TestAStrangersPath is read from the top: each step is one of the guide's.
func TestAStrangersPath(t *testing.T) {
	p := newPath(t)
	for _, step := range []struct {
		name string
		do   func()
	}{
		{"install the package on three machines", p.install},
		{"write the configuration and the certificates, and check the hosts", p.configure},
		{"start three daemons: the guest boots and is protected", p.start},
		{"run a drill of each kind, and read the reports", p.drills},
		{"upgrade the package, and the daemons under the guest", p.upgrade},
		{"switch over", p.switchover},
		{"replace the witness", p.replaceWitness},
		{"stop the guest, and remove everything", p.uninstall},
	} {
		began := time.Now()
		step.do()
		t.Logf("%s: %.1f s", step.name, time.Since(began).Seconds())
	}
}

// path is where the stranger is.
type path struct {
	t             *testing.T
	ctx           context.Context
	lab           *lab.Lab
	machines      map[string]*machine
	before        map[string][]string // the files of each machine
	first, second string              // the packages
	client        *world.Client
}

// hosts are the machines, in the order of their addresses.
var hosts = []string{"alpha", "beta", "witness", "judge"}

const (
	subnet       = "192.0.2.0/24"
	guestAddress = "192.0.2.50"
	clientHost   = "client"
)

func newPath(t *testing.T) *path {
	p := &path{t: t, ctx: t.Context(), machines: map[string]*machine{}, before: map[string][]string{}}
	if err := world.Sweep(strangerPrefix); err != nil {
		t.Fatal(err)
	}
	p.first, _ = made(t, status.Version)
	p.second, _ = made(t, "99.1.0")
	var err error
	if p.lab, err = lab.New(lab.Options{Prefix: strangerPrefix, Hosts: append(slices.Clone(hosts), clientHost), Subnet: netip.MustParsePrefix(subnet)}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.client != nil {
			p.client.Close()
		}
		if err := p.lab.Close(); err != nil {
			t.Error(err)
		}
		left, err := world.Leftovers(strangerPrefix)
		if err != nil || len(left) > 0 {
			t.Errorf("left behind: %q %v", left, err)
		}
	})
	for _, name := range hosts {
		p.machines[name] = enter(t, name, func(program string, args ...string) (*exec.Cmd, func() error) {
			c := p.lab.Host(name).Command(context.WithoutCancel(p.ctx), program, args...)
			return c.Cmd, c.Start
		}, "")
		p.before[name] = files(p.machines[name])
	}
	return p
}

// must run a script on a machine, and say these things.
func (p *path) must(name, script string, says ...string) string {
	p.t.Helper()
	said := p.machines[name].run(script)
	for _, want := range says {
		if !regexp.MustCompile("(?m)" + want).MatchString(said) {
			p.t.Errorf("%s on %s does not say %q:\n%s", script, name, want, said)
		}
	}
	return said
}

func (p *path) install() {
	for _, name := range hosts[:3] {
		p.installOn(name)
	}
}

func (p *path) installOn(name string) {
	p.t.Helper()
	p.machines[name].put(p.first, "tmp/understudy.deb")
	p.must(name, "dpkg -i /tmp/understudy.deb", "next: understudy init")
	p.must(name, "understudy version", `^understudy `+regexp.QuoteMeta(status.Version)+` `)
}

// configure does what `understudy init` says is next.
func (p *path) configure() {
	p.must("alpha", "understudy init --host-address alpha=192.0.2.1:7400 --host-address beta=192.0.2.2:7400 --host-address witness=192.0.2.3:7400", "next: describe your guests")
	p.must("alpha", "understudy config check")
	p.guestFiles()
	text := p.must("alpha", "cat /etc/understudy/understudy.toml")
	text, _, ok := strings.Cut(text, "\n[[guest]]\n")
	if !ok {
		p.t.Fatalf("understudy init wrote no example of a guest:\n%s", text)
	}
	p.config(text+p.guestSections(), "alpha", "beta", "witness")
	p.certificates("beta", "beta")
	p.certificates("witness", "witness")
	p.must("alpha", "understudy config check && understudy check-host --output json > /tmp/alpha.json && understudy check-host")
	p.machines["beta"].put(filepath.Join(p.machines["alpha"].dir, "tmp/alpha.json"), "tmp/alpha.json")
	p.must("beta", "understudy config check && understudy check-host --against /tmp/alpha.json", "what must be equal is")
	p.must("witness", "understudy config check")
}

// config puts a configuration onto machines.
func (p *path) config(text string, names ...string) {
	p.t.Helper()
	for _, name := range names {
		p.machines[name].run("mkdir -p /etc/understudy/tls; printf %s \"$1\" > /etc/understudy/understudy.toml", text)
	}
}

// certificates copies a host's own from alpha, where the authority is.
func (p *path) certificates(of, to string) {
	p.t.Helper()
	p.machines[to].run("mkdir -p /etc/understudy/tls; chmod 700 /etc/understudy/tls")
	for _, name := range []string{"ca", of, of + "-key"} {
		file := "etc/understudy/tls/" + name + ".pem"
		p.machines[to].put(filepath.Join(p.machines["alpha"].dir, file), file)
		p.machines[to].run("chmod 600 /" + file)
	}
}

// guestFiles are the guest's kernel and its disk, and the operator's own check.
func (p *path) guestFiles() {
	p.t.Helper()
	images, err := filepath.Abs("../build/guest")
	if err != nil {
		p.t.Fatal(err)
	}
	disk, err := image.Small(p.ctx, images)
	if err != nil {
		p.t.Fatal(err)
	}
	for _, name := range []string{"alpha", "beta", "witness"} {
		p.machines[name].run("printf %s \"$1\" > /usr/local/bin/check-web; chmod 755 /usr/local/bin/check-web", checkWeb)
	}
	for _, name := range []string{"alpha", "beta"} {
		p.machines[name].run("mkdir -p /srv/understudy")
		for _, file := range []string{"vmlinuz", "initrd"} {
			p.machines[name].put(filepath.Join(images, file), "srv/understudy/"+file)
		}
	}
	target := filepath.Join(p.machines["alpha"].dir, "srv/understudy/web.img")
	says(p.t, "", "cp", "--sparse=always", disk, target)
}

// checkWeb asks the guest whether its memory is whole.
const checkWeb = `#!/bin/bash
exec 3<>/dev/tcp/` + guestAddress + `/7001 || exit 1
for question in boot check; do
	echo "$question" >&3
	IFS= read -r -t 30 line <&3 || exit 1
	echo "$line"
	case $line in boot*|ok*) ;; *) exit 1 ;; esac
done
`

// guestSections are the guest and its drills.
func (p *path) guestSections() string {
	boot := guest.Boot{Address: netip.MustParsePrefix(guestAddress + "/24"), Disk: guest.Disk{Device: guest.FirstDisk, Dir: guest.DataDir}}
	text := `
[[guest]]
name = "web"
host = "alpha"
backup = "beta"
memory = "128MiB"
machine = "q35"
user = "understudy-qemu"
kernel = "/srv/understudy/vmlinuz"
initrd = "/srv/understudy/initrd"
append = "` + boot.CommandLine() + `"
bubble_address = "192.0.2.250/24"

[[guest.disk]]
path = "/srv/understudy/web.img"
size = "256MiB"

[[guest.nic]]
mac = "52:54:00:77:00:32"
bridge = "` + lab.Bridge + `"
`
	for _, d := range p.named() {
		text += fmt.Sprintf("\n[[drill]]\nname = %q\nguest = \"web\"\nkind = %q\ncheck = [\"/usr/local/bin/check-web\"]\n", d.Name, d.Kind)
		if d.Fault != "" {
			text += fmt.Sprintf("fault = %q\nfault_for = \"6s\"\n", d.Fault)
		}
		if d.Kind != drill.Bubble {
			text += "probe = \"" + net.JoinHostPort(guestAddress, strconv.Itoa(guest.EchoPort)) + "\"\n"
		}
	}
	return text
}

// named are the drills, one of each kind.
func (*path) named() []drill.Spec {
	return []drill.Spec{{Name: "move", Kind: drill.Switchover}, {Name: "kill", Kind: drill.Failover, Fault: drill.Kill},
		{Name: "freeze", Kind: drill.Failover, Fault: drill.Freeze}, {Name: "cut", Kind: drill.Failover, Fault: drill.Cut}, {Name: "bubble", Kind: drill.Bubble}}
}

// start starts the daemons, which know by their host's name who they are.
func (p *path) start() {
	for _, name := range []string{"witness", "beta", "alpha"} {
		p.machines[name].begin("understudyd --log-level error")
	}
	p.protectedOn("alpha")
	conn, err := p.dial()
	if err != nil {
		p.t.Fatal(err)
	}
	if p.client, err = world.Follow(p.ctx, conn); err != nil {
		p.t.Fatal(err)
	}
	p.goesOn()
	p.must("witness", "understudy status --all", `^guest web$`, `protected by beta`)
}

// dial connects to the guest's counter, from the client's machine.
func (p *path) dial() (net.Conn, error) {
	for ctx, cancel := context.WithTimeout(p.ctx, time.Minute); ; {
		defer cancel()
		try, done := context.WithTimeout(ctx, time.Second)
		conn, err := p.lab.Host(clientHost).Dial(try, "tcp", net.JoinHostPort(guestAddress, strconv.Itoa(guest.CounterPort)))
		done()
		if err == nil || ctx.Err() != nil {
			return conn, err
		}
	}
}

// protectedOn waits until the guest runs, protected, on a host.
func (p *path) protectedOn(name string) {
	p.t.Helper()
	p.machines[name].until(`said=$(understudy status) && grep -E "^ +owner +$(hostname), generation [0-9]+, active" <<<"$said" && grep "^ *protected *yes" <<<"$said"`)
}

// goesOn: the guest's lines come to the client, none lost, repeated or taken back.
func (p *path) goesOn() {
	p.t.Helper()
	if err := p.client.More(p.ctx, 50, time.Minute); err != nil {
		p.t.Fatal(err)
	}
}

// drills runs one of each kind by its name, on any host, and reads what it left.
func (p *path) drills() {
	p.must("alpha", "understudy simulate --fail host alpha", "goes on at beta")
	p.must("alpha", "understudy drill run kill --dry-run", "possible +yes")
	for i, d := range p.named() {
		began := time.Now()
		at := []string{"alpha", "beta", "witness"}[i%3]
		p.must(at, "understudy drill run --yes "+d.Name, `^result +HELD$`, `held +all memory is the same on both hosts`)
		silence, _ := p.client.Outage(began)
		p.t.Logf("drill %s: %.1f s, longest silence at the client %v", d.Name, time.Since(began).Seconds(), silence.Round(time.Millisecond))
		p.goesOn()
		p.protectedOn("alpha")
		p.report(at, d)
	}
	list := p.must("beta", "understudy drill list")
	for _, d := range p.named() {
		if !regexp.MustCompile(`(?m)web +` + string(d.Kind) + `.* held`).MatchString(list) {
			p.t.Errorf("drill list has no %s that held:\n%s", d.Kind, list)
		}
	}
}

// report reads the last drill's report in each of its forms.
func (p *path) report(at string, d drill.Spec) {
	p.t.Helper()
	p.must(at, "understudy drill report", `^result +HELD$`)
	var r drill.Report
	if err := json.Unmarshal([]byte(p.must(at, "understudy drill report --output json")), &r); err != nil || r.State != drill.Held || r.Spec.Name != d.Name || len(r.Guarantees) == 0 || len(r.Timeline) == 0 {
		p.t.Errorf("the report of %s: %v: %s %s %s, %d guarantees", d.Name, err, r.Spec.Name, r.State, r.Why, len(r.Guarantees))
	}
	if r.RTO.Outage == nil && d.Kind != drill.Bubble {
		p.t.Errorf("the report of %s has no outage that the probe saw: %s", d.Name, r.RTO.Text)
	}
	var suite struct {
		Cases []struct {
			Name    string    `xml:"name,attr"`
			Failure *struct{} `xml:"failure"`
		} `xml:"testsuite>testcase"`
	}
	junit := p.must(at, "understudy drill report --format junit")
	if err := xml.Unmarshal([]byte(junit), &suite); err != nil || len(suite.Cases) < len(r.Guarantees) || strings.Contains(junit, "<failure") {
		p.t.Errorf("the report of %s as JUnit has %d cases of %d guarantees: %v\n%s", d.Name, len(suite.Cases), len(r.Guarantees), err, junit)
	}
	p.must(at, "understudy drill report --format html --file /tmp/drill.html && cat /tmp/drill.html && ! grep -E '(src|href)=\"?(https?:|//)|@import|<script' /tmp/drill.html",
		`<!DOCTYPE html>`, `<svg`, `never two owners`, r.ID)
}

// upgrade: first the files, then, one host at a time, the daemons.
func (p *path) upgrade() {
	for _, name := range []string{"beta", "alpha", "witness"} {
		p.machines[name].put(p.second, "tmp/understudy.deb")
		pid := p.must(name, "pidof understudyd")
		p.must(name, "dpkg -i /tmp/understudy.deb")
		if now := p.must(name, "pidof understudyd"); now != pid {
			p.t.Errorf("the package's upgrade on %s has touched the daemon: %s, was %s", name, now, pid)
		}
		p.must(name, "understudy upgrade", `^version 99\.1\.0 has taken the place of version `+regexp.QuoteMeta(status.Version))
		p.machines["alpha"].until("understudy status") // protected
		p.goesOn()
	}
	p.protectedOn("alpha")
	p.must("alpha", "understudy status --all", `^alpha .* 99\.1\.0`, `^beta .* 99\.1\.0`, `^witness .* 99\.1\.0`)
}

func (p *path) switchover() {
	p.must("alpha", "understudy switchover web")
	p.protectedOn("beta")
	p.goesOn()
}

// replaceWitness has judge vote in its place, as `understudy host replace` says.
func (p *path) replaceWitness() {
	p.first = p.second // what runs elsewhere
	p.machines["judge"].put(p.first, "tmp/understudy.deb")
	p.must("judge", "dpkg -i /tmp/understudy.deb")
	p.must("alpha", "understudy cert add judge", "copy them")
	text := p.must("alpha", "cat /etc/understudy/understudy.toml")
	was := regexp.MustCompile(`name = "witness"\naddress = "192\.0\.2\.3:7400"`)
	if !was.MatchString(text) {
		p.t.Fatalf("no witness in\n%s", text)
	}
	p.config(was.ReplaceAllString(text, "name = \"judge\"\naddress = \"192.0.2.4:7400\""), "alpha", "beta", "judge")
	p.certificates("judge", "judge")
	p.machines["judge"].begin("understudyd --log-level error")
	for _, name := range []string{"alpha", "beta"} {
		p.must(name, "understudy config apply")
	}
	p.must("alpha", "understudy host replace witness judge --witness", `^judge votes in the place of witness`)
	p.end("witness")
	p.protectedOn("beta")
	p.must("beta", "understudy raft list-peers", `^judge +192\.0\.2\.4:7400`)
	p.must("judge", "understudy status --all", `protected by alpha`)
	p.goesOn()
}

// end ends a machine's daemon, as its service manager would.
func (p *path) end(name string) {
	p.t.Helper()
	p.must(name, "pid=$(pidof understudyd); kill $pid; tail --pid=$pid -f /dev/null")
}

// uninstall: a package does not go under a guest; then nothing of it is left.
func (p *path) uninstall() {
	if got := p.machines["beta"].fails(1, "dpkg -r understudy"); !strings.Contains(got, "would stand still without its daemon") {
		p.t.Error(got)
	}
	p.goesOn()
	p.client.Close()
	if err := p.client.Err(); err != nil {
		p.t.Errorf("the client: %v", err)
	}
	p.client = nil
	p.must("beta", "understudy stop web", "is stopped")
	for _, name := range hosts {
		if name != "witness" {
			p.end(name)
		}
		p.must(name, "dpkg -P understudy")
		p.must(name, "rm -r /etc/understudy; rm -rf /srv/understudy; rm -f /usr/local/bin/check-web") // the operator's own
		for _, file := range files(p.machines[name]) {
			if !slices.Contains(p.before[name], file) {
				p.t.Errorf("left behind on %s: %s", name, file)
			}
		}
		if got := strings.TrimSpace(p.must(name, "find /run/understudy /run/netns /dev/shm -mindepth 1 2>/dev/null || true; ip -o link | grep -v ' lo:\\| "+lab.Bridge+":\\| "+lab.Uplink+"@' || true; nft list tables; pidof understudyd qemu-system-x86_64 || true")); got != "" {
			p.t.Errorf("left behind on %s: %s", name, got)
		}
	}
}
