package failover

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"understudy/ownership"
)

// RULES 4: the answer to a proposal is lost. Read finds what became of it, and
// a retry of the same command has no second effect.
func TestLostAnswer(t *testing.T) {
	t.Parallel()
	c := newCluster(t, testLease)
	st, _ := c.protected()
	cmd, err := c.command(c.ctx, hostA, ownership.OutOfSync, ownership.Backup{})
	if err != nil {
		t.Fatal(err)
	}
	c.net.block(witness, hostA, true)
	ctx, cancel := context.WithTimeout(c.ctx, testLease)
	defer cancel()
	if _, err := c.node[hostA].Propose(ctx, cmd); !errors.Is(err, ErrUnknown) {
		t.Fatalf("a proposal without an answer: %v", err)
	}
	c.net.heal(true)
	got, err := c.node[hostA].Read(c.ctx, guest)
	if err != nil || got.InSync || got.Revision != st.Revision+1 {
		t.Fatalf("read after it: %+v, %v", got, err)
	}
	again, err := c.node[hostA].Propose(c.ctx, cmd)
	if err != nil || again != got {
		t.Fatalf("the retry: %+v, %v, want %+v", again, err, got)
	}
	// Also when others have changed the guest since.
	c.do(hostA, ownership.Stop, ownership.Backup{})
	if again, err = c.node[hostA].Propose(c.ctx, cmd); err != nil || again.Revision != got.Revision+1 {
		t.Fatalf("the retry after another change: %+v, %v", again, err)
	}
}

// RULES 4: a proposal is held up on its way. Once a read, or a stricter
// command, has resolved it, it can arrive whenever it likes.
func TestLateProposal(t *testing.T) {
	for _, how := range []string{"read", "stricter command"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, testLease)
			st, b := c.protected()
			n := c.node[hostA]
			cmd, err := c.command(c.ctx, hostA, ownership.Surrender, b)
			if err != nil {
				t.Fatal(err)
			}
			late, _ := n.callers.get(n, guest).current()
			c.net.block(hostA, witness, true)
			ctx, cancel := context.WithTimeout(c.ctx, testLease)
			defer cancel()
			if _, err := n.Propose(ctx, cmd); !errors.Is(err, ErrUnknown) {
				t.Fatalf("a proposal that is held up: %v", err)
			}
			// A still reaches B, and through it a leader.
			want := st
			if how == "read" {
				if got, err := n.Read(c.ctx, guest); err != nil || got != st {
					t.Fatalf("read: %+v, %v, want %+v", got, err, st)
				}
			} else {
				strict := ownership.Command{ID: ownership.NewCommandID(), Guest: guest, Kind: ownership.OutOfSync,
					Host: hostA, Generation: st.Generation, Revision: st.Revision}
				if want, err = n.Propose(c.ctx, strict); err != nil {
					t.Fatal(err)
				}
			}
			c.net.heal(false)
			leader := c.node[c.leader()]
			a := leader.handle(c.ctx, hostA, kindPropose, request{Command: &cmd, Session: late, Timeout: time.Second})
			if a.Code == codeOK {
				t.Fatalf("the late surrender was accepted: %+v", a)
			}
			if got, err := n.Read(c.ctx, guest); err != nil || got != want {
				t.Fatalf("after the late surrender: %+v, %v, want %+v", got, err, want)
			}
		})
	}
}

