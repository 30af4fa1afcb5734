package stream

// This file is what `xl save` puts before the stream: a header and the domain's
// configuration.

import (
	"errors"
	"fmt"
	"io"
)

// magic begins a file of xl.
const magic = "Xen saved domain, xl format\n \x00 \r"

const (
	saveByteOrder  = 0x01020304
	saveJSON       = 1 << 0
	saveStreamV2   = 1 << 1
	saveHeaderLen  = len(magic) + 16
	saveConfigHead = 4
)

// SaveFile is the head of a file of `xl save`. A libxl stream follows it.
type SaveFile struct {
	// Config is the domain's configuration.
	Config []byte
	// JSON says that Config is libxl's JSON, as every xl since Xen 4.5 writes it;
	// otherwise it is the text of a configuration file.
	JSON bool
}

// ReadSaveFile reads the head of a file of `xl save`, and nothing behind it.
func ReadSaveFile(in io.Reader) (SaveFile, error) {
	f, err := readSaveFile(in)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return SaveFile{}, fmt.Errorf("read the head of a file of xl save: %w", err)
	}
	return f, nil
}

func readSaveFile(in io.Reader) (SaveFile, error) {
	var head [saveHeaderLen]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return SaveFile{}, err
	}
	order, mandatory := le.Uint32(head[len(magic):]), le.Uint32(head[len(magic)+4:])
	opts, size := le.Uint32(head[len(magic)+8:]), le.Uint32(head[len(magic)+12:])
	switch {
	case string(head[:len(magic)]) != magic:
		return SaveFile{}, fmt.Errorf("it begins with %q, and xl's files with %q", head[:len(magic)], magic)
	case order != saveByteOrder:
		return SaveFile{}, fmt.Errorf("its byte order is %#x: only little-endian files are known", order)
	case mandatory&saveStreamV2 == 0:
		return SaveFile{}, errors.New("it has a stream from before Xen 4.6: Xen's convert-legacy-stream makes it into one of today")
	case mandatory&^(saveJSON|saveStreamV2) != 0 || opts != 0:
		return SaveFile{}, fmt.Errorf("its flags %#x and %#x are not known here", mandatory, opts)
	case size > MaxConfig:
		return SaveFile{}, fmt.Errorf("%d bytes of configuration are announced, at most %d are allowed", size, MaxConfig)
	}
	// Taken as the bytes arrive: the length alone is nobody's word.
	data, err := io.ReadAll(io.LimitReader(in, int64(size)))
	if err != nil {
		return SaveFile{}, err
	}
	if len(data) < int(size) {
		return SaveFile{}, io.ErrUnexpectedEOF
	}
	f := SaveFile{JSON: mandatory&saveJSON != 0}
	if size == 0 {
		return f, nil
	}
	if size < saveConfigHead || uint64(le.Uint32(data)) > uint64(size-saveConfigHead) {
		return SaveFile{}, fmt.Errorf("%d bytes do not hold the configuration that they announce", size)
	}
	// What follows the configuration is for a newer xl, which may be ignored.
	config := data[saveConfigHead:][:le.Uint32(data)]
	if n := len(config); n > 0 && config[n-1] == 0 && f.JSON {
		config = config[:n-1]
	}
	if len(config) > 0 {
		f.Config = config
	}
	return f, nil
}

// Append appends the head to dst. xl reads JSON only with a zero byte behind it,
// which is not part of Config.
func (f SaveFile) Append(dst []byte) ([]byte, error) {
	if len(f.Config) > MaxConfig-saveConfigHead-1 {
		return dst, fmt.Errorf("write the head of a file of xl save: %d bytes of configuration, at most %d are allowed", len(f.Config), MaxConfig-saveConfigHead-1)
	}
	mandatory, config := uint32(saveStreamV2), uint32(len(f.Config))
	if f.JSON {
		mandatory |= saveJSON
		config++
	}
	dst = append(dst, magic...)
	dst = le.AppendUint32(dst, saveByteOrder)
	dst = le.AppendUint32(dst, mandatory)
	dst = le.AppendUint32(dst, 0)
	dst = le.AppendUint32(dst, saveConfigHead+config)
	dst = le.AppendUint32(dst, config)
	dst = append(dst, f.Config...)
	if f.JSON {
		dst = append(dst, 0)
	}
	return dst, nil
}
