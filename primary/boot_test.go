package primary

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"understudy/epoch"
	"understudy/protocol"
	"understudy/protocol/protocoltest"
)

// told are disks that note what they are told of the backup's boot files, and
// whether an epoch had been encoded before that.
type told struct {
	noDisks
	mu    sync.Mutex
	files [][]epoch.BootFile
	early bool
}

func (*told) Sealed(epoch.Number) ([]epoch.DiskWrite, []byte) { return nil, []byte{1} }

func (d *told) BackupHas(files []epoch.BootFile) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.files = append(d.files, slices.Clone(files))
}

func (d *told) Encoding(epoch.Number) epoch.Excluder {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.early = d.early || len(d.files) == 0
	return nil
}

// TestEachBackupSaysWhatFilesItHas: the disks hear of it before any page is left
// out for a session; and of a backup that says nothing, that it has none.
func TestEachBackupSaysWhatFilesItHas(t *testing.T) {
	inBubble(t, nil, func(r *rig) {
		d := &told{}
		r.p.Disks = d
		kernel := []epoch.BootFile{{Disk: 15, Sectors: 80, Sum: epoch.Hash{1}}}
		says := [][]epoch.BootFile{kernel, nil}
		session := 0
		r.script(func(ctx context.Context, there *protocoltest.End, h protocol.Hello) {
			p := newPeer(t, ctx, there, h)
			b, err := protocol.EncodeWelcome(protocol.Welcome{Version: protocol.Version, At: p.at, Boot: says[session]})
			if err != nil {
				t.Error(err)
			}
			session = min(session+1, len(says)-1)
			p.send(protocol.KindWelcome, b)
			for p.honest(1) {
			}
		})
		r.wait("protected", 5*time.Second, r.protected)
		r.cut()
		r.wait("protected again", 10*time.Second, func() bool { return r.sessions() > 1 && r.protected() })
		r.stop()
		if d.early {
			t.Error("an epoch was encoded before the backup's files were known")
		}
		if len(d.files) < 2 || !slices.Equal(d.files[0], kernel) || d.files[1] != nil {
			t.Errorf("the disks were told %v", d.files)
		}
	})
}