// RULES 4: the leader is cut away when it has the proposal in its log and
// nobody else has. Whatever becomes of it, Read says so for good, and the
// retry leads to one application in all.
func TestLeaderCutAwayInMidProposal(t *testing.T) {
	t.Parallel()
	c := newCluster(t, testLease)
	st, _ := c.protected()
	c.stop(witness)
	c.leads(hostB) // placement: A owns the guest
	cmd, err := c.command(c.ctx, hostA, ownership.OutOfSync, ownership.Backup{})
	if err != nil {
		t.Fatal(err)
	}
	c.net.block(hostB, hostA, true)
	ctx, cancel := context.WithTimeout(c.ctx, testLease)
	defer cancel()
	if _, err := c.node[hostA].Propose(ctx, cmd); !errors.Is(err, ErrUnknown) {
		t.Fatalf("a proposal to a leader that is cut away: %v", err)
	}
	c.start(witness)
	got, err := c.node[hostA].Read(c.ctx, guest)
	if err != nil {
		t.Fatal(err)
	}
	if applied := got.LastCommand == cmd.ID; !applied && got != st {
		t.Fatalf("read: %+v, want %+v or the command applied", got, st)
	}
	c.net.heal(false)
	again, err := c.node[hostA].Propose(c.ctx, cmd)
	if err != nil || again.Revision != st.Revision+1 || again.LastCommand != cmd.ID {
		t.Fatalf("the retry: %+v, %v", again, err)
	}
}

// A voter that was away catches up, and a cluster that was all down comes back
// with what it knew.
func TestRestartFromDisk(t *testing.T) {
	t.Parallel()
	c := newCluster(t, testLease)
	st, b := c.protected()
	for _, p := range hosts() {
		c.stop(p.ID)
	}
	for _, p := range hosts() {
		c.start(p.ID)
	}
	got, err := c.node[hostB].Read(c.ctx, guest)
	if err != nil || got != st {
		t.Fatalf("after the restart: %+v, %v, want %+v", got, err, st)
	}
	// One voter away: the others go on; it catches up.
	c.stop(hostB)
	c.do(hostA, ownership.OutOfSync, ownership.Backup{})
	st = c.do(hostA, ownership.InSync, b)
	w := c.start(hostB).Watch(guest)
	defer w.Close()
	for w.State() != st {
		select {
		case <-w.C():
		case <-c.ctx.Done():
			t.Fatalf("B has %+v, want %+v", w.State(), st)
		}
	}
}

// A voter that has lost its disk must not help to elect one that lacks what
// the lost disk had acknowledged: here, a takeover's record would be undone.
func TestLostDiskDoesNotVote(t *testing.T) {
	t.Parallel()
	c := newCluster(t, testLease)
	c.protected()
	c.until("B has the log so far", func() bool { return c.node[hostB].fsm.guest(guest).InSync })
	c.stop(hostB)
	st := c.do(hostA, ownership.OutOfSync, ownership.Backup{}) // A and the witness alone know
	c.stop(hostA)
	c.stop(witness)
	if err := os.RemoveAll(c.dir[witness]); err != nil {
		t.Fatal(err)
	}
	c.start(witness)
	c.start(hostB)
	ctx, cancel := context.WithTimeout(c.ctx, 2*testLease)
	defer cancel()
	if got, err := c.node[hostB].Read(ctx, guest); err == nil {
		t.Fatalf("B and a witness without memory made up %+v", got)
	}
	c.start(hostA)
	if got, err := c.node[hostB].Read(c.ctx, guest); err != nil || got != st {
		t.Fatalf("with A back: %+v, %v, want %+v", got, err, st)
	}
	c.leads(witness) // its log filled, it votes and leads again
}

// A voter that was away for longer than the log goes back is sent a snapshot.
func TestSnapshotReachesAVoterThatWasAway(t *testing.T) {
	t.Parallel()
	c := newCluster(t, testLease)
	st, b := c.protected()
	had := c.node[hostB].raft.LastIndex()
	c.stop(hostB)
	leader := c.node[c.leader()]
	rc := leader.raft.ReloadableConfig()
	rc.TrailingLogs = 1
	if err := leader.raft.ReloadConfig(rc); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		c.do(hostA, ownership.OutOfSync, ownership.Backup{})
		st = c.do(hostA, ownership.InSync, b)
	}
	if err := leader.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	if first, err := leader.store.FirstIndex(); err != nil || first <= had+1 {
		t.Fatalf("the leader's log begins at %d (%v), B's ends at %d: no snapshot is needed", first, err, had)
	}
	c.start(hostB)
	c.until("B has the state", func() bool { return c.node[hostB].fsm.guest(guest) == st })
	// And its own restart begins from that snapshot, whose entries are not in its log,
	// between those of before and those that came behind it.
	c.do(hostA, ownership.OutOfSync, ownership.Backup{})
	st = c.do(hostA, ownership.InSync, b)
	c.until("B has what came behind it", func() bool { return c.node[hostB].fsm.guest(guest) == st })
	c.stop(hostB)
	c.start(hostB)
	c.until("B has the state again", func() bool { return c.node[hostB].fsm.guest(guest) == st })
}

