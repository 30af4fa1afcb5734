package xen

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy/checkpoint"
	"understudy/epoch"
	"understudy/hypervisor"
)

// root is a disk that has page 9 of the guest.
type root struct{ page []byte }

const rootKey = epoch.PrintKey(3)

func (r root) FindPrint(page epoch.GFN, print epoch.Fingerprint) (epoch.Reference, bool, bool) {
	return epoch.Reference{Page: page, Sector: 16, Print: print}, true, print == rootKey.Of(r.page)
}

func (r root) ReadSectors(_ epoch.DiskID, sector uint64, dst []byte) error {
	if sector != 16 {
		return errors.New("another sector")
	}
	copy(dst, r.page)
	return nil
}

// A PVH guest is saved to a file while it stands still, and goes on from it in a new
// domain of another driver: with its memory, that which is on its disk too, and where
// the file says zero, whatever the hypervisor has given. Bits of its state that a
// restore makes anew may be so.
func TestAGuestGoesOnFromACheckpointFile(t *testing.T) {
	ctx := t.Context()
	h := newFakeHost()
	c := testConfig(t)
	g, err := newTestDriver(t, h, c).Start(ctx)
	must(t, err)
	memory := h.domains[1].memory
	for page := range 63 { // but for the console's
		if page%4 != 0 {
			copy(memory[page*epoch.PageSize:], pageOf(uint64(page)))
		}
	}
	disk := root{pageOf(9)}
	path := filepath.Join(t.TempDir(), "web.ckpt")
	w, err := checkpoint.Create(path, checkpoint.Head{Guest: "web", Hypervisor: "xen", Created: time.Unix(1e9, 0), Pages: g.Pages(), Key: rootKey, Machine: g.Spec().Machine},
		checkpoint.Options{Finder: disk})
	must(t, err)
	all := epoch.NewPageSet(g.Pages())
	must(t, g.CollectDirty(all))
	must(t, w.Image(ctx, g, all, nil))
	must(t, w.Stale(epoch.NewPageSet(g.Pages())))
	state, err := g.AppendDeviceState(ctx, nil)
	must(t, err)
	must(t, w.Final(checkpoint.Final{DeviceState: state, Disks: []checkpoint.Disk{{Name: "/srv/web.img", Store: "shared", Sectors: 64}}}))
	info, err := w.Commit(nil)
	must(t, err)
	if info.Summary.Pages.Mapped != 1 {
		t.Errorf("the pages are %+v", info.Summary.Pages)
	}
	must(t, g.Destroy())

	file, err := checkpoint.Open(path)
	must(t, err)
	defer func() { must(t, file.Close()) }()
	for _, lazy := range []bool{false, true} {
		other := newFakeHost()
		driver := newTestDriver(t, other, c)
		standby, pending, err := checkpoint.Restore(ctx, file, unscrubbed{driver, other}, disk, checkpoint.RestoreOptions{Lazy: lazy})
		must(t, err)
		if pending != nil {
			<-pending.Done() // a domain waits for no page
		}
		got, err := standby.Run(ctx)
		must(t, err)
		if is := other.workshop.made[0].memory; !bytes.Equal(is, memory) {
			t.Errorf("lazy %v: its memory is another", lazy)
		}
		if !bytes.Equal(other.workshop.made[0].tail, state) {
			t.Errorf("lazy %v: its state is another", lazy)
		}
		must(t, got.Destroy())
	}

	changed := c
	changed.Kernel = filepath.Join(t.TempDir(), "vmlinuz")
	must(t, os.WriteFile(changed.Kernel, []byte("another"), 0o600))
	var refusal *hypervisor.Refusal
	if _, _, err := checkpoint.Restore(ctx, file, newTestDriver(t, newFakeHost(), changed), disk, checkpoint.RestoreOptions{}); !errors.As(err, &refusal) {
		t.Errorf("with another kernel: %v", err)
	}
}

// unscrubbed is a driver on a host whose hypervisor gives memory as it was left.
type unscrubbed struct {
	*Driver
	host *fakeHost
}

func (u unscrubbed) Standby(ctx context.Context, spec hypervisor.Spec) (hypervisor.Standby, error) {
	u.host.workshop.litter = true
	return u.Driver.Standby(ctx, spec)
}

// A PV domain's file is for xl: a standby is not made of it, and it says so.
func TestAPVDomainHasNoStandby(t *testing.T) {
	_, _, spec, _, err := take(xlFile(t, xlConfig(PV), append(append(pvHeads[:len(pvHeads):len(pvHeads)], pvFrames(6)), pvTail...)...))
	must(t, err)
	_, err = newTestDriver(t, newFakeHost(), testConfig(t)).Standby(t.Context(), spec)
	var refusal *hypervisor.Refusal
	if !errors.As(err, &refusal) || !strings.Contains(err.Error(), "it is a PV domain") {
		t.Errorf("error %v", err)
	}
}
