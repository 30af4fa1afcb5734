package failover

// entry.go: what stands in the raft log. An entry is
//
//	offset  bytes  what
//	0       1      version, 1
//	1       4      CRC-32C of the rest, big endian
//	5       n      JSON of an entry, at most maxEntry bytes
//
// The checksum is there because bolt has none: a voter whose disk has decayed
// must stop, not apply something else than the others.

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"understudy/ownership"
)

const (
	entryVersion = 1
	maxEntry     = 32 << 10
	maxName      = 128 // bytes of a guest's or a host's name
)

type entryKind string

const (
	// entryCommand: Command, by Command.Host, in its Session.
	entryCommand entryKind = "command"
	// entrySession: Host goes on from session From to session To for Guest.
	// Every command of an earlier session that comes later is void.
	entrySession entryKind = "session"
	// entryLease: the lease is Lease from here on.
	entryLease entryKind = "lease"
	// entrySettle: no lease of an earlier, longer length can be alive any more.
	entrySettle entryKind = "settle"
)

// session numbers a host's proposals for one guest; the nonce tells apart two
// attempts at the same number.
type session struct {
	Number uint64 `json:"number"`
	Nonce  uint64 `json:"nonce"`
}

type entry struct {
	Kind    entryKind          `json:"kind"`
	Command *ownership.Command `json:"command,omitempty"`
	Session session            `json:"session,omitzero"`
	// Guest, Host, From: of a session entry.
	Guest string           `json:"guest,omitempty"`
	Host  ownership.HostID `json:"host,omitempty"`
	From  session          `json:"from,omitzero"`
	// Lease, Revision: of a lease or settle entry, conditional on the revision.
	Lease    time.Duration `json:"lease,omitempty"`
	Revision uint64        `json:"revision,omitempty"`
}

// by is the host whose entry it is, "" if it is the leader's own.
func (e entry) by() ownership.HostID {
	if e.Command != nil {
		return e.Command.Host
	}
	return e.Host
}

func (e entry) check() error {
	switch e.Kind {
	case entryCommand:
		if e.Command == nil {
			return errors.New("a command entry without a command")
		}
		return checkCommand(*e.Command)
	case entrySession:
		return errors.Join(checkName("guest", e.Guest), checkName("host", string(e.Host)))
	case entryLease:
		if e.Lease < ownership.MinLease || e.Lease > ownership.MaxLease {
			return fmt.Errorf("lease %s is not between %s and %s", e.Lease, ownership.MinLease, ownership.MaxLease)
		}
	case entrySettle:
	default:
		return fmt.Errorf("unknown kind %q", e.Kind)
	}
	return nil
}

func checkCommand(c ownership.Command) error {
	if c.ID == (ownership.CommandID{}) {
		return errors.New("a command without an ID")
	}
	if len(c.Target) > maxName {
		return fmt.Errorf("target of %d bytes, at most %d", len(c.Target), maxName)
	}
	return errors.Join(checkName("guest", c.Guest), checkName("host", string(c.Host)))
}

func checkName(what, name string) error {
	if name == "" || len(name) > maxName {
		return fmt.Errorf("%s name of %d bytes, want 1 to %d", what, len(name), maxName)
	}
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func encodeEntry(e entry) ([]byte, error) {
	if err := e.check(); err != nil {
		return nil, err
	}
	body, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode a log entry: %w", err)
	}
	if len(body) > maxEntry {
		return nil, fmt.Errorf("a log entry of %d bytes, at most %d", len(body), maxEntry)
	}
	b := make([]byte, 5, 5+len(body))
	b[0] = entryVersion
	binary.BigEndian.PutUint32(b[1:], crc32.Checksum(body, castagnoli))
	return append(b, body...), nil
}

func decodeEntry(b []byte) (entry, error) {
	var e entry
	switch {
	case len(b) < 5:
		return e, fmt.Errorf("log entry of %d bytes is too short", len(b))
	case len(b) > 5+maxEntry:
		return e, fmt.Errorf("log entry of %d bytes, at most %d", len(b), 5+maxEntry)
	case b[0] != entryVersion:
		return e, fmt.Errorf("log entry of version %d, this program knows version %d", b[0], entryVersion)
	}
	if got, want := crc32.Checksum(b[5:], castagnoli), binary.BigEndian.Uint32(b[1:]); got != want {
		return e, fmt.Errorf("log entry is damaged: checksum %08x, want %08x", got, want)
	}
	if err := decodeJSON(b[5:], &e); err != nil {
		return e, fmt.Errorf("log entry: %w", err)
	}
	return e, e.check()
}

// decodeJSON accepts exactly one JSON value and no unknown field: a voter that
// skipped what it does not know would diverge from the others.
func decodeJSON(b []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("bytes after the end of the value")
	}
	return nil
}