// RULES 9, DESIGN "Ownership": the leader moves to the witness; without the
// witness off the host that owns a guest; and it stays when no voter is better.
func TestLeaderIsPlaced(t *testing.T) {
	t.Parallel()
	c := newCluster(t, testLease)
	c.protected()
	c.leads(witness)
	term := c.node[witness].raft.CurrentTerm()
	c.stop(witness)
	c.leads(hostB)
	c.start(witness)
	c.leads(witness)
	if got := c.node[witness].raft.CurrentTerm(); got < term+2 {
		t.Fatalf("term %d after term %d and two changes", got, term)
	}
	term = c.node[witness].raft.CurrentTerm()
	c.until("ten checks later", after(20*c.node[witness].cfg.Profile.Heartbeat))
	if got := c.node[witness].raft.CurrentTerm(); got != term {
		t.Errorf("the leader moved on from the witness: term %d, was %d", got, term)
	}
}

// What is wrong with the directory is said when the voter is opened, with the
// file's name and what to do.
func TestOpenTellsWhatIsWrong(t *testing.T) {
	damage := func(change func(*raft.Log)) func(*testing.T, *cluster) {
		return func(t *testing.T, c *cluster) {
			s, err := raftboltdb.NewBoltStore(filepath.Join(c.dir[hostA], logFile))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = s.Close() }()
			last, err := s.LastIndex()
			if err != nil {
				t.Fatal(err)
			}
			for i := uint64(1); i <= last; i++ {
				var l raft.Log
				if err := s.GetLog(i, &l); err != nil {
					t.Fatal(err)
				}
				if l.Type == raft.LogCommand {
					change(&l)
					if err := s.StoreLog(&l); err != nil {
						t.Fatal(err)
					}
					return
				}
			}
			t.Fatal("no command in the log")
		}
	}
	c := newCluster(t, testLease)
	c.protected()
	c.until("A has applied it", func() bool { return c.node[hostA].fsm.guest(guest).InSync })
	c.stop(hostA)
	sound := c.dir[hostA]
	for name, tc := range map[string]struct {
		spoil func(*testing.T, *cluster)
		want  []string
	}{
		"overwritten": {func(t *testing.T, c *cluster) {
			if err := os.WriteFile(filepath.Join(c.dir[hostA], logFile), bytes.Repeat([]byte("no bolt"), 10000), 0o600); err != nil {
				t.Fatal(err)
			}
		}, []string{logFile, "check the disk", "move the directory"}},
		"a bit flipped": {damage(func(l *raft.Log) { l.Data[len(l.Data)/2] ^= 4 }), []string{logFile, "damaged: checksum"}},
		"a newer entry": {damage(func(l *raft.Log) { l.Data[0] = 9 }), []string{logFile, "version 9"}},
		"locked": {func(t *testing.T, c *cluster) {
			s, err := raftboltdb.NewBoltStore(filepath.Join(c.dir[hostA], logFile))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = s.Close() })
		}, []string{logFile, "is a daemon running already"}},
		"no directory": {func(t *testing.T, c *cluster) {
			c.dir[hostA] = filepath.Join(c.dir[hostA], logFile, "below a file")
		}, []string{"below a file"}},
	} {
		t.Run(name, func(t *testing.T) {
			c.dir[hostA] = t.TempDir()
			if err := os.CopyFS(c.dir[hostA], os.DirFS(sound)); err != nil {
				t.Fatal(err)
			}
			tc.spoil(t, c)
			n, err := Open(c.ctx, c.config(hostA))
			if err == nil {
				t.Fatal(errors.Join(errors.New("it opened"), n.Close()))
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v\nlacks %q", err, want)
				}
			}
		})
	}
}
