package host

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"understudy/epoch"
	"understudy/primary"
)

// someLeft is what a primary might leave.
func someLeft(t *rapid.T) primary.Left {
	pages := rapid.Uint64Range(1, 5000).Draw(t, "pages")
	l := primary.Left{Generation: epoch.Generation(rapid.Uint64Range(1, 9).Draw(t, "generation")), Backup: "b", PrintKey: 7,
		At: epoch.Position{Image: epoch.Incarnation{1}, Number: 3, Running: epoch.Hash{9}}, Dirty: epoch.NewPageSet(pages)}
	for _, p := range rapid.SliceOfN(rapid.Uint64Range(0, pages-1), 0, 200).Draw(t, "dirty") {
		l.Dirty.Add(epoch.GFN(p))
	}
	return l
}

func TestWhatIsLeftIsReadBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "left")
	rapid.Check(t, func(t *rapid.T) {
		l := someLeft(t)
		if err := WriteLeft(path, l); err != nil {
			t.Fatal(err)
		}
		got, err := ReadLeft(path, l.Dirty.Pages())
		if err != nil || !reflect.DeepEqual(got, l) {
			t.Fatalf("%+v is read as %+v, %v", l, got, err)
		}
		if _, err := ReadLeft(path, l.Dirty.Pages()-1); err == nil {
			t.Fatal("an image larger than the guest's is taken")
		}
	})
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
}

func TestNobodyHasLeftAnything(t *testing.T) {
	for _, path := range []string{"", filepath.Join(t.TempDir(), "left")} {
		if _, err := ReadLeft(path, 1); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %v", path, err)
		}
	}
}

// whole is a file that is read.
const whole = `{"format":1,"generation":4,"backup":"b","at":{"image":"01000000000000000000000000000000","number":3,"running":"09000000000000000000000000000000"},"print_key":7,"pages":10,"dirty":"AgM="}`

func TestADamagedFileIsRefused(t *testing.T) {
	if l, err := parseLeft([]byte(whole), 10); err != nil || l.Dirty.Count() != 3 || !l.Dirty.Contains(2) || l.Dirty.Contains(5) {
		t.Fatalf("%+v, %v", l, err)
	}
	for _, c := range []struct{ old, now, want string }{
		{`"format":1`, `"format":2`, "format 2, this program knows 1"},
		{`"pages":10`, `"pages":11`, "an image of 11 pages, at most 10"},
		{`"pages":10`, `"pages":0`, "an image of 0 pages"},
		{`"number":3`, `"number":0`, "no image"},
		{`"generation":4`, `"generation":0`, "no image"},
		{`"AgM="`, `"Ag=="`, "not in the image"},
		{`"AgM="`, `"AgA="`, "not in the image"},
		{`"AgM="`, `"Agk="`, "not in the image"},
		{`"AgM="`, `"//////////////8B"`, "half-way"},
		{`{`, ``, "invalid character"},
	} {
		if _, err := parseLeft([]byte(strings.Replace(whole, c.old, c.now, 1)), 10); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s for %s: %v, want %q", c.now, c.old, err, c.want)
		}
	}
}

func FuzzLeft(f *testing.F) {
	f.Add([]byte(whole))
	f.Add([]byte(`{"format":1,"pages":18446744073709551615,"dirty":"/////w8="}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if l, err := parseLeft(text, 1<<16); err == nil && (l.Dirty.Pages() > 1<<16 || !l.Protected()) {
			t.Errorf("%+v", l)
		}
	})
}
