package sim

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/zeebo/xxh3"

	"understudy/hypervisor"
)

// The device state, little endian, all of one length:
//
//	 0  "USIMDEV1"  8      32  heap sum            8
//	 8  pages       8      40  halted              8
//	16  step        8      48  system pages' sum   8
//	24  prng        8      56  xxh3 of 0…55        8
//
// The two sums cover every page of the image, so a state loads only over the
// very memory it was saved with.
const (
	stateMagic = "USIMDEV1"
	stateSize  = 64
)

func appendState(dst []byte, m *machine) []byte {
	at := len(dst)
	dst = append(dst, stateMagic...)
	for _, v := range [...]uint64{
		m.mem.pages(), m.regs.step, m.regs.prng, m.regs.heap, m.regs.halted, m.mem.sum(0, systemPages),
	} {
		dst = binary.LittleEndian.AppendUint64(dst, v)
	}
	return binary.LittleEndian.AppendUint64(dst, xxh3.Hash(dst[at:]))
}

// parseState checks a device state against the memory it is to run on.
func parseState(b []byte, mem *memory) (registers, error) {
	if len(b) != stateSize {
		return registers{}, fmt.Errorf("device state of %d bytes, want %d", len(b), stateSize)
	}
	if string(b[:8]) != stateMagic {
		return registers{}, fmt.Errorf("device state begins with %q, want %q", b[:8], stateMagic)
	}
	word := func(i int) uint64 { return binary.LittleEndian.Uint64(b[8+8*i:]) }
	if got, want := word(6), xxh3.Hash(b[:stateSize-8]); got != want {
		return registers{}, fmt.Errorf("device state has checksum %#x, its content makes %#x", got, want)
	}
	regs := registers{step: word(1), prng: word(2), heap: word(3), halted: word(4)}
	if word(0) != mem.pages() {
		return registers{}, fmt.Errorf("device state of a guest of %d pages, the image has %d", word(0), mem.pages())
	}
	if k := hypervisor.EventKind(regs.halted); k != 0 && k != hypervisor.EventShutdown && k != hypervisor.EventPanic {
		return registers{}, fmt.Errorf("device state halted by event %d, which does not halt", regs.halted)
	}
	if word(5) != mem.sum(0, systemPages) || regs.heap != mem.sum(systemPages, mem.pages()-systemPages) {
		return registers{}, fmt.Errorf("the image is not the memory that this device state (step %d) was saved with", regs.step)
	}
	return regs, nil
}

// machineSpec is what goes into Spec.Machine. What the guest does is not in
// it: that is in the image.
type machineSpec struct {
	Adapter string `json:"adapter"`
	Version int    `json:"version"`
	Name    string `json:"name"`
	MAC     string `json:"mac"`
	Disk    uint64 `json:"disk_blocks"` // 0 for none
}

const (
	adapterName = "sim"
	specVersion = 1
	maxSpec     = 4096 // bytes of a machineSpec
)

func specOf(cfg Config) machineSpec {
	s := machineSpec{Adapter: adapterName, Version: specVersion, Name: cfg.Name, MAC: cfg.MAC.String()}
	if cfg.Disk != nil {
		s.Disk = cfg.Disk.Blocks()
	}
	return s
}

func makeSpec(cfg Config) hypervisor.Spec {
	b, err := json.Marshal(specOf(cfg))
	if err != nil {
		panic(fmt.Sprintf("sim: encode a spec: %v", err)) // strings and numbers only
	}
	return hypervisor.Spec{Pages: cfg.Pages, Machine: b}
}

// checkSpec refuses a spec that is not of the machine cfg describes.
func checkSpec(cfg Config, spec hypervisor.Spec) error {
	if spec.Pages != cfg.Pages {
		return &hypervisor.Refusal{
			What:   fmt.Sprintf("the guest has %d pages, this host's configuration says %d", spec.Pages, cfg.Pages),
			Remedy: "set the same size on both hosts",
		}
	}
	got, err := parseSpec(spec.Machine)
	if err != nil {
		return &hypervisor.Refusal{What: err.Error(), Remedy: "run the same version with the same adapter on both hosts"}
	}
	if want := specOf(cfg); got != want {
		return &hypervisor.Refusal{
			What:   fmt.Sprintf("the guest is %+v, this host's configuration says %+v", got, want),
			Remedy: "give the guest the same name, MAC and disk on both hosts",
		}
	}
	return nil
}

func parseSpec(b []byte) (machineSpec, error) {
	var s machineSpec
	if len(b) > maxSpec {
		return s, fmt.Errorf("machine description of %d bytes, want at most %d", len(b), maxSpec)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return s, fmt.Errorf("machine description: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return s, errors.New("machine description: more bytes follow it")
	}
	return s, nil
}
