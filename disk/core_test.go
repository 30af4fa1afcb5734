package disk

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"understudy/clock"
	"understudy/epoch"
)

// rig is a core without a Set: the test is the world around it.
type rig struct {
	c   core
	now clock.Instant
	n   epoch.Number
	did action // of the lane that was asked last, not answered yet
}

func newRig(unfenced bool, shared ...bool) *rig {
	r := &rig{c: core{unfenced: unfenced, guard: 100 * time.Millisecond, log: newEntries(), asOf: ^uint64(0)}, now: clock.Instant(time.Second)}
	for i, s := range shared {
		r.c.lanes = append(r.c.lanes, &lane{id: epoch.DiskID(i), shared: s})
	}
	return r
}

// add puts a change into the log.
func (r *rig) add(disk int, kind epoch.WriteKind, sector uint64, sectors uint32) uint64 {
	e := entry{seq: r.c.number(), disk: epoch.DiskID(disk), kind: kind, sector: sector, sectors: sectors}
	if !e.layout() {
		panic("no such entry")
	}
	i, at := r.c.log.push(e)
	r.c.take(i, at)
	return i
}

// ok carries the last action out.
func (r *rig) ok(l *lane) {
	switch r.did.do {
	case doArrange:
		l.plan.arrange()
	case doReport:
		for _, b := range l.plan.batch {
			r.c.durable(l, b.index)
			r.c.dropped(r.c.log.at(b.index))
			r.c.log.finish(b.index)
		}
	}
	r.c.done(l, r.did)
}

// told shows an action as the stories below write it.
func (r *rig) told(a action, l *lane) string {
	switch a.do {
	case doWait:
		if a.until != 0 {
			return "wait " + a.until.Sub(r.now).String()
		}
		return "wait"
	case doEnd:
		return "end"
	case doAcquire:
		return fmt.Sprintf("acquire in generation %d", a.generation)
	case doArrange:
		return "arrange"
	case doWarn:
		return fmt.Sprintf("warn %d+%d", a.sector, a.sectors)
	case doWrite:
		return fmt.Sprintf("write %d+%d", a.sector, a.sectors)
	case doZero:
		return fmt.Sprintf("zero %d+%d", a.sector, a.sectors)
	case doDiscard:
		return fmt.Sprintf("discard %d+%d", a.sector, a.sectors)
	case doSync:
		if a.anew {
			return "sync anew"
		}
		return "sync"
	case doReport:
		last := l.plan.batch[len(l.plan.batch)-1].index
		return fmt.Sprintf("report up to %d", last)
	}
	return "?"
}

// play does one line of a story and returns what came of it.
func (r *rig) play(t *testing.T, line string) string {
	t.Helper()
	l := r.c.lanes[0]
	if on, rest, ok := strings.Cut(line, ": "); ok {
		i, err := strconv.Atoi(strings.TrimPrefix(on, "disk "))
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		l, line = r.c.lanes[i], rest
	}
	word, rest, _ := strings.Cut(line, " ")
	number, _ := strconv.Atoi(rest)
	from, sectors, _ := strings.Cut(rest, "+")
	sector, _ := strconv.ParseUint(from, 10, 64)
	count, _ := strconv.ParseUint(sectors, 10, 32)
	span, _ := time.ParseDuration(rest)
	switch word {
	case "own":
		r.c.own(epoch.Generation(number))
	case "standby":
		r.c.standBy()
		for _, l := range r.c.lanes {
			if l.shared {
				r.c.letGo(l)
			}
		}
		r.c.log.cut(r.c.log.first)
		r.c.forgotten()
		r.c.stoodBy()
	case "activate":
		r.c.activate()
	case "lease":
		r.c.allow(r.now.Add(span))
	case "later":
		r.now = r.now.Add(span)
	case "hold":
		r.c.enter(ModeHold)
	case "pass":
		r.c.enter(ModePass)
	case "shut":
		r.c.shut()
	case "quiesce":
		r.c.quiesce()
	case "close":
		r.c.close()
	case "drain":
		r.c.drain(1)
	case "watch":
		r.c.watched = true
	case "write":
		r.add(int(l.id), epoch.WriteData, sector, uint32(count))
	case "zeroes":
		r.add(int(l.id), epoch.WriteZeroes, sector, uint32(count))
	case "discard":
		r.add(int(l.id), epoch.WriteDiscard, sector, uint32(count))
	case "flush":
		r.add(int(l.id), epoch.WriteBarrier, 0, 0)
	case "seal":
		r.n++
		if err := r.c.maySeal(r.n); err != nil {
			r.n--
			return "no"
		}
		r.c.seal(r.n, seal{})
	case "acked":
		r.c.release(epoch.Number(number))
	case "commit": // at the backup
		r.c.releaseAll()
	case "straight": // past the log
		if !r.c.passes(l) || !r.c.mayWrite(l, r.now) {
			return "no"
		}
		r.c.begin(l, false)
	case "landed":
		r.c.end(l, false, true)
	case "sync": // the guest's own flush
		r.c.begin(l, true)
	case "synced":
		r.c.end(l, true, true)
	case "unsynced":
		r.c.end(l, true, false)
	case "barred?": // nothing to separate for a flush
		return fmt.Sprint(l.barred)
	case "epoch?":
		e := r.c.seals[len(r.c.seals)-1]
		return fmt.Sprintf("%d to %d", e.from, e.to)
	case "held?":
		return fmt.Sprint(r.c.holds(l) && !r.c.troubled())
	case "settled?":
		return fmt.Sprint(r.c.settled())
	case "drained?":
		return fmt.Sprint(r.c.drained())
	case "left?":
		return fmt.Sprint(r.c.log.count)
	case "next":
		r.did = r.c.next(l, r.now)
		return r.told(r.did, l)
	case "ok":
		r.ok(l)
	case "fails":
		r.c.failed(l, r.did, r.now)
	case "given":
		r.c.gaveUp(l)
	case "run": // all there is to do
		var all []string
		for range 1000 {
			r.did = r.c.next(l, r.now)
			if r.did.do != doArrange {
				all = append(all, r.told(r.did, l))
			}
			if r.did.do == doWait || r.did.do == doEnd {
				return strings.Join(all, ", ")
			}
			r.ok(l)
		}
		t.Fatalf("no end: %v", all[:10])
	default:
		t.Fatalf("%q?", line)
	}
	return ""
}

