package main

// QEMU's own side of a row: boot, saves, restores.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"understudy/clock"
	"understudy/egress"
	"understudy/guest/client"
	"understudy/hypervisor/qemu"
)

// stockGuest is that guest. Its gate and the base image outlive a boot.
type stockGuest struct {
	b       *savedBench
	cfg     qemu.Config
	gate    *egress.Gate
	base    string // raw image
	vm      *stock
	control *client.Control
}

// Names within the overlay, for each row: the snapshot of savevm, and the disk
// alone as it was when the stream was written.
func vmSnapshot(row string) string   { return "saved-" + row }
func diskSnapshot(row string) string { return "moment-" + row }

func newStockGuest(b *savedBench, cfg qemu.Config, base string) (_ *stockGuest, err error) {
	g := &stockGuest{b: b, cfg: cfg, base: base}
	guestSide, _ := cfg.NICSockets(0)
	if err := os.MkdirAll(filepath.Dir(guestSide), 0o755); err != nil {
		return nil, err
	}
	g.gate, err = b.place.openGate(cfg, stockTAP, func(string) error { return nil })
	return g, err
}

func (g *stockGuest) overlay() string { return filepath.Join(g.cfg.RunDir, "disk.qcow2") }

func (g *stockGuest) boot(ctx context.Context) (err error) {
	g.gate.Pass()
	if err := g.gate.Allow(clock.Boot{}.Now().Add(time.Hour)); err != nil {
		return err
	}
	if err := overlay(ctx, g.overlay(), g.base); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()
	if g.vm, err = startStock(g.cfg, g.overlay(), nil); err != nil {
		return err
	}
	if err := g.vm.connect(ctx); err != nil {
		return err
	}
	g.control, err = g.b.control(ctx, g.cfg)
	return err
}

// save writes the guest's stream to path, and lets it run on. The time that the
// disk needs is taken apart: QEMU does not wait for it. If snapshot is not empty,
// the disk can be brought back to what it is at that moment.
func (g *stockGuest) save(ctx context.Context, path, snapshot string) (s savedSample, err error) {
	file, err := os.Create(path)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	begin := time.Now()
	if err := g.vm.migrate(ctx, file); err != nil {
		return s, err
	}
	unsynced := time.Since(begin)
	if snapshot != "" { // QEMU has let go of the disk, until it goes on
		if _, err := qemuImg(ctx, "snapshot", "-c", snapshot, g.overlay()); err != nil {
			return s, err
		}
	}
	if err := g.vm.cont(ctx); err != nil {
		return s, err
	}
	syncing := time.Now()
	if err := file.Sync(); err != nil {
		return s, err
	}
	s.synced = time.Since(syncing)
	s.took = unsynced + s.synced
	info, err := file.Stat()
	if err != nil {
		return s, err
	}
	s.bytes = uint64(info.Size())
	return s, nil
}

// savevm saves the guest into its disk. QEMU waits for the disk itself.
func (g *stockGuest) savevm(ctx context.Context, name string) (s savedSample, err error) {
	if err := g.forget(ctx, name); err != nil {
		g.b.place.Log.Debug("no earlier snapshot", "err", err)
	}
	begin := time.Now()
	if err := g.vm.monitor(ctx, "savevm "+name); err != nil {
		return s, err
	}
	s.took = time.Since(begin)
	s.bytes, err = snapshotBytes(ctx, g.overlay(), name)
	return s, err
}

// forget gives a snapshot's room back.
func (g *stockGuest) forget(ctx context.Context, name string) error {
	return g.vm.monitor(ctx, "delvm "+name)
}

// incoming restores the stream, on the disk of its moment.
func (g *stockGuest) incoming(ctx context.Context, stream, snapshot string) (r restored, err error) {
	if _, err := qemuImg(ctx, "snapshot", "-a", snapshot, g.overlay()); err != nil {
		return r, err
	}
	if err := evict(stream); err != nil {
		return r, err
	}
	file, err := os.Open(stream)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	return g.restore(ctx, func() (*stock, error) { return startStock(g.cfg, g.overlay(), file) })
}

// loadvm restores the snapshot in the disk, which becomes what it was with it.
func (g *stockGuest) loadvm(ctx context.Context, name string) (restored, error) {
	if err := evict(g.overlay()); err != nil {
		return restored{}, err
	}
	return g.restore(ctx, func() (*stock, error) {
		return startStock(g.cfg, g.overlay(), nil, "-loadvm", name)
	})
}

// restore starts a machine and waits for its answer. Then it is ended.
func (g *stockGuest) restore(ctx context.Context, start func() (*stock, error)) (r restored, err error) {
	limited, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	begin := time.Now()
	answered := g.b.whenAnswered(limited, g.cfg, begin)
	if g.vm, err = start(); err != nil {
		cancel()
		<-answered
		return r, err
	}
	ran := make(chan answer, 1)
	go func() { // ends with limited
		err := g.vm.awaitRunning(limited)
		ran <- answer{time.Since(begin), err}
	}()
	a := <-answered
	if a.err != nil {
		cancel()
	}
	runs := <-ran
	r.answer, r.whole, r.run = a.after, a.after, runs.after
	if err := errors.Join(a.err, runs.err, g.end()); err != nil {
		return r, fmt.Errorf("restored by QEMU: %w", err)
	}
	return r, nil
}

func (g *stockGuest) end() error {
	var errs []error
	if g.control != nil {
		errs = append(errs, g.control.Close())
		g.control = nil
	}
	if g.vm != nil {
		errs = append(errs, g.vm.close())
		g.vm = nil
	}
	return errors.Join(errs...)
}

// leave also removes the disk.
func (g *stockGuest) leave() error {
	err := g.end()
	if e := os.Remove(g.overlay()); e != nil && !errors.Is(e, os.ErrNotExist) {
		err = errors.Join(err, e)
	}
	return err
}
