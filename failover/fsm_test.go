package failover

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"pgregory.net/rapid"

	"understudy/ownership"
)

func sealEntry(body []byte) []byte {
	b := binary.BigEndian.AppendUint32([]byte{entryVersion}, crc32.Checksum(body, castagnoli))
	return append(b, body...)
}

func sealSnapshot(body []byte) []byte {
	b := binary.BigEndian.AppendUint32([]byte(snapshotMagic), uint32(len(body)))
	return append(binary.BigEndian.AppendUint32(b, crc32.Checksum(body, castagnoli)), body...)
}

func logOf(b []byte) *raft.Log { return &raft.Log{Index: 1, Data: b} }

func put(t testing.TB, f *fsm, e entry) result {
	t.Helper()
	b, err := encodeEntry(e)
	if err != nil {
		t.Fatal(err)
	}
	res, ok := f.Apply(logOf(b)).(result)
	if !ok {
		t.Fatalf("%+v broke the log: %v", e, f.broken)
	}
	return res
}

func commandBy(f *fsm, h ownership.HostID, k ownership.Kind) ownership.Command {
	g := f.guest(guest)
	return ownership.Command{ID: ownership.NewCommandID(), Guest: guest, Kind: k, Host: h, Generation: g.Generation, Revision: g.Revision}
}

// scripted is a state with a lease, sessions and more commands than are
// remembered.
func scripted(t testing.TB) *fsm {
	f := newFSM(func(err error) { t.Error(err) })
	put(t, f, entry{Kind: entryLease, Lease: time.Second})
	put(t, f, entry{Kind: entrySession, Guest: guest, Host: hostA, Session: session{1, 5}})
	for range history + 5 {
		c := commandBy(f, hostA, ownership.Start)
		put(t, f, entry{Kind: entryCommand, Command: &c, Session: session{1, 5}})
	}
	return f
}

func TestSnapshotRoundTrip(t *testing.T) {
	f := scripted(t)
	s, err := f.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	b := []byte(s.(frozen))
	back := newFSM(func(err error) { t.Error(err) })
	w := (&Node{fsm: back}).Watch(guest)
	<-w.C()
	if err := back.Restore(io.NopCloser(bytes.NewReader(b))); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(back.guests, f.guests) || back.lease != f.lease {
		t.Fatalf("restored %+v %+v\nwant %+v %+v", back.lease, back.guests, f.lease, f.guests)
	}
	<-w.C() // a restore is a change
	if w.State() != f.guest(guest) {
		t.Fatalf("the watch has %+v", w.State())
	}
	w.Close()
	if len(back.watchers) > 0 {
		t.Error("a closed watch is kept")
	}
	// Any damaged byte, any cut: refused, and nothing of it is taken over.
	for i := 0; i < len(b); i += 1 + len(b)/200 {
		bad := bytes.Clone(b)
		bad[i] ^= 0x10
		for _, bad := range [][]byte{bad, b[:i]} {
			if err := back.Restore(io.NopCloser(bytes.NewReader(bad))); err == nil || !strings.Contains(err.Error(), "snapshot") {
				t.Fatalf("byte %d: %v", i, err)
			}
		}
	}
	if !reflect.DeepEqual(back.guests, f.guests) {
		t.Fatal("a refused snapshot changed the state")
	}
}

