package checkpoint

import (
	"errors"
	"fmt"
	"slices"

	"understudy/epoch"
)

// DiskCondition says what a disk is now.
type DiskCondition struct {
	ID      epoch.DiskID
	Name    string
	Sectors uint64
	Stamp   string
	// Pins are the pins whose old content the disk still has.
	Pins []string
}

// CheckDisks says why a checkpoint cannot be restored on the disks as they are:
// each must have its size, and either nothing was written to it since, or a pin
// has kept what was. Errors about writes wrap ErrStale; all disks are named.
func CheckDisks(head Head, current []DiskCondition) error {
	var errs []error
	for _, d := range head.Disks {
		i := slices.IndexFunc(current, func(c DiskCondition) bool { return c.ID == d.ID })
		if i < 0 {
			errs = append(errs, fmt.Errorf("disk %d (%s) was there when the checkpoint was taken and is not configured now: configure it", d.ID, d.Name))
			continue
		}
		c := current[i]
		switch {
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
		if !slices.ContainsFunc(head.Disks, func(d Disk) bool { return d.ID == c.ID }) {
			errs = append(errs, fmt.Errorf("disk %d (%s) was not there when the checkpoint was taken: take it out of the configuration", c.ID, c.Name))
		}
	}
	return errors.Join(errs...)
}
