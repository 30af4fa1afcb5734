package packaging

// The unit under systemd itself: a clean root in which systemd is the first process,
// in namespaces and a control group of its own.
//
//	a cgroup of version 2 ── unshare ── held root ── pivot_root ── exec systemd
//
// It has the kernel's own devices, no console, and no network but its loopback.

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy/status"
)

// booting makes the root out of $1, the Debian, and $2, an empty directory, and has
// its systemd take this process over. What is outside is out of its sight then.
const booting = `set -e
mount -t tmpfs tmpfs "$2"
mkdir "$2/upper" "$2/work" "$2/root"
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
cd "$2/root"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
for d in run tmp dev; do mount -t tmpfs tmpfs $d; done
for n in null zero full random urandom tty; do touch dev/$n; mount --bind /dev/$n dev/$n; done
mkdir dev/pts dev/shm outside
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
echo alpha >etc/hostname
ip link set lo up
for a in 192.0.2.1 192.0.2.2 192.0.2.3; do ip address add $a/32 dev lo; done
pivot_root . outside
exec env -i container=understudy PATH=/usr/sbin:/usr/bin:/sbin:/bin \
	sh -c "umount -l /outside; exec /lib/systemd/systemd systemd.unit=multi-user.target" </dev/null`

// cgroups returns where control groups of version 2 are mounted.
func cgroups(t *testing.T) string {
	t.Helper()
	for line := range strings.Lines(read(t, "/proc/self/mounts")) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			return f[1]
		}
	}
	t.Fatal("no cgroup2 is mounted here, without which systemd does not start: mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified")
	return ""
}

// newSystemd boots a clean root.
func newSystemd(t *testing.T) *machine {
	t.Helper()
	tree, dir := debian(t), t.TempDir()
	group, err := os.MkdirTemp(cgroups(t), "understudy-packaging-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeGroups(t, group) })
	fd, err := syscall.Open(group, syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Close(fd) }()
	c := exec.Command("unshare", "--cgroup", "--mount", "--propagation", "private", "--uts", "--net", "--pid", "--ipc", "--fork", "--kill-child",
		"sh", "-c", booting, "sh", tree, dir)
	c.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	c.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: fd}
	var complaints strings.Builder
	c.Stdout, c.Stderr = &complaints, &complaints
	c.WaitDelay = time.Second
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t}
	t.Cleanup(func() {
		for _, end := range m.ends {
			end()
		}
		_ = c.Process.Kill() // and with it its child, the namespace's first process
		_ = c.Wait()
	})
	children := filepath.Join("/proc", strconv.Itoa(c.Process.Pid), "task", strconv.Itoa(c.Process.Pid), "children")
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		text, _ := os.ReadFile(children) // gone if it failed, which is told below
		if m.pid, err = strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
			if comm, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(m.pid), "comm")); err == nil && string(comm) == "systemd\n" {
				break
			}
		}
		if time.Now().After(end) {
			t.Fatalf("systemd was not started:\n%s", complaints.String())
		}
	}
	m.dir = filepath.Join("/proc", strconv.Itoa(m.pid), "root")
	m.until(`[ "$(systemctl is-system-running)" = running ]`)
	return m
}

// removeGroups removes a control group and those in it, once the processes in them
// are gone.
func removeGroups(t *testing.T, group string) {
	var left error
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		var all []string
		_ = filepath.WalkDir(group, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				all = append(all, path)
			}
			return nil // one that is gone is what is wanted
		})
		left = nil
		for _, path := range slices.Backward(all) {
			left = errors.Join(left, os.Remove(path))
		}
		if left == nil {
			return
		}
	}
	t.Error(left)
}

// shown is one property of the unit.
func (m *machine) shown(property string) string {
	m.t.Helper()
	return strings.TrimSpace(m.run("systemctl show --value --property=" + property + " understudyd"))
}

