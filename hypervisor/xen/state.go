package xen

// This file is what of a domain is not memory, as the ends of a libxl stream:
//
//	head: header, Domain, CPUID and MSR policy, STATIC_DATA_END       once, in the Spec
//	tail: TSC_INFO, HVM_PARAMS, HVM_CONTEXT, END, EMULATOR…, END      every epoch
//
// A stream for a restore is head, memory, tail: Feed writes what makes the memory
// without its content. Both ends are parsed and found whole before anything of
// them is used.

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"

	"understudy/hypervisor/xen/stream"
)

// Bounds of the ends.
const (
	// MaxHead bounds a head: CPU policies are some KiB.
	MaxHead = 1 << 20
	// MaxTail bounds a tail: an HVM context and a device model's state.
	MaxTail = 256 << 20
)

// Policies are what a domain may see of its processor (Head).
type Policies struct {
	CPUID []byte // xen_cpuid_leaf_t[]
	MSR   []byte // xen_msr_entry_t[]; may be empty
}

// Head composes the head of a stream of a PVH or HVM domain that runs on Xen
// major.minor.
func Head(major, minor uint32, p Policies) ([]byte, error) {
	var out bytes.Buffer
	w, err := stream.NewWriter(&out)
	if err != nil {
		return nil, err
	}
	records := []stream.Record{stream.Domain{Version: 3, Type: stream.HVM, Major: major, Minor: minor}, stream.CPUIDPolicy{Leaves: p.CPUID}}
	if len(p.MSR) > 0 {
		records = append(records, stream.MSRPolicy{Entries: p.MSR})
	}
	for _, rec := range append(records, stream.StaticDataEnd{}) {
		if err := w.Write(rec); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), nil
}

// ParseHead reads a head and nothing else, and returns its domain.
func ParseHead(head []byte) (stream.Domain, error) {
	d, err := parseHead(head)
	if err != nil {
		return d, fmt.Errorf("the description of a Xen domain: %w", err)
	}
	return d, nil
}

func parseHead(head []byte) (stream.Domain, error) {
	s, err := parseStatic(head)
	switch d := s.domain; {
	case err != nil:
		return stream.Domain{}, err
	case d.Type == stream.PV:
		return stream.Domain{}, errPV
	case d.Version != 3 || s.policies == 0:
		return stream.Domain{}, fmt.Errorf("a domain of format %d, %d records of policies: want one of format 3 with its CPU policy", d.Version, s.policies)
	default:
		return d, nil
	}
}

var errPV = errors.New("it is a PV domain, which nothing here can stand by for")

// static is what a head says.
type static struct {
	domain   stream.Domain
	policies int
	pages    uint64 // of a PV domain
}

// parseStatic reads the head of any domain's stream. A PV domain's ends with
// X86_PV_P2M_FRAMES.
func parseStatic(head []byte) (s static, err error) {
	if len(head) > MaxHead {
		return s, fmt.Errorf("%d bytes, at most %d are allowed", len(head), MaxHead)
	}
	in := bytes.NewReader(head)
	r, err := stream.NewReader(in)
	if err != nil {
		return s, err
	}
	for done := false; !done; {
		rec, err := r.Next()
		if err != nil {
			return s, err
		}
		switch rec := rec.(type) {
		case stream.Domain, stream.PVInfo:
		case stream.CPUIDPolicy, stream.MSRPolicy:
			s.policies++
		case stream.StaticDataEnd:
			done = r.Domain().Type == stream.HVM
		case stream.P2MFrames:
			if rec.Start != 0 {
				return s, fmt.Errorf("its pages begin with page %d", rec.Start)
			}
			s.pages, done = uint64(rec.End)+1, true
		default:
			return s, fmt.Errorf("it has a record that is no static data (%T)", rec)
		}
	}
	if s.domain = r.Domain(); in.Len() != 0 {
		return s, fmt.Errorf("%d bytes follow it", in.Len())
	}
	return s, nil
}

// State is what of a PVH or HVM domain is not memory, at one instant.
type State struct {
	TSC     stream.TSCInfo
	Params  []stream.HVMParam
	Context []byte
	// Emulator is the device model's state; nil for PVH.
	Emulator []byte
}

