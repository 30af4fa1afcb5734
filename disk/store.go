package disk

import (
	"context"

	"understudy/epoch"
)

// This file says what a Set stands on: the stores that keep the bytes, and the
// index that knows which pages' content is on them.

// Store keeps a disk's bytes (disk/store). Its methods may be called from
// several goroutines; ranges are checked by the caller.
type Store interface {
	// Sectors is the size, in units of epoch.SectorSize. It does not change.
	Sectors() uint64
	ReadAt(p []byte, sector uint64) error
	WriteAt(p []byte, sector uint64) error
	// Zero makes sectors zero; discard: space may be given back.
	Zero(sector uint64, sectors uint32, discard bool) error
	// Sync returns after everything written before is durable (fdatasync(2)).
	Sync() error
	// Acquire makes this host the writer, in a generation; it waits for another
	// host's lock until ctx ends. A writer may acquire again, in a higher
	// generation. Release lets go. A store that is not shared may be written
	// without: no other host has anything to do with it.
	Acquire(ctx context.Context, g epoch.Generation) error
	Release() error
	// Shared says whether both hosts reach the same bytes ("shared") or each
	// has its own ("replicated").
	Shared() bool
	Close() error
}

// splitter is a Store whose reads and writes the caller may make itself, with
// the descriptor, if it says so (store.File). It does not if there is more to a
// request than that. EndWrite follows every StartWrite that was ok, and EndSync
// every StartSync, with what came of it; it returns what Sync would.
type splitter interface {
	// Aligned reports whether p may be memory of such a caller, or a piece of it.
	Aligned(p []byte) bool
	StartRead(sector uint64, sectors uint32) (fd int, offset int64, ok bool)
	StartWrite(sector uint64, sectors uint32) (fd int, offset int64, ok bool)
	EndWrite()
	StartSync() (fd int, ok bool)
	EndSync(err error) error
}

// rewriter is a Store that goes on failing Sync after the system lost buffered
// writes (fsync(2), "EIO"), until it is told that everything since the last
// successful Sync was written again.
type rewriter interface{ Rewritten() }

func rewritten(s Store) {
	if r, ok := s.(rewriter); ok {
		r.Rewritten()
	}
}

// Index knows what is on the real disks (package exclusion). Its methods may be
// called from several goroutines, under the Set's lock, and do not wait. Content
// given to it is never guest memory.
type Index interface {
	// Accepted kills what is known of sectors. passing: the write goes straight
	// to the store, not into an epoch that travels; WriteDone for its pages and
	// then Landed follow.
	Accepted(disk epoch.DiskID, sector uint64, sectors uint32, passing bool) (ticket uint64)
	// WriteDone says that a page's size of a direct write is in the store.
	WriteDone(ticket uint64, disk epoch.DiskID, sector uint64, page epoch.GFN, content []byte)
	// Landed says that a direct write is over, one way or the other.
	Landed(ticket uint64)
	// ReadBegins is called before a read of the store begins.
	ReadBegins() (ticket uint64)
	// ReadLanded says that the PageSectors sectors from sector on were read from
	// the store into page, whole, and what they hold.
	ReadLanded(ticket uint64, disk epoch.DiskID, sector uint64, page epoch.GFN, content []byte)
	// Flushed says that a held write has reached the store, and that nothing
	// newer was accepted over these PageSectors sectors.
	Flushed(disk epoch.DiskID, sector uint64, page epoch.GFN, content []byte)
	// SetVerified says whether the backup's own copy of sectors from..to is known
	// to equal ours.
	SetVerified(disk epoch.DiskID, from, to uint64, verified bool)
	// Keep says what a page's size of a disk holds that nobody writes to. Forget
	// leaves it, Accepted ends it. It reports false when there is no room.
	Keep(disk epoch.DiskID, sector uint64, content []byte) bool
	// Forget drops all that is known: another host may have written.
	Forget()
	// Redirtied adds pages whose outstanding reference was overtaken, once.
	Redirtied(set *epoch.PageSet)
	Materialised(n epoch.Number)
	Void()
	Encoding(n epoch.Number) epoch.Excluder
}

// noIndex knows nothing: no page is ever left out.
type noIndex struct{}

func (noIndex) Accepted(epoch.DiskID, uint64, uint32, bool) uint64         { return 0 }
func (noIndex) WriteDone(uint64, epoch.DiskID, uint64, epoch.GFN, []byte)  {}
func (noIndex) Landed(uint64)                                              {}
func (noIndex) ReadBegins() uint64                                         { return 0 }
func (noIndex) ReadLanded(uint64, epoch.DiskID, uint64, epoch.GFN, []byte) {}
func (noIndex) Flushed(epoch.DiskID, uint64, epoch.GFN, []byte)            {}
func (noIndex) SetVerified(epoch.DiskID, uint64, uint64, bool)             {}
func (noIndex) Keep(epoch.DiskID, uint64, []byte) bool                     { return false }
func (noIndex) Forget()                                                    {}
func (noIndex) Redirtied(*epoch.PageSet)                                   {}
func (noIndex) Materialised(epoch.Number)                                  {}
func (noIndex) Void()                                                      {}
func (noIndex) Encoding(epoch.Number) epoch.Excluder                       { return nil }
