package store

// This file is the record beside a disk: who wrote it last, in which generation,
// its write stamp, its pins. It is read when a host becomes the writer and
// replaced as a whole, by the writer only:
//
//	write the new one under another name ── fsync ── rename ── fsync the directory
//
// so that after a crash at any point there is the old record or the new one.

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"understudy/epoch"
)

// RecordSuffix is what is added to a disk's path for its record.
const RecordSuffix = ".understudy"

const (
	recordVersion = 1
	maxRecord     = 64 << 10 // bytes
	maxPins       = 64
)

// Record is what is known of a disk beside its bytes.
type Record struct {
	Version    int              `json:"version"`
	Generation epoch.Generation `json:"generation"`
	Owner      string           `json:"owner"` // host that was the writer last
	Stamp      Stamp            `json:"stamp"`
	Since      time.Time        `json:"since"` // when it became the writer
	// Complete: a replicated disk's copy is known to be whole (SetComplete).
	Complete bool        `json:"complete"`
	Pins     []PinRecord `json:"pins,omitempty"`
	// Rolling: a rollback to this pin was begun and has not ended; the disk is
	// neither what it was nor what it is to be (AcquireTorn).
	Rolling PinID `json:"rolling,omitzero"`
}

// PinRecord names an armed pin.
type PinRecord struct {
	ID     PinID  `json:"id"`
	Path   string `json:"path"`
	Broken string `json:"broken,omitempty"` // why old content is missing from it
}

// ParseRecord reads a record and refuses what is not exactly one.
func ParseRecord(data []byte) (Record, error) {
	var r Record
	if len(data) > maxRecord {
		return r, fmt.Errorf("more than %d bytes", maxRecord)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(&r); err != nil {
		return Record{}, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Record{}, errors.New("something follows the record")
	}
	switch {
	case r.Version != recordVersion:
		return Record{}, fmt.Errorf("version %d: this program knows %d", r.Version, recordVersion)
	case r.Stamp == Stamp{}:
		return Record{}, errors.New("it has no write stamp")
	case len(r.Pins) > maxPins:
		return Record{}, fmt.Errorf("%d pins: at most %d", len(r.Pins), maxPins)
	}
	for i, p := range r.Pins {
		if p.ID == (PinID{}) || !filepath.IsAbs(p.Path) {
			return Record{}, fmt.Errorf("pin %d has no name or no absolute path", i)
		}
	}
	return r, nil
}

// sidecar is the record's file.
type sidecar struct {
	path string
	own  bool // its directory holds records alone, and is made
	// step is called before each step of a replacement; a test ends it there.
	step func(name string) error
}

func sidecarOf(disk, stateDir string, block bool) (sidecar, error) {
	if !block {
		return sidecar{path: disk + RecordSuffix}, nil
	}
	if stateDir == "" {
		return sidecar{}, errors.New("a block device's record needs a state directory")
	}
	name := strings.ReplaceAll(strings.ReplaceAll(strings.Trim(disk, "/"), "%", "%25"), "/", "%2F")
	return sidecar{path: filepath.Join(stateDir, name+RecordSuffix), own: true}, nil
}

// load returns the record, or an error that is fs.ErrNotExist if there is none.
func (s *sidecar) load() (Record, error) {
	file, err := os.Open(s.path)
	if err != nil {
		return Record{}, fmt.Errorf("disk's record: %w", err)
	}
	defer func() { _ = file.Close() }() // only read
	data, err := io.ReadAll(io.LimitReader(file, maxRecord+1))
	if err != nil {
		return Record{}, fmt.Errorf("disk's record %s: %w", s.path, err)
	}
	r, err := ParseRecord(data)
	if err != nil {
		return Record{}, fmt.Errorf("disk's record %s is not valid: %w; if the disk is known to be good, remove the record", s.path, err)
	}
	return r, nil
}

// save replaces the record durably. Only the disk's writer does so, so that one
// temporary name is enough.
func (s *sidecar) save(r Record) error {
	if err := s.replace(r); err != nil {
		return fmt.Errorf("replace the disk's record %s: %w", s.path, err)
	}
	return nil
}

func (s *sidecar) replace(r Record) error {
	r.Version = recordVersion
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	data = append(data, '\n')
	if _, err := ParseRecord(data); err != nil {
		return err // what could not be read again is not written
	}
	if err := s.at("create"); err != nil {
		return err
	}
	if s.own {
		if err := makeDir(filepath.Dir(s.path)); err != nil {
			return err
		}
	}
	tmp := s.path + ".new"
	file, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	err = s.at("write")
	if err == nil {
		_, err = file.Write(data)
	}
	if err == nil {
		err = s.at("sync")
	}
	if err == nil {
		err = file.Sync()
	}
	if cerr := file.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := s.at("rename"); err != nil {
		return err
	}
	if err := os.Rename(tmp, s.path); err != nil {
		return err
	}
	if err := s.at("sync directory"); err != nil {
		return err
	}
	return syncDir(filepath.Dir(s.path))
}

func (s *sidecar) at(name string) error {
	if s.step == nil {
		return nil
	}
	return s.step(name)
}

// makeDir makes a directory, durably, if it is not there.
func makeDir(path string) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	if err := makeDir(filepath.Dir(path)); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	err = dir.Sync()
	if cerr := dir.Close(); err == nil {
		err = cerr
	}
	return err
}

// adopt takes the record over from whoever wrote it last, and the pins it names.
// The lock is held, and the gate.
func (f *File) adopt() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.known {
		return nil
	}
	r, err := f.side.load()
	if errors.Is(err, fs.ErrNotExist) {
		r = Record{Stamp: newStamp(), Owner: f.cfg.Host, Since: time.Now().UTC()}
		err = f.saveLocked(r)
	}
	if err != nil {
		return err
	}
	// Whether the stamp was given out was known to the process that did.
	f.record, f.known = r, true
	f.pristine.Store(true)
	return f.resumePins()
}

// save makes r the record, durably.
func (f *File) save(r Record) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.saveLocked(r)
}

func (f *File) saveLocked(r Record) error {
	r.Pins = append([]PinRecord(nil), r.Pins...)
	if err := f.side.save(r); err != nil {
		return err
	}
	f.record = r
	return nil
}

// Record returns what is known of the disk: what this host as its writer has
// recorded, or what the file says now.
func (f *File) Record() (Record, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.known {
		r := f.record
		r.Pins = append([]PinRecord(nil), r.Pins...)
		return r, nil
	}
	return f.side.load()
}

// SetComplete records whether a replicated disk's copy is known to be whole. It
// makes the copy durable before it says that it is.
func (f *File) SetComplete(complete bool) error {
	if complete {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.known {
		return fmt.Errorf("disk %s: %w", f.cfg.Path, ErrNotWriter)
	}
	if f.record.Complete == complete {
		return nil
	}
	next := f.record
	next.Complete = complete
	return f.saveLocked(next)
}

// parseHex16 fills dst from its hexadecimal text.
func parseHex16(dst *[16]byte, text []byte, what string) error {
	if hex.DecodedLen(len(text)) != len(dst) {
		return fmt.Errorf("%s of %d characters: want %d", what, len(text), hex.EncodedLen(len(dst)))
	}
	_, err := hex.Decode(dst[:], text)
	return err
}
