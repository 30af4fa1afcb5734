package packaging

// The packages, as an operator of Debian and of an rpm system meets them:
// built twice with the same bytes, installed, upgraded while a guest runs,
// refused to go while it does, removed, purged.

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"understudy/status"
)

// made builds the packages of a version and returns the deb and the rpm.
func made(t *testing.T, version string) (deb, rpm string) {
	t.Helper()
	nfpm, err := filepath.Glob("../build/tools/nfpm-*")
	if err != nil || len(nfpm) == 0 {
		t.Fatal("nfpm is not there: make packages builds it")
	}
	out := t.TempDir()
	lines := strings.Fields(says(t, "..", "go", "run", "./packaging/build", "-nfpm", strings.TrimPrefix(nfpm[len(nfpm)-1], "../"), "-out", out, "-version", version))
	if len(lines) != 2 {
		t.Fatalf("made %q", lines)
	}
	return lines[0], lines[1]
}

func sum(t *testing.T, path string) string {
	t.Helper()
	return fmt.Sprintf("%x", sha256.Sum256([]byte(read(t, path))))
}

func TestTheSameCommitGivesTheSamePackages(t *testing.T) {
	deb, rpm := made(t, status.Version)
	deb2, rpm2 := made(t, status.Version)
	if sum(t, deb) != sum(t, deb2) || sum(t, rpm) != sum(t, rpm2) {
		t.Error("built twice, and different")
	}
}

// files lists every file of the machine, but for what every system keeps of what
// was done to it.
func files(m *machine) []string {
	var found []string
	for line := range strings.Lines(m.run("find / -xdev -not -type d -o -xdev -type d -empty | sort")) {
		name := strings.TrimSpace(line)
		if slices.ContainsFunc([]string{"/var/lib/dpkg/", "/var/log/", "/var/cache/", "/proc", "/tmp", "/run", "/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow", "/etc/.pwd", "/root", "/dev"},
			func(p string) bool { return strings.HasPrefix(name, p) }) {
			continue
		}
		found = append(found, name)
	}
	return found
}

// TestAnOperatorOfDebian: from a package to a guest, an upgrade under it, and away.
func TestAnOperatorOfDebian(t *testing.T) {
	first, _ := made(t, status.Version)
	second, _ := made(t, "99.1.0")
	m := newMachine(t)
	before := files(m)
	m.put(first, "tmp/understudy.deb")
	said := m.run("dpkg -i /tmp/understudy.deb")
	if !strings.Contains(said, "next: understudy init") {
		t.Error(said)
	}

	// What is there is what was promised.
	if got := m.run("understudy version; understudyd --version"); !strings.HasPrefix(got, "understudy "+status.Version+" ") || !strings.Contains(got, "understudyd version "+status.Version) {
		t.Error(got)
	}
	for page, want := range map[string]string{"understudy-status": "EXIT STATUS", "8 understudyd": "--log-format", "5 understudy.toml": "[[guest]]"} {
		if got := m.run("man --warnings " + page + " 2>&1 | cat"); !strings.Contains(got, want) {
			t.Errorf("man %s:\n%s", page, got)
		}
	}
	if got := m.run(`. /usr/share/bash-completion/bash_completion; _completion_loader understudy || [ $? = 124 ]; complete -p understudy`); !strings.Contains(got, "__start_understudy") {
		t.Error(got)
	}
	if got := m.run("systemd-analyze verify /usr/lib/systemd/system/understudyd.service 2>&1; systemd-analyze verify /usr/share/doc/understudy/examples/run-understudy.mount 2>&1"); strings.Contains(got, "understudy") {
		t.Errorf("systemd-analyze complains:\n%s", got)
	}
	if got := m.run("getent passwd understudy-qemu; stat -c '%a %n' /run/understudy /var/lib/understudy /etc/understudy"); !strings.Contains(got, "755 /run/understudy\n700 /var/lib/understudy\n755 /etc/understudy") || !strings.Contains(got, "understudy-qemu:") {
		t.Error(got)
	}

	// A configuration, and all three hosts in one; alpha runs a (simulated) guest.
	m.run("understudy init")
	m.run("cat > /etc/understudy/understudy.toml <<'END'\n" + simulated + "END\nunderstudy config check")
	sums := m.run("find /etc/understudy -type f | sort | xargs sha256sum")
	endWitness := m.begin("understudyd --host witness --log-level error")
	endBeta := m.begin("understudyd --host beta --log-level error")
	endAlpha := m.begin("understudyd --host alpha --log-level error")
	m.until(`understudy status --output json | grep '"role": "primary"'`)

	// An upgrade leaves the configuration, the daemon and its guest alone.
	pid := m.run("pidof understudyd")
	m.put(second, "tmp/understudy.deb")
	m.run("dpkg -i /tmp/understudy.deb")
	if got := m.run("understudy version"); !strings.HasPrefix(got, "understudy 99.1.0 ") {
		t.Error(got)
	}
	if now := m.run("pidof understudyd"); now != pid {
		t.Errorf("daemons %s before the upgrade, %s after", pid, now)
	}
	if got := m.run(`understudy status --output json | grep '"version"\|"role"'`); !strings.Contains(got, status.Version) || !strings.Contains(got, "primary") {
		t.Errorf("the daemon that was there before answers: %s", got)
	}
	if now := m.run("find /etc/understudy -type f | sort | xargs sha256sum"); now != sums {
		t.Errorf("the configuration was\n%s and is\n%s", sums, now)
	}

	// It does not go while a guest runs here.
	if got := m.fails(1, "dpkg -r understudy"); !strings.Contains(got, "would stand still without its daemon") {
		t.Error(got)
	}
	if got := m.run("understudy stop web"); !strings.Contains(got, "is stopped") {
		t.Error(got)
	}
	endAlpha()
	endBeta()
	endWitness()
	m.run("dpkg -r understudy")
	if got := m.run("! command -v understudy understudyd; ls /etc/understudy /var/lib/understudy"); !strings.Contains(got, "understudy.toml") || !strings.Contains(got, "ownership") {
		t.Errorf("a removal that is no purge leaves:\n%s", got)
	}
	m.run("rm -r /var/lib/understudy-beta /var/lib/understudy-witness") // directories of the configuration's own
	m.run("dpkg -P understudy")
	for _, name := range files(m) {
		if !slices.Contains(before, name) && !strings.HasPrefix(name, "/etc/understudy/") {
			t.Errorf("left behind: %s", name)
		}
	}
	m.run("test -e /etc/understudy/understudy.toml && ! test -e /var/lib/understudy")
}

