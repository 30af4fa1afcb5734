// Package xenstoretest plays xenstored for tests: a tree of values in memory, with
// transactions and watches, for any number of clients.
//
// A transaction works on a copy, and is refused when anything was written since it
// began. Permissions are kept, and keep nobody out.
package xenstoretest

import (
	"encoding/binary"
	"io"
	"maps"
	"net"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"understudy/hypervisor/xen/xenstore"
)

// What a message is (public/io/xs_wire.h).
const (
	directory        = 1
	read             = 2
	watch            = 4
	unwatch          = 5
	transactionStart = 6
	transactionEnd   = 7
	write            = 11
	remove           = 13
	setPerms         = 14
	watchEvent       = 15
	refusal          = 16
	resume           = 18
)

// Store is the tree.
type Store struct {
	mu      sync.Mutex
	values  map[string]string
	perms   map[string]string
	version int
	conns   map[*conn]bool
	open    map[uint32]*transaction
	last    uint32
	serving sync.WaitGroup
}

type transaction struct {
	values  map[string]string
	perms   map[string]string
	version int
	wrote   []string
}

type conn struct {
	net.Conn
	watches map[string]string // token to path
	out     chan []byte
}

// New returns an empty tree. It ends with the test.
func New(t testing.TB) *Store {
	s := &Store{values: map[string]string{}, perms: map[string]string{}, conns: map[*conn]bool{}, open: map[uint32]*transaction{}}
	t.Cleanup(s.serving.Wait)
	return s
}

// Client returns a new connection, which ends with the test.
func (s *Store) Client(t testing.TB) *xenstore.Client {
	here, there := net.Pipe()
	c := &conn{Conn: there, watches: map[string]string{}, out: make(chan []byte, 1024)}
	s.mu.Lock()
	s.conns[c] = true
	s.mu.Unlock()
	s.serving.Go(func() {
		for b := range c.out {
			_, _ = c.Write(b) // a client that has gone reads nothing
		}
	})
	s.serving.Go(func() { s.serve(c) })
	client := xenstore.NewClient(here)
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// Values returns what lies below a path, by what comes behind it.
func (s *Store) Values(below string) map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := map[string]string{}
	for at, v := range s.values {
		if rest, is := strings.CutPrefix(at, below+"/"); is {
			found[rest] = v
		}
	}
	return found
}

// Permissions returns those of a path.
func (s *Store) Permissions(at string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.perms[at]
}

func (s *Store) serve(c *conn) {
	defer func() {
		s.mu.Lock()
		delete(s.conns, c)
		close(c.out)
		s.mu.Unlock()
		_ = c.Close()
	}()
	for {
		var head [16]byte
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return
		}
		payload := make([]byte, binary.LittleEndian.Uint32(head[12:]))
		if _, err := io.ReadFull(c, payload); err != nil {
			return
		}
		s.mu.Lock()
		kind, answer := s.handle(c, binary.LittleEndian.Uint32(head[:]), binary.LittleEndian.Uint32(head[8:]), payload)
		c.out <- message(kind, head[4:12], answer)
		s.mu.Unlock()
	}
}

func message(kind uint32, ids, payload []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, kind)
	b = append(b, ids...)
	return append(binary.LittleEndian.AppendUint32(b, uint32(len(payload))), payload...)
}

// handle answers one request. The lock is held.
func (s *Store) handle(c *conn, kind, tx uint32, payload []byte) (uint32, []byte) {
	parts := strings.Split(string(payload), "\x00")
	values, perms, wrote := s.values, s.perms, &[]string{}
	if tx != 0 && kind != transactionEnd {
		t := s.open[tx]
		if t == nil {
			return refusal, []byte("ENOENT\x00")
		}
		values, perms, wrote = t.values, t.perms, &t.wrote
	}
	at := parts[0]
	ok := []byte("OK\x00")
	switch kind {
	case read:
		if v, there := values[at]; there {
			return kind, []byte(v)
		}
		return refusal, []byte("ENOENT\x00")
	case write:
		values[at] = strings.Join(parts[1:], "\x00")
		*wrote = append(*wrote, at)
	case remove:
		if !slices.ContainsFunc(slices.Collect(maps.Keys(values)), func(p string) bool { return p == at || strings.HasPrefix(p, at+"/") }) {
			return refusal, []byte("ENOENT\x00")
		}
		maps.DeleteFunc(values, func(p, _ string) bool { return p == at || strings.HasPrefix(p, at+"/") })
		*wrote = append(*wrote, at)
	case directory:
		names := map[string]bool{}
		for p := range values {
			if rest, is := strings.CutPrefix(p, at+"/"); is {
				first, _, _ := strings.Cut(rest, "/")
				names[path.Base(first)] = true
			}
		}
		return kind, []byte(strings.Join(slices.Sorted(maps.Keys(names)), "\x00") + "\x00")
	case setPerms:
		perms[at] = strings.Join(parts[1:len(parts)-1], " ")
	case watch:
		c.watches[parts[1]] = at
		s.tell(c, at, parts[1])
	case unwatch:
		delete(c.watches, parts[1])
	case transactionStart:
		s.last++
		s.open[s.last] = &transaction{values: maps.Clone(s.values), perms: maps.Clone(s.perms), version: s.version}
		return kind, []byte(strconv.FormatUint(uint64(s.last), 10) + "\x00")
	case transactionEnd:
		t := s.open[tx]
		delete(s.open, tx)
		if t == nil || at == "F" {
			return kind, ok
		}
		if len(t.wrote) > 0 && t.version != s.version {
			return refusal, []byte("EAGAIN\x00")
		}
		s.values, s.perms = t.values, t.perms
		s.changed(t.wrote)
	case resume:
	default:
		return refusal, []byte("ENOSYS\x00")
	}
	if tx == 0 {
		s.changed(*wrote)
	}
	return kind, ok
}

// changed tells who watches.
func (s *Store) changed(paths []string) {
	if len(paths) == 0 {
		return
	}
	s.version++
	for c := range s.conns {
		for token, p := range c.watches {
			for _, at := range paths {
				if at == p || strings.HasPrefix(at, p+"/") || strings.HasPrefix(p, at+"/") {
					s.tell(c, at, token)
				}
			}
		}
	}
}

func (s *Store) tell(c *conn, at, token string) {
	c.out <- message(watchEvent, make([]byte, 8), []byte(at+"\x00"+token+"\x00"))
}
