package checkpoint

import (
	"errors"
	"fmt"
	"slices"

	"understudy/epoch"
)

// StoreBoot is the kind of store of a file that the guest was started with. Its
// stamp is a hash of its content.
const StoreBoot = "boot"

// DiskCondition says what a disk is now.
type DiskCondition struct {
	ID      epoch.DiskID
	Name    string
	Sectors uint64
	Stamp   string
	// Pins are the pins whose old content the disk still has.
	Pins []string
	// Boot: a file that the guest is started with. Nobody writes to it; a
	// checkpoint from before it was there needs it no more than any other guest.
	Boot bool
}

// CheckDisks says why a checkpoint cannot be restored on the disks as they are:
// each must have its size, and either nothing was written to it since, or a pin
// has kept what was. Errors about writes wrap ErrStale; all disks are named.
func CheckDisks(head Head, current []DiskCondition) error {
	var errs []error
	for _, d := range head.Disks {
		i := slices.IndexFunc(current, func(c DiskCondition) bool { return c.ID == d.ID && c.Boot == (d.Store == StoreBoot) })
		if i < 0 && d.Store == StoreBoot {
			errs = append(errs, fmt.Errorf("disk %d is the file %s, which the guest was started with when the checkpoint was taken, and which is not there now, or not configured: pages of the guest are only in it, bring it back", d.ID, d.Name))
			continue
		}
		if i < 0 {
			errs = append(errs, fmt.Errorf("disk %d (%s) was there when the checkpoint was taken and is not configured now: configure it", d.ID, d.Name))
			continue
		}
		c := current[i]
		switch {
		case c.Boot && (c.Sectors != d.Sectors || c.Stamp != d.Stamp):
			errs = append(errs, fmt.Errorf("disk %d is the file %s, which the guest was started with: %w: the hash of its content is %s, it was %s; pages of the guest are only in it, bring back that file", d.ID, d.Name, ErrStale, c.Stamp, d.Stamp))
		case c.Sectors != d.Sectors:
			errs = append(errs, fmt.Errorf("disk %d (%s) has %d sectors, it had %d when the checkpoint was taken: bring back the disk that belongs to it", d.ID, d.Name, c.Sectors, d.Sectors))
		case d.Pin != "" && slices.Contains(c.Pins, d.Pin), c.Stamp == d.Stamp:
		case d.Pin != "":
			errs = append(errs, fmt.Errorf("disk %d (%s): %w: its stamp is %s, it was %s, and its pin %s is gone; bring back a copy of the disk from that time", d.ID, d.Name, ErrStale, c.Stamp, d.Stamp, d.Pin))
		default:
			errs = append(errs, fmt.Errorf("disk %d (%s): %w: its stamp is %s, it was %s; bring back a copy of the disk from that time, and save with a pin next time", d.ID, d.Name, ErrStale, c.Stamp, d.Stamp))
		}
	}
	for _, c := range current {
		if !c.Boot && !slices.ContainsFunc(head.Disks, func(d Disk) bool { return d.ID == c.ID }) {
			errs = append(errs, fmt.Errorf("disk %d (%s) was not there when the checkpoint was taken: take it out of the configuration", c.ID, c.Name))
		}
	}
	return errors.Join(errs...)
}