// A voter whose log is damaged stops at the entry; it does not skip it.
func TestDamagedEntryStopsTheVoter(t *testing.T) {
	var told error
	f := newFSM(func(err error) { told = err })
	if err, ok := f.Apply(&raft.Log{Index: 17, Data: []byte("nonsense")}).(error); !ok || told == nil || !strings.Contains(err.Error(), "entry 17") {
		t.Fatalf("%v, told %v", err, told)
	}
	b, err := encodeEntry(entry{Kind: entryLease, Lease: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := f.Apply(logOf(b)).(error); !ok || f.lease.Length != 0 {
		t.Fatal("it went on after the damage")
	}
	if _, err := f.Snapshot(); err == nil {
		t.Fatal("a snapshot of a damaged state")
	}
}

// RULES 4: any host's commands come on time, late, twice, or after the session
// they were made in. The oracle remembers what was applied; the log must say
// the same of every command, and never apply one of a session that is over.
func TestLateCommandsProperty(t *testing.T) {
	type sent struct {
		c ownership.Command
		s session
	}
	rapid.Check(t, func(t *rapid.T) {
		f := newFSM(func(err error) { t.Fatal(err) })
		var all []sent
		applied := map[ownership.CommandID]bool{}
		sessions := map[ownership.HostID]session{}
		byHost := rapid.SampledFrom([]ownership.HostID{hostA, hostB})
		byKind := rapid.SampledFrom([]ownership.Kind{ownership.Start, ownership.Adopt, ownership.OutOfSync, ownership.Stop})
		apply := func(e entry) result {
			b, err := encodeEntry(e)
			if err != nil {
				t.Fatal(err)
			}
			return f.Apply(logOf(b)).(result)
		}
		t.Repeat(map[string]func(*rapid.T){
			"make": func(t *rapid.T) {
				c := commandBy(f, byHost.Draw(t, "host"), byKind.Draw(t, "kind"))
				all = append(all, sent{c, sessions[c.Host]})
			},
			"arrive": func(t *rapid.T) {
				if len(all) == 0 {
					return
				}
				x := rapid.SampledFrom(all).Draw(t, "command")
				before := f.guest(guest)
				res := apply(entry{Kind: entryCommand, Command: &x.c, Session: x.s})
				after := f.guest(guest)
				if applied[x.c.ID] {
					if after != before || (res.Refused != "" && !res.Old) {
						t.Fatalf("an applied command, again: %+v", res)
					}
					return
				}
				if res.Refused == "" {
					if x.s != sessions[x.c.Host] {
						t.Fatal("a command of a session that is over was applied")
					}
					if after.Revision != before.Revision+1 || res.State != after {
						t.Fatalf("applied: %+v to %+v, answered %+v", before, after, res.State)
					}
					applied[x.c.ID] = true
				} else if after != before {
					t.Fatalf("refused, and yet %+v became %+v", before, after)
				}
			},
			"next session": func(t *rapid.T) {
				h := byHost.Draw(t, "host")
				from := sessions[h]
				to := session{from.Number + 1, rapid.Uint64().Draw(t, "nonce")}
				if stale := rapid.Bool().Draw(t, "stale"); stale && from.Number > 0 {
					from.Number--
					if res := apply(entry{Kind: entrySession, Guest: guest, Host: h, From: from, Session: to}); res.Refused == "" {
						t.Fatalf("a late opening of session %d was accepted in session %d", to.Number, sessions[h].Number)
					}
					return
				}
				if res := apply(entry{Kind: entrySession, Guest: guest, Host: h, From: from, Session: to}); res.Refused != "" {
					t.Fatal(res.Refused)
				}
				sessions[h] = to
			},
			"snapshot": func(t *rapid.T) {
				s, err := f.Snapshot()
				if err != nil {
					t.Fatal(err)
				}
				f = newFSM(func(err error) { t.Fatal(err) })
				if err := f.Restore(io.NopCloser(bytes.NewReader(s.(frozen)))); err != nil {
					t.Fatal(err)
				}
			},
		})
	})
}

func TestExplainStore(t *testing.T) {
	err := explainStore("/var/lib/understudy/ownership.bolt", &errWrap{syscall.ENOSPC})
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "ownership.bolt") || !strings.Contains(err.Error(), "make room") {
		t.Fatal(err)
	}
}

type errWrap struct{ error }

func (e *errWrap) Unwrap() error { return e.error }

func TestConfigIsChecked(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"lease too short":  {func(c *Config) { c.Lease = time.Millisecond }, "lease 1ms"},
		"lease too long":   {func(c *Config) { c.Lease = time.Hour }, "lease 1h"},
		"slow raft":        {func(c *Config) { c.Profile = ProfileFor(10 * time.Second) }, "lengthen the lease"},
		"nobody":           {func(c *Config) { c.Peers = nil }, "0 voters"},
		"named twice":      {func(c *Config) { c.Peers = append(hosts(), Peer{ID: hostA}) }, "named twice"},
		"a stranger":       {func(c *Config) { c.Self = "x" }, "not among the voters"},
		"a voter unnamed":  {func(c *Config) { c.Peers = append(hosts(), Peer{}) }, "voter name"},
		"no way to listen": {func(*Config) {}, "all needed"},
	} {
		t.Run(name, func(t *testing.T) {
			c := Config{Self: hostA, Peers: hosts(), Lease: time.Second}
			tc.change(&c)
			if _, err := Open(t.Context(), c); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("%v, want %q", err, tc.want)
			}
		})
	}
	for _, lease := range []time.Duration{ownership.MinLease, 300 * time.Millisecond, time.Second, 10 * time.Second, ownership.MaxLease} {
		if err := ProfileFor(lease).Validate(lease); err != nil {
			t.Errorf("the profile for %s: %v", lease, err)
		}
	}
}

// fullDisk is a stable store on a disk that is full.
type fullDisk struct{ raft.StableStore }

func (fullDisk) Set([]byte, []byte) error       { return syscall.ENOSPC }
func (fullDisk) SetUint64([]byte, uint64) error { return syscall.ENOSPC }

// A full disk stops the voter, not the daemon.
func TestFullDiskStopsTheVoter(t *testing.T) {
	for name, write := range map[string]func(*votes) error{
		"term": func(v *votes) error { return v.SetUint64([]byte("CurrentTerm"), 7) },
		"vote": func(v *votes) error { return v.Set([]byte("LastVoteCand"), []byte("a")) },
	} {
		t.Run(name, func(t *testing.T) {
			var told error
			ended := true
			var wg sync.WaitGroup
			wg.Go(func() {
				_ = write(&votes{fullDisk{}, func(err error) { told = err }, "/var/lib/understudy"})
				ended = false
			})
			wg.Wait()
			if !ended || !errors.Is(told, syscall.ENOSPC) || !strings.Contains(told.Error(), "make room") {
				t.Fatalf("went on %v, told %v", !ended, told)
			}
		})
	}
}

// A running voter whose log breaks says so, stops, and can be closed; the
// others go on.
func TestBrokenVoterStops(t *testing.T) {
	t.Parallel()
	c := newCluster(t, testLease)
	st, _ := c.protected()
	b := c.node[hostB]
	b.fsm.Apply(&raft.Log{Index: 99, Data: []byte("nonsense")})
	select {
	case <-b.Failed():
	case <-c.ctx.Done():
		t.Fatal("it did not stop")
	}
	if err := b.Failure(); err == nil || !strings.Contains(err.Error(), "entry 99") {
		t.Fatal(err)
	}
	c.until("raft has stopped", func() bool { return b.raft.State() == raft.Shutdown })
	c.renew(hostA, st.Generation)
	c.stop(hostB)
	c.renew(hostA, st.Generation)
}
