package primary

import (
	"testing"
	"time"

	"understudy/hypervisor/sim"
)

// TestSettingsChangeUnderARunningGuest: a protected guest gets other settings, one
// after the other, and stays protected by the same image all along. Only what
// concerns the session makes a new one.
func TestSettingsChangeUnderARunningGuest(t *testing.T) {
	inBubble(t, func(c *Config, m *sim.Config) { verifyAll(c, m) }, func(r *rig) {
		r.start(true)
		r.wait("protected", 5*time.Second, r.protected)
		image := r.p.Status().Image
		for _, c := range []struct {
			name    string
			change  func(c *Config)
			anew    bool
			session bool
		}{
			{"nothing", func(*Config) {}, false, false},
			{"a slower pace", func(c *Config) { c.Floor, c.Target, c.Ceiling = time.Second, time.Second, time.Second }, false, false},
			{"a faster pace", func(c *Config) {
				c.Floor, c.Target, c.Ceiling = 5*time.Millisecond, 10*time.Millisecond, 20*time.Millisecond
			}, false, false},
			{"a wider window", func(c *Config) { c.Window = 4 }, false, false},
			{"a narrow window", func(c *Config) { c.Window = 1 }, false, false},
			{"no compression", func(c *Config) { c.Effort = CompressNone }, false, false},
			{"less patience", func(c *Config) { c.DetachAfter = 200 * time.Millisecond }, false, false},
			{"no hash at every checkpoint", func(c *Config) { c.VerifyAll = false }, false, false},
			{"a hash now and then", func(c *Config) { c.VerifyEvery = time.Second }, false, false},
			{"never", func(c *Config) { c.VerifyEvery = 0 }, false, false},
			{"no delta cache", func(c *Config) { c.Encoder.DeltaCacheBytes = 0 }, false, true},
			{"another delta cache", func(c *Config) { c.Encoder.DeltaCacheBytes = 8 << 20 }, false, true},
			{"more connections", func(*Config) {}, true, true},
		} {
			before := r.sessions()
			c.change(&r.cfg)
			r.must(r.p.Reconfigure(r.t.Context(), r.cfg, c.anew))
			commits := r.commits()
			r.wait(c.name+": epochs", 5*time.Second, func() bool { return r.commits() > commits+4 })
			if made := r.sessions() - before; made != 0 && !c.session || made != 1 && c.session {
				r.t.Errorf("%s: %d sessions were made", c.name, made)
			}
			if st := r.p.Status(); st.Mode != ModeProtected || st.Image != image {
				r.t.Errorf("%s: %s by image %s, was %s", c.name, st.Mode, st.Image, image)
			}
		}
		v, err := r.p.Verify(r.t.Context())
		if err != nil || !v.Identical {
			r.t.Errorf("after all that: %+v, %v", v, err)
		}
	})
}

// TestTheNewPaceCountsAtOnce: a guest in a long epoch is not left in it.
func TestTheNewPaceCountsAtOnce(t *testing.T) {
	inBubble(t, func(c *Config, _ *sim.Config) {
		c.Floor, c.Target, c.Ceiling = 400*time.Millisecond, 400*time.Millisecond, 400*time.Millisecond
	}, func(r *rig) {
		r.start(true)
		r.wait("protected", 10*time.Second, r.protected)
		commits := r.commits()
		r.wait("an epoch has begun", 5*time.Second, func() bool { return r.commits() > commits })
		commits = r.commits()
		r.cfg.Floor, r.cfg.Target, r.cfg.Ceiling = 5*time.Millisecond, 5*time.Millisecond, 5*time.Millisecond
		r.must(r.p.Reconfigure(r.t.Context(), r.cfg, false))
		r.wait("ten epochs", 200*time.Millisecond, func() bool { return r.commits() > commits+10 })
	})
}

// TestWrongSettingsChangeNothing: they are refused as a whole.
func TestWrongSettingsChangeNothing(t *testing.T) {
	inBubble(t, nil, func(r *rig) {
		r.start(true)
		r.wait("protected", 5*time.Second, r.protected)
		wrong := r.cfg
		wrong.Effort, wrong.Window = CompressNone, 0
		if err := r.p.Reconfigure(r.t.Context(), wrong, true); err == nil {
			r.t.Error("a window of no epoch was taken")
		}
		if r.p.cfg.Effort != CompressAuto || *r.p.compression.Load() != CompressAuto || r.sessions() != 1 {
			r.t.Error("half of the settings were taken")
		}
		r.stop()
		if err := r.p.Reconfigure(r.t.Context(), r.cfg, false); err == nil {
			r.t.Error("a primary that has ended took settings")
		}
	})
}
