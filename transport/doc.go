// Package transport carries everything that hosts say to each other: one TCP
// port per host, TLS 1.3 with certificates of the installation's own authority
// on both sides, and replication sessions that stripe messages over several
// such connections and deliver them in order.
//
// Data flows through the files in this order:
//
//	identity.go   who this host is, and whom it believes
//	port.go       accept, handshake, hand over by protocol; reach.go dials
//	join.go       connections become a session: hello, answer, grouping
//	session.go    Send → queue → writers  ══ frames ══>  readers → ring → Receive
//	lane.go       a connection's writer and reader; heartbeat.go notices silence
//	batch.go      the queue of what waits to be written
//	frame.go      the frames, byte by byte
//	ring.go       puts what arrives on several connections into one order
//	pool.go       the buffers; credit.go the flow control and the estimates
//
// Goroutines, their owner and their end:
//
//	Port:      one accept loop, one per handshake in flight (bounded); Port.Close
//	Acceptor:  one accept loop, one per hello in flight (bounded); Acceptor.Close
//	Session:   one reader and one writer per connection, one for the heartbeat;
//	           all end when the session fails, Session.Close waits for them
package transport
