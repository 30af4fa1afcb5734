package stream

// This file has the records of both levels. What they hold is checked where
// they are read and where they are written, by the same functions (libxc.go,
// libxl.go).

// Record is one record of a stream. Its slices belong to the Reader and are
// valid until the next call of Next; a Writer keeps nothing of them.
type Record interface{ kind() kind }

// Domain begins a domain's image: libxl's LIBXC_CONTEXT and libxc's two headers.
type Domain struct {
	// Version is that of the libxc format: 3, or 2 (before Xen 4.14).
	Version uint32
	Type    DomainType
	// Major and Minor are the version of the Xen that saved; Major 0: converted
	// from a format before version 2.
	Major, Minor uint32
}

// DomainType is libxc's word for what kind of domain it is.
type DomainType uint32

const (
	PV DomainType = 1
	// HVM is also the type of a PVH domain.
	HVM DomainType = 2
)

func (t DomainType) String() string {
	if t == PV {
		return "PV"
	}
	return "HVM"
}

// Static data: what does not change while the domain runs.
type (
	// PVInfo says of what shape a PV domain is.
	PVInfo struct {
		Width  uint8 // of its words, in bytes: 4 or 8
		Levels uint8 // of its page tables: 3 or 4
	}
	// CPUIDPolicy is what the domain sees of CPUID: an array of 24-byte leaves.
	CPUIDPolicy struct{ Leaves []byte }
	// MSRPolicy is what the domain sees of MSRs: an array of 16-byte entries.
	MSRPolicy struct{ Entries []byte }
	// StaticDataEnd ends the static data, in version 3.
	StaticDataEnd struct{}
)

// P2MFrames names the pages that hold a PV domain's own table of its pages.
type P2MFrames struct {
	Start, End uint32 // the first and the last page of the domain that the table is about
	Frames     []uint64
}

// Pages is memory.
type Pages struct {
	// PFNs says which pages; at least one.
	PFNs []PFN
	// Data has PageSize bytes for each of PFNs that HasData, in their order.
	Data []byte
}

// PFN is a page's number in its domain and the page's type.
type PFN uint64

// PageType is what a PV domain uses a page for. In others every page with
// content is PageNormal.
type PageType uint8

// The types without content come last. Page tables of levels 1 to 4 have types 1
// to 4; pinned ones have PagePinned added.
const (
	PageNormal PageType = 0x0
	PageTable1 PageType = 0x1
	PageTable4 PageType = 0x4
	PagePinned PageType = 0x8
	PageBroken PageType = 0xd
	PageAlloc  PageType = 0xe // to be allocated, content does not matter
	PageNone   PageType = 0xf // there is no such page any more
)

// MaxPFN bounds the number of a page: 2^52 pages.
const MaxPFN = 1 << 52

// NewPFN returns page n with a type.
func NewPFN(n uint64, t PageType) PFN { return PFN(n | uint64(t)<<60) }

// Number returns the page's number in its domain.
func (p PFN) Number() uint64 { return uint64(p) & (MaxPFN - 1) }

// Type returns the page's type.
func (p PFN) Type() PageType { return PageType(p >> 60) }

// HasData reports whether the page's content is in the stream.
func (p PFN) HasData() bool { return p.Type().Content() }

// Content reports whether pages of the type have content.
func (t PageType) Content() bool { return t < PageBroken }

// valid reports whether Xen knows the page's type, and nothing else is said of it.
func (p PFN) valid() bool {
	return uint64(p)>>52&0xff == 0 && p.Type().Valid()
}

// Valid reports whether Xen knows the type.
func (t PageType) Valid() bool { return t <= PageTable4 || t > PagePinned && t <= PageNone }

// State of the domain at the end of a checkpoint, or of the whole stream.
type (
	// TSCInfo is how the domain's time stamp counter goes on.
	TSCInfo struct {
		Mode, KHz   uint32
		Nanoseconds uint64
		Incarnation uint32
	}
	// HVMContext is the state of processors and devices that Xen itself emulates,
	// as XEN_DOMCTL_gethvmcontext has it.
	HVMContext struct{ Context []byte }
	// HVMParams are the parameters of an HVM domain.
	HVMParams struct{ Params []HVMParam }
	// SharedInfo is a PV domain's shared page.
	SharedInfo struct{ Page []byte }
	// VCPU is one part of the state of a PV domain's processor.
	VCPU struct {
		Part    VCPUPart
		ID      uint32
		Context []byte
	}
)

