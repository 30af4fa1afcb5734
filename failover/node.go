package failover

// node.go: a voter from start to end. Open lays out the directory, checks what
// is on disk, starts raft and the goroutines; Close ends them all.
//
// Goroutines, all owned by the Node and waited for in Close: one acceptor per
// listener, one per accepted connection and per request being answered (two for
// a connection of raft's), one reader per dialled connection, the hand-over of
// raft's requests and, with an empty log, the one that asks for admission
// (admit.go), the follower of raft's leadership (reign.go) with the duties of
// the current reign, the observer of the leader, and one per raft future being
// waited for.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"understudy/ownership"
)

// ErrClosed is returned by calls on a Node that has been closed.
var ErrClosed = errors.New("failover: the node is closed")

// Node is one voter of the ownership log.
type Node struct {
	cfg  Config
	log  *slog.Logger
	fsm  *fsm
	raft *raft.Raft

	ctx    context.Context // done when Close has begun
	cancel context.CancelFunc
	spawnM sync.Mutex
	ended  bool
	wg     sync.WaitGroup

	conns   conns
	inbound inbound
	peers   peers
	reigns  reigns
	leaders leaders
	callers callers

	store     *raftboltdb.BoltStore
	snapshots *raft.FileSnapshotStore
	transport *gatedTransport
	failed    chan struct{} // see Failed
	failOnce  sync.Once
	failure   error
	closeOnce sync.Once
	closeErr  error
}

const (
	logFile = "ownership.bolt" // raft's log and votes
	// keepSnapshots is how many snapshots are kept.
	keepSnapshots = 2
	// trailingLogs is how many entries stay behind a snapshot, so that a voter
	// that was away for a while needs no snapshot.
	trailingLogs      = 1024
	snapshotThreshold = 1024
	lockTimeout       = time.Second
)

// Open starts the voter. A directory without a log is bootstrapped with
// cfg.Peers. ctx bounds Open alone. On an error the listeners are closed.
func Open(ctx context.Context, cfg Config) (_ *Node, err error) {
	if err := cfg.check(); err != nil {
		return nil, errors.Join(fmt.Errorf("ownership log: %w", err), closeListeners(cfg))
	}
	if err := ctx.Err(); err != nil {
		return nil, errors.Join(err, closeListeners(cfg))
	}
	n := &Node{cfg: cfg, log: cfg.Log.With("part", "failover"), failed: make(chan struct{})}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.fsm = newFSM(n.fail)
	n.inbound.conn = map[ownership.HostID]net.Conn{}
	n.peers = peers{configured: slices.Clone(cfg.Peers), former: slices.Clone(cfg.Former),
		others: map[ownership.HostID]*other{}, changed: make(chan struct{})}
	n.sortPeers()
	n.reigns = reigns{n: n, changed: make(chan struct{})}
	n.leaders.changed = make(chan struct{})
	n.callers.guests = map[string]*caller{}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	if err := n.openStore(); err != nil {
		return nil, err
	}
	return n, n.startRaft()
}

