package egress

import (
	"errors"
	"fmt"
)

// OpenSegment returns a port of the Switch whose socket is c.Remote; c.Local is
// the port's own socket, in a directory the switch's process can reach. It
// takes the place of a TAP where there is no root: several processes of one
// user can share a switch.
func OpenSegment(c SocketConfig) (*Datagram, error) {
	c.inPlace = true // the switch answers to the sender's address
	d, err := OpenGuestSocket(c)
	if err != nil {
		return nil, err
	}
	// An empty datagram makes the switch know a port that has not spoken yet.
	if err := d.send(nil); err != nil {
		err = fmt.Errorf("segment port %s: no switch listens at %s, start it first: %w", c.Local, c.Remote, err)
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}
