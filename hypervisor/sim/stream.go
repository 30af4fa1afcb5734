package sim

import "understudy/epoch"

// The guest's network service. A client opens a connection; the guest then says
// a line every LineEvery steps, numbered from 1, and says it again until it is
// acknowledged. Each line has a token that depends on the token before it and
// on the guest's randomness, into which its clock and every client frame are
// mixed: a guest that was rolled back behind something it has said does not say
// the same again, and the client sees it (session.go).

// idleSteps is how long a client may be silent before its connection can be
// given to another one.
const idleSteps = 4096

// burst is how many lines are said again at a time.
const burst = 16

// speak says the due lines of every connection, and again those that were not
// acknowledged in time.
func (k *kernel) speak(counter uint64) {
	m := &k.mem
	due := counter%max(1, m.get(atLineEvery)) == 0
	for slot := range uint64(maxConns) {
		c := (1 + slot) * epoch.PageSize
		if m.get(c+connUsed) == 0 {
			continue
		}
		sent, acked := m.get(c+connSent), m.get(c+connAcked)
		if sent > acked && k.regs.step-m.get(c+connTold) >= m.get(atRetransmit) {
			for line := acked + 1; line <= min(sent, acked+burst); line++ {
				k.sendLine(c, line)
			}
		}
		if due && sent-acked < Window {
			k.newLine(c, sent+1)
		}
	}
}

// newLine makes the next line of a connection and sends it.
func (k *kernel) newLine(c, line uint64) {
	m := &k.mem
	prev := m.get(c + connToken)
	token := mix(prev, k.random())
	r := c + connRing + line%Window*ringLine
	m.put(r, token)
	m.put(r+8, prev)
	m.put(r+16, k.regs.step)
	m.put(c+connToken, token)
	m.put(c+connSent, line)
	k.sendLine(c, line)
}

// sendLine sends a line that is in the ring.
func (k *kernel) sendLine(c, line uint64) {
	r := c + connRing + line%Window*ringLine
	k.send(c, message{
		kind: kindLine, line: line,
		token: k.mem.get(r), prev: k.mem.get(r + 8), step: k.mem.get(r + 16),
	})
	k.mem.put(c+connTold, k.regs.step)
}

// send fills in what every frame of a connection carries and gives it to the
// card.
func (k *kernel) send(c uint64, msg message) {
	m := &k.mem
	msg.conn = m.get(c + connID)
	msg.dst = [6]byte(m.bytes[c+connMAC:])
	msg.sent, msg.acked, msg.seen = m.get(c+connSent), m.get(c+connAcked), m.get(c+connSeen)
	k.emit(msg)
}

func (k *kernel) emit(msg message) {
	msg.src = [6]byte(k.mem.bytes[atMAC:])
	msg.boot = [16]byte(k.mem.bytes[atBoot:])
	msg.put(k.frame[:])
	k.nic.Send(k.frame[:])
}

// receive handles one frame from the card. Frames that are not for this
// service, or damaged, are dropped.
func (k *kernel) receive(frame []byte) {
	var msg message
	if k.regs.halted != 0 || msg.parse(frame) != nil || msg.dst != [6]byte(k.mem.bytes[atMAC:]) {
		return
	}
	m := &k.mem
	k.regs.prng = mix(k.regs.prng, msg.stamp)
	c, found := k.findConn(msg.src, msg.conn)
	if found {
		m.put(c+connHeard, k.regs.step)
	}
	switch {
	case msg.kind == kindOpen:
		if !found {
			if c, found = k.newConn(msg.src, msg.conn); !found {
				k.emit(message{kind: kindReset, dst: msg.src, conn: msg.conn, stamp: msg.stamp})
				return
			}
		}
		k.send(c, message{kind: kindWelcome, stamp: msg.stamp})
	case msg.kind == kindClose:
		if found {
			m.put(c+connUsed, 0)
		}
	case msg.kind == kindAck && !found:
		k.emit(message{kind: kindReset, dst: msg.src, conn: msg.conn, stamp: msg.stamp})
	case msg.kind == kindAck:
		k.acknowledge(c, &msg)
	}
}

// acknowledge takes in what a client says it has. A client can be ahead of a
// guest that was rolled back wrongly: the guest remembers that it claims so
// and answers with it, and leaves it to the client to make the noise.
func (k *kernel) acknowledge(c uint64, msg *message) {
	m := &k.mem
	sent := m.get(c + connSent)
	if acked := min(msg.acked, sent); acked > m.get(c+connAcked) {
		m.put(c+connAcked, acked)
	}
	if msg.seen > m.get(c+connSeen) {
		m.put(c+connSeen, msg.seen)
	}
	ahead := msg.seen > sent
	gap := msg.seen > msg.acked // a later line has overtaken the next one
	next := m.get(c+connAcked) + 1
	if next <= sent && (gap || msg.flags&flagProbe != 0) {
		k.sendLine(c, next)
	}
	if ahead || msg.flags&flagProbe != 0 {
		k.send(c, message{kind: kindStatus, stamp: msg.stamp})
	}
}

// findConn returns where the page of a connection begins.
func (k *kernel) findConn(mac [6]byte, id uint64) (uint64, bool) {
	for slot := range uint64(maxConns) {
		c := (1 + slot) * epoch.PageSize
		if k.mem.get(c+connUsed) != 0 && k.mem.get(c+connID) == id && [6]byte(k.mem.bytes[c+connMAC:]) == mac {
			return c, true
		}
	}
	return 0, false
}

// newConn takes a free page, or the one of the client that has been silent
// longest if that is long enough.
func (k *kernel) newConn(mac [6]byte, id uint64) (uint64, bool) {
	m := &k.mem
	var best, silent uint64
	for slot := range uint64(maxConns) {
		c := (1 + slot) * epoch.PageSize
		if m.get(c+connUsed) == 0 {
			best, silent = c, ^uint64(0)
			break
		}
		if s := k.regs.step - m.get(c+connHeard); s > silent {
			best, silent = c, s
		}
	}
	if silent < idleSteps {
		return 0, false
	}
	clear(m.bytes[best : best+epoch.PageSize])
	m.put(best+connUsed, 1)
	m.put(best+connID, id)
	m.store(best+connMAC, mac[:])
	m.put(best+connHeard, k.regs.step)
	return best, true
}
