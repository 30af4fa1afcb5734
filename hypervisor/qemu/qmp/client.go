// Package qmp speaks QEMU's machine protocol (qmp-spec) over a Unix socket.
//
// Data flows through a Client like this: Send writes a command with a fresh
// id; one reader goroutine reads line by line, hands each reply to the Call
// with the same id and each event to the Events channel; Call.Wait unpacks
// the reply in the caller's goroutine. Commands sent one after the other are
// executed by QEMU in that order, so a caller that cannot afford a round trip
// between two of them sends both before it waits.
//
// The reader goroutine is the only goroutine. It is owned by the Client and
// ends when the connection ends, by Close, by QEMU or by a line that makes no
// sense; after that every pending and later call fails with the reason, Done
// and Events are closed.
package qmp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxLine bounds one message from QEMU, in bytes. The longest real one seen
// is the reply to query-qmp-schema, 0.2 MiB.
const maxLine = 16 << 20

// eventBacklog is how many events wait for a reader before the oldest are
// discarded. A guest emits a handful in its life; floods (BLOCK_IO_ERROR,
// RTC_CHANGE) are rate-limited by QEMU to one per second and kind.
const eventBacklog = 256

// ErrClosed is the reason given after Close.
var ErrClosed = errors.New("QMP connection closed")

// Client is one QMP connection. Its methods may be called from any number of
// goroutines.
type Client struct {
	conn     *net.UnixConn
	greeting Greeting

	writing chan struct{} // holds one token; its owner may write
	events  chan Event
	done    chan struct{} // closed when the reader has ended
	lost    uint64        // reader only: events discarded, not yet told

	mu      sync.Mutex
	err     error            // why the connection ended
	nextID  uint64           // ids below it have been given out
	pending map[uint64]*Call // calls that wait for a reply
}

// Call is a command on its way.
type Call struct {
	client  *Client
	command string
	id      uint64
	reply   chan *reply // holds the one reply, never blocks the reader
}

// Dial connects to QEMU's QMP socket at path, reads the greeting and
// negotiates (no optional capabilities). ctx bounds the dialogue only.
func Dial(ctx context.Context, path string) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("connect to QMP socket: %w", err)
	}
	return New(ctx, conn.(*net.UnixConn))
}

// New is Dial on a connection that exists already, for instance one end of a
// socketpair whose other end QEMU inherited. It owns conn from here on, and
// closes it when it fails.
func New(ctx context.Context, conn *net.UnixConn) (*Client, error) {
	c := &Client{
		conn:    conn,
		writing: make(chan struct{}, 1),
		events:  make(chan Event, eventBacklog),
		done:    make(chan struct{}),
		pending: make(map[uint64]*Call),
	}
	c.writing <- struct{}{}
	greeted := make(chan Greeting, 1)
	go c.read(greeted)

	select {
	case c.greeting = <-greeted:
	case <-c.done:
		return nil, fmt.Errorf("wait for QMP greeting: %w", c.Err())
	case <-ctx.Done():
		c.shut(fmt.Errorf("wait for QMP greeting: %w", ctx.Err()))
		<-c.done
		return nil, c.Err()
	}
	if err := c.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		c.shut(ErrClosed)
		<-c.done
		return nil, fmt.Errorf("negotiate with QEMU: %w", err)
	}
	return c, nil
}

// Greeting returns what QEMU said of itself.
func (c *Client) Greeting() Greeting { return c.greeting }

// Execute runs one command. args is marshalled as the command's arguments
// object, nil for none; the return value is unmarshalled into result, unless
// that is nil. A refusal by QEMU is an *Error. When ctx ends before the reply
// arrives the command may still be executed: its reply is then dropped.
func (c *Client) Execute(ctx context.Context, command string, args, result any) error {
	call, err := c.Send(ctx, command, args)
	if err != nil {
		return err
	}
	return call.Wait(ctx, result)
}

// ExecuteWithFile is Execute with one descriptor passed along (SCM_RIGHTS),
// as getfd and add-fd need. The caller keeps its own file.
func (c *Client) ExecuteWithFile(ctx context.Context, command string, args any, file *os.File, result any) error {
	fd, err := duplicate(file)
	if err != nil {
		return fmt.Errorf("pass a file with QMP command %s: %w", command, err)
	}
	call, err := c.send(ctx, command, args, unix.UnixRights(fd))
	_ = unix.Close(fd) // ours was a copy, the kernel holds its own by now
	if err != nil {
		return err
	}
	return call.Wait(ctx, result)
}

// Send writes one command and returns without waiting for its reply. The
// reply to a Call that nobody waits for is dropped.
func (c *Client) Send(ctx context.Context, command string, args any) (*Call, error) {
	return c.send(ctx, command, args, nil)
}

func (c *Client) send(ctx context.Context, command string, args any, rights []byte) (*Call, error) {
	select {
	case <-c.writing:
	case <-ctx.Done():
		return nil, fmt.Errorf("send QMP command %s: %w", command, ctx.Err())
	case <-c.done:
		return nil, fmt.Errorf("send QMP command %s: %w", command, c.Err())
	}
	defer func() { c.writing <- struct{}{} }()

	call, err := c.register(command)
	if err != nil {
		return nil, err
	}
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, args, call.id})
	if err == nil {
		err = c.write(ctx, append(line, '\n'), rights)
	}
	if err != nil {
		c.forget(call.id)
		return nil, fmt.Errorf("send QMP command %s: %w", command, err)
	}
	return call, nil
}

