package backup

import (
	"slices"
	"testing"

	"understudy/epoch"
)

// started are disks of a guest that was started with a file.
type started struct{ noDisks }

var kernel = []epoch.BootFile{{Disk: 15, Sectors: 80, Sum: epoch.Hash{1}}}

func (started) BootFiles() []epoch.BootFile { return kernel }

// TestTheWelcomeListsTheBootFiles, whether or not the image is a new one.
func TestTheWelcomeListsTheBootFiles(t *testing.T) {
	inBubble(t, func(r *rig) {
		if f := r.open(); f.welcome.Boot != nil {
			t.Errorf("a guest without any has %v", f.welcome.Boot)
		}
		r.b.Disks = started{} // its loop stands still: nothing is in flight
		f := r.open()
		if !slices.Equal(f.welcome.Boot, kernel) {
			t.Errorf("a new image's welcome lists %v, want %v", f.welcome.Boot, kernel)
		}
		if f = r.open(f.at); !slices.Equal(f.welcome.Boot, kernel) {
			t.Errorf("a known image's welcome lists %v, want %v", f.welcome.Boot, kernel)
		}
	})
}
