package xen

// This file writes a domain that is in a checkpoint file for `xl restore`:
//
//	xl's head: Spec.Toolstack, or what Config says of it ─┐
//	Spec.Head ────────────────────────────────────────────┤
//	pages, in whatever order they come ─ Pages, Zero ─────┼─> a stream of Xen's own
//	state ─ End ──────────────────────────────────────────┘

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sort"

	"understudy/epoch"
	"understudy/hypervisor"
	"understudy/hypervisor/xen/stream"
)

// Kept is a domain as a checkpoint file has it.
type Kept struct {
	Spec   *Spec
	Domain stream.Domain
	Outline

	frames *Frames
	types  []typeRun // nil: every page is normal
	tail   []byte
}

// ParseKept reads what a checkpoint file says of a Xen domain. Its slices are those
// that were given.
func ParseKept(from hypervisor.Spec, state []byte) (*Kept, error) {
	k, err := parseKept(from, state)
	if err != nil {
		return nil, fmt.Errorf("a Xen domain in a checkpoint file: %w", err)
	}
	return k, nil
}

func parseKept(from hypervisor.Spec, state []byte) (*Kept, error) {
	spec, frames, err := decodeSpec(from)
	if err != nil {
		return nil, err
	}
	s, err := parseStatic(spec.Head)
	if err != nil {
		return nil, err
	}
	k := &Kept{Spec: spec, Domain: s.domain, frames: frames, tail: state}
	if s.domain.Type == stream.PV {
		if runs := frames.Runs(); len(runs) != 1 || runs[0] != (Run{0, s.pages}) {
			return nil, fmt.Errorf("a PV domain of %d pages, its image is not that", s.pages)
		}
		k.types, k.tail, err = parsePV(state, s.domain, s.pages)
	} else {
		if _, err = ParseHead(spec.Head); err == nil {
			_, err = ParseTail(state, s.domain)
		}
	}
	if err != nil {
		return nil, err
	}
	if spec.Toolstack != nil {
		k.Outline, err = outlineOf(spec.Toolstack)
		return k, err
	}
	var c shape
	if err := json.Unmarshal(spec.Config, &c); err != nil {
		return nil, fmt.Errorf("its configuration: %w", err)
	}
	k.Outline = Outline{Type: c.Type, Memory: c.Memory, VCPUs: c.VCPUs}
	return k, nil
}

// String names the domain.
func (k *Kept) String() string {
	processors := "processors"
	if k.VCPUs == 1 {
		processors = "processor"
	}
	return fmt.Sprintf("Xen domain of type %s, %d %s, %d MiB, saved on Xen %d.%d", k.Type, k.VCPUs, processors, k.Memory>>20, k.Domain.Major, k.Domain.Minor)
}

// Boot is what `xl restore` is told of a domain that xl has never known.
type Boot struct {
	Name           string
	Kernel, Initrd string // paths; "": not known, a reboot needs them
	Disks          []string
}

// Configuration is the domain's configuration in libxl's JSON: the one that it came
// with, or one for a guest of ours, whose disks libxl is to serve then.
func (k *Kept) Configuration(b Boot) ([]byte, error) {
	if k.Spec.Toolstack != nil {
		return k.Spec.Toolstack, nil
	}
	var s shape
	if err := json.Unmarshal(k.Spec.Config, &s); err != nil {
		return nil, fmt.Errorf("the domain's configuration: %w", err)
	}
	if s.Type != PVH {
		return nil, fmt.Errorf("a domain of type %.20q: of a guest's that xl has never known, only those of type %q can be given to it", s.Type, PVH)
	}
	c := Config{Name: b.Name, Domain: b.Name, Type: s.Type, Memory: s.Memory, VCPUs: s.VCPUs, Kernel: b.Kernel, Initrd: b.Initrd, Append: s.Append}
	var id [16]byte         // none of ours: the domain is the toolstack's from there on
	_, _ = rand.Read(id[:]) // never fails, see crypto/rand
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	all := c.domain(id, b.Name)
	if b.Kernel == "" {
		delete(all["b_info"].(map[string]any), "kernel")
	}
	all["on_poweroff"], all["on_reboot"], all["on_crash"], all["on_watchdog"] = "destroy", "restart", "destroy", "destroy"
	disks := []map[string]any{}
	for i, path := range b.Disks {
		disks = append(disks, map[string]any{"pdev_path": path, "vdev": "xvd" + string(rune('a'+i)), "format": "raw", "readwrite": 1})
	}
	if all["disks"] = disks; len(disks) == 0 {
		delete(all, "disks")
	}
	return json.Marshal(all)
}