// owner begins a story: a protected guest's shared disk.
var owner = []string{"own 1", "lease 10s", "hold", "run -> acquire in generation 1, wait"}

// TestCoreStories tells the rules as what a flusher is told to do. "a -> b": b
// comes of a.
func TestCoreStories(t *testing.T) {
	for _, s := range []struct {
		name     string
		unfenced bool
		disks    []bool // shared or not; one shared disk if there is nothing
		lines    []string
	}{
		{name: "G2: a held write waits for its epoch's acknowledgement", lines: []string{
			"write 0+8", "seal", "write 8+8", "seal", "run -> wait",
			"acked 1", "run -> write 0+8, sync, report up to 0, wait",
			"acked 2", "run -> write 8+8, sync, report up to 1, wait",
		}},
		{name: "G2: a lost epoch's writes wait for the next", lines: []string{
			"write 0+8", "seal", "hold", "acked 1", "run -> wait",
			"seal", "epoch? -> 0 to 1", "acked 2", "run -> write 0+8, sync, report up to 0, wait",
		}},
		{name: "rule 13: what is behind a barrier waits until what is in front of it is durable", lines: []string{
			"write 0+8", "write 8+8", "flush", "write 4+8", "flush", "write 0+1", "seal", "acked 1",
			"run -> write 0+16, sync, report up to 2, write 4+8, sync, report up to 4, write 0+1, sync, report up to 5, wait",
		}},
		{name: "rule 13: between barriers only the newest of a sector is written, and neighbours go as one", lines: []string{
			"write 0+8", "write 2+2", "write 16+8", "write 8+8", "write 100+4", "seal", "acked 1",
			"run -> write 0+24, write 100+4, sync, report up to 4, wait",
		}},
		{name: "what has no bytes goes apart", lines: []string{
			"write 0+8", "zeroes 8+8", "zeroes 16+8", "discard 24+8", "write 32+8", "seal", "acked 1",
			"run -> write 0+8, zero 8+16, discard 24+8, write 32+8, sync, report up to 4, wait",
		}},
		{name: "a barrier alone is synced, too", lines: []string{
			"flush", "seal", "acked 1", "run -> sync, report up to 0, wait",
		}},
		{name: "one disk's barrier is nothing to another", disks: []bool{true, true}, lines: []string{
			"disk 1: run -> acquire in generation 1, wait",
			"write 0+8", "flush", "disk 1: write 0+8", "write 8+8", "seal", "acked 1",
			"disk 1: run -> write 0+8, sync, report up to 2, wait",
			"left? -> 3", "run -> write 0+8, sync, report up to 1, write 8+8, sync, report up to 3, wait", "left? -> 0",
		}},
		{name: "rule 14: a write that fails is tried again, all of the batch, and nothing is dropped", lines: []string{
			"write 0+8", "write 100+8", "seal", "acked 1",
			"next -> arrange", "ok", "next -> write 0+8", "ok", "next -> write 100+8", "fails",
			"left? -> 2", "held? -> false",
			"next -> wait 10ms", "later 9ms", "next -> wait 1ms", "later 1ms",
			"run -> write 0+8, write 100+8, sync, report up to 1, wait", "held? -> true",
		}},
		{name: "rule 14: a sync that fails may have lost what was written: it is written again, and the disk is told", lines: []string{
			"write 0+8", "seal", "acked 1",
			"next -> arrange", "ok", "next -> write 0+8", "ok", "next -> sync", "fails", "left? -> 1", "later 10ms",
			"run -> write 0+8, sync anew, report up to 0, wait",
			"write 0+8", "seal", "acked 2", "run -> write 0+8, sync, report up to 1, wait",
		}},
		{name: "rule 14: it is tried more and more seldom, at least every five seconds", lines: []string{
			"lease 1h", "write 0+8", "seal", "acked 1",
			"next -> arrange", "fails", "next -> wait 10ms", "later 10ms",
			"next -> arrange", "fails", "next -> wait 20ms", "later 1s",
			"next -> arrange", "fails", "next -> wait 40ms", "later 1s",
			"next -> arrange", "fails", "later 1s", "next -> arrange", "fails", "later 1s", "next -> arrange", "fails", "later 1s",
			"next -> arrange", "fails", "later 1s", "next -> arrange", "fails", "later 2s", "next -> arrange", "fails", "later 3s",
			"next -> arrange", "fails", "next -> wait 5s", "later 5s", "next -> arrange", "fails", "next -> wait 5s", "left? -> 1",
		}},
		{name: "rule 14: a direct write that a failed sync may have lost is not said to be written again", lines: []string{
			"pass", "straight", "landed", "hold", "next -> sync", "fails", "later 10ms", "next -> sync", "settled? -> false",
		}},
		{name: "rule 14: nor beside a batch that is written anew", lines: []string{
			"pass", "straight", "hold", "write 0+8", "pass",
			"next -> arrange", "ok", "next -> write 0+8", "ok", "next -> sync", "fails", "later 10ms",
			"next -> arrange", "ok", "next -> write 0+8", "ok", "next -> sync",
		}},
		{name: "G7: nothing after the lease, nor just before its end", lines: []string{
			"write 0+8", "write 100+8", "seal", "acked 1", "next -> arrange", "ok",
			"later 9899ms", "next -> write 0+8", "ok", "later 1ms", "next -> wait",
			"lease 10s", "run -> write 0+8, write 100+8, sync, report up to 1, wait",
		}},
		{name: "G7: what is durable is told, whatever has happened meanwhile", lines: []string{
			"write 0+8", "seal", "acked 1",
			"next -> arrange", "ok", "next -> write 0+8", "ok", "next -> sync", "shut", "later 1h", "ok",
			"run -> report up to 0, wait", "left? -> 0",
		}},
		{name: "G7: shut is shut", lines: []string{
			"write 0+8", "seal", "acked 1", "next -> arrange", "ok", "next -> write 0+8", "shut", "ok", "run -> wait", "left? -> 1",
			"hold", "run -> write 0+8, sync, report up to 0, wait",
		}},
		{name: "G1: a new generation acquires anew before anything else", lines: []string{
			"write 0+8", "write 100+8", "seal", "acked 1", "next -> arrange", "ok", "next -> write 0+8", "own 2", "ok",
			"run -> acquire in generation 2, write 0+8, write 100+8, sync, report up to 1, wait",
		}},
		{name: "G1: what was quiesced begins nothing", lines: []string{
			"write 0+8", "seal", "acked 1", "next -> arrange", "ok", "next -> write 0+8", "quiesce", "ok", "run -> wait",
			"held? -> false", "own 1", "run -> write 0+8, sync, report up to 0, wait",
		}},
		{name: "who gives the lock's wait up is not a failure", lines: []string{
			"own 2", "next -> acquire in generation 2", "quiesce", "given", "next -> wait", "held? -> false", "own 2", "held? -> true",
			"run -> acquire in generation 2, wait",
		}},
		{name: "a lock that is refused is asked for again", lines: []string{
			"own 2", "next -> acquire in generation 2", "fails", "next -> wait 10ms", "later 10ms", "run -> acquire in generation 2, wait",
		}},
		{name: "rule 13: a held flush is a barrier to what went straight before it, too", lines: []string{
			"flush", "barred? -> true", "pass", "run -> sync, report up to 0, wait", "straight", "hold", "barred? -> false",
			"flush", "barred? -> true", "pass", "landed", "run -> sync, sync, report up to 1, wait",
		}},
		{name: "unprotected: held writes go first, then everything straight", lines: []string{
			"write 0+8", "flush", "write 8+8", "pass", "straight -> no",
			"run -> write 0+8, sync, report up to 1, write 8+8, sync, report up to 2, wait",
			"straight", "landed", "run -> wait", // its flush is the guest's own to ask for
		}},
		{name: "rule 1: no epoch is sealed before what went straight is durable", lines: []string{
			"pass", "straight", "hold", "held? -> true", "seal -> no", "run -> wait",
			"landed", "settled? -> false", "seal -> no", "run -> sync, wait", "settled? -> true", "seal",
		}},
		{name: "rule 1: nor before what was released is durable", lines: []string{
			"write 0+8", "seal", "acked 1", "hold", "seal -> no", "run -> write 0+8, sync, report up to 0, wait", "seal",
		}},
		{name: "a guest's own flush makes its direct writes durable, unless it fails", lines: []string{
			"pass", "straight", "landed", "sync", "unsynced", "settled? -> false", "sync", "synced", "settled? -> true",
		}},
		{name: "a direct write that begins beside a sync is not durable by it", lines: []string{
			"pass", "straight", "landed", "drain", "next -> sync", "straight", "ok", "landed", "settled? -> false", "run -> sync, wait", "settled? -> true",
		}},
		{name: "direct writes are made durable before a batch", lines: []string{
			"pass", "straight", "landed", "hold", "write 0+8", "seal -> no", "run -> sync, wait", "seal", "acked 1",
			"run -> write 0+8, sync, report up to 0, wait",
		}},
		{name: "who drains an unprotected guest has its direct writes synced", lines: []string{
			"pass", "straight", "landed", "run -> wait", "drained? -> false", "drain", "run -> sync, wait", "drained? -> true",
		}},
		{name: "rule 17: who has a reference to fill is told before each overwrite, and may take his time", lines: []string{
			"watch", "write 0+8", "write 100+8", "seal", "acked 1",
			"next -> arrange", "ok", "next -> warn 0+8", "later 1s", "ok", "next -> write 0+8", "ok", "next -> warn 100+8", "later 8900ms", "ok",
			"next -> wait", "lease 10s", "run -> warn 0+8, write 0+8, warn 100+8, write 100+8, sync, report up to 1, wait",
		}},
		{name: "rule 17: what cannot be filled is not overwritten", lines: []string{
			"watch", "write 0+8", "seal", "acked 1", "next -> arrange", "ok", "next -> warn 0+8", "fails", "next -> wait 10ms", "left? -> 1",
		}},
		{name: "rule 12: a backup writes nothing to a shared disk", lines: []string{
			"standby", "write 0+8", "commit", "run -> wait", "left? -> 1",
		}},
		{name: "rule 19: a backup brings its own copy up to date, without a lease", disks: []bool{false}, lines: []string{
			"standby", "lease 0s", "write 0+8", "commit", "run -> write 0+8, sync, report up to 0, wait",
		}},
		{name: "rule 12: a takeover replays what the backup kept, once the lock and the lease are there", lines: []string{
			"standby", "write 0+8", "flush", "write 0+4", "commit", "activate", "run -> wait",
			"own 2", "next -> acquire in generation 2", "ok", "next -> wait", "lease 10s",
			"run -> write 0+8, sync, report up to 1, write 0+4, sync, report up to 2, wait",
		}},
		{name: "rule 12: nothing without the lock", lines: []string{
			"standby", "write 0+8", "commit", "activate", "lease 10s", "run -> wait",
		}},
		{name: "rule 12: who owns a backup's disks begins nothing before he says what for", lines: []string{
			"standby", "write 0+8", "commit", "own 2", "lease 10s", "run -> acquire in generation 2, wait", "activate",
			"run -> write 0+8, sync, report up to 0, wait",
		}},
		{name: "rule 12: unfenced, the guest runs before the lock is got, and nothing is written", unfenced: true, lines: []string{
			"standby", "activate", "own 2", "lease 10s", "pass", "next -> acquire in generation 2", "held? -> true", "write 0+8", "commit",
			"straight -> no", "ok", "held? -> false", "straight -> no", "run -> write 0+8, sync, report up to 0, wait", "straight",
		}},
		{name: "a closed Set ends its flushers", lines: []string{
			"write 0+8", "seal", "acked 1", "next -> arrange", "ok", "close", "next -> end", "left? -> 1",
		}},
	} {
		t.Run(s.name, func(t *testing.T) {
			if s.disks == nil {
				s.disks = []bool{true}
			}
			r := newRig(s.unfenced, s.disks...)
			for i, line := range append(slices.Clone(owner), s.lines...) {
				do, want, _ := strings.Cut(line, " -> ")
				if got := r.play(t, do); got != want {
					t.Fatalf("line %d, %q: %q", i-len(owner), line, got)
				}
			}
		})
	}
}

