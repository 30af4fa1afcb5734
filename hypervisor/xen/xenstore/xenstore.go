// Package xenstore speaks with xenstored, over its socket: the small database in
// which Xen's toolstack, back ends and guests tell each other what they do.
//
//	Client.do ─ request (wire.go) ─> socket ─> xenstored
//	Client.listen <─ reply, found by its id ─> the caller that waits
//	              <─ event, found by its token ─> Watch.Changed
//
// One goroutine reads. It is owned by the Client and ends with Close, or with
// the connection; then every call fails, and every Watch's channel is closed.
// xenstored keeps nothing of a connection that has ended: transactions and
// watches are gone with it.
//
// Sources: Xen's docs/misc/xenstore.txt, public/io/xs_wire.h.
package xenstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// Socket is where xenstored listens in the host's first domain.
const Socket = "/run/xenstored/socket"

// Client is a connection to xenstored. Its methods may be called from several
// goroutines.
type Client struct {
	conn net.Conn
	done chan struct{} // closed when the reader has ended

	writing sync.Mutex // over conn's other direction

	mu      sync.Mutex
	err     error // why the connection is of no use any more
	last    uint32
	waiting map[uint32]chan message
	watches map[string]*Watch
}

// Dial connects to xenstored.
func Dial(ctx context.Context, path string) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("connect to xenstored (is this a Xen host's first domain, and xenstored running?): %w", err)
	}
	return NewClient(conn), nil
}

// NewClient makes a Client of a connection, which it owns from here on.
func NewClient(conn net.Conn) *Client {
	c := &Client{conn: conn, done: make(chan struct{}), waiting: map[uint32]chan message{}, watches: map[string]*Watch{}}
	go c.listen()
	return c
}

// Close ends the connection. It returns after the reader has ended.
func (c *Client) Close() error {
	err := c.conn.Close()
	<-c.done
	return err
}

// Error is xenstored's refusal.
type Error struct {
	Op, Path string
	Word     string // its word, such as ENOENT
}

func (e *Error) Error() string { return fmt.Sprintf("xenstore: %s %s: %s", e.Op, e.Path, e.Word) }

// Is makes errors.Is find the system's error of the same name.
func (e *Error) Is(target error) bool {
	no := words[e.Word]
	return no != 0 && (target == no || no.Is(target))
}

// words are the errors that xenstored knows.
var words = map[string]syscall.Errno{
	"EINVAL": syscall.EINVAL, "EACCES": syscall.EACCES, "EEXIST": syscall.EEXIST, "EISDIR": syscall.EISDIR, "ENOENT": syscall.ENOENT,
	"ENOMEM": syscall.ENOMEM, "ENOSPC": syscall.ENOSPC, "EIO": syscall.EIO, "ENOTEMPTY": syscall.ENOTEMPTY, "ENOSYS": syscall.ENOSYS,
	"EROFS": syscall.EROFS, "EBUSY": syscall.EBUSY, "EAGAIN": syscall.EAGAIN, "EISCONN": syscall.EISCONN, "E2BIG": syscall.E2BIG, "EPERM": syscall.EPERM,
}

// Tx is a transaction; the zero Tx is none: each call stands for itself.
type Tx uint32

// Read returns the value at a path. errors.Is(err, fs.ErrNotExist) says that
// there is none.
func (c *Client) Read(ctx context.Context, tx Tx, path string) (string, error) {
	b, err := c.ask(ctx, opRead, tx, path)
	return string(b), err
}

// Write puts a value at a path. What lies above it is made.
func (c *Client) Write(ctx context.Context, tx Tx, path, value string) error {
	if err := checkPath(opWrite, path); err != nil {
		return err
	}
	_, err := c.do(ctx, opWrite, tx, path, []byte(path+"\x00"+value))
	return err
}

// Remove removes a path and everything below it. A path that is not there is no
// error.
func (c *Client) Remove(ctx context.Context, tx Tx, path string) error {
	_, err := c.ask(ctx, opRemove, tx, path)
	if errors.Is(err, syscall.ENOENT) {
		return nil
	}
	return err
}

// List returns the names below a path, at most some thousand.
func (c *Client) List(ctx context.Context, tx Tx, path string) ([]string, error) {
	b, err := c.ask(ctx, opDirectory, tx, path)
	return split(b), err
}

// Permit says who owns a path (the first), and who may do what with it: "n3"
// nothing for domain 3, "r3" read, "w3" write, "b3" both.
func (c *Client) Permit(ctx context.Context, tx Tx, path string, permissions ...string) error {
	if err := checkPath(opSetPerms, path); err != nil {
		return err
	}
	_, err := c.do(ctx, opSetPerms, tx, path, []byte(path+"\x00"+strings.Join(permissions, "\x00")+"\x00"))
	return err
}

// Resumed tells xenstored that a domain that was suspended runs again, so that it
// will tell of its next end.
func (c *Client) Resumed(ctx context.Context, domain uint32) error {
	_, err := c.ask(ctx, opResume, 0, strconv.FormatUint(uint64(domain), 10))
	return err
}

// attempts is how often a transaction is tried before it is given up.
const attempts = 64

