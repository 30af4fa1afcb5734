package xen

// This file is what another host has to know of a domain before the first
// checkpoint.

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"understudy/hypervisor"
)

// Spec is what hypervisor.Spec.Machine holds, as JSON.
type Spec struct {
	Format int `json:"format"`
	// Head is the head of the domain's stream: Xen's version and the CPU policies.
	Head []byte `json:"head"`
	// Memory is the frames of the image.
	Memory []Run `json:"memory"`
	// Config is the domain's configuration in libxl's JSON.
	Config json.RawMessage `json:"config"`
	// Tail is a tail of the domain from before its first checkpoint. A domain that
	// waits is restored with it ahead of time, so that a takeover has only to put
	// another state in its place; without: its restore waits for the tail that it is
	// loaded with.
	Tail []byte `json:"tail,omitempty"`
	// Toolstack is the configuration that `xl save` had put before the stream that
	// this was made of, in libxl's JSON; without: it was not made of one.
	Toolstack json.RawMessage `json:"toolstack,omitempty"`
}

const (
	specFormat = 1
	maxConfig  = 1 << 20
)

// Pack returns the spec as the other host gets it.
func (s Spec) Pack() (hypervisor.Spec, error) {
	packed := s
	packed.Format = specFormat
	text, err := json.Marshal(packed)
	if err != nil {
		return hypervisor.Spec{}, fmt.Errorf("describe a Xen domain: %w", err)
	}
	frames, err := NewFrames(s.Memory)
	if err != nil {
		return hypervisor.Spec{}, fmt.Errorf("describe a Xen domain: %w", err)
	}
	return hypervisor.Spec{Pages: frames.Pages(), Machine: text}, nil
}

// ParseSpec reads a spec from the other host. Whatever is wrong with it is a
// *hypervisor.Refusal.
func ParseSpec(from hypervisor.Spec) (*Spec, *Frames, error) {
	s, frames, err := parseSpec(from)
	if errors.Is(err, errPV) {
		return nil, nil, &hypervisor.Refusal{What: err.Error(), Remedy: "give it to xl: understudy checkpoint export"}
	}
	if err != nil {
		return nil, nil, &hypervisor.Refusal{
			What:   fmt.Sprintf("the other host's description of the guest: %v", err),
			Remedy: "run the same version of this program on both hosts",
		}
	}
	return s, frames, nil
}

// suits makes sure that a state is one of such a domain: libxl refuses another only
// when it has made use of the rest.
func (s *Spec) suits(state *State) error {
	var c shape
	if err := json.Unmarshal(s.Config, &c); err != nil {
		return fmt.Errorf("the description of a Xen domain: %w", err)
	}
	if has := state.Emulator != nil; has != (c.Type == HVM) {
		return fmt.Errorf("the state of a Xen domain of type %q, which has one of a device model: %v", c.Type, has)
	}
	return nil
}

func parseSpec(from hypervisor.Spec) (*Spec, *Frames, error) {
	s, frames, err := decodeSpec(from)
	if err != nil {
		return nil, nil, err
	}
	d, err := ParseHead(s.Head)
	if err == nil && len(s.Tail) > 0 {
		var state *State
		if state, err = ParseTail(s.Tail, d); err == nil {
			err = s.suits(state)
		}
	}
	if err != nil {
		return nil, nil, err
	}
	return s, frames, nil
}

// decodeSpec leaves the head to be looked at.
func decodeSpec(from hypervisor.Spec) (*Spec, *Frames, error) {
	if len(from.Machine) > hypervisor.MaxSpec {
		return nil, nil, fmt.Errorf("%d bytes, at most %d are allowed", len(from.Machine), hypervisor.MaxSpec)
	}
	d := json.NewDecoder(bytes.NewReader(from.Machine))
	d.DisallowUnknownFields()
	s := &Spec{}
	if err := d.Decode(s); err != nil {
		return nil, nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, nil, errors.New("something follows it")
	}
	if s.Format != specFormat {
		return nil, nil, fmt.Errorf("format %d, want %d", s.Format, specFormat)
	}
	if len(s.Config) == 0 || len(s.Config) > maxConfig || s.Config[0] != '{' {
		return nil, nil, fmt.Errorf("a configuration of %d bytes", len(s.Config))
	}
	if n := len(s.Toolstack); n > maxConfig || n > 0 && s.Toolstack[0] != '{' {
		return nil, nil, fmt.Errorf("a configuration of %d bytes for the toolstack", n)
	}
	frames, err := NewFrames(s.Memory)
	if err != nil {
		return nil, nil, err
	}
	if frames.Pages() != from.Pages {
		return nil, nil, fmt.Errorf("its memory has %d pages, the image %d", frames.Pages(), from.Pages)
	}
	return s, frames, nil
}