// Wait waits for the reply to a sent command, as Execute does. It must be
// called once.
func (call *Call) Wait(ctx context.Context, result any) error {
	c := call.client
	var r *reply
	select {
	case r = <-call.reply:
	case <-ctx.Done():
		c.forget(call.id)
		return fmt.Errorf("wait for the reply to QMP command %s: %w", call.command, ctx.Err())
	case <-c.done:
		// The reader may have delivered it just before its end.
		select {
		case r = <-call.reply:
		default:
			return fmt.Errorf("wait for the reply to QMP command %s: %w", call.command, c.Err())
		}
	}
	if r.refused != nil {
		r.refused.Command = call.command
		return r.refused
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(r.result, result); err != nil {
		return fmt.Errorf("reply to QMP command %s: %w", call.command, err)
	}
	return nil
}

// Events delivers what QEMU says unasked. It is closed when the connection
// ends. A reader that falls behind loses the oldest events, never the newest,
// and is told how many by Event.Lost; replies are never held up.
func (c *Client) Events() <-chan Event { return c.events }

// Done is closed when the connection has ended; Err then tells why.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err returns why the connection ended, or nil while it lives.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection and returns after the reader goroutine has ended.
// QEMU and its guest are not touched.
func (c *Client) Close() error {
	c.shut(ErrClosed)
	<-c.done
	return nil
}

// register makes a Call that the reader can find.
func (c *Client) register(command string) (*Call, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil, fmt.Errorf("send QMP command %s: %w", command, c.err)
	}
	call := &Call{client: c, command: command, id: c.nextID, reply: make(chan *reply, 1)}
	c.nextID++
	c.pending[call.id] = call
	return call, nil
}

func (c *Client) forget(id uint64) {
	c.mu.Lock()
	delete(c.pending, id)
	c.mu.Unlock()
}

// write puts a whole line on the socket. Its caller holds the writing token.
// QEMU stops reading when it hangs or is stopped, so ctx must be able to cut
// the write; a line cut in the middle ends the connection.
func (c *Client) write(ctx context.Context, line, rights []byte) error {
	if ctx.Done() != nil {
		cut := make(chan struct{})
		stop := context.AfterFunc(ctx, func() {
			_ = c.conn.SetWriteDeadline(time.Unix(1, 0)) // fails only on a closed socket
			close(cut)
		})
		defer func() {
			if !stop() {
				<-cut
				_ = c.conn.SetWriteDeadline(time.Time{})
			}
		}()
	}
	var n int
	var err error
	if rights != nil {
		n, _, err = c.conn.WriteMsgUnix(line, rights, nil)
	}
	if err == nil && n < len(line) {
		var more int
		more, err = c.conn.Write(line[n:])
		n += more
	}
	if err == nil {
		return nil
	}
	if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		c.shut(fmt.Errorf("write to QEMU: %w", err))
	}
	if cause := ctx.Err(); cause != nil {
		return cause
	}
	return err
}

// shut ends the connection for the given reason; the first reason stays. The
// reader wakes up and tidies.
func (c *Client) shut(reason error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = reason
	}
	c.mu.Unlock()
	_ = c.conn.Close() // a second close of the same socket is harmless
}

// read is the reader goroutine.
func (c *Client) read(greeted chan<- Greeting) {
	lines := newLineReader(c.conn, maxLine)
	for greeting := true; ; greeting = false {
		line, err := lines.next()
		if err != nil {
			c.shut(fmt.Errorf("read from QEMU: %w", err))
			break
		}
		m, err := parse(line)
		if err == nil {
			err = c.take(m, greeting, greeted)
		}
		if err != nil {
			c.shut(fmt.Errorf("QMP conversation broken: %w", err))
			break
		}
	}
	close(c.done)
	close(c.events)
}

// take handles one message. The first message, and no other, is a greeting.
func (c *Client) take(m message, first bool, greeted chan<- Greeting) error {
	switch {
	case first != (m.greeting != nil):
		if first {
			return errors.New("QEMU did not greet")
		}
		return errors.New("second greeting")
	case m.greeting != nil:
		greeted <- *m.greeting
	case m.event != nil:
		c.deliver(*m.event)
	default:
		return c.answer(m.reply)
	}
	return nil
}

// answer hands a reply to its call. A reply to a call that was given up is
// dropped; one to a call that never was means that the sides are out of step.
func (c *Client) answer(r *reply) error {
	c.mu.Lock()
	call, known := c.pending[r.id]
	delete(c.pending, r.id)
	issued := r.id < c.nextID
	c.mu.Unlock()
	if !issued {
		return fmt.Errorf("reply to command %d, which was never sent", r.id)
	}
	if known {
		call.reply <- r
	}
	return nil
}

// deliver queues an event. When the queue is full it discards the oldest, so
// that the state a late reader ends up with is the current one.
func (c *Client) deliver(e Event) {
	for {
		e.Lost = c.lost
		select {
		case c.events <- e:
			c.lost = 0
			return
		default:
		}
		select {
		case old := <-c.events:
			c.lost += old.Lost + 1
		default: // the reader has just made room
		}
	}
}

// duplicate copies a file's descriptor. (File.Fd would put the caller's file
// into blocking mode.)
func duplicate(file *os.File) (int, error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return -1, err
	}
	var fd int
	var dupErr error
	if err := raw.Control(func(from uintptr) {
		fd, dupErr = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 0)
	}); err != nil {
		return -1, err
	}
	return fd, os.NewSyscallError("duplicate descriptor", dupErr)
}

// trim cuts the carriage return that QEMU puts before each newline.
func trim(line []byte) []byte { return bytes.TrimRight(line, "\r\n") }