// AppendTail appends the state as the tail of a stream. It allocates nothing but
// what dst has to grow.
func (s *State) AppendTail(dst []byte, d stream.Domain) ([]byte, error) {
	out := (*appender)(&dst)
	w := stream.NewTailWriter(out, d)
	records := []stream.Record{s.TSC, stream.HVMParams{Params: s.Params}, stream.HVMContext{Context: s.Context}, stream.DomainEnd{}}
	if s.Emulator != nil {
		records = append(records, stream.EmulatorContext{Emulator: stream.Emulator{ID: stream.EmulatorQEMU}, Context: s.Emulator})
	}
	for _, rec := range append(records, stream.End{}) {
		if err := w.Write(rec); err != nil {
			return dst, err
		}
	}
	return dst, nil
}

type appender []byte

func (a *appender) Write(b []byte) (int, error) {
	*a = append(*a, b...)
	return len(b), nil
}

// ParseTail reads a tail of the domain d and nothing else. The state's slices
// are its own.
func ParseTail(tail []byte, d stream.Domain) (*State, error) {
	s, err := parseTail(tail, d)
	if err != nil {
		return nil, fmt.Errorf("the state of a Xen domain: %w", err)
	}
	return s, nil
}

func parseTail(tail []byte, d stream.Domain) (*State, error) {
	if len(tail) > MaxTail {
		return nil, fmt.Errorf("%d bytes, at most %d are allowed", len(tail), MaxTail)
	}
	s := &State{}
	seen := map[string]bool{}
	in := bytes.NewReader(tail)
	for r := stream.NewTailReader(in, d); ; {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		name := fmt.Sprintf("%T", rec)
		if seen[name] {
			return nil, fmt.Errorf("it has %s twice", name)
		}
		seen[name] = true
		switch rec := rec.(type) {
		case stream.TSCInfo:
			s.TSC = rec
		case stream.HVMParams:
			s.Params = rec.Params
		case stream.HVMContext:
			s.Context = bytes.Clone(rec.Context)
		case stream.EmulatorContext:
			if rec.Index != 0 || rec.ID != stream.EmulatorQEMU {
				return nil, fmt.Errorf("it has the state of emulator %d of kind %d: one QEMU is known", rec.Index, rec.ID)
			}
			s.Emulator = append([]byte{}, rec.Context...)
		case stream.DomainEnd, stream.End:
		default:
			return nil, fmt.Errorf("it has a record that is no state (%s)", name)
		}
	}
	if in.Len() != 0 {
		return nil, fmt.Errorf("%d bytes follow it", in.Len())
	}
	if !seen["stream.TSCInfo"] || len(s.Params) == 0 {
		return nil, errors.New("the time stamp counter or the HVM parameters are missing")
	}
	if _, err := ParseContext(s.Context); err != nil {
		return nil, err
	}
	return s, nil
}

// The HVM parameters that are looked at here.
const (
	paramStore    = 1
	paramIOReq    = 5
	paramBufIOReq = 6
	paramConsole  = 17
)

// Transient returns, in ascending order, the frames whose content every restore
// makes anew: rings of the toolstack and of the device model.
func (s *State) Transient() []uint64 {
	var frames []uint64
	for _, p := range s.Params {
		switch p.Index {
		case paramStore, paramIOReq, paramBufIOReq, paramConsole:
			frames = append(frames, p.Value)
		}
	}
	slices.Sort(frames)
	return slices.Compact(frames)
}

// Feed writes what a restore needs so that it has made the domain and its memory
// and waits: the head, and every frame as one to be allocated only. The tail ends
// the stream, at the takeover.
func Feed(out io.Writer, head []byte, frames *Frames) error {
	d, err := ParseHead(head)
	if err != nil {
		return err
	}
	if _, err := out.Write(head); err != nil {
		return fmt.Errorf("feed a restore: %w", err)
	}
	w := stream.NewTailWriter(out, d)
	batch := make([]stream.PFN, 0, stream.MaxBatch)
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		if err := w.WritePages(batch); err != nil {
			return fmt.Errorf("feed a restore: %w", err)
		}
		batch = batch[:0]
		return nil
	}
	for _, r := range frames.Runs() {
		for frame := r.First; frame < r.First+r.Count; frame++ {
			if batch = append(batch, stream.NewPFN(frame, stream.PageAlloc)); len(batch) == cap(batch) {
				if err := flush(); err != nil {
					return err
				}
			}
		}
	}
	return flush()
}
