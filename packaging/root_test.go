package packaging

// A clean root: a minimal Debian that is made once with debootstrap, with an
// overlay over it for each machine, in namespaces of its own. Whatever a test does
// there is gone with the namespaces, however the test ends.

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	suite = "bookworm"
	// rootPackages are what is needed to look at what was installed, and what the
	// package recommends.
	rootPackages = "bash-completion,iproute2,ipxe-qemu,man-db,nftables,procps,qemu-system-x86,seabios,systemd"
	rootName     = "root-" + suite + "-2" // another number when the recipe changes
)

// debian returns the directory of the minimal Debian, which it makes if need be.
func debian(t *testing.T) string {
	t.Helper()
	tree, err := filepath.Abs(filepath.Join(cache, rootName))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(tree); err == nil {
		return tree
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	half, err := os.MkdirTemp(cache, "half-")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(half) }()
	c := exec.Command("debootstrap", "--variant=minbase", "--include="+rootPackages, suite, half, mirror(t))
	c.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	c.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS} // what it mounts goes with it
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", c, err, out)
	}
	for _, waste := range []string{"var/cache/apt/archives", "var/lib/apt/lists"} {
		if err := os.RemoveAll(filepath.Join(half, waste)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(half, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(half, tree); err != nil {
		t.Fatal(err)
	}
	return tree
}

// mirror is the one that apt is configured with.
func mirror(t *testing.T) string {
	t.Helper()
	for line := range strings.Lines(says(t, "", "apt-get", "indextargets", "--format", "$(SITE) $(CODENAME) $(COMPONENT) $(ORIGIN)", "Created-By: Packages")) {
		if site, rest, _ := strings.Cut(strings.TrimSpace(line), " "); rest == suite+" main Debian" {
			return site
		}
	}
	t.Fatalf("apt knows no mirror of Debian's %s main (apt-get indextargets): add one to its sources and run apt-get update", suite)
	return ""
}

// machine is a clean root that one is in.
type machine struct {
	t    *testing.T
	dir  string // as seen from outside, by /proc
	pid  int
	ends []func()
}

// held makes the root out of $1, the Debian, and $2, an empty directory, for a
// host named $3: then it waits until its standard input ends. It is the first
// process there: the shell's read collects those whose parent has died.
const held = `set -e
mount -t tmpfs tmpfs "$2"
mkdir "$2/upper" "$2/work" "$2/root"
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
mount -t proc proc "$2/root/proc"
mount -t sysfs sysfs "$2/root/sys"
for d in run tmp dev/shm; do mkdir -p "$2/root/$d"; mount -t tmpfs tmpfs "$2/root/$d"; done
mkdir -p "$2/root/dev/net"
mknod "$2/root/dev/net/tun" c 10 200
hostname "$3"
echo ready
read -r _ || exit 0`

// alone is the network of a machine that has all three hosts' addresses.
const alone = `ip link set lo up
for a in 192.0.2.1 192.0.2.2 192.0.2.3; do ip address add $a/32 dev lo; done
`

// newMachine enters a clean root, with its own host name (alpha), network and
// processes.
func newMachine(t *testing.T) *machine {
	t.Helper()
	return enter(t, "alpha", func(program string, args ...string) (*exec.Cmd, func() error) {
		c := exec.Command("unshare", append([]string{"--net", program}, args...)...)
		return c, c.Start
	}, alone)
}

// enter enters a clean root; start prepares a program in the machine's network,
// and setup is what is done there first.
func enter(t *testing.T, name string, start func(program string, args ...string) (*exec.Cmd, func() error), setup string) *machine {
	t.Helper()
	tree, dir := debian(t), t.TempDir()
	c, begin := start("unshare", "--mount", "--propagation", "private", "--uts", "--pid", "--fork", "--kill-child", "--ipc", "bash", "-c", setup+held, "bash", tree, dir, name)
	c.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var complaints strings.Builder
	c.Stderr = &complaints
	if err := begin(); err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t}
	t.Cleanup(func() {
		for _, end := range m.ends {
			end()
		}
		_ = in.Close() // ends the namespace's first process, and with it all others
		_ = c.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("a clean root: %q, %v\n%s", line, err, complaints.String())
	}
	// The shell is unshare's child.
	children, err := os.ReadFile("/proc/" + strconv.Itoa(c.Process.Pid) + "/task/" + strconv.Itoa(c.Process.Pid) + "/children")
	if err != nil {
		t.Fatal(err)
	}
	if m.pid, err = strconv.Atoi(strings.TrimSpace(string(children))); err != nil {
		t.Fatal(err)
	}
	m.dir = filepath.Join("/proc", strconv.Itoa(m.pid), "root", dir, "root")
	return m
}

// command is a program in the machine, for some minutes at most.
func (m *machine) command(script string, args ...string) *exec.Cmd {
	return m.inside(append([]string{"timeout", "--foreground", "300", "bash", "-c", script, "bash"}, args...)...)
}

// inside is a program in the machine.
func (m *machine) inside(words ...string) *exec.Cmd {
	dir, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(m.pid), "root"))
	if err != nil {
		m.t.Fatal(err)
	}
	_, inside, _ := strings.Cut(m.dir, "/root/")
	c := exec.Command("nsenter", append([]string{"--target", strconv.Itoa(m.pid), "--mount", "--uts", "--net", "--pid", "--ipc", "chroot", filepath.Join(dir, inside)}, words...)...)
	c.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8", "TERM=dumb", "DEBIAN_FRONTEND=noninteractive"}
	return c
}

// run runs a script that must succeed, and returns what it says.
func (m *machine) run(script string, args ...string) string {
	m.t.Helper()
	out, err := m.command("set -e\n"+script, args...).CombinedOutput()
	if err != nil {
		m.t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

// fails runs a script that must end with a status, and returns what it says.
func (m *machine) fails(status int, script string) string {
	m.t.Helper()
	out, err := m.command(script).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != status {
		m.t.Fatalf("%s: %v, want exit status %d\n%s", script, err, status, out)
	}
	return string(out)
}

// begin starts a program that lives until the machine ends, or the returned
// function is called; what it says goes to the test's log.
func (m *machine) begin(script string) (end func()) {
	m.t.Helper()
	pid := "/tmp/begun-" + strconv.Itoa(len(m.ends)) // in the machine: nsenter's own is not the program's
	c := m.inside("bash", "-c", "echo $$ > "+pid+"; exec "+script)
	c.Stdout, c.Stderr = m.t.Output(), m.t.Output()
	c.WaitDelay = time.Second // another may have taken its place, and its output
	if err := c.Start(); err != nil {
		m.t.Fatal(err)
	}
	ended := false
	end = func() {
		if !ended {
			ended = true
			_ = m.command("kill -KILL $(cat " + pid + ")").Run()
			_ = c.Wait()
		}
	}
	m.ends = append(m.ends, end)
	return end
}

// put copies a file into the machine.
func (m *machine) put(from, to string) {
	m.t.Helper()
	in, err := os.Open(from)
	if err != nil {
		m.t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	out, err := os.Create(filepath.Join(m.dir, to))
	if err != nil {
		m.t.Fatal(err)
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Close()); err != nil {
		m.t.Fatal(err)
	}
}

// until waits until a script succeeds.
func (m *machine) until(script string) string {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), time.Minute)
	defer cancel()
	for {
		out, err := m.command(script).CombinedOutput()
		if err == nil {
			return string(out)
		}
		select {
		case <-ctx.Done():
			m.t.Fatalf("%s: never: %v\n%s", script, err, out)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
