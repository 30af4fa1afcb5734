package config

import (
	"fmt"
	"hash/fnv"
	"time"
)

// Every default and every bound of the file. Sizes are in bytes.
const (
	defaultProfile   = Standard
	standardLease    = Duration(1 * time.Second)
	fastLease        = Duration(300 * time.Millisecond)
	heartbeatsALease = 5 // heartbeat = lease / 5

	// Of a lease. Below, the scheduling noise of a busy host ends leases; above,
	// nobody waits. Package ownership has the same bounds.
	minLease = Duration(100 * time.Millisecond)
	maxLease = Duration(60 * time.Second)
	// Of a heartbeat; at most a third of the lease, so that one may be lost.
	minHeartbeat      = Duration(10 * time.Millisecond)
	heartbeatsAtLeast = 3

	defaultStateDir = "/var/lib/understudy"
	defaultRunDir   = "/run/understudy"
	defaultTLSDir   = "/etc/understudy/tls"

	defaultAnonymous = AnonymousNone

	defaultHypervisor = QEMU
	defaultMachine    = "q35"
	defaultAccel      = "auto"
	defaultUser       = "nobody" // there is one on every Debian
	defaultDiskMode   = Replicated
	defaultCPUs       = 1
	defaultMemory     = 512 * MiB

	defaultFailback      = FailbackManual
	defaultFailbackAfter = Duration(10 * time.Minute)
	defaultOnStop        = OnStopHandover

	defaultFloor       = Duration(5 * time.Millisecond)
	defaultTarget      = Duration(25 * time.Millisecond)
	defaultCeiling     = Duration(100 * time.Millisecond) // or half the lease
	xenTarget          = Duration(200 * time.Millisecond)
	xenCeiling         = Duration(400 * time.Millisecond) // or half the lease
	defaultWindow      = 2
	defaultDeltaCache  = 64 * MiB
	defaultHeldOutput  = 64 * MiB
	defaultHeldWrites  = 64 * MiB
	defaultExclusion   = ExclusionOn
	defaultRebuild     = RebuildLazy
	defaultQueues      = 1
	defaultConnections = 2
	defaultCompression = CompressionAuto
	defaultHandover    = Duration(5 * time.Second)
	// detach_after = one lease, verify_every = 0 (never)

	defaultFault        = FaultKill
	defaultCheckTimeout = Duration(30 * time.Second)
	defaultPatience     = Duration(15 * time.Minute)
	minCheckTimeout     = Duration(1 * time.Millisecond)
	maxCheckTimeout     = Duration(1 * time.Hour)
	minPatience         = Duration(1 * time.Second)
	maxPatience         = Duration(24 * time.Hour)
	minOutage           = Duration(1 * time.Millisecond)
	minFault            = Duration(100 * time.Millisecond)
	maxFault            = Duration(5 * time.Minute)
	maxDrills           = 64
	maxArguments        = 64

	minEpoch       = Duration(1 * time.Millisecond)
	maxEpoch       = Duration(10 * time.Second)
	maxDetachAfter = Duration(10 * time.Minute)
	minHandover    = Duration(5 * time.Second) // a new daemon may take that long to take part
	maxHandover    = Duration(1 * time.Minute) // protocol.MaxPatience
	minFailback    = Duration(1 * time.Second)
	maxFailback    = Duration(30 * 24 * time.Hour)
	minVerify      = Duration(1 * time.Second)
	maxVerify      = Duration(7 * 24 * time.Hour)
	maxWindow      = 8
	maxConnections = 16
	minHeldOutput  = 1 * MiB
	maxHeldOutput  = 16 * GiB
	minHeldWrites  = 8 * MiB
	maxHeldWrites  = 16 * GiB
	maxQueues      = 16
	minDeltaCache  = 1 * MiB // to do without: compression = "none"
	maxDeltaCache  = 64 * GiB

	pageSize   = 4 * KiB
	minMemory  = 64 * MiB // QEMU with any kernel
	minSimSize = 1 * MiB  // simulated guest
	maxMemory  = 1 * TiB
	maxCPUs    = 64
	maxCPU     = 1024 // bytes of a processor model with its options

	voters    = 3
	maxGuests = 64
	maxDisks  = 8
	maxNICs   = 8
	maxAppend = 2047 // COMMAND_LINE_SIZE of Linux on x86, less the NUL
	maxPath   = 4095 // PATH_MAX, less the NUL
	maxName   = 32   // of hosts, guests and the cluster
	maxDevice = 15   // IFNAMSIZ, less the NUL
	maxNames  = 64   // of certificates that may ask a status endpoint
	maxCommon = 64   // bytes of such a name (X.520, ub-common-name)
)