// simulated is a configuration with a guest that needs no QEMU.
const simulated = `cluster = "shop"
[[host]]
name = "alpha"
address = "192.0.2.1:7400"
[[host]]
name = "beta"
address = "192.0.2.2:7400"
run_dir = "/run/understudy-beta"
state_dir = "/var/lib/understudy-beta"
[[host]]
name = "witness"
address = "192.0.2.3:7400"
witness = true
run_dir = "/run/understudy-witness"
state_dir = "/var/lib/understudy-witness"
[[guest]]
name = "web"
host = "alpha"
backup = "beta"
hypervisor = "sim"
memory = "16 MiB"
`

// TestAnOperatorOfAnRPMSystem: the same files, the same scripts in spirit.
func TestAnOperatorOfAnRPMSystem(t *testing.T) {
	_, rpm := made(t, status.Version)
	list := says(t, "", "rpm", "-qpl", "--nosignature", rpm)
	for _, want := range []string{"/usr/bin/understudy", "/usr/sbin/understudyd", "/usr/lib/systemd/system/understudyd.service", "/usr/share/man/man1/understudy-status.1.gz",
		"/usr/share/man/man8/understudyd.8.gz", "/usr/share/man/man5/understudy.toml.5.gz", "/usr/share/zsh/site-functions/_understudy",
		"/usr/share/bash-completion/completions/understudy", "/usr/share/understudy/prometheus/alerts.yaml", "/usr/share/understudy/grafana/understudy.json", "/etc/understudy",
		"/usr/share/doc/understudy/docs/GUIDE.md", "/usr/share/doc/understudy/docs/TROUBLESHOOTING.md"} {
		if !strings.Contains(list, want+"\n") {
			t.Errorf("not in the package: %s\n%s", want, list)
		}
	}
	root := t.TempDir()
	says(t, "", "rpm", "--root", root, "--dbpath", "/var/lib/rpm", "-i", "--nodeps", "--nosignature", "--noscripts", "--ignoreos", rpm)
	if got := says(t, "", filepath.Join(root, "usr/bin/understudy"), "version"); !strings.HasPrefix(got, "understudy "+status.Version+" ") {
		t.Error(got)
	}
	if got := says(t, "", "rpm", "--root", root, "--dbpath", "/var/lib/rpm", "-V", "--nodeps", "understudy"); got != "" {
		t.Errorf("differs from the package:\n%s", got)
	}
	scripts := says(t, "", "rpm", "-qp", "--nosignature", "--scripts", rpm)
	for _, want := range []string{"postinstall scriptlet", "preuninstall scriptlet", "would stand still without its daemon"} {
		if !strings.Contains(scripts, want) {
			t.Errorf("the scripts lack %q:\n%s", want, scripts)
		}
	}
	says(t, "", "rpm", "--root", root, "--dbpath", "/var/lib/rpm", "-e", "--noscripts", "understudy")
	if _, err := os.Stat(filepath.Join(root, "usr/bin/understudy")); !os.IsNotExist(err) {
		t.Errorf("removed, and there: %v", err)
	}
}
