package failover

// snapshot.go: the whole state in bytes.
//
//	offset  bytes  what
//	0       8      "usowner1": the 1 is the version
//	8       4      length n of the rest, big endian
//	12      4      CRC-32C of the rest
//	16      n      JSON of a snapshot

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"

	"understudy/failover/leases"
	"understudy/ownership"
)

const (
	snapshotMagic = "usowner1"
	// maxSnapshot holds maxGuests records with a full history and twice as
	// much.
	maxSnapshot = 16 << 20
)

type snapshot struct {
	Lease  leases.Lengths     `json:"lease"`
	Guests map[string]*record `json:"guests"`
}

func encodeSnapshot(s snapshot) ([]byte, error) {
	body, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode the ownership log's snapshot: %w", err)
	}
	b := append(make([]byte, 0, 16+len(body)), snapshotMagic...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(body, castagnoli))
	return append(b, body...), nil
}

func decodeSnapshot(b []byte) (snapshot, error) {
	var s snapshot
	fail := func(format string, a ...any) (snapshot, error) {
		return snapshot{}, fmt.Errorf("ownership log's snapshot: "+format, a...)
	}
	switch {
	case len(b) > maxSnapshot:
		return fail("longer than %d bytes", maxSnapshot)
	case len(b) < 16 || string(b[:8]) != snapshotMagic:
		return fail("it does not begin with %q: not a snapshot, or of another version", snapshotMagic)
	}
	body := b[16:]
	if n := binary.BigEndian.Uint32(b[8:]); uint64(n) != uint64(len(body)) {
		return fail("%d bytes, its head says %d", len(body), n)
	}
	if got, want := crc32.Checksum(body, castagnoli), binary.BigEndian.Uint32(b[12:]); got != want {
		return fail("damaged: checksum %08x, want %08x", got, want)
	}
	if err := decodeJSON(body, &s); err != nil {
		return fail("%w", err)
	}
	if len(s.Guests) > maxGuests {
		return fail("%d guests, at most %d", len(s.Guests), maxGuests)
	}
	if l := s.Lease; l.Length < 0 || l.Length > ownership.MaxLease || l.Longest < l.Length || l.Longest > ownership.MaxLease {
		return fail("lease %s, longest %s", l.Length, l.Longest)
	}
	if s.Guests == nil {
		s.Guests = map[string]*record{}
	}
	for name, r := range s.Guests {
		switch {
		case checkName("guest", name) != nil || r == nil:
			return fail("guest %.40q: no name or no record", name)
		case len(r.Recent) > history || uint64(len(r.Recent)) > r.State.Revision || len(r.Sessions) > maxHosts:
			return fail("guest %s: %d commands for %d revisions, %d sessions", name, len(r.Recent), r.State.Revision, len(r.Sessions))
		case !r.State.Protection.Known():
			return fail("guest %s: protection %.40q is not known", name, r.State.Protection)
		case r.State.Revision > 0 && (len(r.Recent) == 0 || r.Recent[len(r.Recent)-1] != r.State.LastCommand):
			return fail("guest %s: its history does not end with its last command", name)
		}
	}
	return s, nil
}
