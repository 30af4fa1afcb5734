package qemu

import "fmt"

// Way is a way into or out of the guest, and how it is treated (RULES 27).
type Way struct {
	Name string `json:"name"`
	// Held says that what leaves this way waits for the commit of its epoch.
	Held bool `json:"held"`
	// Treatment is for people.
	Treatment string `json:"treatment"`
}

// Ways lists every way in and out of the configured guest. There are no
// others: monitors, screens, agents and foreign devices are refused.
func (c Config) Ways() []Way {
	full := c.withDefaults()
	var ways []Way
	for i, n := range full.NICs {
		ways = append(ways, Way{Name: fmt.Sprintf("network card %d (%s)", i, n.MAC), Held: true,
			Treatment: "frames from the guest wait for the commit of their epoch"})
	}
	for i, d := range full.Served {
		ways = append(ways, Way{Name: fmt.Sprintf("served disk %d (%s)", i, d.Socket), Held: true,
			Treatment: "writes wait for the commit of their epoch"})
	}
	for i, d := range full.Disks {
		treatment := "read-only"
		if d.Snapshot {
			treatment = "writes stay in a temporary file of this host and are lost at a failover"
		}
		ways = append(ways, Way{Name: fmt.Sprintf("disk %d (%s)", i, d.Path), Treatment: treatment})
	}
	if full.Console != "" {
		ways = append(ways, Way{Name: "serial port, to " + full.Console,
			Treatment: "not committed: the file may show what a failover takes back"})
	}
	return ways
}
