package stream

// This file is libxl's format: its header, and the bodies of its records.

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
)

const (
	headerID        = 0x4c6962786c466d74 // "LibxlFmt"
	headerVersion   = 2
	headerBigEndian = 1
	headerLen       = 16
)

// parseHeader reads the header of a libxl stream.
func parseHeader(b []byte) error {
	switch {
	case be.Uint64(b) != headerID:
		return fmt.Errorf("it begins with %x: this is no libxl stream", b[:8])
	case be.Uint32(b[8:]) != headerVersion:
		return fmt.Errorf("a libxl stream of version %d: only %d is known", be.Uint32(b[8:]), headerVersion)
	case be.Uint32(b[12:])&headerBigEndian != 0:
		return errors.New("a big-endian stream: only little-endian ones are known")
	}
	return nil
}

func appendHeader(dst []byte) []byte {
	dst = be.AppendUint64(dst, headerID)
	dst = be.AppendUint32(dst, headerVersion)
	return be.AppendUint32(dst, 0)
}

// parseLibxl makes a record of a libxl record's body. Of LIBXC_CONTEXT the
// caller reads the headers that follow.
func parseLibxl(number uint32, b []byte) (Record, error) {
	switch number {
	case libxlEnd:
		return End{}, empty(b)
	case libxlLibxcContext:
		return Domain{}, empty(b)
	case libxlCheckpointEnd:
		return CheckpointEnd{}, empty(b)
	case libxlEmulatorStore, libxlEmulatorContext:
		if len(b) < 8 {
			return nil, fmt.Errorf("%d bytes, want at least 8", len(b))
		}
		e := Emulator{EmulatorID(le.Uint32(b)), le.Uint32(b[4:])}
		if err := e.check(); err != nil {
			return nil, err
		}
		if number == libxlEmulatorContext {
			return EmulatorContext{e, b[8:]}, nil
		}
		pairs, err := parsePairs(b[8:])
		return EmulatorStore{e, pairs}, err
	case libxlCheckpointState:
		return nil, errors.New("COLO's records are not known here")
	}
	if number&optional != 0 {
		return Unknown{Libxl, number, b}, nil
	}
	return nil, errors.New("it is mandatory and not known here: the domain was saved by a newer Xen")
}

func (e Emulator) check() error {
	if e.ID > EmulatorQEMU {
		return fmt.Errorf("an emulator of kind %d: only 0 to %d are known", e.ID, EmulatorQEMU)
	}
	return nil
}

// maxPairs bounds what xenstore holds for a device model.
const maxPairs = 4096

// parsePairs reads keys and values, each ended by a zero byte.
func parsePairs(b []byte) ([]Pair, error) {
	var pairs []Pair
	for len(b) > 0 {
		key, rest, ok := bytes.Cut(b, []byte{0})
		value, after, also := bytes.Cut(rest, []byte{0})
		if !ok || !also {
			return nil, errors.New("a key or value without an end")
		}
		if len(pairs) == maxPairs {
			return nil, fmt.Errorf("more than %d keys", maxPairs)
		}
		pairs, b = append(pairs, Pair{string(key), string(value)}), after
		if err := pairs[len(pairs)-1].check(); err != nil {
			return nil, err
		}
	}
	return pairs, nil
}

// check holds a key to xenstore's characters, and keeps it below its path.
func (p Pair) check() error {
	for _, c := range []byte(p.Key) {
		if c != '-' && c != '/' && c != '_' && c != '@' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return fmt.Errorf("the key %.80q has characters that xenstore does not know", p.Key)
		}
	}
	if p.Key == "" || p.Key[0] == '/' || strings.Contains(p.Value, "\x00") {
		return fmt.Errorf("the key %.80q or its value cannot be stored below the device model's path", p.Key)
	}
	return nil
}

// appendLibxl appends the body of a libxl record.
func appendLibxl(dst []byte, rec Record) ([]byte, error) {
	switch r := rec.(type) {
	case Domain, CheckpointEnd, End:
		return dst, nil
	case EmulatorContext:
		return append(r.Emulator.append(dst), r.Context...), r.check()
	case EmulatorStore:
		dst = r.Emulator.append(dst)
		if len(r.Pairs) > maxPairs {
			return dst, fmt.Errorf("more than %d keys", maxPairs)
		}
		for _, p := range r.Pairs {
			if err := p.check(); err != nil {
				return dst, err
			}
			dst = append(append(dst, p.Key...), 0)
			dst = append(append(dst, p.Value...), 0)
		}
		return dst, r.check()
	}
	return dst, errors.New("only what is known here is written")
}

func (e Emulator) append(dst []byte) []byte {
	return le.AppendUint32(le.AppendUint32(dst, uint32(e.ID)), e.Index)
}