// Export is a domain on its way into a stream. It is a Sink.
type Export struct {
	kept  *Kept
	out   *stream.Writer
	raw   io.Writer
	pfns  []stream.PFN
	zeros []byte
	left  uint64 // pages
}

// Export writes what comes before the domain's memory. config is a configuration
// in libxl's JSON, for the head of a file of xl's; nil: the stream alone.
func (k *Kept) Export(out io.Writer, config []byte) (*Export, error) {
	var head []byte
	if config != nil {
		var err error
		if head, err = (stream.SaveFile{Config: config, JSON: true}).Append(nil); err != nil {
			return nil, err
		}
	}
	if _, err := out.Write(append(head, k.Spec.Head...)); err != nil {
		return nil, fmt.Errorf("write a domain's stream: %w", err)
	}
	return &Export{
		kept: k, raw: out, out: stream.NewTailWriter(out, k.Domain), left: k.frames.Pages(),
		pfns: make([]stream.PFN, 0, stream.MaxBatch), zeros: make([]byte, stream.MaxBatch*epoch.PageSize),
	}, nil
}

// Pages writes pages with their content.
func (e *Export) Pages(first epoch.GFN, data []byte) error {
	for len(data) > 0 {
		n := min(len(data), stream.MaxBatch*epoch.PageSize)
		if err := e.batch(first, data[:n]); err != nil {
			return err
		}
		first, data = first+epoch.GFN(n/epoch.PageSize), data[n:]
	}
	return nil
}

// Zero writes pages that have no content, or only zeros.
func (e *Export) Zero(first epoch.GFN, count uint64) error {
	for count > 0 {
		n := min(count, stream.MaxBatch)
		if err := e.batch(first, e.zeros[:n*epoch.PageSize]); err != nil {
			return err
		}
		first, count = first+epoch.GFN(n), count-n
	}
	return nil
}

// batch writes a record. Pages that have no content in the domain are named alone.
func (e *Export) batch(first epoch.GFN, data []byte) error {
	count := uint64(len(data) / epoch.PageSize)
	if uint64(first) > e.kept.frames.Pages() || count > e.kept.frames.Pages()-uint64(first) || count > e.left {
		return fmt.Errorf("%d pages from page %d on, the image has %d, of which %d are left", count, first, e.kept.frames.Pages(), e.left)
	}
	e.left -= count
	for len(data) > 0 {
		t, run := e.kept.typesFrom(first)
		n := min(run, uint64(len(data)/epoch.PageSize))
		e.pfns = e.pfns[:0]
		for i := range n {
			e.pfns = append(e.pfns, stream.NewPFN(e.kept.frames.Frame(first+epoch.GFN(i)), t))
		}
		content := data[:n*epoch.PageSize]
		if data = data[len(content):]; !t.Content() {
			content = nil
		}
		if err := e.out.WritePages(e.pfns, content); err != nil {
			return err
		}
		first += epoch.GFN(n)
	}
	return nil
}

// typesFrom returns the type of a page, and how many from it on have it.
func (k *Kept) typesFrom(page epoch.GFN) (stream.PageType, uint64) {
	if k.types == nil {
		return stream.PageNormal, k.frames.Pages() - uint64(page)
	}
	i := sort.Search(len(k.types), func(i int) bool { return k.types[i].first > uint64(page) }) - 1
	r := k.types[i]
	return r.kind, r.first + r.count - uint64(page)
}

// End writes the state, after every page.
func (e *Export) End() error {
	if e.left > 0 {
		return errors.New("write a domain's stream: pages are missing")
	}
	if _, err := e.raw.Write(e.kept.tail); err != nil {
		return fmt.Errorf("write a domain's stream: %w", err)
	}
	return nil
}
