package stream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Incoming is what a standby's incoming migration is made of.
type Incoming struct {
	// RAM is the memory section's registration, from the Snapshot.
	RAM Section
	// Blocks is the RAM block list, from the Snapshot, with the lengths of the
	// commit that is loaded.
	Blocks []Block
	// Page returns one page of a block that is not Shared. It is called in
	// ascending order and the page is used before the next call.
	Page func(block int, offset uint64) ([]byte, error)
	// Shared says that a block's memory is already in place: it is the main
	// memory file, whose pages x-ignore-shared leaves out.
	Shared func(block int) bool
	// Devices is the file xen-save-devices-state wrote, header included.
	Devices []byte
}

// Compose writes the incoming stream to w. w should be buffered: records are
// written one by one.
func Compose(w io.Writer, in Incoming) error {
	if len(in.Blocks) == 0 || len(in.Blocks) > maxBlocks {
		return fmt.Errorf("compose a QEMU stream: %d RAM blocks, want 1 to %d", len(in.Blocks), maxBlocks)
	}
	if in.RAM.Name != ramName {
		return fmt.Errorf("compose a QEMU stream: the RAM section is named %q", in.RAM.Name)
	}
	if _, err := ParseDevices(in.Devices); err != nil {
		return fmt.Errorf("compose a QEMU stream: %w", err)
	}

	head := appendSection(appendHeader(nil), typeStart, in.RAM)
	head, err := appendBlocks(head, in.Blocks)
	if err != nil {
		return fmt.Errorf("compose a QEMU stream: %w", err)
	}
	head = binary.BigEndian.AppendUint64(head, flagEOS)
	head = appendFooter(head, in.RAM.ID)
	head = append(head, typeEnd)
	head = binary.BigEndian.AppendUint32(head, in.RAM.ID)
	if _, err := w.Write(head); err != nil {
		return err
	}
	for i, b := range in.Blocks {
		if in.Shared(i) {
			continue
		}
		if err := writePages(w, i, b, in.Page); err != nil {
			return fmt.Errorf("compose a QEMU stream: RAM block %q: %w", b.Name, err)
		}
	}
	tail := binary.BigEndian.AppendUint64(nil, flagEOS)
	tail = appendFooter(tail, in.RAM.ID)
	tail = append(tail, in.Devices[HeaderSize:]...)
	// QEMU looks for a description after the end and complains without one.
	tail = append(tail, typeVMDescription)
	tail = binary.BigEndian.AppendUint32(tail, 2)
	tail = append(tail, "{}"...)
	_, err = w.Write(tail)
	return err
}

func appendHeader(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, magic)
	return binary.BigEndian.AppendUint32(dst, version)
}

func appendBlocks(dst []byte, blocks []Block) ([]byte, error) {
	var total uint64
	for i, b := range blocks {
		if !validName([]byte(b.Name)) || blockIndex(blocks, b.Name) != i {
			return nil, fmt.Errorf("RAM block %q: no name, or not the only one of that name", b.Name)
		}
		if b.Used == 0 || b.Used%PageSize != 0 || b.Used > maxRAM-total {
			return nil, fmt.Errorf("RAM block %q has %d bytes", b.Name, b.Used)
		}
		total += b.Used
	}
	dst = binary.BigEndian.AppendUint64(dst, total|flagMemSize)
	for _, b := range blocks {
		dst = append(dst, byte(len(b.Name)))
		dst = append(dst, b.Name...)
		dst = binary.BigEndian.AppendUint64(dst, b.Used)
		dst = binary.BigEndian.AppendUint64(dst, b.Addr)
	}
	return dst, nil
}

// writePages writes every page of a block: the first names the block, the
// others continue it.
func writePages(w io.Writer, index int, b Block, page func(int, uint64) ([]byte, error)) error {
	record := make([]byte, 0, 8+1+255+1)
	for offset := uint64(0); offset < b.Used; offset += PageSize {
		data, err := page(index, offset)
		if err != nil {
			return err
		}
		if len(data) != PageSize {
			return errors.New("a page of the wrong size")
		}
		flags := uint64(flagPage)
		if isZero(data) {
			flags = flagZero
		}
		if offset > 0 {
			flags |= flagContinue
		}
		record = binary.BigEndian.AppendUint64(record[:0], offset|flags)
		if offset == 0 {
			record = append(record, byte(len(b.Name)))
			record = append(record, b.Name...)
		}
		if flags&flagZero != 0 {
			record, data = append(record, 0), nil
		}
		if _, err := w.Write(record); err != nil {
			return err
		}
		if _, err := w.Write(data); err != nil {
			return err
		}
	}
	return nil
}

func isZero(page []byte) bool {
	for len(page) >= 8 {
		if binary.NativeEndian.Uint64(page) != 0 {
			return false
		}
		page = page[8:]
	}
	return true
}