func closeListeners(cfg Config) error {
	var errs []error
	for _, l := range []net.Listener{cfg.RaftListener, cfg.RPCListener} {
		if l != nil {
			if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// openStore opens the log and reads it through once, so that damage is found
// here, with the file's name, and not in the middle of a failover.
func (n *Node) openStore() (err error) {
	path := filepath.Join(n.cfg.Dir, logFile)
	defer func() {
		if p := recover(); p != nil { // bbolt panics on some damaged pages
			err = fmt.Errorf("%v", p)
		}
		err = explainStore(path, err)
	}()
	if err := os.MkdirAll(n.cfg.Dir, 0o700); err != nil {
		return err
	}
	n.store, err = raftboltdb.New(raftboltdb.Options{
		Path:        path,
		BoltOptions: &bbolt.Options{Timeout: lockTimeout, FreelistType: bbolt.FreelistMapType},
	})
	if err != nil {
		return err
	}
	file := path
	path = filepath.Join(n.cfg.Dir, "snapshots")
	if n.snapshots, err = raft.NewFileSnapshotStoreWithLogger(n.cfg.Dir, keepSnapshots, newRaftLog(n.log)); err != nil {
		return err
	}
	kept, err := n.snapshots.List()
	if err != nil {
		return err
	}
	covered := uint64(0)
	if len(kept) > 0 {
		covered = kept[0].Index // the newest is the first
	}
	path = file
	return n.checkLog(covered)
}

// checkLog reads every entry. Those up to the newest snapshot's, covered, may be missing:
// a voter that was sent a snapshot goes on behind it, and keeps what it had before.
func (n *Node) checkLog(covered uint64) error {
	first, err := n.store.FirstIndex()
	if err != nil {
		return err
	}
	last, err := n.store.LastIndex()
	if err != nil || first == 0 {
		return err
	}
	for i := first; i <= last; i++ {
		var l raft.Log
		err := n.store.GetLog(i, &l)
		if errors.Is(err, raft.ErrLogNotFound) && i <= covered {
			continue
		}
		if err != nil {
			return fmt.Errorf("entry %d of %d to %d: %w", i, first, last, err)
		}
		if l.Index != i {
			return fmt.Errorf("entry %d says it is entry %d", i, l.Index)
		}
		if l.Type == raft.LogCommand {
			if _, err := decodeEntry(l.Data); err != nil {
				return fmt.Errorf("entry %d: %w", i, err)
			}
		}
	}
	return nil
}

// explainStore adds what to do about it.
func explainStore(path string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("ownership log %s: %w: the disk is full; make room on it and start again", path, err)
	case errors.Is(err, bolterrors.ErrTimeout):
		return fmt.Errorf("ownership log %s: another process holds it locked: is a daemon running already? (%w)", path, err)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("ownership log %s: %w: the daemon's user must own the directory and its files", path, err)
	default:
		return fmt.Errorf("ownership log %s cannot be used: %w; check the disk. The other two voters hold the same log: "+
			"stop this daemon, see that the other two run, then move the directory %s aside and start again: "+
			"it is filled anew by them. Never do this to two voters at once", path, err, filepath.Dir(path))
	}
}

func (n *Node) startRaft() error {
	rlog, snaps := newRaftLog(n.log), n.snapshots
	n.transport = &gatedTransport{n: n, consume: make(chan raft.RPC), NetworkTransport: raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream:  newStream(n),
		Logger:  rlog,
		MaxPool: 3,
		Timeout: max(2*n.cfg.Profile.Heartbeat, 100*time.Millisecond),
		// No pipelining. When an answer ends a pipeline, raft may go on sending
		// into it: nobody takes what comes back, and the goroutine stands until
		// the process ends. Its follower gets no entries any more, and Shutdown
		// waits for it (hashicorp/raft replication.go, pipelineReplicate and
		// pipelineDecode; net_transport.go, netPipeline). A pipeline would also
		// pass by what returning.go does.
		MaxRPCsInFlight: 1,
	})}
	notify := make(chan bool)
	p := n.cfg.Profile
	rc := raft.DefaultConfig()
	rc.LocalID = raft.ServerID(n.cfg.Self)
	rc.HeartbeatTimeout, rc.ElectionTimeout = p.Heartbeat, p.Election
	rc.LeaderLeaseTimeout, rc.CommitTimeout = p.Heartbeat, p.Commit
	rc.SnapshotThreshold, rc.TrailingLogs = snapshotThreshold, trailingLogs
	rc.NotifyCh, rc.Logger = notify, rlog
	rc.NoLegacyTelemetry = true

	fresh, err := raft.HasExistingState(n.store, n.store, snaps)
	fresh = !fresh
	if err != nil {
		return explainStore(filepath.Join(n.cfg.Dir, logFile), err)
	}
	// A voter among others finds out first whether there is a log already (admit.go).
	if fresh && len(n.cfg.Peers) == 1 {
		n.log.Info("the ownership log is new", "dir", n.cfg.Dir, "voters", len(n.cfg.Peers))
		if err := raft.BootstrapCluster(rc, n.store, n.store, snaps, n.transport, n.voters()); err != nil {
			return explainStore(filepath.Join(n.cfg.Dir, logFile), fmt.Errorf("bootstrap: %w", err))
		}
	}
	last, err := n.store.LastIndex()
	if err != nil {
		return explainStore(filepath.Join(n.cfg.Dir, logFile), err)
	}
	empty := last <= emptyLog && (len(n.cfg.Peers) > 1)
	if kept, err := snaps.List(); err != nil {
		return explainStore(filepath.Join(n.cfg.Dir, "snapshots"), err)
	} else if len(kept) > 0 {
		empty = false // all of the log is in the snapshot
	}
	n.transport.admitted.Store(!empty)
	n.spawn(func() { n.transport.pass(n.ctx) })
	n.raft, err = raft.NewRaft(rc, n.fsm, n.store, &votes{n.store, n.fail, n.cfg.Dir}, snaps, n.transport)
	if err != nil {
		return explainStore(n.cfg.Dir, fmt.Errorf("start raft: %w", err))
	}
	n.transport.raft.Store(n.raft)
	n.sortPeers()
	n.spawn(n.followMembers)
	n.spawn(n.stopOnFailure)
	n.spawn(func() { n.reigns.follow(notify) })
	n.observeLeader()
	n.spawn(func() { n.accept(n.cfg.RPCListener, ProtocolRPC, n.serve) })
	if empty {
		n.spawn(n.admit)
	}
	return n.checkVoters()
}

// voters is the configuration every voter bootstraps with, the same on each.
func (n *Node) voters() raft.Configuration {
	var c raft.Configuration
	configured, _, _ := n.Peers()
	for _, p := range configured {
		c.Servers = append(c.Servers, raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(p.ID), Address: raft.ServerAddress(p.ID)})
	}
	slices.SortFunc(c.Servers, func(a, b raft.Server) int {
		switch {
		case a.ID < b.ID:
			return -1
		case a.ID > b.ID:
			return 1
		}
		return 0
	})
	return c
}

