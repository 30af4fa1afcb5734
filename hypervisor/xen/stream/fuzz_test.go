package stream

import (
	"bytes"
	"testing"
)

// Any bytes are a stream that can be written again, or an error.
func FuzzStream(f *testing.F) {
	for _, name := range []string{"pvh", "remus", "pv"} {
		data := golden(f, name)
		if name == "pvh" {
			f.Add(data[saveHeaderLen+7:], false)
			continue
		}
		f.Add(data, name == "pv")
	}
	f.Fuzz(func(t *testing.T, data []byte, bare bool) {
		in := bytes.NewReader(data)
		r := NewLibxcReader(in)
		var out bytes.Buffer
		w := NewLibxcWriter(&out)
		if !bare {
			var err error
			if r, err = NewReader(in); err != nil {
				return
			}
			if w, err = NewWriter(&out); err != nil {
				t.Fatal(err)
			}
		}
		var records int
		for {
			rec, err := r.Next()
			if err != nil {
				break
			}
			if _, foreign := rec.(Unknown); foreign {
				continue
			}
			if err := w.Write(rec); err != nil {
				t.Fatalf("record %d was read and cannot be written: %v", records, err)
			}
			records++
		}
		if cap(r.buf) > max(step, 2*len(data)) {
			t.Fatalf("%d bytes of memory for a stream of %d", cap(r.buf), len(data))
		}
		again := NewLibxcReader(&out)
		if !bare {
			again, _ = NewReader(&out)
		}
		for i := range records {
			if _, err := again.Next(); err != nil {
				t.Fatalf("record %d was written and cannot be read: %v", i, err)
			}
		}
	})
}

func FuzzSaveFile(f *testing.F) {
	f.Add(golden(f, "pvh"))
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := ReadSaveFile(bytes.NewReader(data))
		if err != nil {
			return
		}
		head, err := file.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ReadSaveFile(bytes.NewReader(head))
		if err != nil || again.JSON != file.JSON || !bytes.Equal(again.Config, file.Config) {
			t.Fatalf("read %+v, written anew and read %+v, error %v", file, again, err)
		}
	})
}
