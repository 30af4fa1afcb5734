package xen

// This file reads what `xl save` wrote, for a checkpoint file:
//
//	xl's head: the configuration ─> Spec.Toolstack
//	static data ─> Spec.Head
//	PAGE_DATA …  ─> Sink, by pages of the image
//	state ─> DeviceState: a tail (state.go), of a PV domain with its pages' types (pv.go)
//
// Which frames of a PVH domain have content is known at the stream's end only:
// Survey reads it for that. A PV domain's pages are numbered as it numbers them
// itself, and its stream says before how many they are: it may come out of a pipe.

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"understudy/epoch"
	"understudy/hypervisor"
	"understudy/hypervisor/xen/stream"
)

// Sink takes the pages of an image; one that comes again replaces the one before.
type Sink interface {
	// Pages takes a run of pages with their content, and keeps nothing of it.
	Pages(first epoch.GFN, data []byte) error
	// Zero takes pages that have none.
	Zero(first epoch.GFN, count uint64) error
}

// Outline is what xl's configuration says of a domain.
type Outline struct {
	Name   string
	Type   Type
	Memory uint64 // bytes
	VCPUs  int
}

// PV is a domain whose pages are its hypervisor's, which its kernel knows.
const PV Type = "pv"

// Saved is a domain out of a stream.
type Saved struct {
	Outline
	spec   Spec
	static static
	in     *stream.Reader
	first  stream.Record // behind the static data; nil: it was taken
	frames *Frames       // nil: not known (PVH)
	types  []stream.PageType
	tail   appender
	out    *stream.Writer // to tail
	done   bool
}

// OpenSaved reads what comes before a domain's memory. A PV domain of more than
// maxPages is refused: where each page takes at least eight bytes of what is read,
// its length bounds them.
func OpenSaved(in io.Reader, maxPages uint64) (*Saved, error) {
	s := &Saved{}
	if err := s.open(in, maxPages); err != nil {
		return nil, fmt.Errorf("read what xl save wrote: %w", err)
	}
	return s, nil
}

func (s *Saved) open(in io.Reader, maxPages uint64) error {
	file, err := stream.ReadSaveFile(in)
	if err != nil {
		return err
	}
	if err := s.configured(file); err != nil {
		return err
	}
	return s.begin(in, maxPages)
}

// NewSaved is OpenSaved for a stream without xl's head, of a domain whose
// configuration in libxl's JSON is known.
func NewSaved(in io.Reader, config []byte, maxPages uint64) (*Saved, error) {
	s := &Saved{}
	err := s.configured(stream.SaveFile{Config: config, JSON: true})
	if err == nil {
		err = s.begin(in, maxPages)
	}
	if err != nil {
		return nil, fmt.Errorf("read a domain's stream: %w", err)
	}
	return s, nil
}

// configured takes the configuration.
func (s *Saved) configured(file stream.SaveFile) (err error) {
	if !file.JSON || len(file.Config) == 0 || len(file.Config) > maxConfig {
		return fmt.Errorf("%d bytes of configuration, in JSON: %v; every xl since Xen 4.5 writes it so", len(file.Config), file.JSON)
	}
	s.spec.Toolstack = bytes.Clone(file.Config)
	s.Outline, err = outlineOf(file.Config)
	return err
}

// outlineOf reads a configuration in libxl's JSON.
func outlineOf(config []byte) (Outline, error) {
	var c struct {
		Create struct {
			Type Type   `json:"type"`
			Name string `json:"name"`
		} `json:"c_info"`
		Build struct {
			VCPUs  int    `json:"max_vcpus"`
			Memory uint64 `json:"max_memkb"`
		} `json:"b_info"`
	}
	if err := json.Unmarshal(config, &c); err != nil {
		return Outline{}, fmt.Errorf("the domain's configuration: %w", err)
	}
	o := Outline{Name: c.Create.Name, Type: c.Create.Type, VCPUs: max(1, c.Build.VCPUs)}
	switch {
	case o.Type != PVH && o.Type != PV:
		return o, fmt.Errorf("a domain of type %.20q: those of type %q and %q can be kept in checkpoint files", o.Type, PVH, PV)
	case c.Build.Memory > maxMemory>>10 || o.VCPUs > maxVCPUs || len(o.Name) > 255:
		return o, fmt.Errorf("the domain's configuration: %d KiB of memory, %d processors, a name of %d bytes", c.Build.Memory, o.VCPUs, len(o.Name))
	}
	o.Memory = c.Build.Memory << 10
	return o, nil
}

