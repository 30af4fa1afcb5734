package backup

// This file is the guest's disks as the backup sees them: it keeps the writes
// of committed epochs until the primary has flushed them (shared store) or they
// are durable in its own copy (replicated store), and reads blocks that
// references name.

import (
	"context"
	"errors"

	"understudy/epoch"
)

// Disks are the guest's disks on the host that stands by (package disk).
type Disks interface {
	// StandBy makes the disks those of a backup: nothing is written but what
	// Commit brings to a copy of our own, every front end is told to wait, and
	// nothing that was kept before counts any more.
	StandBy(ctx context.Context) error
	// Room waits until the writes of one more epoch may be kept.
	Room(ctx context.Context, bytes uint64) error
	// Commit keeps the writes of an epoch that was acknowledged, and drops those
	// that state says the primary has flushed. It copies what it keeps.
	Commit(n epoch.Number, writes []epoch.DiskWrite, state []byte) error
	// ReadSectors reads what the disk holds as of the last commit.
	ReadSectors(disk epoch.DiskID, sector uint64, dst []byte) error
	// BootFiles are the files that the guest was started with, as this host has
	// them: ReadSectors reads them, too.
	BootFiles() []epoch.BootFile
	// Compare hashes the same pieces of our own copy and says which differ.
	Compare(h epoch.DiskHashes) (epoch.DiskDiffers, error)
	// Own says that this host owns the guest in generation g; see
	// primary.Disks.
	Own(g epoch.Generation)
	// Activate makes the disks those of an owner whose guest is about to run
	// from the last commit: requests in flight are submitted anew once it runs,
	// writes that were kept are released, and before any block is overwritten
	// overwrite is called with it (RULES 17). It waits until another host has
	// let go of the stores, as far as that is asked for. Nothing is written
	// before Allow.
	Activate(ctx context.Context, overwrite func(disk epoch.DiskID, sector uint64, sectors uint32) error) error
	// PeerOff says that the former owner's host is known to be off: the guest need
	// not wait until it has let go of the stores. StandBy forgets it.
	PeerOff(off bool)
	// SetFiller names what makes sure that pages of the guest are in its memory
	// before a front end touches them (hypervisor.Guest.Fill); nil: all are.
	SetFiller(fill func(first epoch.GFN, count uint64) error)
}

var errNoDisk = errors.New("this guest has no disk that can be written")

// noDisks are the disks of a guest that has none.
type noDisks struct{}

func (noDisks) Own(epoch.Generation)                                                     {}
func (noDisks) StandBy(context.Context) error                                            { return nil }
func (noDisks) Room(context.Context, uint64) error                                       { return nil }
func (noDisks) Commit(epoch.Number, []epoch.DiskWrite, []byte) error                     { return nil }
func (noDisks) BootFiles() []epoch.BootFile                                              { return nil }
func (noDisks) Compare(epoch.DiskHashes) (d epoch.DiskDiffers, _ error)                  { return d, errNoDisk }
func (noDisks) ReadSectors(epoch.DiskID, uint64, []byte) error                           { return errNoDisk }
func (noDisks) PeerOff(bool)                                                             {}
func (noDisks) SetFiller(func(first epoch.GFN, count uint64) error)                      {}
func (noDisks) Activate(context.Context, func(epoch.DiskID, uint64, uint32) error) error { return nil }
