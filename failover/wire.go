package failover

// wire.go: the bytes of the ownership protocol. A connection carries frames in
// both directions; requests and answers are matched by id, in any order.
//
//	offset  bytes  what
//	0       4      length n of what follows, big endian, 10 to MaxFrame
//	4       1      version, 1
//	5       1      kind
//	6       8      id, big endian: chosen by the caller, repeated in the answer
//	14      n-10   JSON of a request or an answer; empty for a cancel
//
// A frame that breaks a bound ends the connection: the two ends no longer
// agree where frames begin.

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"understudy/epoch"
	"understudy/ownership"
)

const (
	// MaxFrame bounds the part of a frame behind its length field, in bytes.
	MaxFrame    = 64 << 10
	wireVersion = 1
	frameHead   = 14
	// maxTimeout bounds how long a request may wait at the leader.
	maxTimeout = time.Hour
)

type kind uint8

const (
	kindRenew   kind = 1 // Guest, Generation
	kindPropose kind = 2 // Command, Session
	kindRead    kind = 3 // Guest
	kindSession kind = 4 // Guest, From, Session
	kindConfirm kind = 5 // Term: are you in the term I lead?
	kindLease   kind = 6 // Lease
	kindStatus  kind = 8 // how far does your log go? (admit.go)
	kindMembers kind = 9 // Step, Host: who votes? (members.go)
	kindCancel  kind = 7 // the caller of this id has given up; no answer
	kindAnswer  kind = 128
)

// request is the body of every request; each kind uses the fields named above.
type request struct {
	// Origin is the voter a relaying voter got the request from, verified by
	// the relay's own connection. Empty: the connection's peer itself.
	Origin ownership.HostID `json:"origin,omitempty"`
	// Relay asks a voter that does not lead to pass the request on.
	Relay   bool          `json:"relay,omitempty"`
	Timeout time.Duration `json:"timeout"` // how long the caller waits, ns

	Guest      string             `json:"guest,omitempty"`
	Generation epoch.Generation   `json:"generation,omitempty"`
	Command    *ownership.Command `json:"command,omitempty"`
	From       session            `json:"from,omitzero"`
	Session    session            `json:"session,omitzero"`
	Term       uint64             `json:"term,omitempty"`
	Lease      time.Duration      `json:"lease,omitempty"`
	Step       step               `json:"step,omitempty"`
	Host       ownership.HostID   `json:"host,omitempty"`
}

type code string

const (
	codeOK code = "ok"
	// codeNotLeader: nothing was done; Leader is a hint.
	codeNotLeader code = "not-leader"
	// codeRefused: by the rules, for good. Nothing was done.
	codeRefused code = "refused"
	// codeVoid: the proposal's session is over, it will never apply.
	codeVoid code = "void"
	// codeLater: nothing was done now; it may work later.
	codeLater code = "later"
	// codeUnknown: it may have been done, or may yet be.
	codeUnknown code = "unknown"
)

type answer struct {
	Code    code             `json:"code"`
	Text    string           `json:"text,omitempty"`
	Leader  ownership.HostID `json:"leader,omitempty"`
	State   ownership.Guest  `json:"state,omitzero"`
	Session session          `json:"session,omitzero"`
	Lease   time.Duration    `json:"lease,omitempty"` // ns
	Term    uint64           `json:"term,omitempty"`
	Index   uint64           `json:"index,omitempty"`
	// Of a status: Waits, it has not been admitted; Knows, the configuration
	// there has the host that was asked about.
	Waits   bool     `json:"waits,omitempty"`
	Knows   bool     `json:"knows,omitempty"`
	Members []Member `json:"members,omitempty"`
}

func (r request) check(k kind) error {
	if r.Timeout <= 0 || r.Timeout > maxTimeout {
		return fmt.Errorf("timeout %s is not between 0 and %s", r.Timeout, maxTimeout)
	}
	if len(r.Origin) > maxName {
		return fmt.Errorf("origin of %d bytes, at most %d", len(r.Origin), maxName)
	}
	switch k {
	case kindRenew, kindRead, kindSession:
		return checkName("guest", r.Guest)
	case kindPropose:
		if r.Command == nil {
			return fmt.Errorf("a proposal without a command")
		}
		return checkCommand(*r.Command)
	case kindLease:
		if r.Lease < ownership.MinLease || r.Lease > ownership.MaxLease {
			return fmt.Errorf("lease %s is not between %s and %s", r.Lease, ownership.MinLease, ownership.MaxLease)
		}
	case kindMembers:
		if r.Step != stepList {
			return checkName("host", string(r.Host))
		}
	case kindConfirm, kindStatus:
		if r.Host != "" {
			return checkName("host", string(r.Host))
		}
	default:
		return fmt.Errorf("unknown kind of request %d", k)
	}
	return nil
}

// frame is one frame as read: its body is not yet decoded.
type frame struct {
	kind kind
	id   uint64
	body []byte
}

// encodeFrame returns the bytes of a frame; a nil body is empty.
func encodeFrame(k kind, id uint64, body any) ([]byte, error) {
	b := make([]byte, frameHead, 512)
	if body != nil {
		j, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encode a frame: %w", err)
		}
		b = append(b, j...)
	}
	if len(b)-4 > MaxFrame {
		return nil, fmt.Errorf("a frame of %d bytes, at most %d", len(b)-4, MaxFrame)
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	b[4], b[5] = wireVersion, byte(k)
	binary.BigEndian.PutUint64(b[6:], id)
	return b, nil
}

// readFrame reads one frame. io.EOF means a clean end between frames.
func readFrame(r io.Reader) (frame, error) {
	var head [frameHead]byte
	if _, err := io.ReadFull(r, head[:4]); err != nil {
		return frame{}, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n < frameHead-4 || n > MaxFrame {
		return frame{}, fmt.Errorf("a frame of %d bytes, want %d to %d", n, frameHead-4, MaxFrame)
	}
	if _, err := io.ReadFull(r, head[4:]); err != nil {
		return frame{}, noEOF(err)
	}
	if head[4] != wireVersion {
		return frame{}, fmt.Errorf("a frame of version %d, this program speaks version %d", head[4], wireVersion)
	}
	f := frame{kind: kind(head[5]), id: binary.BigEndian.Uint64(head[6:]), body: make([]byte, n-(frameHead-4))}
	if _, err := io.ReadFull(r, f.body); err != nil {
		return frame{}, noEOF(err)
	}
	return f, nil
}

// noEOF makes an end within a frame an error.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func decodeRequest(f frame) (request, error) {
	var r request
	if err := decodeJSON(f.body, &r); err != nil {
		return r, fmt.Errorf("request of kind %d: %w", f.kind, err)
	}
	return r, r.check(f.kind)
}

func decodeAnswer(f frame) (answer, error) {
	var a answer
	if f.kind != kindAnswer {
		return a, fmt.Errorf("a frame of kind %d where an answer was due", f.kind)
	}
	if err := decodeJSON(f.body, &a); err != nil {
		return a, fmt.Errorf("answer: %w", err)
	}
	if len(a.Members) > 2*maxPeers {
		return a, fmt.Errorf("answer: %d members, at most %d", len(a.Members), 2*maxPeers)
	}
	if a.Code == "" || len(a.Leader) > maxName || a.Lease < 0 || a.Lease > ownership.MaxLease {
		return a, fmt.Errorf("answer: code %q, leader of %d bytes, lease %s", a.Code, len(a.Leader), a.Lease)
	}
	return a, nil
}
