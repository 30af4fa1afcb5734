package exclusion

import "understudy/epoch"

// FindPrint is Find for whoever has a page's fingerprint, with the index's key,
// and not its content: a checkpoint file, when it asks whether a reference it
// has noted still holds. mapped says that it was found through what was traced
// for this page, not by its content.
func (ix *Index) FindPrint(page epoch.GFN, print epoch.Fingerprint) (ref epoch.Reference, mapped, ok bool) {
	if uint64(page) >= ix.cfg.Pages {
		return epoch.Reference{}, false, false
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	name, reason := ix.match(page, inFile(print))
	if reason != Mapped && reason != Indexed {
		return epoch.Reference{}, false, false
	}
	s := ix.blocks.at(name)
	s.used = true
	return epoch.Reference{Page: page, Disk: s.disk, Sector: s.sector, Print: print}, reason == Mapped, true
}

// Losses changes whenever something that FindPrint has found may be found no
// more: a block was overwritten, its place in the table was given away, or all was
// forgotten. While it is the same, whatever was found since holds.
func (ix *Index) Losses() uint64 {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	return ix.blocks.lost
}
