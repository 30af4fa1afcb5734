package backup

// An operator forces a failover: the guest goes on from the image here, although
// the log does not name it.
//
//	Force → Forced → the core asks → Answer → Force returns

import (
	"context"
	"errors"

	"understudy/ownership"
)

// forcing is an operator who waits for an answer.
type forcing struct {
	read   ownership.Guest // the log, when he was told what would be lost
	answer chan error      // gets one
}

var errEnded = errors.New("this host does not stand by for the guest any more")

// Force lets the guest go on from the image here, whether the log names it or
// not: what the guest did since its last commit is lost. It returns nil once the
// log has granted it; the guest does not run yet. The leader grants nothing before
// the owner's lease has run out, unless that host is fenced. read is the log as
// the operator has read it, which may be ahead of what this host has applied.
func (b *Backup) Force(ctx context.Context, read ownership.Guest) error {
	f := &forcing{read: read, answer: make(chan error, 1)}
	select {
	case b.forces <- f:
	case <-b.over:
		return errEnded
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-f.answer:
		return err
	case <-b.over:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-f.answer: // it ended because it was granted
		return err
	default:
		return errEnded
	}
}

// force takes an operator's request, unless there is one already.
func (b *Backup) force(f *forcing) Event {
	if b.forcing != nil {
		f.answer <- errors.New("somebody else forces a failover already")
		return Tick{}
	}
	b.forcing = f
	return Forced{f.read}
}

// answer tells the operator what came of it.
func (b *Backup) answer(err error) {
	if b.forcing != nil {
		b.forcing.answer <- err
		b.forcing = nil
	}
}
