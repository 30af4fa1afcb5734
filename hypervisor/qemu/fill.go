package qemu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"understudy/epoch"
	"understudy/hypervisor"
	"understudy/hypervisor/qemu/dirty"
)

// A machine can run before all of its memory is there (RULES 18). Pages flow
// like this: newFiller makes holes of the missing ones in the memory file and
// has QEMU wait at holes (dirty.Page); what is wanted, by QEMU (listen), by us
// (fill), next to what was wanted, or simply next (walk), is fetched by a few
// goroutines from the hypervisor.Filler and put into place (fetch). Once the machine
// runs, a Filler that can brings the rest by itself, many pages at a time, before
// it is walked over (sweep). When nothing is missing any more they end, and the guest's tracking becomes the usual one
// (Guest.finishFill).
//
// None of this waits for QMP: QEMU answers nothing while it waits for a page.

const (
	// fetchers is how many pages are fetched at a time, so that a slow block
	// does not hold up the others; ahead, how many of them QEMU does not wait
	// for: what it waits for always finds a fetcher that nothing else occupies.
	fetchers = 4
	ahead    = 3
	// cluster is how many pages, aligned, are fetched once one of them was
	// wanted: what lies together is used together. 64 KiB.
	cluster = 16
	// maxNear bounds the pages that wait to be fetched for that reason.
	maxNear = 1024
	// patience is how long a page may fail before somebody is told.
	patience = time.Second
	// A page that fails is fetched again after retryFirst, then twice that, up
	// to retryMost.
	retryFirst = 10 * time.Millisecond
	retryMost  = time.Second
	// maxPut is how many pages are put into place by one system call: QEMU's
	// other threads wait for it when they map memory. 256 KiB.
	maxPut = 64
	// maxFailing is how many pages may fail before no others are fetched but
	// those somebody waits for.
	maxFailing = 16
)

// filler fills the main memory of one machine. It owns its goroutines, which
// end with close, or, but for listen, when nothing is missing.
type filler struct {
	ram   *ramFile
	from  hypervisor.Filler
	pager *dirty.Pager
	log   *slog.Logger

	// trouble gets an error when a page has failed for longer than patience,
	// once until all is well again.
	trouble chan error
	whole   chan struct{} // closed when nothing is missing
	life    context.Context
	end     context.CancelFunc // of life: by close
	faults  atomic.Uint64      // how often a thread of QEMU waited
	running sync.WaitGroup
	closing sync.Once

	mu      sync.Mutex
	work    sync.Cond      // there may be something to fetch
	news    sync.Cond      // a page was filled, or has failed for long
	missing *epoch.PageSet // what from has and the file has not
	left    uint64         // size of missing
	busy    *epoch.PageSet // being fetched
	asked   queue          // QEMU waits for them
	wanted  queue          // we wait for them
	near    queue          // nobody waits
	walking bool           // fetch the rest, too
	walked  epoch.GFN      // and have got here
	behind  int            // fetches that QEMU does not wait for
	waiting int            // goroutines in fill
	failing map[epoch.GFN]*failure
	told    bool
	closed  bool
}

// failure is a page that could not be had.
type failure struct {
	err   error
	since time.Time
	wait  time.Duration
	retry *time.Timer
}

// newFiller begins to supply the missing pages of main memory to a machine
// that has not touched any memory yet. missing is the filler's from here on.
func newFiller(ram *ramFile, page func() (*dirty.Pager, error), from hypervisor.Filler, missing *epoch.PageSet, log *slog.Logger) (*filler, error) {
	f := &filler{
		ram: ram, from: from, log: log, missing: missing, left: missing.Count(),
		trouble: make(chan error, 1), whole: make(chan struct{}),
		busy: epoch.NewPageSet(missing.Pages()), failing: map[epoch.GFN]*failure{},
	}
	f.work.L, f.news.L = &f.mu, &f.mu
	f.life, f.end = context.WithCancel(context.Background())
	// What earlier epochs left there must go before anybody may look.
	for first, count := range missing.Runs {
		if err := ram.punch(uint64(first), count); err != nil {
			f.end()
			return nil, err
		}
	}
	var err error
	if f.pager, err = page(); err != nil {
		f.end()
		return nil, err
	}
	f.running.Go(f.listen)
	for range fetchers {
		f.running.Go(f.fetch)
	}
	return f, nil
}

// listen reads what QEMU waits for. Holes that are nobody's are zeros.
func (f *filler) listen() {
	var pages []epoch.GFN
	for {
		var more bool
		var err error
		if pages, more, err = f.pager.Faults(pages[:0]); err != nil {
			f.complain(err)
		}
		if !more {
			return
		}
		for _, page := range pages {
			f.faults.Add(1)
			f.mu.Lock()
			missing := f.missing.Contains(page)
			if missing {
				f.asked.push(page)
				f.work.Signal()
			}
			f.mu.Unlock()
			if missing {
				continue
			}
			// It was filled meanwhile, or it was never written.
			if err := f.pager.Copy(page, zeroPage[:]); err != nil && !errors.Is(err, dirty.ErrPresent) && !errors.Is(err, dirty.ErrTargetGone) {
				f.complain(err)
			}
		}
	}
}

