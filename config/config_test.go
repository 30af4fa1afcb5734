package config

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "write testdata/example.toml anew")

// TestExampleIsTheGoldenFileAndValid keeps what `understudy init` writes in
// sight: testdata/example.toml.
func TestExampleIsTheGoldenFileAndValid(t *testing.T) {
	golden := filepath.Join("testdata", "example.toml")
	got := Example().Render()
	if *update {
		if err := os.WriteFile(golden, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the example is not %s (go test ./config -update):\n%s", golden, got)
	}
	c, err := Load(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(c, Example()) {
		t.Errorf("read back it is\n%+v, want\n%+v", c, Example())
	}
}

// simFile is the shortest good file: everything that has a default is left out.
const simFile = `
cluster = "lab"
profile = "fast"
[[host]]
name = "a"
address = "127.0.0.1:7001"
run_dir = "/tmp/a"
[[host]]
name = "b"
address = "[::1]:7002"
[[host]]
name = "w"
address = "witness.example.org:7003"
witness = true
[[guest]]
name = "g"
host = "a"
backup = "b"
hypervisor = "sim"
memory = "4MiB"
[[guest.nic]]
mac = "02:00:00:00:00:01"
segment = "/tmp/net.sock"
[guest.protection]
epoch = "10ms"
`

func TestWhatIsLeftOutGetsItsDefault(t *testing.T) {
	c, err := Parse([]byte(simFile))
	if err != nil {
		t.Fatal(err)
	}
	if c.Lease.Std() != 300*time.Millisecond || c.Heartbeat.Std() != 60*time.Millisecond {
		t.Errorf("fast profile: lease %s, heartbeat %s", c.Lease, c.Heartbeat)
	}
	a, _ := c.Host("a")
	if got := c.DirsOf(a); got != (Dirs{State: defaultStateDir, Run: "/tmp/a", TLS: defaultTLSDir}) {
		t.Errorf("directories of a: %+v", got)
	}
	g, _ := c.Guest("g")
	if g.CPUs != 1 || g.Memory != 4*MiB || g.Machine != "" || g.NICs[0].Tap != "" {
		t.Errorf("guest: %+v", g)
	}
	p := g.Protection
	if d, fixed := p.Epoch.Fixed(); !fixed || d != 10*time.Millisecond {
		t.Errorf("epoch is %s", p.Epoch)
	}
	if p.Window != 2 || p.Compression != CompressionAuto || p.DetachAfter != c.Lease || p.Ceiling.Std() != 100*time.Millisecond {
		t.Errorf("protection: %+v", p)
	}
	if w, ok := c.Witness(); !ok || w.Name != "w" {
		t.Errorf("witness is %+v", w)
	}
}

// TestEveryProblemIsTold spoils the example in one place each and looks for the
// problem's key and words.
func TestEveryProblemIsTold(t *testing.T) {
	first := func(c *Config) *Guest { return &c.Guests[0] }
	for _, c := range []struct {
		name  string
		spoil func(*Config)
		want  string
	}{
		{"cluster", func(c *Config) { c.Cluster = "My Cluster" }, `cluster: "My Cluster" is no name`},
		{"profile", func(c *Config) { c.Profile = "quick" }, `profile: "quick" is none of`},
		{"lease too short", func(c *Config) { c.Lease = Duration(time.Millisecond) }, "lease: 1ms is not between 100ms and 1m0s"},
		{"heartbeat too slow", func(c *Config) { c.Heartbeat = c.Lease / 2 }, "heartbeat: 500ms is not between 10ms and a third of the lease of 1s"},
		{"relative directory", func(c *Config) { c.Run = "run" }, `run_dir: "run" is not an absolute path`},
		{"comma in a directory", func(c *Config) { c.Run = "/run/a,b" }, "run_dir: the path"},
		{"directory of a host", func(c *Config) { c.Hosts[1].TLS = "/a/../b" }, "host[1].tls_dir: "},
		{"two hosts", func(c *Config) { c.Hosts = c.Hosts[:2] }, "host: there are 2 hosts"},
		{"two witnesses", func(c *Config) { c.Hosts[1].Witness = true }, "host: 2 of the hosts are witnesses"},
		{"same name", func(c *Config) { c.Hosts[1].Name = "alpha" }, `host[1].name: there is another host "alpha"`},
		{"same address", func(c *Config) { c.Hosts[1].Address = c.Hosts[0].Address }, "host[1].address: 192.0.2.1:7070 is the address of another host"},
		{"no port", func(c *Config) { c.Hosts[0].Address = "192.0.2.1" }, "want host:port"},
		{"port 0", func(c *Config) { c.Hosts[0].Address = "192.0.2.1:0" }, "the port is not a number"},
		{"wildcard", func(c *Config) { c.Hosts[0].Address = "0.0.0.0:1" }, "cannot reach it there"},
		{"bad host", func(c *Config) { c.Hosts[0].Address = "a_b:1" }, "neither an IP address nor a name"},
		{"guest's name", func(c *Config) { first(c).Name = "../web" }, `guest[0].name: "../web" is no name`},
		{"same guest", func(c *Config) { c.Guests = append(c.Guests, c.Guests[0]) }, `guest[1].name: there is another guest "web"`},
		{"no such host", func(c *Config) { first(c).Host = "gamma" }, `guest.web.host: there is no host "gamma"`},
		{"no backup", func(c *Config) { first(c).Backup = "" }, "guest.web.backup: is missing"},
		{"own backup", func(c *Config) { first(c).Backup = "alpha" }, "guest.web.backup: is the guest's own host alpha"},
		{"on the witness", func(c *Config) { first(c).Backup = "witness" }, "guest.web.backup: witness is the witness"},
		{"odd memory", func(c *Config) { first(c).Memory = 512*MiB + 1 }, "guest.web.memory: 536870913B is not a multiple of 4KiB"},
		{"little memory", func(c *Config) { first(c).Memory = MiB }, "guest.web.memory: 1MiB is not between 64MiB and 1TiB"},
		{"no processor", func(c *Config) { first(c).CPUs = -1 }, "guest.web.cpus: -1 is not between 1 and 64"},
		{"hypervisor", func(c *Config) { first(c).Hypervisor = "vmm" }, `guest.web.hypervisor: "vmm" is none of`},
		{"machine", func(c *Config) { first(c).Machine = "virt" }, `guest.web.machine: "virt" is none of`},
		{"option in machine", func(c *Config) { first(c).Machine = "pc,usb=on" }, "guest.web.machine: "},
		{"processor", func(c *Config) { first(c).CPU = "EPYC;rm" }, "guest.web.cpu: "},
		{"accelerator", func(c *Config) { first(c).Accel = "hvf" }, "guest.web.accel: "},
		{"root", func(c *Config) { first(c).User = "root" }, "guest.web.user: QEMU must not run as root"},
		{"nothing to boot", func(c *Config) { first(c).Disks = nil }, "guest.web.kernel: there is neither a kernel nor a disk"},
		{"initrd alone", func(c *Config) { first(c).Initrd = "/i" }, "guest.web.initrd: goes with a kernel"},
		{"long append", func(c *Config) { first(c).Kernel, first(c).Append = "/k", strings.Repeat("a", 2048) }, "guest.web.append: is longer than 2047"},
		{"writable disk", func(c *Config) { first(c).Disks[0].Mode = "writable" }, `guest.web.disk[0].mode: "writable" is none of ["shared" "replicated" "snapshot" "readonly"]`},
		{"queues of a snapshot", func(c *Config) { first(c).Disks[0].Mode = Snapshot }, "guest.web.disk[0].queues: queues and unfenced are for"},
		{"too many queues", func(c *Config) { first(c).Disks[0].Queues = 17 }, "guest.web.disk[0].queues: 17 is not between 1 and 16"},
		{"unfenced copy", func(c *Config) { first(c).Disks[0].Unfenced = true }, "guest.web.disk[0].unfenced: is for shared disks"},
		{"qcow2 shared", func(c *Config) { d := &first(c).Disks[0]; d.Path, d.Mode = "/srv/web.qcow2", Shared }, "guest.web.disk[0].path: \"/srv/web.qcow2\": a shared disk is a raw image"},
		{"qcow2 to be made", func(c *Config) { d := &first(c).Disks[0]; d.Path, d.Size = "/srv/web.qcow2", GiB }, "guest.web.disk[0].size: makes raw copies only"},
		{"path on the witness", func(c *Config) { first(c).Disks[0].Paths = map[string]string{"witness": "/srv/a"} }, `guest.web.disk[0].paths: "witness" is neither of the guest's hosts`},
		{"relative path of a host", func(c *Config) { first(c).Disks[0].Paths = map[string]string{"beta": "a"} }, `guest.web.disk[0].paths.beta: "a" is not an absolute path`},
		{"held writes", func(c *Config) { first(c).Protection.HeldWrites = 1 }, "guest.web.protection.held_writes: 1B is not between 8MiB and 16GiB"},
		{"exclusion", func(c *Config) { first(c).Protection.Exclusion = "maybe" }, `guest.web.protection.exclusion: "maybe" is none of`},
		{"rebuild", func(c *Config) { first(c).Protection.Rebuild = "later" }, `guest.web.protection.rebuild: "later" is none of`},
		{"disk option", func(c *Config) { first(c).Disks[0].Path = "/a,readonly=off" }, "guest.web.disk[0].path: the path"},
		{"group MAC", func(c *Config) { first(c).NICs[0].MAC[0] = 1 }, "guest.web.nic[0].mac: 01:54:00:12:34:56 is a group address"},
		{"no MAC", func(c *Config) { first(c).NICs[0].MAC = MAC{} }, "guest.web.nic[0].mac: is missing"},
		{"same MAC", func(c *Config) {
			n := first(c).NICs[0]
			n.Tap = "other"
			first(c).NICs = append(first(c).NICs, n)
		}, "guest.web.nic[1].mac: 52:54:00:12:34:56 is also that of guest.web.nic[0]"},
		{"same tap", func(c *Config) {
			n := first(c).NICs[0]
			n.MAC[5]++
			first(c).NICs = append(first(c).NICs, n)
		}, "guest.web.nic[1].tap: "},
		{"long bridge", func(c *Config) { first(c).NICs[0].Bridge = "a-very-long-bridge" }, "guest.web.nic[0].bridge: "},
		{"segment", func(c *Config) { first(c).NICs[0].Segment = "/s" }, "guest.web.nic[0].segment: is for simulated guests only"},
		{"epoch against lease", func(c *Config) { first(c).Protection.Epoch = Epoch(600 * time.Millisecond) }, "guest.web.protection.epoch: 600ms is more than half of the lease of 1s"},
		{"ceiling against lease", func(c *Config) { first(c).Protection.Ceiling = Duration(time.Second) }, "guest.web.protection.ceiling: 1s is more than half"},
		{"floor above ceiling", func(c *Config) { first(c).Protection.Floor = Duration(time.Second) }, "guest.web.protection.floor: 1s is above the ceiling"},
		{"target below floor", func(c *Config) { first(c).Protection.Target = Duration(time.Millisecond) }, "guest.web.protection.target: 1ms is not between"},
		{"window", func(c *Config) { first(c).Protection.Window = 9 }, "guest.web.protection.window: 9 is not between 1 and 8"},
		{"held output", func(c *Config) { first(c).Protection.HeldOutput = 1 }, "guest.web.protection.held_output: 1B is not between 1MiB and 16GiB"},
		{"connections", func(c *Config) { first(c).Protection.Connections = 17 }, "guest.web.protection.connections: "},
		{"compression", func(c *Config) { first(c).Protection.Compression = "zip" }, "guest.web.protection.compression: "},
		{"no such end", func(c *Config) { first(c).OnStop = "kill" }, "guest.web.on_stop"},
		{"hasty handover", func(c *Config) { first(c).Protection.HandoverPatience = Duration(time.Second) }, "guest.web.protection.handover_patience: 1s is not between 5s and 1m0s"},
		{"hasty detach", func(c *Config) { first(c).Protection.DetachAfter = Duration(300 * time.Millisecond) }, "guest.web.protection.detach_after: 300ms is not between 400ms (two heartbeats, one epoch) and 10m0s"},
		{"verify", func(c *Config) { first(c).Protection.VerifyEvery = Duration(time.Millisecond) }, "guest.web.protection.verify_every: "},
		{"disk of a simulated guest", func(c *Config) { first(c).Hypervisor = Sim }, "guest.web.disk: is of no use to a simulated guest"},
		{"address in a bubble", func(c *Config) { first(c).BubbleAddress = "192.0.2.1" }, "guest.web.bubble_address: \"192.0.2.1\" is not an address with its prefix length"},
		{"type of a QEMU guest", func(c *Config) { first(c).Type = TypePVH }, "guest.web.type: is for Xen's guests"},
		{"a PV domain", func(c *Config) { *first(c) = xenGuest(*first(c)); first(c).Type = "pv" }, "guest.web.type: a PV domain cannot be protected"},
		{"a domain of another type", func(c *Config) { *first(c) = xenGuest(*first(c)); first(c).Type = "arm" }, `guest.web.type: "arm" is not supported`},
		{"a domain that boots a disk", func(c *Config) { *first(c) = xenGuest(*first(c)); first(c).Kernel = "" }, "guest.web.kernel: a Xen guest"},
		{"QEMU's machine of a domain", func(c *Config) { *first(c) = xenGuest(*first(c)); first(c).Machine = "q35" }, "guest.web.machine: is for QEMU"},
		{"queues of a domain's disk", func(c *Config) { *first(c) = xenGuest(*first(c)); first(c).Disks[0].Queues = 2 }, "guest.web.disk[0].queues: a Xen guest's disk"},
		{"a domain's disk without output commit", func(c *Config) { *first(c) = xenGuest(*first(c)); first(c).Disks[0].Mode = Snapshot }, "guest.web.disk[0].mode: a Xen guest's disk"},
		{"free memory of a simulated guest", func(c *Config) { first(c).Hypervisor, first(c).FreePageReporting = Sim, true }, "guest.web.free_page_reporting: is of no use to a simulated guest"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := Example()
			c.spoil(config)
			err := config.Validate()
			var invalid *Invalid
			if !errors.As(err, &invalid) {
				t.Fatalf("Validate says %v", err)
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("Validate says\n%v\nwant\n%s", err, c.want)
			}
		})
	}
}

func TestAllProblemsAreToldAtOnce(t *testing.T) {
	bad := strings.NewReplacer(`"lab"`, `"LAB"`, `backup = "b"`, `backup = "a"`, `"4MiB"`, `"5000B"`).Replace(simFile)
	_, err := Parse([]byte(bad))
	want := `4 problems:
  cluster: "LAB" is no name: 1 to 32 lower case letters, digits and inner dashes
  guest.g.backup: is the guest's own host a
  guest.g.memory: 5000B is not a multiple of 4KiB
  guest.g.memory: 5000B is not between 1MiB and 1TiB`
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}

func TestMalformedFilesAreRefusedWithTheirPlace(t *testing.T) {
	for _, c := range []struct{ name, file, want string }{
		{"unknown keys", "cluster = \"a\"\nleese = \"1s\"\n[[guest]]\nmemroy = 1\n", "line 2, column 1: unknown key leese\nline 4, column 1: unknown key guest.memroy"},
		{"no TOML", "cluster = \n", "line 1, column "},
		{"no size", "[[guest]]\nmemory = \"lots\"", `line 2, column 10: "lots" is not a size`},
		{"no unit", "[[guest]]\nmemory = \"512\"", `"512" is not a size`},
		{"size too large", "[[guest]]\nmemory = \"9999999999TiB\"", "is too large"},
		{"negative size", "[[guest]]\nmemory = \"-1MiB\"", "is not a size"},
		{"no duration", "lease = \"soon\"", `line 1, column 9: "soon" is not a duration`},
		{"negative duration", "lease = \"-1s\"", "is negative"},
		{"number for a duration", "lease = 1", `lease: "1" has no unit`},
		{"number for a size", "[[guest]]\nmemory = 512", `guest[0].memory: "512" has no unit`},
		{"number in an inner table", "[[guest]]\n[guest.protection]\nfloor = 5", `guest[0].protection.floor: "5" has no unit`},
		{"list for a MAC", "[[guest]]\n[[guest.nic]]\nmac = [2, 0, 0, 0, 0, 1]", `guest[0].nic[0].mac: "[2 0 0 0 0 1]" has no unit or is no string`},
		{"case of a key", "LEASE = 1", `lease: "1" has no unit`},
		{"no epoch", "[[guest]]\n[guest.protection]\nepoch = \"often\"", `nor "adaptive"`},
		{"epoch 0", "[[guest]]\n[guest.protection]\nepoch = \"0s\"", "an epoch of no length"},
		{"no MAC", "[[guest]]\n[[guest.nic]]\nmac = \"52:54:00\"", "is not a MAC address"},
		{"long MAC", "[[guest]]\n[[guest.nic]]\nmac = \"00:00:00:00:fe:80:00:00\"", "is not a MAC address"},
		{"twice", "cluster = \"a\"\ncluster = \"b\"\n", "line 2"},
		{"too large", strings.Repeat("#", maxFile+1), "larger than 1048576 bytes"},
		{"deep", "cluster = " + strings.Repeat("[", 100_000), "nested more than 256 deep"},
		{"deep tables", "cluster = " + strings.Repeat("{a=", 100_000), "nested more than 256 deep"},
		{"empty", "", "host: there are 0 hosts"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse([]byte(c.file))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

func TestLoadNamesTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "understudy.toml")
	if err := os.WriteFile(path, []byte("x = 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); err == nil || !strings.HasPrefix(err.Error(), path+": line 1, column 1: unknown key x") {
		t.Errorf("Load says %v", err)
	}
	if _, err := Load(path + ".absent"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Load of no file says %v", err)
	}
	if _, err := Load("/dev/zero"); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("Load of an endless file says %v", err)
	}
}

func TestUnitsReadWhatTheyWrite(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size, duration := Size(rapid.Int64Min(0).Draw(t, "size")), Duration(rapid.Int64Min(0).Draw(t, "duration"))
		var gotSize Size
		if err := gotSize.UnmarshalText([]byte(size.String())); err != nil || gotSize != size {
			t.Fatalf("size %d is written %s and read as %d, %v", int64(size), size, int64(gotSize), err)
		}
		var gotDuration Duration
		if err := gotDuration.UnmarshalText([]byte(duration.String())); err != nil || gotDuration != duration {
			t.Fatalf("duration %d is written %s and read as %d, %v", int64(duration), duration, int64(gotDuration), err)
		}
		var gotEpoch Epoch
		if err := gotEpoch.UnmarshalText([]byte(Epoch(duration).String())); err != nil || gotEpoch != Epoch(duration) {
			t.Fatalf("epoch %s is read as %s, %v", Epoch(duration), gotEpoch, err)
		}
	})
}