// TestTheUnitUnderSystemd: it starts when the daemon takes part; reload reads the
// configuration again, and refuses a wrong one; an upgrade in place leaves the unit as
// it is, with another process; a frozen daemon is killed and started anew; a wrong
// configuration starts nothing.
func TestTheUnitUnderSystemd(t *testing.T) {
	deb, _ := made(t, status.Version)
	m := newSystemd(t)
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := m.command("journalctl --no-pager -o cat -u understudyd | tail -n 80; systemctl status --no-pager understudyd").CombinedOutput()
			t.Logf("the unit's journal:\n%s", out)
		}
	})
	m.put(deb, "tmp/understudy.deb")
	m.run("dpkg -i /tmp/understudy.deb")
	m.run("understudy init && cat > /etc/understudy/understudy.toml <<'END'\n" + simulated + "END")
	m.begin("understudyd --host witness --log-level error")
	m.begin("understudyd --host beta --log-level error")

	// Only the watchdog's time is another than the package's.
	m.run(`mkdir -p /etc/systemd/system/understudyd.service.d
		printf '[Service]\nWatchdogSec=4\n' > /etc/systemd/system/understudyd.service.d/test.conf
		systemctl daemon-reload`)
	m.run("systemctl start understudyd")
	if got := m.shown("ActiveState") + " " + m.shown("SubState"); got != "active running" {
		t.Fatalf("it was started and is %s", got)
	}
	m.run("understudy status || [ $? = 3 ]") // it answers at once
	first := m.shown("MainPID")
	m.until(`understudy status --output json | grep '"protected": "yes"'`)
	m.until(`systemctl show --value --property=StatusText understudyd | grep "web runs here, protected by beta"`)

	// A reload.
	before := m.run("understudy config show")
	m.run(`printf '[guest.protection]\nwindow = 4\n' >> /etc/understudy/understudy.toml; systemctl reload understudyd`)
	m.until(`understudy config show | grep "window = 4"`)
	m.run(`cp /etc/understudy/understudy.toml /tmp/good; echo 'nonsense = 1' >> /etc/understudy/understudy.toml`)
	m.fails(1, "systemctl reload understudyd")
	if got := m.run("journalctl --no-pager -o cat -u understudyd"); !strings.Contains(got, "nonsense") {
		t.Error("nobody said what is wrong with the configuration")
	}
	m.run("cp /tmp/good /etc/understudy/understudy.toml; systemctl reload understudyd")
	if now := m.run("understudy config show"); now == before || !strings.Contains(now, "window = 4") {
		t.Errorf("it runs\n%s", now)
	}

	// An upgrade in place.
	m.until(`understudy status --output json | grep '"protected": "yes"'`)
	m.run("understudy upgrade")
	m.until("[ $(systemctl show --value --property=MainPID understudyd) != " + first + " ]")
	second := m.shown("MainPID")
	if got := m.run("understudy status --output json"); !strings.Contains(got, `"pid": `+second) || m.shown("ActiveState") != "active" || m.shown("NRestarts") != "0" {
		t.Errorf("after the upgrade from %s process %s is the unit, %s, started anew %s times:\n%s", first, second, m.shown("ActiveState"), m.shown("NRestarts"), got)
	}
	m.fails(1, "kill -0 "+first)
	// A simulated guest ends with its daemon: its backup has it now.
	m.until(`systemctl show --value --property=StatusText understudyd | grep "web stands by here, in sync with beta"`)

	// The watchdog watches over the new one: it is let live, and found when it hangs.
	if got := m.run("sleep 9; systemctl show --value --property=MainPID understudyd"); strings.TrimSpace(got) != second {
		t.Errorf("a daemon that is well was ended: process %s, now %s", second, got)
	}
	m.run("kill -STOP " + second)
	m.until(`[ "$(systemctl show --value --property=NRestarts understudyd)" = 1 ] && systemctl is-active understudyd`)
	if third := m.shown("MainPID"); third == second || third == "0" {
		t.Errorf("process %s after the watchdog", third)
	}
	// So is its death, although it was no child of systemd's when it became the unit.
	m.run("understudy upgrade")
	m.until("understudy status")
	m.run("kill -KILL $(systemctl show --value --property=MainPID understudyd)")
	m.until(`[ "$(systemctl show --value --property=NRestarts understudyd)" = 2 ] && systemctl is-active understudyd && understudy status`)

	// Stopped, and not to be started with a wrong configuration.
	m.run("systemctl stop understudyd")
	if got := m.shown("Result"); got != "success" {
		t.Errorf("it was stopped: %s", got)
	}
	m.run("echo 'nonsense = 1' >> /etc/understudy/understudy.toml")
	m.fails(1, "systemctl start understudyd")
	m.fails(3, "systemctl is-active understudyd")
}