// Transact carries out do so that nobody sees a part of it, and nothing of what
// it read has changed meanwhile: then it is carried out again. When it returns an
// error, nothing has happened.
func (c *Client) Transact(ctx context.Context, do func(tx Tx) error) error {
	for range attempts {
		b, err := c.do(ctx, opTransactionStart, 0, "", []byte{0})
		if err != nil {
			return err
		}
		id, err := strconv.ParseUint(strings.TrimSuffix(string(b), "\x00"), 10, 32)
		if err != nil || id == 0 {
			return fmt.Errorf("xenstore: a transaction with the id %.20q", b)
		}
		if err := do(Tx(id)); err != nil {
			_, undo := c.do(ctx, opTransactionEnd, Tx(id), "", []byte("F\x00"))
			return errors.Join(err, undo)
		}
		_, err = c.do(ctx, opTransactionEnd, Tx(id), "", []byte("T\x00"))
		if !errors.Is(err, syscall.EAGAIN) {
			return err
		}
	}
	return fmt.Errorf("xenstore: a transaction met others' changes %d times", attempts)
}

// Watch tells of changes at a path and below.
type Watch struct {
	// Changed has something in it when there was a change since it was received
	// from last; it has at first. It is closed when the connection has ended.
	Changed <-chan struct{}

	changed     chan struct{}
	client      *Client
	path, token string
}

// Watch begins to tell of changes at a path and below. The special path
// "@releaseDomain" tells of domains that have ended.
func (c *Client) Watch(ctx context.Context, path string) (*Watch, error) {
	w := &Watch{changed: make(chan struct{}, 1), client: c, path: path}
	w.Changed = w.changed
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return nil, c.err
	}
	c.last++
	w.token = strconv.FormatUint(uint64(c.last), 10)
	c.watches[w.token] = w
	c.mu.Unlock()
	if _, err := c.do(ctx, opWatch, 0, path, []byte(path+"\x00"+w.token+"\x00")); err != nil {
		c.mu.Lock()
		delete(c.watches, w.token)
		c.mu.Unlock()
		return nil, err
	}
	return w, nil
}

// End ends the watch. Its channel is left as it is.
func (w *Watch) End(ctx context.Context) error {
	c := w.client
	c.mu.Lock()
	delete(c.watches, w.token)
	c.mu.Unlock()
	_, err := c.do(ctx, opUnwatch, 0, w.path, []byte(w.path+"\x00"+w.token+"\x00"))
	return err
}

// ask is do with a path alone.
func (c *Client) ask(ctx context.Context, op op, tx Tx, path string) ([]byte, error) {
	if err := checkPath(op, path); err != nil {
		return nil, err
	}
	return c.do(ctx, op, tx, path, []byte(path+"\x00"))
}

// do sends a request and waits for its reply.
func (c *Client) do(ctx context.Context, op op, tx Tx, path string, payload []byte) ([]byte, error) {
	if len(payload) > maxPayload {
		return nil, fmt.Errorf("xenstore: %s %.80s: %d bytes, at most %d are allowed", op, path, len(payload), maxPayload)
	}
	reply := make(chan message, 1)
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return nil, c.err
	}
	c.last++
	id := c.last
	c.waiting[id] = reply
	c.mu.Unlock()

	c.writing.Lock()
	_, err := c.conn.Write(message{op: op, id: id, tx: uint32(tx), payload: payload}.append(nil))
	c.writing.Unlock()
	if err != nil {
		// Half a request may be out: nothing that follows it would be understood.
		c.fail(fmt.Errorf("xenstore: %s %s: %w", op, path, err))
	}
	select {
	case m, ok := <-reply:
		if !ok {
			c.mu.Lock()
			defer c.mu.Unlock()
			return nil, c.err
		}
		if m.op == opError {
			return nil, &Error{op.String(), path, strings.TrimSuffix(string(m.payload), "\x00")}
		}
		if m.op != op {
			err := fmt.Errorf("xenstore: %s %s is answered by %s", op, path, m.op)
			c.fail(err)
			return nil, err
		}
		return m.payload, nil
	case <-ctx.Done():
		c.mu.Lock()
		if _, still := c.waiting[id]; still {
			c.waiting[id] = nil // its reply is thrown away when it comes
		}
		c.mu.Unlock()
		return nil, fmt.Errorf("xenstore: %s %s: %w", op, path, ctx.Err())
	}
}

// listen reads replies and events until the connection ends.
func (c *Client) listen() {
	defer close(c.done)
	for {
		m, err := readMessage(c.conn)
		if err == nil {
			err = c.deliver(m)
		}
		if err == nil {
			continue
		}
		if errors.Is(err, io.EOF) {
			err = errors.New("xenstored has ended the connection")
		}
		c.fail(fmt.Errorf("xenstore: %w", err))
		c.mu.Lock()
		for _, id := range slices.Collect(maps.Keys(c.waiting)) {
			if reply := c.waiting[id]; reply != nil {
				close(reply)
			}
			delete(c.waiting, id)
		}
		for token, w := range c.watches {
			close(w.changed)
			delete(c.watches, token)
		}
		c.mu.Unlock()
		return
	}
}

// deliver gives a message to who waits for it.
func (c *Client) deliver(m message) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if m.op == opWatchEvent {
		parts := split(m.payload)
		if len(parts) < 2 {
			return fmt.Errorf("an event without a path and a token: %.80q", m.payload)
		}
		if w := c.watches[parts[1]]; w != nil { // else it has ended meanwhile
			select {
			case w.changed <- struct{}{}:
			default:
			}
		}
		return nil
	}
	reply, expected := c.waiting[m.id]
	if !expected {
		return fmt.Errorf("a reply (%s) to request %d, which nobody made", m.op, m.id)
	}
	delete(c.waiting, m.id)
	if reply != nil {
		reply <- m
	}
	return nil
}

// fail ends the connection with its first error.
func (c *Client) fail(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	c.mu.Unlock()
	_ = c.conn.Close() // ends listen
}