// TestRenderedFileReadsBackTheSame changes values at random, keeps what is
// valid, and reads back what is rendered.
func TestRenderedFileReadsBackTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := Example()
		c.Profile = rapid.SampledFrom([]Profile{Standard, Fast}).Draw(t, "profile")
		c.Lease = Duration(rapid.IntRange(200, 2000).Draw(t, "lease")) * Duration(time.Millisecond)
		c.Heartbeat = c.Lease / Duration(rapid.IntRange(3, 8).Draw(t, "heartbeats"))
		c.Hosts[0].Run = rapid.SampledFrom([]string{"", "/run/x", `/run/"quoted" \back ünd`}).Draw(t, "run")
		g := &c.Guests[0]
		g.Memory = Size(rapid.Int64Range(int64(minMemory/pageSize), int64(maxMemory/pageSize)).Draw(t, "pages")) * pageSize
		g.CPU = rapid.SampledFrom([]string{"", "max", "EPYC,-avx,tsc-frequency=1000"}).Draw(t, "cpu")
		g.Kernel = "/boot/k"
		g.BubbleAddress = rapid.SampledFrom([]string{"", "192.0.2.1/24", "2001:db8::1/64"}).Draw(t, "bubble")
		g.Append = rapid.StringMatching(`[ -~äß]{0,60}`).Draw(t, "append")
		p := &g.Protection
		p.Epoch = Epoch(rapid.IntRange(0, 100).Draw(t, "epoch")) * Epoch(time.Millisecond)
		p.Floor = Duration(rapid.IntRange(1, 50).Draw(t, "floor")) * Duration(time.Millisecond)
		p.Ceiling = p.Floor + Duration(rapid.IntRange(0, 50).Draw(t, "ceiling"))*Duration(time.Millisecond)
		p.Target = p.Floor + (p.Ceiling-p.Floor)/2
		p.Window = rapid.IntRange(1, 8).Draw(t, "window")
		p.DetachAfter = c.Lease * Duration(rapid.IntRange(1, 9).Draw(t, "detach"))
		g.OnStop = rapid.SampledFrom([]OnStop{OnStopHandover, OnStopLeave, OnStopStop}).Draw(t, "on stop")
		p.HandoverPatience = rapid.SampledFrom([]Duration{minHandover, 7 * Duration(time.Second), maxHandover}).Draw(t, "patience")
		if err := c.Validate(); err != nil {
			t.Fatalf("not valid: %v", err)
		}
		checkReadsBack(t, c)
	})
}

