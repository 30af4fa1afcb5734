package sim

import (
	"fmt"
	"time"
)

// session is the client's end of one connection, without a network and without
// a clock: it is told what came in and what time it is, and says what to send.
// It delivers lines in order and checks that the guest never takes back what it
// has said. Lines may arrive lost, repeated or overtaken; that is no violation.
//
//	receive ─> check against what is known ─> deliver in order ─> acknowledge
//	tick    ─> open, or probe a silent guest
type session struct {
	guest, self [6]byte
	conn        uint64
	emit        func(line Line)
	complain    func(v Violation)

	open   bool
	boot   [16]byte
	last   Line               // the last line delivered
	seen   uint64             // the highest line that has arrived
	early  [Window]message    // lines that overtook: line n is at n mod Window
	past   [4 * Window]uint64 // tokens of delivered lines: line n is at n mod len
	told   bool               // that the guest has forgotten the connection
	frames uint64             // sound frames of this connection that came in
}

// Line is one line that a guest has said, as its client got it.
type Line struct {
	Number uint64    `json:"number"` // from 1, one more each time
	Step   uint64    `json:"step"`   // in which the guest said it first
	At     time.Time `json:"at"`     // when the client got it
	token  uint64
}

// Fault names what a guest did to its client that no guest may.
type Fault string

const (
	// FaultLost: a line will never come, the guest counts it as acknowledged.
	FaultLost Fault = "lost"
	// FaultTakenBack: the guest has gone back behind something it has said.
	FaultTakenBack Fault = "taken back"
	// FaultRebooted: another boot id answers.
	FaultRebooted Fault = "rebooted"
	// FaultReset: the guest does not know the connection any more.
	FaultReset Fault = "reset"
)

// Violation is one breach, and when the client saw it.
type Violation struct {
	At     time.Time `json:"at"`
	Fault  Fault     `json:"fault"`
	Detail string    `json:"detail"`
}

func (v Violation) String() string { return string(v.Fault) + ": " + v.Detail }

// receive takes in one frame. If an answer is due it is put into out.
func (s *session) receive(now time.Time, frame []byte, out *message) (answer bool) {
	var msg message
	if msg.parse(frame) != nil || msg.dst != s.self || msg.src != s.guest || msg.conn != s.conn {
		return false
	}
	s.frames++
	switch msg.kind {
	case kindWelcome:
		if !s.open {
			s.open, s.boot = true, msg.boot
		}
	case kindLine, kindStatus:
		if !s.open {
			return false // its welcome was lost; the open is repeated
		}
	case kindReset:
		if s.open && !s.told {
			s.told = true
			s.violation(now, FaultReset, "after line %d the guest has no such connection", s.last.Number)
		}
		return false
	default:
		return false
	}
	if !s.check(now, &msg) || msg.kind != kindLine {
		return false
	}
	s.take(now, &msg)
	s.ack(now, out, 0)
	return true
}

// check looks for contradictions that any frame of the guest can show. All of
// them hold whatever order frames arrive in: each compares a frame with itself
// or with what the guest must have known when it sent it.
func (s *session) check(now time.Time, msg *message) bool {
	if msg.boot != s.boot {
		s.violation(now, FaultRebooted, "boot id %x answers, the connection was opened with %x", msg.boot[:4], s.boot[:4])
		s.boot = msg.boot
		return false
	}
	if msg.seen > msg.sent {
		s.violation(now, FaultTakenBack, "the guest has said %d lines and knows that line %d was seen", msg.sent, msg.seen)
		return false
	}
	if msg.acked > s.last.Number {
		s.violation(now, FaultLost, "the guest takes line %d as acknowledged, line %d has not come", msg.acked, s.last.Number+1)
		return false
	}
	return true
}

// take files a line and delivers what is now complete.
func (s *session) take(now time.Time, msg *message) {
	switch next := s.last.Number + 1; {
	case msg.line == 0 || msg.line > msg.sent:
		s.violation(now, FaultLost, "line %d from a guest that has said %d lines", msg.line, msg.sent)
		return
	case msg.line < next:
		if known := s.past[msg.line%uint64(len(s.past))]; next-msg.line <= uint64(len(s.past)) && known != msg.token {
			s.violation(now, FaultTakenBack, "line %d is another one than it was (%#x, was %#x)", msg.line, msg.token, known)
		}
		return
	case msg.line-next >= Window:
		s.violation(now, FaultLost, "line %d comes while line %d is not acknowledged, the window is %d", msg.line, next, Window)
		return
	}
	slot := &s.early[msg.line%Window]
	if slot.line == msg.line && slot.token != msg.token {
		s.violation(now, FaultTakenBack, "line %d is another one than it was (%#x, was %#x)", msg.line, msg.token, slot.token)
	}
	*slot = *msg
	s.seen = max(s.seen, msg.line)

	for {
		m := &s.early[(s.last.Number+1)%Window]
		if m.line != s.last.Number+1 {
			return
		}
		if m.prev != s.last.token {
			s.violation(now, FaultTakenBack, "line %d does not follow from line %d (%#x, it says %#x)",
				m.line, s.last.Number, s.last.token, m.prev)
		}
		s.last = Line{Number: m.line, Step: m.step, At: now, token: m.token}
		s.past[m.line%uint64(len(s.past))] = m.token
		s.emit(s.last)
	}
}

// tick is called when nothing has come for a while: it opens the connection,
// or asks the guest whether it is still there.
func (s *session) tick(now time.Time, out *message) {
	if !s.open {
		*out = message{kind: kindOpen}
		s.address(now, out)
		return
	}
	s.ack(now, out, flagProbe)
}

func (s *session) ack(now time.Time, out *message, flags uint16) {
	*out = message{kind: kindAck, flags: flags, acked: s.last.Number, seen: s.seen}
	s.address(now, out)
}

func (s *session) end(now time.Time, out *message) {
	*out = message{kind: kindClose}
	s.address(now, out)
}

func (s *session) address(now time.Time, out *message) {
	out.dst, out.src, out.conn, out.boot = s.guest, s.self, s.conn, s.boot
	out.stamp = uint64(now.UnixNano())
}

func (s *session) violation(now time.Time, f Fault, format string, args ...any) {
	s.complain(Violation{At: now, Fault: f, Detail: fmt.Sprintf(format, args...)})
}
