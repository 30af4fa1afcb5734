package disk

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"go.uber.org/goleak"

	"understudy/backup"
	"understudy/clock"
	"understudy/disk/disktest"
	"understudy/epoch"
	"understudy/primary"
)

var (
	_ primary.Disks = (*Set)(nil)
	_ backup.Disks  = (*Set)(nil)
	_ Backend       = (*Device)(nil)
	_ Store         = (*disktest.Store)(nil)
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// forever is a lease that no test outlives.
const forever = clock.Instant(1 << 62)

var quietLog = slog.New(slog.DiscardHandler)

// front is a front end whose guest stands still whenever it is asked.
type front struct {
	running  bool
	inFlight []byte
	got      []byte
}

func (f *front) AppendInFlight(dst []byte) []byte { return append(dst, f.inFlight...) }
func (f *front) Resubmit(state []byte) error      { f.got = append([]byte(nil), state...); return nil }
func (f *front) Stopped() bool                    { return !f.running }

const testPages = 256

// newSet makes a Set of these stores and closes it with the test.
func newSet(t testing.TB, c SetConfig, stores ...Store) *Set {
	t.Helper()
	for _, st := range stores {
		c.Disks = append(c.Disks, DiskConfig{Store: st, Serial: fmt.Sprint("disk", len(c.Disks))})
	}
	if c.Clock == nil {
		c.Clock = clock.Boot{}
	}
	c.Pages, c.HeldBytes, c.Log = testPages, max(c.HeldBytes, MinHeldBytes), quietLog
	s, err := NewSet(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// soon is a context that ends before the test does.
func soon(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// own makes a Set the owner's, in a generation, with a lease that does not end.
func own(s *Set, g epoch.Generation) {
	s.Own(g)
	if err := s.Allow(forever); err != nil {
		panic(err)
	}
}

// request makes a guest's request.
func request(op Op, sector uint64, sectors uint32, fill byte) *Request {
	r := &Request{Op: op, Sector: sector, Sectors: sectors}
	if op == OpRead || op == OpWrite {
		data := make([]byte, int(sectors)*epoch.SectorSize)
		for i := range data {
			data[i] = fill
		}
		r.Segments = []Segment{{Data: data, Page: 0}}
		if op == OpRead {
			r.Buffer = make([]byte, len(data))
		}
	}
	return r
}

// do carries a request out as a front end does.
func do(ctx context.Context, d *Device, r *Request) error {
	for {
		taken, err := d.Accept(r)
		if taken || err != nil {
			return err
		}
		if err := d.Do(ctx, r); err != ErrAgain {
			if err == nil && r.Op == OpRead {
				copySlices(r)
				d.Landed(r)
			}
			return err
		}
	}
}

func copySlices(r *Request) {
	at := 0
	for _, g := range r.Segments {
		at += copy(g.Data, r.Buffer[at:])
	}
}

// contents reads a whole disk as the guest does.
func contents(t testing.TB, d *Device) []byte {
	t.Helper()
	all := make([]byte, d.Info().Sectors*epoch.SectorSize)
	const step = 256
	for s := uint64(0); s < d.Info().Sectors; s += step {
		n := uint32(min(step, d.Info().Sectors-s))
		r := request(OpRead, s, n, 0)
		if err := do(soon(t), d, r); err != nil {
			t.Fatal(err)
		}
		copy(all[s*epoch.SectorSize:], r.Buffer)
	}
	return all
}

// must fails the test on an error.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