func checkReadsBack(t interface{ Fatalf(string, ...any) }, c *Config) {
	file := c.Render()
	got, err := Parse(file)
	if err != nil {
		t.Fatalf("%v in\n%s", err, file)
	}
	if normal(got) != normal(c) {
		t.Fatalf("read back as\n%+v, want\n%+v\nfrom\n%s", got, c, file)
	}
}

// normal shows two configurations as the same text if only nil and empty lists
// differ.
func normal(c *Config) string {
	n, returns := *c, []bool(nil)
	n.Drill = slices.Clone(c.Drill)
	for i := range n.Drill { // what is behind a pointer is not shown
		returns = append(returns, n.Drill[i].Returns())
		n.Drill[i].Return = nil
	}
	return fmt.Sprintf("%+v %v", n, returns)
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(simFile))
	f.Add([]byte(drillFile))
	f.Add(Example().Render())
	f.Add([]byte("cluster = [[[{a = 1}]]]\n[[guest]]\n[[guest.nic]]\nmac = \"x\""))
	f.Fuzz(func(t *testing.T, file []byte) {
		c, err := Parse(file)
		if err != nil {
			return
		}
		if err := c.Validate(); err != nil {
			t.Fatalf("parsed, yet not valid: %v", err)
		}
		checkReadsBack(t, c)
	})
}

// xenGuest is a guest of Xen with a disk and a network device.
func xenGuest(g Guest) Guest {
	x := Guest{Name: g.Name, Host: g.Host, Backup: g.Backup, Hypervisor: Xen, Memory: 128 * MiB, Kernel: "/srv/vmlinuz",
		Disks: []Disk{{Path: "/srv/web.img"}}, NICs: []NIC{{MAC: MAC{0x52, 0x54, 0, 0, 0, 7}, Bridge: "br0"}}}
	x.setDefaults(standardLease)
	return x
}

// A Xen guest's file is read back to the same; its epochs are longer.
func TestAXenGuest(t *testing.T) {
	c := Example()
	c.Guests[0] = xenGuest(c.Guests[0])
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	g := c.Guests[0]
	c.Guests[0].Type = TypeHVM
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	if g.Type != TypePVH || g.Protection.Target != xenTarget || g.Protection.Ceiling != xenCeiling || g.Disks[0].Queues != 0 || g.NICs[0].Tap == "" {
		t.Errorf("%+v", g)
	}
	again, err := Parse(c.Render())
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(again, c) {
		t.Errorf("read back it is %+v, want %+v", again.Guests[0], g)
	}
}