// checkVoters compares the log's voters with the configuration's.
func (n *Node) checkVoters() error {
	f := n.raft.GetConfiguration()
	if err := f.Error(); err != nil {
		return fmt.Errorf("ownership log: read its voters: %w", err)
	}
	have, leave := f.Configuration().Servers, 0
	for _, s := range have {
		if !n.configured(ownership.HostID(s.ID)) {
			leave++
		}
	}
	want := n.voters().Servers
	switch {
	case leave > 1:
		return fmt.Errorf("ownership log in %s was made for the voters %v, the configuration names %v; "+
			"voters are exchanged one at a time (understudy host replace)", n.cfg.Dir, have, want)
	case len(have) > 0 && !slices.Equal(have, want):
		n.log.Warn("the ownership log has other voters than the configuration: finish the replacement (understudy host replace)",
			"log", fmt.Sprint(have), "configuration", fmt.Sprint(want))
	}
	return nil
}

// followMembers brings the peers into line whenever who votes has changed.
func (n *Node) followMembers() {
	for {
		select {
		case <-n.fsm.members:
			n.sortPeers()
		case <-n.ctx.Done():
			return
		}
	}
}

// spawn starts a goroutine that Close waits for, unless Close has begun.
func (n *Node) spawn(f func()) bool {
	n.spawnM.Lock()
	defer n.spawnM.Unlock()
	if n.ended {
		return false
	}
	n.wg.Go(f)
	return true
}

// fail is called when this voter's log turns out damaged, or its disk refuses
// a write that raft cannot go on without.
func (n *Node) fail(err error) {
	n.failOnce.Do(func() {
		n.failure = err
		close(n.failed)
	})
}

// stopOnFailure ends raft when the log turned out damaged.
func (n *Node) stopOnFailure() {
	select {
	case <-n.failed:
		n.log.Error("this voter stops", "err", n.failure)
		if err := n.raft.Shutdown().Error(); err != nil {
			n.log.Error("the ownership log was not closed cleanly", "err", err)
		}
	case <-n.ctx.Done():
	}
}

// Failed is closed when the voter has stopped by itself: its log is damaged or
// its disk full. Failure then says why. The others go on without it.
func (n *Node) Failed() <-chan struct{} { return n.failed }

// Failure returns why the voter has stopped by itself, nil if it has not.
func (n *Node) Failure() error {
	select {
	case <-n.failed:
		return n.failure
	default:
		return nil
	}
}

// Close stops the voter. Calls under way return an error.
func (n *Node) Close() error {
	n.closeOnce.Do(func() {
		var errs []error
		n.cancel()
		if n.raft != nil {
			if err := n.raft.Shutdown().Error(); err != nil {
				errs = append(errs, fmt.Errorf("stop raft: %w", err))
			}
		}
		if n.transport != nil {
			errs = append(errs, n.transport.Close())
			n.transport.CloseStreams()
		}
		errs = append(errs, closeListeners(n.cfg))
		n.conns.closeAll()
		n.spawnM.Lock()
		n.ended = true
		n.spawnM.Unlock()
		n.wg.Wait()
		if n.store != nil {
			if err := n.store.Close(); err != nil {
				errs = append(errs, fmt.Errorf("close %s: %w", filepath.Join(n.cfg.Dir, logFile), err))
			}
		}
		n.closeErr = errors.Join(errs...)
	})
	return n.closeErr
}

// leaders is the leader as this voter knows it.
type leaders struct {
	mu      sync.Mutex
	leader  ownership.HostID
	changed chan struct{} // closed and replaced at each change
}

func (l *leaders) get() (ownership.HostID, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.leader, l.changed
}

// observeLeader follows raft's notion of the leader.
func (n *Node) observeLeader() {
	seen := make(chan raft.Observation, 8)
	obs := raft.NewObserver(seen, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	})
	n.raft.RegisterObserver(obs)
	n.spawn(func() {
		defer n.raft.DeregisterObserver(obs)
		for {
			_, id := n.raft.LeaderWithID()
			l := &n.leaders
			l.mu.Lock()
			if l.leader != ownership.HostID(id) {
				l.leader = ownership.HostID(id)
				close(l.changed)
				l.changed = make(chan struct{})
			}
			l.mu.Unlock()
			select {
			case <-seen: // signals; what counts is read above
			case <-n.ctx.Done():
				return
			}
		}
	})
}

// Leader returns the voter that leads as far as this one knows, "" if it knows
// none.
func (n *Node) Leader() ownership.HostID {
	id, _ := n.leaders.get()
	return id
}

// LeaderChange returns the leader, as Leader does, and a channel that is closed
// when this voter knows of another.
func (n *Node) LeaderChange() (ownership.HostID, <-chan struct{}) { return n.leaders.get() }

// Guests returns the applied state of every guest at this voter. It may lag
// behind the leader's.
func (n *Node) Guests() map[string]ownership.Guest { return n.fsm.all() }

// Lease returns the length of a lease as applied at this voter, 0 before the
// first leader has written it into a fresh log.
func (n *Node) Lease() time.Duration { return n.fsm.lengths().Length }
