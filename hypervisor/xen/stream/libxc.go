package stream

// This file is libxc's format: the two headers, and the bodies of its records.
// Each body is parsed and appended by a pair of functions that check the same.

import (
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	imageMarker     = ^uint64(0)
	imageID         = 0x58454e46 // "XENF"
	imageBigEndian  = 1
	headersLen      = 24 + 16
	pageShift       = 12
	leafSize        = 24
	msrSize         = 16
	paramSize       = 16
	pageHeaderLen   = 8
	maxPagesARecord = (MaxRecord - pageHeaderLen) / 8
)

var le, be = binary.LittleEndian, binary.BigEndian

// parseDomain reads the image header and the domain header.
func parseDomain(b []byte) (Domain, error) {
	d := Domain{Version: be.Uint32(b[12:]), Type: DomainType(le.Uint32(b[24:])), Major: le.Uint32(b[32:]), Minor: le.Uint32(b[36:])}
	switch {
	case be.Uint64(b) != imageMarker || be.Uint32(b[8:]) != imageID:
		return d, fmt.Errorf("the image header is %x: this is no libxc stream, or one from before Xen 4.6, which Xen's convert-legacy-stream makes into one", b[:12])
	case be.Uint16(b[16:])&imageBigEndian != 0:
		return d, errors.New("a big-endian image: only little-endian ones are known")
	case le.Uint16(b[28:]) != pageShift:
		return d, fmt.Errorf("pages of 2^%d bytes, want 2^%d", le.Uint16(b[28:]), pageShift)
	}
	return d, d.check()
}

func (d Domain) check() error {
	if d.Version < 2 || d.Version > 3 {
		return fmt.Errorf("a libxc image of version %d: only 2 and 3 are known", d.Version)
	}
	if d.Type != PV && d.Type != HVM {
		return fmt.Errorf("a domain of type %d: only PV (1) and HVM (2) are known", d.Type)
	}
	return nil
}

func (d Domain) append(dst []byte) []byte {
	dst = be.AppendUint64(dst, imageMarker)
	dst = be.AppendUint32(dst, imageID)
	dst = be.AppendUint32(dst, d.Version)
	dst = be.AppendUint64(dst, 0)
	dst = le.AppendUint32(dst, uint32(d.Type))
	dst = le.AppendUint32(dst, pageShift)
	dst = le.AppendUint32(dst, d.Major)
	return le.AppendUint32(dst, d.Minor)
}

// parseLibxc makes a record of a libxc record's body. Reserved fields are
// ignored, as the format demands of a reader.
func parseLibxc(number uint32, b []byte, pages *Pages) (Record, error) {
	switch number {
	case libxcEnd:
		return DomainEnd{}, empty(b)
	case libxcStaticDataEnd:
		return StaticDataEnd{}, empty(b)
	case libxcVerify:
		return Verify{}, empty(b)
	case libxcCheckpoint:
		return Checkpoint{}, empty(b)
	case libxcPageData:
		err := pages.parse(b)
		return *pages, err
	case libxcPVInfo:
		if err := exactly(b, 8); err != nil {
			return nil, err
		}
		r := PVInfo{Width: b[0], Levels: b[1]}
		return r, r.check()
	case libxcPVP2MFrames:
		if len(b) < 8 || len(b)%8 != 0 {
			return nil, fmt.Errorf("%d bytes, want 8 and 8 for each frame", len(b))
		}
		r := P2MFrames{Start: le.Uint32(b), End: le.Uint32(b[4:])}
		for b = b[8:]; len(b) > 0; b = b[8:] {
			r.Frames = append(r.Frames, le.Uint64(b))
		}
		return r, nil
	case libxcPVVCPUBasic:
		return parseVCPU(VCPUBasic, b)
	case libxcPVVCPUExtended:
		return parseVCPU(VCPUExtended, b)
	case libxcPVVCPUXSave:
		return parseVCPU(VCPUXSave, b)
	case libxcPVVCPUMSRs:
		return parseVCPU(VCPUMSRs, b)
	case libxcSharedInfo:
		return SharedInfo{b}, exactly(b, PageSize)
	case libxcTSCInfo:
		if err := exactly(b, 24); err != nil {
			return nil, err
		}
		return TSCInfo{Mode: le.Uint32(b), KHz: le.Uint32(b[4:]), Nanoseconds: le.Uint64(b[8:]), Incarnation: le.Uint32(b[16:])}, nil
	case libxcHVMContext:
		return HVMContext{b}, some(b, 1)
	case libxcHVMParams:
		return parseParams(b)
	case libxcCPUIDPolicy:
		return CPUIDPolicy{b}, some(b, leafSize)
	case libxcMSRPolicy:
		return MSRPolicy{b}, some(b, msrSize)
	case libxcToolstack:
		return nil, errors.New("it was dropped before Xen 4.6 was released: save the domain anew")
	case libxcDirtyPFNs:
		return nil, errors.New("COLO's records are not known here")
	}
	if number&optional != 0 {
		return Unknown{Libxc, number, b}, nil
	}
	return nil, errors.New("it is mandatory and not known here: the domain was saved by a newer Xen")
}

