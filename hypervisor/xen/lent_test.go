package xen

import (
	"encoding/binary"
	"strings"
	"testing"

	"understudy/epoch"
)

func TestWhatADomainLends(t *testing.T) {
	frames, err := NewFrames([]Run{{0, 2}, {100, 2}})
	if err != nil {
		t.Fatal(err)
	}
	l := Lent{Frames: frames, Memory: make([]byte, 4*epoch.PageSize), Grants: make(Grants, 8*grantLen)}
	for ref, entry := range []uint64{
		0: 0,
		1: grantAccess | 101<<32,
		2: grantAccess | grantReadOnly | 1<<32,
		3: grantAccess | 5<<16 | 1<<32,          // to domain 5
		4: grantAccess | 50<<32,                 // a hole
		5: grantAccess | grantSubPage | 1<<32,   // a piece
		6: 2 | 1<<32,                            // a transfer
		7: grantAccess | uint64(^uint32(0))<<32, // beyond all
	} {
		binary.LittleEndian.PutUint64(l.Grants[ref*grantLen:], entry)
	}
	page, number, err := l.Grant(1, true)
	if err != nil || number != 3 || len(page) != epoch.PageSize || cap(page) != epoch.PageSize || &page[0] != &l.Memory[3*epoch.PageSize] {
		t.Errorf("page %d of %d bytes, %v", number, len(page), err)
	}
	if _, number, err := l.Grant(2, false); err != nil || number != 1 {
		t.Errorf("page %d, %v", number, err)
	}
	for ref, want := range map[uint32]string{0: "nothing", 2: "for reading", 3: "nothing", 4: "no page", 5: "nothing", 6: "nothing", 7: "no page", 8: "whose table has 8"} {
		if _, _, err := l.Grant(ref, true); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("grant %d: %v, want %q", ref, err, want)
		}
	}
}
