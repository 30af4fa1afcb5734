package disk

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"pgregory.net/rapid"

	"understudy/disk/disktest"
	"understudy/epoch"
)

// TestAScratchDiskIsADisk: it reads as one that was written to would, and what lies
// below it stays as it is.
func TestAScratchDiskIsADisk(t *testing.T) {
	const sectors = 64
	rapid.Check(t, func(t *rapid.T) {
		below := bytes.Repeat([]byte{7}, sectors*epoch.SectorSize)
		want := bytes.Clone(below)
		s := NewScratch(2, Info{Sectors: sectors, MaxSectors: 64, MaxZeroSectors: 64}, 1<<20)
		if err := s.Do(context.Background(), &Request{Op: OpRead, Sectors: 1, Segments: []Segment{{Data: make([]byte, 512)}}, Buffer: make([]byte, 512)}); err == nil {
			t.Fatal("nothing is shown yet, and can be read")
		}
		s.Over(func(sector uint64, dst []byte) error { copy(dst, below[sector*epoch.SectorSize:]); return nil })
		for range rapid.IntRange(1, 40).Draw(t, "requests") {
			sector := rapid.Uint64Range(0, sectors-1).Draw(t, "sector")
			n := uint32(rapid.Uint64Range(1, sectors-sector).Draw(t, "sectors"))
			on := want[sector*epoch.SectorSize:][:n*epoch.SectorSize]
			switch op := Op(rapid.IntRange(int(OpRead), int(OpWriteZeroes)).Draw(t, "op")); op {
			case OpRead:
				r := &Request{Op: op, Sector: sector, Sectors: n, Segments: []Segment{{Data: make([]byte, len(on))}}, Buffer: make([]byte, len(on))}
				if taken, err := s.Accept(r); taken || err != nil {
					t.Fatalf("a read was taken: %v, %v", taken, err)
				}
				if err := s.Do(context.Background(), r); err != nil || !bytes.Equal(r.Buffer, on) {
					t.Fatalf("sectors %d+%d: %v, equal: %v", sector, n, err, bytes.Equal(r.Buffer, on))
				}
			case OpWrite:
				data := bytes.Repeat([]byte{rapid.Byte().Draw(t, "fill")}, len(on))
				copy(on, data)
				half := rapid.IntRange(0, len(data)).Draw(t, "half")
				take(t, s, &Request{Op: op, Sector: sector, Sectors: n, Segments: []Segment{{Data: data[:half]}, {Data: data[half:]}}})
			case OpFlush:
				take(t, s, &Request{Op: op})
			default:
				clear(on)
				take(t, s, &Request{Op: op, Sector: sector, Sectors: n})
			}
		}
		if !bytes.Equal(below, bytes.Repeat([]byte{7}, len(below))) {
			t.Fatal("what lies below was changed")
		}
	})
}

func take(t *rapid.T, s *Scratch, r *Request) {
	t.Helper()
	if taken, err := s.Accept(r); !taken || err != nil {
		t.Fatalf("%+v: %v, %v", r.Op, taken, err)
	}
}

func TestAScratchDiskHasALimit(t *testing.T) {
	s := NewScratch(0, Info{Sectors: 1 << 20, MaxSectors: 64, MaxZeroSectors: 64}, 20*epoch.PageSize)
	var err error
	n := uint64(0)
	for err == nil && n < 100 {
		_, err = s.Accept(request(OpWrite, n*epoch.PageSectors, epoch.PageSectors, 1))
		n++
	}
	if !errors.Is(err, ErrScratchFull) || n < 19 || s.Written() > 20*epoch.PageSize {
		t.Errorf("%d blocks, %d bytes, %v", n, s.Written(), err)
	}
	if _, err := s.Accept(request(OpWrite, 0, epoch.PageSectors, 2)); err != nil {
		t.Errorf("what has its memory already: %v", err)
	}
	for _, r := range []*Request{request(OpWrite, 1<<20, 8, 1), request(OpWrite, 0, 128, 1), {Op: 99}} {
		if taken, err := s.Accept(r); taken || !errors.Is(err, ErrRange) {
			t.Errorf("%v of %d+%d: %v, %v", r.Op, r.Sector, r.Sectors, taken, err)
		}
	}
}

// TestAForkThatIsNotEnoughFails: and says so, and the disk goes on.
func TestAForkThatIsNotEnoughFails(t *testing.T) {
	m := disktest.NewMedia(1024, false)
	m.Set(bytes.Repeat([]byte{1}, 1024*512))
	s := newSet(t, SetConfig{}, m.Open())
	if _, err := s.Fork(1 << 20); err == nil {
		t.Error("a fork of disks that are nobody's")
	}
	must(t, s.StandBy(soon(t)))
	f, err := s.Fork(10 * epoch.PageSize)
	must(t, err)
	got := make([]byte, 512)
	must(t, f.ReadSectors(0, 3, got))
	for n := range uint64(20) {
		w := epoch.DiskWrite{Seq: n + 1, Kind: epoch.WriteData, Sector: n * 8, Sectors: 8, Data: bytes.Repeat([]byte{2}, epoch.PageSize)}
		must(t, s.Commit(epoch.Number(n+1), []epoch.DiskWrite{w}, nil))
		must(t, s.Drain(soon(t)))
		if err := f.Err(); err != nil {
			if n < 8 || f.ReadSectors(0, 3, got) == nil {
				t.Errorf("after %d blocks: %v", n, err)
			}
			continue
		}
		must(t, f.ReadSectors(0, 0, got))
		if got[0] != 1 {
			t.Fatalf("after %d blocks it shows %d", n, got[0])
		}
	}
	if f.Err() == nil || f.SetAside() > 10*epoch.PageSize {
		t.Errorf("%d bytes, %v", f.SetAside(), f.Err())
	}
	if m.Bytes()[19*8*512] != 2 {
		t.Error("the disk does not have what was committed")
	}
	f.Close()
	if err := f.ReadSectors(0, 0, got); err == nil {
		t.Error("a fork that is over can be read")
	}
}
