package primary

// This file changes the settings of a primary while it runs: a request goes into
// the loop, as an errand, and is carried out between two events.

import (
	"context"
	"errors"

	"understudy/epoch"
)

// Reconfigure gives the primary the settings of cfg that can change while a guest
// runs: Window, Floor, Target, Ceiling, DetachAfter, Effort, VerifyEvery,
// VerifyAll, Patience and Encoder. Everything else stays. The session to the backup is made
// anew if anew says so, or the encoder is another one: the guest runs on, and what
// the backup has committed is continued from. An error says that nothing changed.
func (p *Primary) Reconfigure(ctx context.Context, cfg Config, anew bool) error {
	return p.errand(ctx, func(loop context.Context) error {
		next := p.cfg
		next.adjust(cfg)
		if err := next.Validate(); err != nil {
			return err
		}
		if p.core.leave != 0 {
			return errors.New("the guest is being switched over or stopped: try again when that is done")
		}
		anew = anew || next.Encoder != p.cfg.Encoder
		var encoder *epoch.Encoder // nil: the present one stays
		if next.Encoder != p.cfg.Encoder {
			encoder = epoch.NewEncoder(p.Guest.Pages(), next.Encoder)
		}
		p.cfg.adjust(cfg) // field by field: others read the rest
		p.core.configure(p.cfg)
		p.compression.Store(&next.Effort)
		p.verifies.always(next.VerifyAll)
		select {
		case <-p.verifyEvery: // an older one that was not taken
		default:
		}
		p.verifyEvery <- next.VerifyEvery
		if anew {
			p.again(loop, errors.New("its settings have changed: it is made anew"))
		}
		if encoder != nil {
			p.encoder = encoder // of no link now
		}
		p.step(loop, Tick{})
		return nil
	})
}

// adjust takes what may change from other.
func (c *Config) adjust(other Config) {
	c.Window, c.Floor, c.Target, c.Ceiling = other.Window, other.Floor, other.Target, other.Ceiling
	c.DetachAfter, c.Effort, c.Encoder = other.DetachAfter, other.Effort, other.Encoder
	c.VerifyEvery, c.VerifyAll, c.Patience = other.VerifyEvery, other.VerifyAll, other.Patience
}

// again ends the session, or the attempt to open one, as if it had been lost.
func (p *Primary) again(ctx context.Context, why error) {
	if p.link != nil {
		p.step(ctx, p.linkEvent(linkEvent{from: p.link, ev: LinkDown{Err: why}}))
	} else if p.dialing != nil {
		p.dialing() // its answer says that it failed
	}
}

// configure gives the core other settings. A guest that would have run longer
// before its next checkpoint than they allow does not.
func (c *Core) configure(cfg Config) {
	c.cfg, c.pace = cfg, pace{cfg: cfg}
	if end := c.now.Add(cfg.Ceiling); end.Before(c.epochAt) {
		c.epochAt = end
	}
}