// complain tells of trouble that is no page's.
func (f *filler) complain(err error) {
	f.log.Error("guest memory is not supplied any more", "err", err)
	select {
	case f.trouble <- err:
	default:
	}
}

// fetch fetches one page after the other.
func (f *filler) fetch() {
	content := make([]byte, epoch.PageSize)
	for {
		page, aside, ok := f.next()
		if !ok {
			return
		}
		err := f.from.Content(page, content)
		if err == nil {
			err = f.pager.Copy(page, content)
		}
		f.placed(page, err)
		f.settle(page, aside, err)
	}
}

// next waits for a page to fetch. aside says that QEMU does not wait for it. ok is
// false when there is nothing more to do.
func (f *filler) next() (page epoch.GFN, aside, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for ; !f.closed && f.left > 0; f.work.Wait() {
		for page, ok = f.asked.pop(); ok; page, ok = f.asked.pop() {
			if f.take(page) {
				f.around(page)
				return page, false, true
			}
		}
		if f.behind >= ahead {
			continue
		}
		for page, ok = f.wanted.pop(); ok; page, ok = f.wanted.pop() {
			if f.take(page) {
				f.around(page)
				f.behind++
				return page, true, true
			}
		}
		if len(f.failing) >= maxFailing {
			continue
		}
		for page, ok = f.near.pop(); ok; page, ok = f.near.pop() {
			if f.failing[page] == nil && f.take(page) {
				f.behind++
				return page, true, true
			}
		}
		for ; f.walking && uint64(f.walked) < f.missing.Pages(); f.walked++ {
			if page = f.walked; f.failing[page] == nil && f.take(page) {
				f.behind++
				return page, true, true
			}
		}
	}
	return 0, false, false
}

// take claims a page, if it is missing and nobody has it. The caller holds mu.
func (f *filler) take(page epoch.GFN) bool {
	if !f.missing.Contains(page) || f.busy.Contains(page) {
		return false
	}
	f.busy.Add(page)
	return true
}

// around puts down what lies around a page that was wanted.
func (f *filler) around(page epoch.GFN) {
	first := page / cluster * cluster
	for p := first; p < first+cluster && uint64(p) < f.missing.Pages() && f.near.len() < maxNear; p++ {
		if p != page && f.missing.Contains(p) && !f.busy.Contains(p) {
			f.near.push(p)
		}
	}
	f.work.Signal()
}

// settle notes the outcome of a fetch.
func (f *filler) settle(page epoch.GFN, aside bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.busy.RemoveRange(page, 1)
	if aside {
		f.behind--
		f.work.Signal()
	}
	switch {
	case f.closed:
		if err == nil {
			f.missing.RemoveRange(page, 1)
		}
	case err != nil:
		f.failed(page, err)
	default:
		f.missing.RemoveRange(page, 1)
		f.left--
		if bad := f.failing[page]; bad != nil {
			bad.retry.Stop()
			delete(f.failing, page)
			f.told = f.told && len(f.failing) > 0
			f.work.Broadcast()
		}
		if f.left == 0 {
			close(f.whole)
			f.work.Broadcast()
		}
		if f.waiting > 0 {
			f.news.Broadcast()
		}
	}
}

// failed puts a page down to be fetched again. The caller holds mu.
func (f *filler) failed(page epoch.GFN, err error) {
	bad := f.failing[page]
	if bad == nil {
		bad = &failure{since: time.Now(), wait: retryFirst / 2}
		f.failing[page] = bad
		if len(f.failing) == 1 { // one stands for the others
			f.log.Warn("a page of the guest cannot be filled now, trying again", "page", page, "err", err)
		}
	} else {
		bad.retry.Stop()
	}
	bad.err = err
	bad.wait = min(2*bad.wait, retryMost)
	bad.retry = time.AfterFunc(bad.wait, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.wanted.push(page)
		f.work.Signal()
	})
	if !bad.long() {
		return
	}
	f.news.Broadcast()
	if !f.told && !errors.Is(err, dirty.ErrTargetGone) {
		f.told = true
		select {
		case f.trouble <- bad.explain(page):
		default:
		}
	}
}

func (b *failure) long() bool { return time.Since(b.since) >= patience }

func (b *failure) explain(page epoch.GFN) error {
	return fmt.Errorf("page %d of the guest's memory cannot be filled, and the processor that needs it waits (trying again for %v): %w",
		page, time.Since(b.since).Round(100*time.Millisecond), b.err)
}

