package qemu

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"understudy/hypervisor/qemu/qmp"
)

// A device state, as this adapter hands it out, is a head and what
// xen-save-devices-state wrote:
//
//	bytes  0–3   "USDS"
//	       4–5   format, 1
//	       6–7   n, number of RAM blocks
//	       8–    n × 8 bytes: length of each block in use, in the spec's order
//	       then  QEMU's file, its own 8-byte header included
//
// All numbers are big endian. The lengths are there because a firmware table
// may change its length, and the standby must know it at load.
const (
	stateMagic  = "USDS"
	stateFormat = 1

	// maxState bounds what QEMU writes. Stock machines write 13 to 60 KiB.
	maxState = 64 * mib
)

func appendStateHead(dst []byte, blocks []block, used []uint64) []byte {
	dst = append(dst, stateMagic...)
	dst = binary.BigEndian.AppendUint16(dst, stateFormat)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(blocks)))
	for _, n := range used {
		dst = binary.BigEndian.AppendUint64(dst, n)
	}
	return dst
}

// splitState takes a device state apart: the length of each block, and QEMU's
// own file.
func splitState(state []byte, blocks []block) (used []uint64, devices []byte, err error) {
	const fixed = 8
	if len(state) > maxState {
		return nil, nil, fmt.Errorf("device state of %d bytes, at most %d are allowed", len(state), maxState)
	}
	if len(state) < fixed || string(state[:4]) != stateMagic {
		return nil, nil, errors.New("device state does not begin as one of this adapter's")
	}
	if f := binary.BigEndian.Uint16(state[4:]); f != stateFormat {
		return nil, nil, fmt.Errorf("device state has format %d, want %d", f, stateFormat)
	}
	if n := int(binary.BigEndian.Uint16(state[6:])); n != len(blocks) || len(state) < fixed+8*n {
		return nil, nil, fmt.Errorf("device state of %d bytes names %d RAM blocks, the machine has %d", len(state), n, len(blocks))
	}
	for i, b := range blocks {
		n := binary.BigEndian.Uint64(state[fixed+8*i:])
		if err := b.accepts(n); err != nil {
			return nil, nil, fmt.Errorf("device state: %w", err)
		}
		used = append(used, n)
	}
	return used, state[fixed+8*len(blocks):], nil
}

// accepts checks a length the block is said to have now.
func (b block) accepts(used uint64) error {
	if used == 0 || used > b.Total || used%4096 != 0 || used != b.Used && !b.resizable() {
		return fmt.Errorf("RAM block %s uses %d bytes, it had %d and can have %d", b.Name, used, b.Used, b.Total)
	}
	return nil
}

// stateFile is where QEMU saves device states: a memory file of ours that it
// writes through a descriptor and that is used again and again.
type stateFile struct {
	read  *os.File
	write *os.File // QEMU's copy shares its offset
	name  string   // as QEMU knows it
}

// newStateFile makes one and hands it to a QEMU.
func newStateFile(ctx context.Context, client *qmp.Client) (_ *stateFile, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("make a file for device states: %w", err)
		}
	}()
	read, err := memoryFile("understudy-state")
	if err != nil {
		return nil, err
	}
	s := &stateFile{read: read}
	defer func() {
		if err != nil {
			_ = s.close()
		}
	}()
	// QEMU takes a descriptor of an fdset only if it is opened in exactly the
	// mode that it wants: write-only.
	if s.write, err = os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", read.Fd()), os.O_WRONLY, 0); err != nil {
		return nil, err
	}
	var set struct {
		ID int `json:"fdset-id"`
	}
	if err = client.ExecuteWithFile(ctx, "add-fd", nil, s.write, &set); err != nil {
		return nil, err
	}
	s.name = fmt.Sprintf("/dev/fdset/%d", set.ID)
	return s, nil
}

type saveArguments struct {
	Filename string `json:"filename"`
	// Live must be false: the default would hand block devices over.
	Live bool `json:"live"`
}

// begin sends the command that saves.
func (s *stateFile) begin(ctx context.Context, client *qmp.Client) (*qmp.Call, error) {
	if _, err := s.write.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	return client.Send(ctx, "xen-save-devices-state", saveArguments{Filename: s.name})
}

// appendTo appends what was saved, after the command has been answered.
func (s *stateFile) appendTo(dst []byte) ([]byte, error) {
	n, err := s.write.Seek(0, io.SeekCurrent)
	if err != nil {
		return dst, err
	}
	if n <= 0 || n > maxState {
		return dst, fmt.Errorf("QEMU saved a device state of %d bytes, want 1 to %d", n, maxState)
	}
	at := len(dst)
	dst = slices.Grow(dst, int(n))[:at+int(n)]
	if _, err := s.read.ReadAt(dst[at:], 0); err != nil {
		return dst[:at], fmt.Errorf("read device state: %w", err)
	}
	return dst, nil
}

func (s *stateFile) close() error {
	err := s.read.Close()
	if s.write != nil {
		err = errors.Join(err, s.write.Close())
	}
	return err
}

// memoryFile makes a file that exists in memory only.
func memoryFile(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}