// setDefaults fills in what the file left out.
func (c *Config) setDefaults() {
	or(&c.Profile, defaultProfile)
	or(&c.Lease, c.Profile.lease())
	or(&c.Heartbeat, c.Lease/heartbeatsALease)
	or(&c.State, defaultStateDir)
	or(&c.Run, defaultRunDir)
	or(&c.TLS, defaultTLSDir)
	c.API.setDefaults()
	or(&c.Fencing.Timeout, defaultFenceTimeout)
	or(&c.Fencing.After, c.Lease)
	c.Drills.setDefaults()
	for i := range c.Hosts {
		c.Hosts[i].API.setDefaults()
	}
	for i := range c.Guests {
		c.Guests[i].setDefaults(c.Lease)
	}
	for i := range c.Drill {
		c.Drill[i].setDefaults()
	}
}

// lease is the lease of a profile; an unknown one has the standard lease and
// is refused by Validate.
func (p Profile) lease() Duration {
	if p == Fast {
		return fastLease
	}
	return standardLease
}

func (g *Guest) setDefaults(lease Duration) {
	or(&g.Hypervisor, defaultHypervisor)
	or(&g.Memory, defaultMemory)
	or(&g.CPUs, defaultCPUs)
	switch g.Hypervisor {
	case QEMU:
		or(&g.Machine, defaultMachine)
		or(&g.Accel, defaultAccel)
		or(&g.User, defaultUser)
	case Xen:
		or(&g.Type, TypePVH)
		// A suspend costs the guest's kernel some 60 ms: epochs are longer.
		or(&g.Protection.Ceiling, max(g.Protection.Floor, min(xenCeiling, lease/2)))
		or(&g.Protection.Target, min(max(g.Protection.Floor, xenTarget), g.Protection.Ceiling))
	}
	if g.Hypervisor == QEMU || g.Hypervisor == Xen {
		for i := range g.Disks {
			d := &g.Disks[i]
			or(&d.Mode, defaultDiskMode)
			if d.Served() && g.Hypervisor == QEMU {
				or(&d.Queues, defaultQueues)
			}
		}
		for i := range g.NICs {
			or(&g.NICs[i].Tap, tapName(g.Name, i))
		}
	}
	or(&g.Failback, defaultFailback)
	or(&g.FailbackAfter, defaultFailbackAfter)
	or(&g.OnStop, defaultOnStop)
	p := &g.Protection
	or(&p.Floor, defaultFloor)
	or(&p.Ceiling, max(p.Floor, min(defaultCeiling, lease/2)))
	or(&p.Target, min(max(p.Floor, defaultTarget), p.Ceiling))
	or(&p.Window, defaultWindow)
	or(&p.DeltaCache, defaultDeltaCache)
	or(&p.HeldOutput, defaultHeldOutput)
	or(&p.HeldWrites, defaultHeldWrites)
	or(&p.Exclusion, defaultExclusion)
	or(&p.Rebuild, defaultRebuild)
	or(&p.Connections, defaultConnections)
	or(&p.Compression, defaultCompression)
	or(&p.DetachAfter, lease)
	or(&p.HandoverPatience, defaultHandover)
}

// or sets what has the zero value to its default.
func or[T comparable](to *T, value T) {
	var zero T
	if *to == zero {
		*to = value
	}
}

// tapName makes a name from the guest's, the same one after every change of
// the file, short enough for a network device.
func tapName(guest string, nic int) string {
	h := fnv.New32a()
	_, _ = h.Write([]byte(guest)) // never fails
	return fmt.Sprintf("us-%08x-%d", h.Sum32(), nic)
}