// parse reads a PAGE_DATA record's body. It uses p's memory again.
func (p *Pages) parse(b []byte) error {
	if len(b) < pageHeaderLen {
		return fmt.Errorf("%d bytes, want at least %d", len(b), pageHeaderLen)
	}
	count := uint64(le.Uint32(b))
	b = b[pageHeaderLen:]
	if count == 0 || count > uint64(len(b))/8 {
		return fmt.Errorf("%d pages are announced, and %d bytes follow", count, len(b))
	}
	p.PFNs, p.Data = p.PFNs[:0], b[count*8:]
	for i := range count {
		p.PFNs = append(p.PFNs, PFN(le.Uint64(b[i*8:])))
	}
	return checkPages(p.PFNs, uint64(len(p.Data)))
}

// checkPages checks a record of pages with so many bytes of content.
func checkPages(pfns []PFN, data uint64) error {
	if len(pfns) == 0 || len(pfns) > maxPagesARecord {
		return fmt.Errorf("%d pages, want 1 to %d", len(pfns), maxPagesARecord)
	}
	want := uint64(0)
	for i, p := range pfns {
		if !p.valid() {
			return fmt.Errorf("page %d of %d is %#x: no type that Xen knows", i, len(pfns), uint64(p))
		}
		if p.HasData() {
			want += PageSize
		}
	}
	if data != want {
		return fmt.Errorf("%d bytes of content, its %d pages have %d", data, len(pfns), want)
	}
	return nil
}

func (r PVInfo) check() error {
	if r != (PVInfo{8, 4}) && r != (PVInfo{4, 3}) {
		return fmt.Errorf("words of %d bytes and page tables of %d levels, want 8 and 4, or 4 and 3", r.Width, r.Levels)
	}
	return nil
}

// check compares the count of frames with the range of pages they are about.
func (r P2MFrames) check(width uint8) error {
	each := uint32(PageSize) / uint32(width)
	if r.End < r.Start || uint64(r.End/each)-uint64(r.Start/each)+1 != uint64(len(r.Frames)) {
		return fmt.Errorf("%d frames for the pages %d to %d, at %d a frame", len(r.Frames), r.Start, r.End, each)
	}
	return nil
}

func parseVCPU(part VCPUPart, b []byte) (Record, error) {
	if len(b) < 8 {
		return nil, fmt.Errorf("%d bytes, want at least 8", len(b))
	}
	r := VCPU{Part: part, ID: le.Uint32(b), Context: b[8:]}
	return r, r.check()
}

func (v VCPU) check() error {
	if v.ID >= MaxVCPUs || v.Part > VCPUMSRs {
		return fmt.Errorf("part %d of processor %d: at most %d are known", v.Part, v.ID, MaxVCPUs)
	}
	return nil
}

// parseParams takes an empty list, too: Xen 4.6 to 4.8 wrote such.
func parseParams(b []byte) (Record, error) {
	if len(b) < 8 || uint64(le.Uint32(b))*paramSize != uint64(len(b)-8) {
		return nil, fmt.Errorf("%d bytes do not fit the count of parameters in them", len(b))
	}
	var r HVMParams
	for b = b[8:]; len(b) > 0; b = b[paramSize:] {
		r.Params = append(r.Params, HVMParam{le.Uint64(b), le.Uint64(b[8:])})
	}
	return r, nil
}

// appendLibxc appends the body of a libxc record other than Pages.
func appendLibxc(dst []byte, rec Record) ([]byte, error) {
	switch r := rec.(type) {
	case StaticDataEnd, Verify, Checkpoint, DomainEnd:
		return dst, nil
	case PVInfo:
		return append(dst, r.Width, r.Levels, 0, 0, 0, 0, 0, 0), r.check()
	case P2MFrames:
		dst = le.AppendUint32(dst, r.Start)
		dst = le.AppendUint32(dst, r.End)
		for _, f := range r.Frames {
			dst = le.AppendUint64(dst, f)
		}
		return dst, nil
	case VCPU:
		dst = le.AppendUint32(dst, r.ID)
		dst = le.AppendUint32(dst, 0)
		return append(dst, r.Context...), r.check()
	case SharedInfo:
		return append(dst, r.Page...), exactly(r.Page, PageSize)
	case TSCInfo:
		dst = le.AppendUint32(dst, r.Mode)
		dst = le.AppendUint32(dst, r.KHz)
		dst = le.AppendUint64(dst, r.Nanoseconds)
		dst = le.AppendUint32(dst, r.Incarnation)
		return le.AppendUint32(dst, 0), nil
	case HVMContext:
		return append(dst, r.Context...), some(r.Context, 1)
	case HVMParams:
		dst = le.AppendUint32(dst, uint32(len(r.Params)))
		dst = le.AppendUint32(dst, 0)
		for _, p := range r.Params {
			dst = le.AppendUint64(dst, p.Index)
			dst = le.AppendUint64(dst, p.Value)
		}
		return dst, nil
	case CPUIDPolicy:
		return append(dst, r.Leaves...), some(r.Leaves, leafSize)
	case MSRPolicy:
		return append(dst, r.Entries...), some(r.Entries, msrSize)
	}
	return dst, errors.New("only what is known here is written")
}

// empty, exactly and some check the length of a body: none, one length, or one
// and more entries of a size.
func empty(b []byte) error { return exactly(b, 0) }

func exactly(b []byte, want int) error {
	if len(b) != want {
		return fmt.Errorf("%d bytes, want %d", len(b), want)
	}
	return nil
}

func some(b []byte, size int) error {
	if len(b) == 0 || len(b)%size != 0 {
		return fmt.Errorf("%d bytes, want one or more times %d", len(b), size)
	}
	return nil
}
