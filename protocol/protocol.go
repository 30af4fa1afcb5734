// Package protocol holds the messages that a primary and a backup exchange
// over a replication session (package transport carries them, in order and
// checksummed; PROTOCOL.md has the byte tables and the state diagram).
//
//	primary                                backup
//	  Hello ──────────────────────────────>
//	        <────────────────────────────── Welcome | Refuse
//	  Begin, Chunk…, End  (one epoch) ────>
//	        <────────────────────────────── Ack | Refuse
//	  Hashes ─────────────────────────────>           (disks.go)
//	        <────────────────────────────── Differs
//	  Patience ───────────────────────────>           (patience.go)
//	        <────────────────────────────── Patient
//
// The two messages that open a session are JSON, bounded by MaxHello, because
// they are rare and must be able to grow; everything in the epoch loop is
// fixed-size binary, little endian.
package protocol

import (
	"encoding/binary"
	"encoding/json"
	"fmt"

	"understudy/epoch"
	"understudy/hypervisor"
	"understudy/ownership"
)

// Version is the protocol version; both sides must speak the same.
const Version = 2

// Message kinds on a session.
const (
	KindHello   uint8 = 1 // primary → backup: who I am, what I can continue from
	KindWelcome uint8 = 2 // backup → primary: what my image holds
	KindRefuse  uint8 = 3 // backup → primary: no, and why; the session ends
	KindBegin   uint8 = 4 // primary → backup: an epoch's header
	KindChunk   uint8 = 5 // primary → backup: records of the epoch
	KindEnd     uint8 = 6 // primary → backup: the epoch's trailer
	KindAck     uint8 = 7 // backup → primary: committed
	KindHashes  uint8 = 8 // primary → backup: hashes of chunks of a disk
	KindDiffers uint8 = 9 // backup → primary: which of those chunks differ there

	KindPatience uint8 = 10 // primary → backup: I shall be away for a while (patience.go)
	KindPatient  uint8 = 11 // backup → primary: I wait that long
)

const (
	// MaxHello bounds Hello and Welcome, in bytes: the machine's Spec, base64
	// in JSON, and some room for the rest. It travels in pieces, see Pieces.
	MaxHello = hypervisor.MaxSpec/3*4 + 1<<16
	// MaxKnown bounds Hello.Known.
	MaxKnown = 64
	// MaxReason bounds the text of a Refuse, in bytes.
	MaxReason = 4096
)

// Hello opens a session.
type Hello struct {
	Version    int              `json:"version"`
	Guest      string           `json:"guest"`
	Host       ownership.HostID `json:"host"`
	Generation epoch.Generation `json:"generation"`
	Spec       hypervisor.Spec  `json:"spec"`
	// Known lists the positions the primary can continue from, because it
	// still knows every page that changed since. If the backup's image is at
	// none of them, it makes a new image.
	Known []epoch.Position `json:"known"`
	// PrintKey is the key of the fingerprints in references.
	PrintKey epoch.PrintKey `json:"print_key"`
	// Disks are the guest's disks, in the order of epoch.DiskID, at most
	// epoch.MaxDisks.
	Disks []DiskSpec `json:"disks"`
}

// Welcome answers Hello.
type Welcome struct {
	Version int `json:"version"`
	// At is where the backup's image stands; the first epoch must have it as
	// its parent. Number zero is a new, empty image.
	At epoch.Position `json:"at"`
	// Whole says that the last epoch committed was a checkpoint, so that the
	// image could be activated now.
	Whole bool `json:"whole"`
	// Boot are the files that the guest was started with, as the backup has them,
	// at most epoch.MaxDisks: only to those that the primary has, too, may a
	// reference be made.
	Boot []epoch.BootFile `json:"boot,omitempty"`
}

// EncodeHello returns the message's bytes.
func EncodeHello(h Hello) ([]byte, error) { return json.Marshal(h) }

// ParseHello reads and checks a Hello.
func ParseHello(b []byte) (Hello, error) {
	var h Hello
	if err := parse("hello", b, &h); err != nil {
		return Hello{}, err
	}
	switch {
	case h.Version != Version:
		return Hello{}, fmt.Errorf("hello: the peer speaks protocol version %d, this host version %d: run the same release on both", h.Version, Version)
	case h.Guest == "" || len(h.Guest) > 64:
		return Hello{}, fmt.Errorf("hello: guest name of %d bytes", len(h.Guest))
	case h.Generation == 0:
		return Hello{}, fmt.Errorf("hello: generation 0")
	case h.Spec.Pages == 0 || h.Spec.Pages > MaxPages:
		return Hello{}, fmt.Errorf("hello: image of %d pages (at most %d)", h.Spec.Pages, uint64(MaxPages))
	case len(h.Spec.Machine) > hypervisor.MaxSpec:
		return Hello{}, fmt.Errorf("hello: machine description of %d bytes (at most %d)", len(h.Spec.Machine), hypervisor.MaxSpec)
	case len(h.Known) > MaxKnown:
		return Hello{}, fmt.Errorf("hello: %d known positions (at most %d)", len(h.Known), MaxKnown)
	}
	if err := checkDisks(h.Disks); err != nil {
		return Hello{}, err
	}
	return h, nil
}

