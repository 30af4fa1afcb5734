package host

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"understudy/checkpoint"
	"understudy/epoch"
)

func drawWrites(t *rapid.T) (writes []epoch.DiskWrite) {
	for seq := range uint64(rapid.IntRange(0, 12).Draw(t, "writes")) {
		w := epoch.DiskWrite{Seq: seq + 1, Disk: epoch.DiskID(rapid.IntRange(0, 15).Draw(t, "disk")), Sector: rapid.Uint64Range(0, epoch.MaxSectors).Draw(t, "sector"),
			Kind: rapid.SampledFrom([]epoch.WriteKind{epoch.WriteData, epoch.WriteZeroes, epoch.WriteDiscard, epoch.WriteBarrier}).Draw(t, "kind")}
		if w.Kind != epoch.WriteBarrier {
			w.Sectors = rapid.Uint32Range(1, 16).Draw(t, "sectors")
		}
		if w.Kind == epoch.WriteData {
			w.Data = bytes.Repeat([]byte{byte(seq), 3}, int(w.Sectors)*epoch.SectorSize/2)
		}
		writes = append(writes, w)
	}
	return writes
}

func TestWhatTheDisksOweTravelsWhole(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		state, writes := rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "state"), drawWrites(t)
		b, err := encodeDisks(state, writes)
		if err != nil {
			t.Fatal(err)
		}
		gotState, got, err := parseDisks(b)
		if err != nil || !bytes.Equal(gotState, state) || len(got) != len(writes) {
			t.Fatalf("%v: state %x, %d writes; want %x, %d", err, gotState, len(got), state, len(writes))
		}
		for i, w := range writes {
			g := got[i]
			if !bytes.Equal(g.Data, w.Data) || g.Seq != w.Seq || g.Kind != w.Kind || g.Disk != w.Disk || g.Sector != w.Sector || g.Sectors != w.Sectors {
				t.Errorf("write %d: %v of %d sectors, want %v of %d", i, g.Kind, g.Sectors, w.Kind, w.Sectors)
			}
		}
		// A part of it is never the whole.
		if len(b) > 0 {
			if _, _, err := parseDisks(b[:rapid.IntRange(1, len(b)-1).Draw(t, "cut")]); !errors.Is(err, errDisks) {
				t.Errorf("cut off: %v", err)
			}
		}
	})
}

func TestNonsenseAboutDisksIsRefused(t *testing.T) {
	good, err := encodeDisks([]byte("state"), []epoch.DiskWrite{{Seq: 1, Kind: epoch.WriteData, Sectors: 1, Data: make([]byte, 512)}})
	if err != nil {
		t.Fatal(err)
	}
	change := func(at int, v byte) []byte {
		b := bytes.Clone(good)
		b[at] = v
		return b
	}
	for name, b := range map[string][]byte{
		"version 9":                         change(0, 9),
		"ends in the state":                 change(6, 1),
		"16777217 writes":                   change(16, 1),
		"a synchronisation cannot be in it": change(26, byte(epoch.WriteSync)),
		"cannot be in it":                   change(27, 1),
		"ends in a write's data":            change(30, 1),
		"1 bytes too many":                  append(bytes.Clone(good), 0),
	} {
		if _, _, err := parseDisks(b); !errors.Is(err, errDisks) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := encodeDisks(make([]byte, checkpoint.MaxDiskState), nil); err == nil || !strings.Contains(err.Error(), "save again when its disks have caught up") {
		t.Errorf("too much of it: %v", err)
	}
}

func FuzzParseDisks(f *testing.F) {
	good, err := encodeDisks([]byte("state"), []epoch.DiskWrite{{Seq: 1, Kind: epoch.WriteData, Sectors: 1, Data: make([]byte, 512)}, {Seq: 2, Kind: epoch.WriteBarrier}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{})
	f.Add(good)
	f.Add(good[:30])
	f.Add(binary.LittleEndian.AppendUint32(good[:13:13], 1<<31))
	f.Fuzz(func(t *testing.T, b []byte) {
		state, writes, err := parseDisks(b)
		if err != nil || len(b) == 0 {
			return
		}
		again, err := encodeDisks(state, writes)
		if err != nil || !bytes.Equal(again, b) && len(state)+len(writes) > 0 {
			t.Errorf("%v: %x became %x", err, b, again)
		}
	})
}