// begin reads the static data.
func (s *Saved) begin(in io.Reader, maxPages uint64) (err error) {
	if s.in, err = stream.NewReader(in); err != nil {
		return err
	}
	var head appender
	w, err := stream.NewWriter(&head)
	if err != nil {
		return err
	}
	for s.first == nil {
		rec, err := s.in.Next()
		if err != nil {
			return err
		}
		switch rec.(type) {
		case stream.Unknown: // says of itself that it may be left out
		case stream.Domain, stream.PVInfo, stream.CPUIDPolicy, stream.MSRPolicy, stream.StaticDataEnd, stream.P2MFrames:
			if err := w.Write(rec); err != nil {
				return err
			}
		default:
			s.first = rec
		}
		if len(head) > MaxHead {
			return fmt.Errorf("more than %d bytes before the domain's memory", MaxHead)
		}
	}
	if s.static, err = parseStatic(head); err != nil {
		return err
	}
	s.spec.Head = head
	if s.IsPV() != (s.Type == PV) {
		return fmt.Errorf("its stream is of a domain of type %s, its configuration of one of type %q", s.static.domain.Type, s.Type)
	}
	if s.IsPV() {
		return s.beginPV(maxPages)
	}
	_, err = ParseHead(head)
	return err
}

// beginPV makes room for what is known of each page.
func (s *Saved) beginPV(maxPages uint64) (err error) {
	if s.static.pages > maxPages {
		return fmt.Errorf("it announces %d pages, and is too short for more than %d", s.static.pages, maxPages)
	}
	s.types = slices.Repeat([]stream.PageType{stream.PageNone}, int(s.static.pages))
	s.spec.Memory = []Run{{0, s.static.pages}}
	s.frames, err = NewFrames(s.spec.Memory)
	return err
}

// IsPV reports whether the domain is a PV domain.
func (s *Saved) IsPV() bool { return s.static.domain.Type == stream.PV }