// MaxPages bounds the size of an image: 4 TiB.
const MaxPages = 4 << 40 / epoch.PageSize

// EncodeWelcome returns the message's bytes.
func EncodeWelcome(w Welcome) ([]byte, error) { return json.Marshal(w) }

// ParseWelcome reads and checks a Welcome.
func ParseWelcome(b []byte) (Welcome, error) {
	var w Welcome
	if err := parse("welcome", b, &w); err != nil {
		return Welcome{}, err
	}
	if w.Version != Version {
		return Welcome{}, fmt.Errorf("welcome: the peer speaks protocol version %d, this host version %d", w.Version, Version)
	}
	if w.At.Image.IsZero() {
		return Welcome{}, fmt.Errorf("welcome: no image named")
	}
	if len(w.Boot) > epoch.MaxDisks {
		return Welcome{}, fmt.Errorf("welcome: %d boot files (at most %d)", len(w.Boot), epoch.MaxDisks)
	}
	return w, nil
}

func parse(what string, b []byte, into any) error {
	if len(b) > MaxHello {
		return fmt.Errorf("%s: %d bytes (at most %d)", what, len(b), MaxHello)
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// Verify asks for the hash of a range of the image after an epoch's commit.
// Count zero asks for nothing.
type Verify struct {
	First epoch.GFN
	Count uint64
}

// verifySize is the size of Verify ahead of the header in a Begin.
const verifySize = 16

// AppendBegin appends a Begin: Verify.First u64, Verify.Count u64, then the
// epoch's header as package epoch encodes it.
func AppendBegin(dst []byte, v Verify, header []byte) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, uint64(v.First))
	dst = binary.LittleEndian.AppendUint64(dst, v.Count)
	return append(dst, header...)
}

// ParseBegin splits a Begin. The range is checked against the image's size;
// the header is left to package epoch.
func ParseBegin(b []byte, pages uint64) (Verify, []byte, error) {
	if len(b) < verifySize {
		return Verify{}, nil, fmt.Errorf("begin: %d bytes, want at least %d", len(b), verifySize)
	}
	v := Verify{First: epoch.GFN(binary.LittleEndian.Uint64(b)), Count: binary.LittleEndian.Uint64(b[8:])}
	if uint64(v.First) > pages || v.Count > pages-uint64(v.First) {
		return Verify{}, nil, fmt.Errorf("begin: verify of frames %d+%d outside an image of %d pages", v.First, v.Count, pages)
	}
	return v, b[verifySize:], nil
}

// Ack says that the backup holds everything up to At.
type Ack struct {
	At epoch.Position
	// Verified is the hash of the range that Begin asked for; HasHash says
	// whether there is one.
	HasHash  bool
	Verified epoch.Hash
	// Materialised is the newest epoch up to which every reference is filled, at
	// most At.Number.
	Materialised epoch.Number
}

// AckSize is the size of an Ack: image 16, number u64, running 16, flag u8,
// hash 16, materialised u64.
const AckSize = 16 + 8 + 16 + 1 + 16 + 8

// AppendAck appends an Ack.
func AppendAck(dst []byte, a Ack) []byte {
	dst = append(dst, a.At.Image[:]...)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(a.At.Number))
	dst = append(dst, a.At.Running[:]...)
	if a.HasHash {
		dst = append(dst, 1)
	} else {
		dst = append(dst, 0)
	}
	dst = append(dst, a.Verified[:]...)
	return binary.LittleEndian.AppendUint64(dst, uint64(a.Materialised))
}

// ParseAck reads an Ack.
func ParseAck(b []byte) (Ack, error) {
	var a Ack
	if len(b) != AckSize {
		return a, fmt.Errorf("ack: %d bytes, want %d", len(b), AckSize)
	}
	copy(a.At.Image[:], b)
	a.At.Number = epoch.Number(binary.LittleEndian.Uint64(b[16:]))
	copy(a.At.Running[:], b[24:])
	switch b[40] {
	case 0:
	case 1:
		a.HasHash = true
	default:
		return Ack{}, fmt.Errorf("ack: flag %d", b[40])
	}
	copy(a.Verified[:], b[41:])
	if a.Materialised = epoch.Number(binary.LittleEndian.Uint64(b[57:])); a.Materialised > a.At.Number {
		return Ack{}, fmt.Errorf("ack: epoch %d is materialised, of %d acknowledged", a.Materialised, a.At.Number)
	}
	return a, nil
}

// ParseRefuse returns the peer's reason, shortened and with control characters
// escaped, since it goes into our log.
func ParseRefuse(b []byte) string {
	if len(b) > MaxReason {
		b = b[:MaxReason]
	}
	q := fmt.Sprintf("%q", b)
	return q[1 : len(q)-1]
}
