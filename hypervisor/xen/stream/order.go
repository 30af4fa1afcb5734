package stream

// This file is what may follow what in a stream.
//
//	header ─ Domain ─> static ─ StaticDataEnd ─> memory ─ DomainEnd ─> outside ─ End ─> over
//	                                              │  ^
//	                                    Checkpoint│  │CheckpointEnd
//	                                              v  │
//	                                             between
//
// Version 2 has no StaticDataEnd: the first record that is no static data ends it.

import (
	"errors"
	"fmt"
)

type place uint8

const (
	begins  place = iota // nothing but a header so far
	static               // in a domain, before StaticDataEnd
	memory               // in a domain, after it
	between              // libxl's records inside a checkpointed stream
	outside              // libxl's records after the domain
	over
)

type order struct {
	bare   bool // a libxc stream alone
	at     place
	domain Domain
	pv     PVInfo // zero: not seen
	frames bool   // P2MFrames were seen
	whole  whole  // what of a whole domain has been seen since the last checkpoint
}

// whole is what a domain cannot do without.
type whole struct{ context, shared, vcpu bool }

// tailOf is the order behind the static data of a domain, and behind a PV domain's
// P2MFrames.
func tailOf(d Domain) order { return order{at: memory, domain: d, frames: d.Type == PV} }

// level says at which level the next record is.
func (o *order) level() Level {
	if o.at == static || o.at == memory {
		return Libxc
	}
	return Libxl
}

// take accepts the next record, or says why it cannot be the next.
func (o *order) take(rec Record) error {
	if o.at == over {
		return errors.New("it follows the stream's end")
	}
	if rec.kind().level != o.level() {
		return fmt.Errorf("it stands where a %s record has to be", o.level())
	}
	switch r := rec.(type) {
	case Unknown:
		return nil
	case Domain:
		if o.at != begins {
			return errors.New("a second domain in one stream")
		}
		o.domain, o.at = r, static
		return nil
	case EmulatorStore, EmulatorContext:
		if o.at == begins || o.domain.Type == PV {
			return errors.New("only an HVM domain has an emulator, and it comes first")
		}
		return nil
	case End:
		if o.at != outside {
			return errors.New("the stream ends without a whole domain")
		}
		o.at = over
		return nil
	case CheckpointEnd:
		if o.at != between {
			return errors.New("it ends a checkpoint that has not begun")
		}
		o.at = memory
		return nil
	}
	return o.takeLibxc(rec)
}

func (o *order) takeLibxc(rec Record) error {
	switch r := rec.(type) {
	case PVInfo:
		if o.pv != (PVInfo{}) {
			return errors.New("a second one")
		}
		o.pv = r
		return errors.Join(o.isStatic(), o.isOf(PV))
	case CPUIDPolicy, MSRPolicy, StaticDataEnd:
		if o.domain.Version < 3 {
			return errors.New("an image of version 2 has none")
		}
		err := o.isStatic()
		if _, ends := rec.(StaticDataEnd); ends {
			err = errors.Join(err, o.endStatic())
		}
		return err
	}
	if o.at == static {
		if o.domain.Version >= 3 {
			return errors.New("it comes before STATIC_DATA_END")
		}
		if err := o.endStatic(); err != nil {
			return err
		}
	}
	switch r := rec.(type) {
	case P2MFrames:
		if err := o.isOf(PV); err != nil {
			return err
		}
		if o.pv == (PVInfo{}) {
			return errors.New("it comes behind what it belongs to")
		}
		o.frames = true
		return r.check(o.pv.Width)
	case Pages, Verify:
		if o.domain.Type == PV && !o.frames {
			return errors.New("it comes before X86_PV_P2M_FRAMES")
		}
	case SharedInfo:
		o.whole.shared = true
		return o.isOf(PV)
	case VCPU:
		o.whole.vcpu = o.whole.vcpu || r.Part == VCPUBasic
		return o.isOf(PV)
	case HVMContext:
		o.whole.context = true
		return o.isOf(HVM)
	case HVMParams:
		return o.isOf(HVM)
	case Checkpoint:
		if !o.bare {
			o.at = between
		}
		return o.isWhole()
	case DomainEnd:
		if o.at = outside; o.bare {
			o.at = over
		}
		return o.isWhole()
	}
	return nil
}

func (o *order) isStatic() error {
	if o.at != static {
		return errors.New("static data comes before all else")
	}
	return nil
}

func (o *order) endStatic() error {
	if o.domain.Type == PV && o.pv == (PVInfo{}) {
		return errors.New("the static data of a PV domain lacks X86_PV_INFO")
	}
	o.at = memory
	return nil
}

func (o *order) isOf(t DomainType) error {
	if o.domain.Type != t {
		return fmt.Errorf("the domain is %s, and only a domain of type %s has one", o.domain.Type, t)
	}
	return nil
}

// isWhole makes sure that a domain could go on from here.
func (o *order) isWhole() error {
	seen := o.whole
	o.whole = whole{}
	switch {
	case o.domain.Type == HVM && !seen.context:
		return errors.New("HVM_CONTEXT is missing")
	case o.domain.Type == PV && !seen.shared:
		return errors.New("SHARED_INFO is missing")
	case o.domain.Type == PV && !seen.vcpu:
		return errors.New("no processor's X86_PV_VCPU_BASIC is there")
	}
	return nil
}
