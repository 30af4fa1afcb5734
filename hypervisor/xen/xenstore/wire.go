package xenstore

// This file is what goes over the socket: a header of 16 bytes, and a payload.

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

const (
	headerLen = 16
	// maxPayload is xenstored's own bound, both ways. It ends a connection that
	// exceeds it.
	maxPayload = 4096
	maxPath    = 3072
)

// op is what a message is: a request, its reply, an event or an error.
type op uint32

const (
	opDirectory        op = 1
	opRead             op = 2
	opWatch            op = 4
	opUnwatch          op = 5
	opTransactionStart op = 6
	opTransactionEnd   op = 7
	opWrite            op = 11
	opRemove           op = 13
	opSetPerms         op = 14
	opWatchEvent       op = 15
	opError            op = 16
	opResume           op = 18
)

func (o op) String() string {
	names := map[op]string{
		opDirectory: "directory", opRead: "read", opWatch: "watch", opUnwatch: "unwatch", opTransactionStart: "transaction start",
		opTransactionEnd: "transaction end", opWrite: "write", opRemove: "rm", opSetPerms: "set perms", opWatchEvent: "watch event",
		opError: "error", opResume: "resume",
	}
	if name := names[o]; name != "" {
		return name
	}
	return fmt.Sprintf("message of type %d", uint32(o))
}

type message struct {
	op      op
	id, tx  uint32
	payload []byte
}

func (m message) append(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, uint32(m.op))
	dst = binary.LittleEndian.AppendUint32(dst, m.id)
	dst = binary.LittleEndian.AppendUint32(dst, m.tx)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(m.payload)))
	return append(dst, m.payload...)
}

// readMessage returns io.EOF only where a message would begin.
func readMessage(in io.Reader) (message, error) {
	var head [headerLen]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return message{}, err
	}
	m := message{op: op(binary.LittleEndian.Uint32(head[:])), id: binary.LittleEndian.Uint32(head[4:]), tx: binary.LittleEndian.Uint32(head[8:])}
	n := binary.LittleEndian.Uint32(head[12:])
	if n > maxPayload {
		return m, fmt.Errorf("a %s of %d bytes, at most %d are allowed", m.op, n, maxPayload)
	}
	m.payload = make([]byte, n)
	if _, err := io.ReadFull(in, m.payload); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return m, err
	}
	return m, nil
}

// split returns the strings of a payload, each of which ends with a zero byte.
func split(payload []byte) []string {
	if len(payload) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(payload), "\x00"), "\x00")
}

func checkPath(o op, path string) error {
	if path == "" || len(path) > maxPath || strings.Contains(path, "\x00") {
		return fmt.Errorf("xenstore: %s: %.80q is no path", o, path)
	}
	return nil
}
