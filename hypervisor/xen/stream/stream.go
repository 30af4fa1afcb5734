// Package stream reads and writes the streams in which Xen's tools save,
// migrate and restore a domain. It needs no Xen.
//
//	file of `xl save`:  SaveFile (magic, xl's flags, the domain's configuration)
//	libxl stream:       header │ Domain … DomainEnd │ Emulator… │ End
//	libxc stream:              └ image header, domain header, static data,
//	                             StaticDataEnd, Pages …, TSC, HVMParams, HVMContext …
//
//	bytes ── Reader (reader.go) ─> parse (libxc.go, libxl.go) ─> order ─> Record
//	Record ── order ─> Writer (writer.go) ─> append (libxc.go, libxl.go) ─> bytes
//
// order (order.go) is what may follow what. Reader and Writer ask the same one,
// so that what is written here can be read here, and a stream that lacks what
// makes a domain whole is refused by both.
//
// A checkpointed stream (Remus) has, instead of DomainEnd, a Checkpoint at the
// end of each checkpoint, then libxl's records up to CheckpointEnd, then libxc's
// records of the next one.
//
// Sources: Xen's docs/specs/libxc-migration-stream.pandoc (version 3, and the
// version 2 that it reads), docs/specs/libxl-migration-stream.pandoc (version 2),
// tools/xl/xl.h. Only little-endian streams of x86 are known; COLO's records,
// which travel the other way or between two running domains, are refused.
package stream

import "fmt"

// PageSize is the size of a guest's page, in bytes.
const PageSize = 4096

// Bounds. A length is checked against them before memory is taken, and memory is
// taken only as the bytes arrive.
const (
	// MaxRecord bounds the body of a record, in bytes: Xen's own REC_LENGTH_MAX.
	MaxRecord = 128 << 20
	// MaxBatch is how many pages Xen's tools put into one record.
	MaxBatch = 1024
	// MaxConfig bounds what xl puts before the stream, in bytes.
	MaxConfig = 4 << 20
	// MaxVCPUs bounds the number of a virtual processor: Xen's MAX_VIRT_CPUS.
	MaxVCPUs = 8192
)

// Level says to which of the two nested formats a record belongs.
type Level uint8

const (
	Libxl Level = iota
	Libxc
)

func (l Level) String() string {
	if l == Libxc {
		return "libxc"
	}
	return "libxl"
}

// kind is a record's type at its level.
type kind struct {
	level  Level
	number uint32
}

// optional is the bit of a record's type that says that it may be left out.
const optional = 1 << 31

// The types of records.
const (
	libxcEnd            = 0x00
	libxcPageData       = 0x01
	libxcPVInfo         = 0x02
	libxcPVP2MFrames    = 0x03
	libxcPVVCPUBasic    = 0x04
	libxcPVVCPUExtended = 0x05
	libxcPVVCPUXSave    = 0x06
	libxcSharedInfo     = 0x07
	libxcTSCInfo        = 0x08
	libxcHVMContext     = 0x09
	libxcHVMParams      = 0x0a
	libxcToolstack      = 0x0b
	libxcPVVCPUMSRs     = 0x0c
	libxcVerify         = 0x0d
	libxcCheckpoint     = 0x0e
	libxcDirtyPFNs      = 0x0f
	libxcStaticDataEnd  = 0x10
	libxcCPUIDPolicy    = 0x11
	libxcMSRPolicy      = 0x12

	libxlEnd             = 0x00
	libxlLibxcContext    = 0x01
	libxlEmulatorStore   = 0x02
	libxlEmulatorContext = 0x03
	libxlCheckpointEnd   = 0x04
	libxlCheckpointState = 0x05
)

func (k kind) String() string {
	names := map[uint32]string{
		libxcEnd: "END", libxcPageData: "PAGE_DATA", libxcPVInfo: "X86_PV_INFO", libxcPVP2MFrames: "X86_PV_P2M_FRAMES",
		libxcPVVCPUBasic: "X86_PV_VCPU_BASIC", libxcPVVCPUExtended: "X86_PV_VCPU_EXTENDED", libxcPVVCPUXSave: "X86_PV_VCPU_XSAVE",
		libxcPVVCPUMSRs: "X86_PV_VCPU_MSRS", libxcSharedInfo: "SHARED_INFO", libxcTSCInfo: "X86_TSC_INFO", libxcHVMContext: "HVM_CONTEXT",
		libxcHVMParams: "HVM_PARAMS", libxcToolstack: "TOOLSTACK", libxcVerify: "VERIFY", libxcCheckpoint: "CHECKPOINT",
		libxcDirtyPFNs: "CHECKPOINT_DIRTY_PFN_LIST", libxcStaticDataEnd: "STATIC_DATA_END", libxcCPUIDPolicy: "X86_CPUID_POLICY",
		libxcMSRPolicy: "X86_MSR_POLICY",
	}
	if k.level == Libxl {
		names = map[uint32]string{
			libxlEnd: "END", libxlLibxcContext: "LIBXC_CONTEXT", libxlEmulatorStore: "EMULATOR_XENSTORE_DATA",
			libxlEmulatorContext: "EMULATOR_CONTEXT", libxlCheckpointEnd: "CHECKPOINT_END", libxlCheckpointState: "CHECKPOINT_STATE",
		}
	}
	if name := names[k.number]; name != "" {
		return k.level.String() + " record " + name
	}
	return fmt.Sprintf("%s record of type %#x", k.level, k.number)
}
