package host

// This file is what a checkpoint file says of the disks beyond their content:
// the state that disk.Set makes (requests in flight), and the writes that the
// guest was told of and that had not reached a disk. Little endian:
//
//	4  version, 1
//	4  bytes of the state, then the state
//	4  number of writes, then each of them:
//	   8 seq · 1 disk · 1 kind · 2 zero · 4 sectors · 8 sector · data, if it has any
//
// A guest without disks has no bytes at all.

import (
	"encoding/binary"
	"errors"
	"fmt"

	"understudy/checkpoint"
	"understudy/epoch"
)

const (
	disksVersion = 1
	writeHead    = 24
)

var errDisks = errors.New("the checkpoint file's state of the disks")

// carries reports whether a write has data, of Sectors sectors.
func carries(k epoch.WriteKind) bool { return k == epoch.WriteData }

func encodeDisks(state []byte, writes []epoch.DiskWrite) ([]byte, error) {
	if len(state) == 0 && len(writes) == 0 {
		return nil, nil
	}
	size := 12 + len(state)
	for i := range writes {
		size += writeHead + len(writes[i].Data)
	}
	if size > checkpoint.MaxDiskState {
		return nil, fmt.Errorf("%d bytes of the guest's writes have not reached its disks yet, a checkpoint file takes %d: save again when its disks have caught up", size, checkpoint.MaxDiskState)
	}
	b := make([]byte, 0, size)
	b = binary.LittleEndian.AppendUint32(b, disksVersion)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(state)))
	b = append(b, state...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(writes)))
	for i := range writes {
		w := &writes[i]
		b = binary.LittleEndian.AppendUint64(b, w.Seq)
		b = append(b, byte(w.Disk), byte(w.Kind), 0, 0)
		b = binary.LittleEndian.AppendUint32(b, w.Sectors)
		b = binary.LittleEndian.AppendUint64(b, w.Sector)
		if carries(w.Kind) {
			b = append(b, w.Data...)
		}
	}
	return b, nil
}

// Unwritten counts the writes that a checkpoint file says had not reached the guest's
// disks: without them the disks are not what the guest believes them to be.
func Unwritten(diskState []byte) (int, error) {
	_, writes, err := parseDisks(diskState)
	return len(writes), err
}

// parseDisks reads what encodeDisks made. What it returns points into b. Whether
// the disks can have such writes is for them to say.
func parseDisks(b []byte) (state []byte, writes []epoch.DiskWrite, err error) {
	if len(b) == 0 {
		return nil, nil, nil
	}
	take := func(n uint64, what string) []byte {
		if err == nil && n > uint64(len(b)) {
			err = fmt.Errorf("%w: ends in %s: %d bytes of %d are there", errDisks, what, len(b), n)
		}
		if err != nil {
			return make([]byte, min(n, writeHead))
		}
		var piece []byte
		piece, b = b[:n:n], b[n:]
		return piece
	}
	if v := binary.LittleEndian.Uint32(take(4, "the version")); err == nil && v != disksVersion {
		return nil, nil, fmt.Errorf("%w: version %d, this program knows %d", errDisks, v, disksVersion)
	}
	state = take(uint64(binary.LittleEndian.Uint32(take(4, "the length of the state"))), "the state")
	count := uint64(binary.LittleEndian.Uint32(take(4, "the number of writes")))
	if err == nil && count > uint64(len(b)/writeHead) {
		err = fmt.Errorf("%w: %d writes in %d bytes", errDisks, count, len(b))
	}
	if err != nil {
		return nil, nil, err
	}
	writes = make([]epoch.DiskWrite, 0, count)
	for range count {
		h := take(writeHead, "a write")
		w := epoch.DiskWrite{Seq: binary.LittleEndian.Uint64(h), Disk: epoch.DiskID(h[8]), Kind: epoch.WriteKind(h[9]),
			Sectors: binary.LittleEndian.Uint32(h[12:]), Sector: binary.LittleEndian.Uint64(h[16:])}
		if err == nil && (h[10] != 0 || h[11] != 0 || w.Kind == epoch.WriteSync) {
			err = fmt.Errorf("%w: a %v cannot be in it", errDisks, w.Kind)
		}
		if carries(w.Kind) {
			w.Data = take(uint64(w.Sectors)*epoch.SectorSize, "a write's data")
		}
		if err != nil {
			return nil, nil, err
		}
		writes = append(writes, w)
	}
	if len(b) > 0 {
		return nil, nil, fmt.Errorf("%w: %d bytes too many", errDisks, len(b))
	}
	return state, writes, nil
}