// TestABatchIsBounded: neither a batch nor one request of it is ever too large.
func TestABatchIsBounded(t *testing.T) {
	r := newRig(false, true)
	for _, line := range owner[:3] {
		r.play(t, line)
	}
	for range 1000 {
		for k := range uint64(8) {
			r.add(0, epoch.WriteData, k*epoch.MaxWriteSectors, epoch.MaxWriteSectors)
		}
	}
	r.play(t, "seal")
	r.play(t, "acked 1")
	l := r.c.lanes[0]
	for {
		r.did = r.c.next(l, r.now)
		if r.did.do == doWait {
			break
		}
		if r.did.do == doWrite && len(r.did.pieces) > 1 && r.did.sectors > mergeBytes/epoch.SectorSize {
			t.Fatalf("a request of %d sectors is made of %d pieces", r.did.sectors, len(r.did.pieces))
		}
		r.ok(l)
		bytes := 0
		for _, b := range l.plan.batch {
			bytes += int(b.e.dataBytes())
		}
		if n := len(l.plan.batch); n > batchEntries || bytes >= batchBytes+epoch.MaxWriteSectors*epoch.SectorSize {
			t.Fatalf("a batch of %d entries, %d bytes", n, bytes)
		}
	}
	if r.c.log.count != 0 || !r.c.drained() {
		t.Fatalf("%d entries are left", r.c.log.count)
	}
}