// HVMParam is one of HVMParams: HVM_PARAM_* and its value.
type HVMParam struct{ Index, Value uint64 }

// VCPUPart says which of a processor's parts a VCPU has.
type VCPUPart uint8

const (
	VCPUBasic VCPUPart = iota
	VCPUExtended
	VCPUXSave
	VCPUMSRs
)

// Ends and marks.
type (
	// Verify says that the pages after it are those before it once more, for
	// comparison.
	Verify struct{}
	// Checkpoint says that the records up to here are a whole domain. Emulators'
	// records and CheckpointEnd follow.
	Checkpoint struct{}
	// DomainEnd ends a domain's image. Emulators' records and End follow.
	DomainEnd struct{}
	// CheckpointEnd says that everything up to here is one whole checkpoint.
	CheckpointEnd struct{}
	// End ends the stream.
	End struct{}
)

// Emulator says of which device model a record is.
type Emulator struct {
	ID    EmulatorID
	Index uint32 // among the domain's emulators
}

// EmulatorID is the kind of a device model.
type EmulatorID uint32

const (
	EmulatorUnknown     EmulatorID = 0 // in a stream that was converted
	EmulatorTraditional EmulatorID = 1
	EmulatorQEMU        EmulatorID = 2
)

type (
	// EmulatorStore is what xenstore holds for a device model.
	EmulatorStore struct {
		Emulator
		Pairs []Pair
	}
	// EmulatorContext is a device model's state, in its own words.
	EmulatorContext struct {
		Emulator
		Context []byte
	}
)

// Pair is a key, relative to the device model's path, and its value.
type Pair struct{ Key, Value string }

// Unknown is an optional record that is not known here: it may be left out.
type Unknown struct {
	Level Level
	Type  uint32
	Body  []byte
}

func (Domain) kind() kind          { return kind{Libxl, libxlLibxcContext} }
func (PVInfo) kind() kind          { return kind{Libxc, libxcPVInfo} }
func (CPUIDPolicy) kind() kind     { return kind{Libxc, libxcCPUIDPolicy} }
func (MSRPolicy) kind() kind       { return kind{Libxc, libxcMSRPolicy} }
func (StaticDataEnd) kind() kind   { return kind{Libxc, libxcStaticDataEnd} }
func (P2MFrames) kind() kind       { return kind{Libxc, libxcPVP2MFrames} }
func (Pages) kind() kind           { return kind{Libxc, libxcPageData} }
func (TSCInfo) kind() kind         { return kind{Libxc, libxcTSCInfo} }
func (HVMContext) kind() kind      { return kind{Libxc, libxcHVMContext} }
func (HVMParams) kind() kind       { return kind{Libxc, libxcHVMParams} }
func (SharedInfo) kind() kind      { return kind{Libxc, libxcSharedInfo} }
func (Verify) kind() kind          { return kind{Libxc, libxcVerify} }
func (Checkpoint) kind() kind      { return kind{Libxc, libxcCheckpoint} }
func (DomainEnd) kind() kind       { return kind{Libxc, libxcEnd} }
func (CheckpointEnd) kind() kind   { return kind{Libxl, libxlCheckpointEnd} }
func (End) kind() kind             { return kind{Libxl, libxlEnd} }
func (EmulatorStore) kind() kind   { return kind{Libxl, libxlEmulatorStore} }
func (EmulatorContext) kind() kind { return kind{Libxl, libxlEmulatorContext} }
func (u Unknown) kind() kind       { return kind{u.Level, u.Type} }

func (v VCPU) kind() kind {
	switch v.Part {
	case VCPUBasic:
		return kind{Libxc, libxcPVVCPUBasic}
	case VCPUExtended:
		return kind{Libxc, libxcPVVCPUExtended}
	case VCPUXSave:
		return kind{Libxc, libxcPVVCPUXSave}
	}
	return kind{Libxc, libxcPVVCPUMSRs}
}
