package host

// This file lets the copy that this host keeps of a guest run in isolation
// (package bubble), one at a time for each guest. A bubble belongs to who asked
// for it and to the Host's Run: it is gone when either ends.

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"understudy/backup"
	"understudy/bubble"
	"understudy/events"
)

// bubbles are the bubbles of one guest.
type bubbles struct {
	mu      sync.Mutex
	current *bubbleRun
	closed  bool // none begins any more
	running sync.WaitGroup
	cleaned chan struct{} // closed when nothing of a former process is left
}

// bubbleRun is the one that there is.
type bubbleRun struct {
	end     context.CancelCauseFunc
	release chan struct{}
	once    sync.Once
	began   time.Time
	stage   string // bubbles.mu
	held    bool   // it is, or was, only there to be looked at; bubbles.mu
}

// BubbleStatus is how far the copy of a guest is that this host runs in isolation.
type BubbleStatus struct {
	Stage string        `json:"stage"` // a stage of package bubble; "" before the first
	For   time.Duration `json:"for_ns"`
}

// status is that of the one that there is, nil if there is none.
func (b *bubbles) status() *BubbleStatus {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.current == nil {
		return nil
	}
	return &BubbleStatus{Stage: b.current.stage, For: time.Since(b.current.began)}
}

// serveBubbles removes what a former process has left, and ends what there is when
// ctx ends.
func (m *manager) serveBubbles(ctx context.Context) {
	if m.Bubbles != nil {
		if err := m.Bubbles.Clean(ctx); err != nil && ctx.Err() == nil {
			m.slog.Warn("what is left of a bubble cannot be removed", "err", err)
		}
	}
	close(m.bubbles.cleaned)
	<-ctx.Done()
	m.bubbles.mu.Lock()
	m.bubbles.closed = true
	if b := m.bubbles.current; b != nil {
		b.end(errGoesDown)
	}
	m.bubbles.mu.Unlock()
	m.bubbles.running.Wait()
}

var errGoesDown = errors.New("the daemon goes down")

// Bubble starts a copy of the guest's last commit on this host, which must be its
// backup's, beside the image that is kept up to date; runs the check of spec; and
// throws the copy away.
func (h *Host) Bubble(ctx context.Context, guest string, spec bubble.Spec, progress bubble.Progress) (bubble.Result, error) {
	m, b, err := h.asBackup(guest)
	if err != nil {
		return bubble.Result{}, err
	}
	if err := spec.Validate(); err != nil {
		return bubble.Result{}, err
	}
	select {
	case <-m.bubbles.cleaned:
	case <-ctx.Done():
		return bubble.Result{}, ctx.Err()
	}
	ctx, run, err := m.beginBubble(ctx)
	if err != nil {
		return bubble.Result{}, err
	}
	defer m.endBubble(run)
	m.tell(events.Event{Kind: events.KindBubbleBegun, Peer: m.Peer, Text: "a copy of the backup's last commit is started in isolation"})
	noted := bubble.Progress(func(stage string, done, total uint64) {
		m.bubbles.mu.Lock()
		run.stage = stage
		run.held = run.held || stage == bubble.StageHold
		m.bubbles.mu.Unlock()
		if progress != nil {
			progress(stage, done, total)
		}
	})
	r, err := bubble.Run(ctx, bubble.Deps{Guest: guest, Source: b, Ground: m.Bubbles, Log: m.slog}, spec, run.release, noted)
	m.tellBubble(r, err)
	return r, err
}

// tellBubble says how it went.
func (m *manager) tellBubble(r bubble.Result, err error) {
	e := events.Event{Kind: events.KindBubbleEnded, Peer: m.Peer, Epoch: r.Epoch, Duration: r.Took, Reason: events.ReasonBubbleWell}
	switch c := r.Check; {
	case errors.Is(err, bubble.ErrTakeover):
		e.Reason, e.Text = events.ReasonBubbleTakeover, "the bubble made room for a takeover"
	case err != nil:
		e.Reason, e.Text = events.ReasonBubbleFailed, err.Error()
	case c == nil:
		e.Text = fmt.Sprintf("the copy of epoch %d ran %v after it was forked off", r.Epoch, events.About(r.RunsAfter))
	case c.Well():
		e.Text = fmt.Sprintf("the copy of epoch %d ran %v after it was forked off, and its check was well", r.Epoch, events.About(r.RunsAfter))
	case c.TimedOut:
		e.Reason, e.Text = events.ReasonBubbleCheck, fmt.Sprintf("the check of the copy of epoch %d was not done after %v", r.Epoch, events.About(c.Took))
	default:
		e.Reason, e.Text = events.ReasonBubbleCheck, fmt.Sprintf("the check of the copy of epoch %d ended with status %d", r.Epoch, c.Exit)
	}
	m.tell(e)
}

// EndBubble ends the guest's bubble: one that is only held to be looked at as if
// its time were over, any other with an error for who asked for it.
func (h *Host) EndBubble(_ context.Context, guest string) error {
	m, err := h.manager(guest)
	if err != nil {
		return err
	}
	m.bubbles.mu.Lock()
	defer m.bubbles.mu.Unlock()
	b := m.bubbles.current
	switch {
	case b == nil:
		return fmt.Errorf("guest %q has no bubble on host %s", guest, h.cfg.Self)
	case b.held:
		b.once.Do(func() { close(b.release) })
	default:
		b.end(bubble.ErrEnded)
	}
	return nil
}

// asBackup returns the guest's backup, which must stand by on this host.
func (h *Host) asBackup(guest string) (*manager, *backup.Backup, error) {
	m, err := h.manager(guest)
	if err != nil {
		return nil, nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.backup == nil:
		return nil, nil, fmt.Errorf("host %s does not stand by for guest %q (its role here: %s): ask host %s (--at %s)", h.cfg.Self, guest, m.role, m.Peer, m.Peer)
	case m.Bubbles == nil:
		return nil, nil, fmt.Errorf("guest %q cannot have a bubble on host %s", guest, h.cfg.Self)
	}
	return m, m.backup, nil
}

func (m *manager) beginBubble(ctx context.Context) (context.Context, *bubbleRun, error) {
	m.bubbles.mu.Lock()
	defer m.bubbles.mu.Unlock()
	switch {
	case m.bubbles.closed:
		return nil, nil, errGoesDown
	case m.bubbles.current != nil:
		return nil, nil, fmt.Errorf("guest %q has a bubble already: `understudy bubble --end %s` ends it", m.Name, m.Name)
	}
	run := &bubbleRun{release: make(chan struct{}), began: time.Now()}
	ctx, run.end = context.WithCancelCause(ctx)
	m.bubbles.current = run
	m.bubbles.running.Add(1)
	return ctx, run, nil
}

func (m *manager) endBubble(run *bubbleRun) {
	run.end(nil)
	m.bubbles.mu.Lock()
	m.bubbles.current = nil
	m.bubbles.mu.Unlock()
	m.bubbles.running.Done()
}
