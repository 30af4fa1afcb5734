package failover

// watch.go: the applied state of this voter, as it changes.

import "understudy/ownership"

// Watch follows the state of one guest as this voter has applied it. It may
// lag behind the leader's; use Node.Read where that matters.
type Watch struct {
	fsm   *fsm
	guest string
	c     chan struct{}
}

// Watch follows a guest. The first signal comes at once. Close ends it.
func (n *Node) Watch(guest string) *Watch {
	w := &Watch{fsm: n.fsm, guest: guest, c: make(chan struct{}, 1)}
	w.c <- struct{}{}
	f := n.fsm
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.watchers[guest] == nil {
		f.watchers[guest] = map[*Watch]struct{}{}
	}
	f.watchers[guest][w] = struct{}{}
	return w
}

// C receives a value after changes. Several changes may be one signal; State
// called after it is never older than the change.
func (w *Watch) C() <-chan struct{} { return w.c }

// State returns the newest applied state.
func (w *Watch) State() ownership.Guest { return w.fsm.guest(w.guest) }

// Close ends the watch. C is not closed.
func (w *Watch) Close() {
	w.fsm.mu.Lock()
	defer w.fsm.mu.Unlock()
	delete(w.fsm.watchers[w.guest], w)
	if len(w.fsm.watchers[w.guest]) == 0 {
		delete(w.fsm.watchers, w.guest)
	}
}

// notify signals the watchers of a guest; f.mu is held.
func (f *fsm) notify(guest string) {
	for w := range f.watchers[guest] {
		select {
		case w.c <- struct{}{}:
		default: // a signal is waiting already
		}
	}
}