// fill returns when the pages are there. It costs next to nothing once nothing
// is missing. After an error, which is that of a page that has failed for
// longer than patience, the page is still fetched again.
func (f *filler) fill(first epoch.GFN, count uint64) error {
	if f == nil || f.isWhole() {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	end := min(uint64(first)+count, f.missing.Pages())
	for asked := false; ; asked = true {
		there := true
		for page := first; uint64(page) < end; page++ {
			if !f.missing.Contains(page) {
				continue
			}
			there = false
			if bad := f.failing[page]; bad != nil && bad.long() {
				return bad.explain(page)
			}
			if !asked {
				f.wanted.push(page)
			}
		}
		switch {
		case there:
			return nil
		case f.closed:
			return fmt.Errorf("fill pages %d+%d: %w", first, count, errOver)
		case !asked:
			f.work.Broadcast()
		}
		f.waiting++
		f.news.Wait()
		f.waiting--
	}
}

// bound returns a context that ends when a page fails for too long: a machine
// that is being loaded waits for it, and nobody is told by an event yet.
func (f *filler) bound(ctx context.Context) (_ context.Context, done func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case err := <-f.trouble:
			cancel(err)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil); <-ended }
}

func (f *filler) isWhole() bool {
	select {
	case <-f.whole:
		return true
	default:
		return false
	}
}

// walk begins to fetch what nobody has asked for.
func (f *filler) walk() {
	sweeper, ok := f.from.(hypervisor.Sweeper)
	if !ok {
		f.walkNow()
		return
	}
	f.running.Go(func() {
		f.sweep(sweeper)
		f.walkNow() // over what the sweep has left
	})
}

func (f *filler) walkNow() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.walking = true
	f.work.Broadcast()
}

// sweep takes what the Filler brings by itself, until close.
func (f *filler) sweep(from hypervisor.Sweeper) {
	if err := from.Sweep(f.life, f.put); err != nil && f.life.Err() == nil {
		f.log.Warn("guest memory comes page by page from here on", "err", err)
	}
}

// put puts those of adjacent pages into place that are missing and that nobody
// fetches.
func (f *filler) put(first epoch.GFN, content []byte) error {
	for len(content) > 0 {
		n := 1
		took, err := f.takeRun(first, min(maxPut, len(content)/epoch.PageSize), &n)
		if err != nil {
			return err
		}
		part := content[:n*epoch.PageSize]
		if took {
			f.place(first, part)
		}
		first, content = first+epoch.GFN(n), content[len(part):]
	}
	return nil
}

// takeRun claims pages from first on, at most most of them: those before the first
// one that cannot be claimed; or passes by those before the first that can. n is
// how many.
func (f *filler) takeRun(first epoch.GFN, most int, n *int) (took bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return false, errOver
	}
	free := func(page epoch.GFN) bool {
		return uint64(page) < f.missing.Pages() && f.missing.Contains(page) && !f.busy.Contains(page) && f.failing[page] == nil
	}
	took = free(first)
	for *n < most && free(first+epoch.GFN(*n)) == took {
		*n++
	}
	if took {
		f.busy.AddRange(first, uint64(*n))
	}
	return took, nil
}

// place puts pages that were claimed into place.
func (f *filler) place(first epoch.GFN, content []byte) {
	err := f.pager.Copy(first, content)
	for i := range epoch.GFN(len(content) / epoch.PageSize) {
		page, why := first+i, err
		if err != nil { // those before the one that failed are there
			if why = f.pager.Copy(page, content[i*epoch.PageSize:][:epoch.PageSize]); errors.Is(why, dirty.ErrPresent) {
				why = nil
			}
		}
		f.placed(page, why)
		f.settle(page, false, why)
	}
}

// placed tells of a page that is in the image.
func (f *filler) placed(page epoch.GFN, err error) {
	if err != nil {
		return
	}
	if !f.ram.frees() { // QEMU has mapped it, we have not
		f.ram.setThere(uint64(page))
	}
	f.from.Filled(page)
}

// close ends the filling where it is and waits for fetches under way. QEMU's
// threads that wait for a page wait on: end it, or release it before.
func (f *filler) close() {
	f.closing.Do(func() {
		f.mu.Lock()
		f.closed = true
		for _, bad := range f.failing {
			bad.retry.Stop()
		}
		f.end()
		f.work.Broadcast()
		f.news.Broadcast()
		f.mu.Unlock()
		f.pager.Halt()
		f.running.Wait()
		if err := f.pager.Close(); err != nil {
			f.log.Warn("the supply of guest memory did not end cleanly", "err", err)
		}
	})
}

// queue is pages in the order they were put down.
type queue struct {
	pages []epoch.GFN
	at    int
}

func (q *queue) push(page epoch.GFN) { q.pages = append(q.pages, page) }

func (q *queue) pop() (epoch.GFN, bool) {
	if q.at == len(q.pages) {
		q.pages, q.at = q.pages[:0], 0
		return 0, false
	}
	q.at++
	return q.pages[q.at-1], true
}

func (q *queue) len() int { return len(q.pages) - q.at }
