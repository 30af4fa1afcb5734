package checkpoint

import (
	"time"

	"understudy/epoch"
)

// Info is what a checkpoint file tells of itself. It has no secrets.
type Info struct {
	Path       string           `json:"path"`
	ID         ID               `json:"id"`
	Version    int              `json:"version"`
	Guest      string           `json:"guest"`
	Hypervisor string           `json:"hypervisor"`
	Created    time.Time        `json:"created"`
	Generation epoch.Generation `json:"generation"`

	Pages      uint64 `json:"pages"`
	ImageBytes uint64 `json:"image_bytes"`
	// FileBytes is the size of this file, ChainBytes of all files it needs.
	FileBytes  uint64 `json:"file_bytes"`
	ChainBytes uint64 `json:"chain_bytes"`

	// What FileBytes is made of.
	RecordBytes  uint64 `json:"record_bytes"`
	IndexBytes   uint64 `json:"index_bytes"`
	MachineBytes uint64 `json:"machine_bytes"`
	DeviceBytes  uint64 `json:"device_bytes"`
	DiskBytes    uint64 `json:"disk_bytes"`

	Summary Summary `json:"summary"`
	Disks   []Disk  `json:"disks"`
	// Chain are the files it needs, itself first.
	Chain []Link `json:"chain"`
}

// Link is one file of a chain.
type Link struct {
	Path    string    `json:"path"`
	ID      ID        `json:"id"`
	Created time.Time `json:"created"`
	Bytes   uint64    `json:"bytes"`
	// Own counts pages for which the file does not look at its parent.
	Own uint64 `json:"own_pages"`
}

// Inspect tells what the file is. It reads nothing.
func (f *File) Inspect() Info {
	h := f.Head()
	info := Info{
		Path: f.path, ID: f.id, Version: FormatVersion,
		Guest: h.Guest, Hypervisor: h.Hypervisor, Created: h.Created, Generation: h.Generation,
		Pages: h.Pages, ImageBytes: h.Pages * epoch.PageSize, FileBytes: f.size,
		RecordBytes:  f.table.of(sectionRecords).stored,
		IndexBytes:   f.table.of(sectionLeaves).stored + f.table.of(sectionDirectory).stored,
		MachineBytes: f.table.of(sectionMachine).stored,
		DeviceBytes:  f.table.of(sectionDevice).stored,
		DiskBytes:    f.table.of(sectionDisk).stored,
		Summary:      f.sum, Disks: h.Disks,
	}
	for ; f != nil; f = f.parent {
		info.ChainBytes += f.size
		info.Chain = append(info.Chain, Link{Path: f.path, ID: f.id, Created: f.head.Created, Bytes: f.size, Own: f.head.Pages - min(f.head.Pages, f.sum.Pages.Unchanged)})
	}
	return info
}