// Survey reads the stream of a PVH domain to its end and returns which of its
// frames have content. Another Saved of the same stream is given them.
func (s *Saved) Survey() (*Frames, error) {
	var seen []stream.PFN
	err := s.each(func(p stream.Pages) error {
		seen = append(seen, p.PFNs...)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read what xl save wrote: %w", err)
	}
	// Of a frame that comes again what is said last counts.
	slices.SortStableFunc(seen, func(a, b stream.PFN) int { return cmp.Compare(a.Number(), b.Number()) })
	var b Builder
	for i, p := range seen {
		if i+1 < len(seen) && seen[i+1].Number() == p.Number() || p.Type() == stream.PageNone {
			continue
		}
		if p.Number() >= MaxFrame {
			return nil, fmt.Errorf("read what xl save wrote: frame %d, at most %d are supported", p.Number(), uint64(MaxFrame))
		}
		b.Add(p.Number())
	}
	f, err := b.Frames()
	if err != nil {
		return nil, fmt.Errorf("read what xl save wrote: %w", err)
	}
	return f, nil
}

// Located says which frames of a PVH domain have content (Survey).
func (s *Saved) Located(f *Frames) { s.frames, s.spec.Memory = f, f.Runs() }

// Spec describes the domain as hypervisor.Spec.Machine has it. config is its
// configuration as Config.Shape has it; nil: of no guest that is configured.
func (s *Saved) Spec(config json.RawMessage) (hypervisor.Spec, error) {
	spec := s.spec
	if spec.Config = config; config == nil {
		var err error
		if spec.Config, err = json.Marshal(shape{Type: s.Type, Memory: s.Memory, VCPUs: s.VCPUs}); err != nil {
			return hypervisor.Spec{}, err
		}
	}
	return spec.Pack()
}

// Copy gives every page of the image to a sink, and returns the domain's state, as
// a checkpoint file has it.
func (s *Saved) Copy(to Sink) ([]byte, error) {
	if s.frames == nil {
		return nil, errors.New("which frames have content is not known")
	}
	err := s.each(func(p stream.Pages) error { return s.deal(p, to) })
	if err == nil && s.IsPV() {
		err = s.rest(to)
	}
	if err != nil {
		return nil, fmt.Errorf("read what xl save wrote: %w", err)
	}
	if s.IsPV() {
		return appendPV(nil, s.types, s.tail), nil
	}
	return s.tail, nil
}

// deal gives the pages of one record, adjacent ones together.
func (s *Saved) deal(p stream.Pages, to Sink) error {
	var first, count uint64 // of a run that is yet to be given
	data := p.Data
	give := func() error {
		if count == 0 {
			return nil
		}
		run := data[:count*epoch.PageSize]
		data, count = data[len(run):], 0
		return to.Pages(epoch.GFN(first), run)
	}
	for _, pfn := range p.PFNs {
		page, ok := s.frames.Page(pfn.Number())
		switch t := pfn.Type(); {
		case t == stream.PageBroken:
			return fmt.Errorf("page %d was broken memory", pfn.Number())
		case !ok && s.IsPV():
			return fmt.Errorf("page %d of a domain of %d", pfn.Number(), s.frames.Pages())
		case !ok: // it is taken back later on
			if err := give(); err != nil {
				return err
			}
			if pfn.HasData() {
				data = data[epoch.PageSize:]
			}
			continue
		case s.IsPV():
			s.types[page] = t
		case t == stream.PageNone:
			continue // it comes again
		}
		if pfn.HasData() && count > 0 && uint64(page) == first+count {
			count++
			continue
		}
		if err := give(); err != nil {
			return err
		}
		if pfn.HasData() {
			first, count = uint64(page), 1
		} else if err := to.Zero(page, 1); err != nil {
			return err
		}
	}
	return give()
}

// rest gives the pages of a PV domain that have no content.
func (s *Saved) rest(to Sink) error {
	for page, t := range s.types {
		if !t.Content() {
			if err := to.Zero(epoch.GFN(page), 1); err != nil {
				return err
			}
		}
	}
	return nil
}

// each reads the stream to its end, and keeps what is state.
func (s *Saved) each(pages func(stream.Pages) error) error {
	if s.done {
		return errors.New("it was read already")
	}
	s.done = true
	s.out = stream.NewTailWriter(&s.tail, s.static.domain)
	for rec := s.first; ; {
		switch rec := rec.(type) {
		case stream.Pages:
			if err := pages(rec); err != nil {
				return err
			}
		case stream.Unknown, stream.Verify: // pages behind a Verify are what they were
		case stream.Checkpoint, stream.CheckpointEnd:
			return errors.New("it is the stream of a replication (Remus), and not of xl save")
		case stream.EmulatorStore, stream.EmulatorContext:
			return errors.New("the domain has a device model: only PVH and PV domains can be kept in checkpoint files")
		default:
			if err := s.out.Write(rec); err != nil {
				return err
			}
			if len(s.tail) > MaxTail {
				return fmt.Errorf("more than %d bytes of state", MaxTail)
			}
		}
		var err error
		if rec, err = s.in.Next(); errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			break
		} else if err != nil {
			return err
		}
	}
	s.first = nil
	if s.IsPV() {
		return checkPVTail(s.tail, s.static.domain)
	}
	_, err := ParseTail(s.tail, s.static.domain)
	return err
}