// TestDecisionsAllocateNothing: the core is asked for every request.
func TestDecisionsAllocateNothing(t *testing.T) {
	r := newRig(false, true)
	for _, line := range owner[:3] {
		r.play(t, line)
	}
	l := r.c.lanes[0]
	step := func() {
		for k := range uint64(100) {
			r.add(0, epoch.WriteData, k*37%500, 1+uint32(k%9))
			if k%20 == 0 {
				r.add(0, epoch.WriteBarrier, 0, 0)
			}
		}
		r.n++
		if err := r.c.maySeal(r.n); err != nil {
			t.Fatal(err)
		}
		r.c.seal(r.n, seal{})
		r.c.release(r.n)
		for r.did = r.c.next(l, r.now); r.did.do != doWait; r.did = r.c.next(l, r.now) {
			r.ok(l)
		}
		r.c.spare = r.c.spare[:0]
	}
	step()
	if a := testing.AllocsPerRun(10, step); a != 0 {
		t.Errorf("%v allocations for 105 entries", a)
	}
}

// TestTheCoreIsPure: the core's files have no way to a lock, a goroutine, a clock
// or a disk.
func TestTheCoreIsPure(t *testing.T) {
	may := []string{"fmt", "slices", "time", "understudy/clock", "understudy/epoch"}
	for _, name := range []string{"core.go", "plan.go", "entries.go"} {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range f.Imports {
			if path, _ := strconv.Unquote(i.Path.Value); !slices.Contains(may, path) {
				t.Errorf("%s imports %s", name, path)
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt, *ast.ChanType, *ast.SelectStmt:
				t.Errorf("%s: %T", name, n)
			case *ast.Ident:
				if slices.Contains([]string{"Set", "Device", "Store", "held", "journal", "overlay"}, n.Name) {
					t.Errorf("%s: %s", name, n.Name)
				}
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && x.Name == "time" && (n.Sel.Name == "Now" || n.Sel.Name == "Since" || n.Sel.Name == "After") {
					t.Errorf("%s: time.%s", name, n.Sel.Name)
				}
			}
			return true
		})
	}
}

func BenchmarkCore4K(b *testing.B) {
	r := newRig(false, true)
	r.c.own(1)
	r.c.allow(forever)
	r.c.enter(ModeHold)
	l := r.c.lanes[0]
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		r.add(0, epoch.WriteData, uint64(i*37%4096)*8, 8)
		if i%200 != 199 {
			continue
		}
		r.n++
		r.c.seal(r.n, seal{})
		r.c.release(r.n)
		for r.did = r.c.next(l, r.now); r.did.do != doWait; r.did = r.c.next(l, r.now) {
			r.ok(l)
		}
		r.c.spare = r.c.spare[:0]
	}
}
