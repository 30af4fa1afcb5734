package main

// This file is the story of a guest in checkpoint files, on one Xen host, by the
// daemon's own commands:
//
//	it reads files, writes its disk, uses its memory, and has a connection
//	─> checkpoint save --pin: it runs on            ─> verify
//	─> checkpoint save --stop: its domain is gone   ─> verify, restore: it goes on
//	─> stop, restore of the pinned file: its disk is rolled back
//	─> stop; a domain that xl runs, xl save         ─> import --guest, restore: it goes on
//
// What it has read through its page cache came from our back end, so that the file has
// none of it; what the restored guest reads is the same, and most of it from memory.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"understudy/checkpoint"
	"understudy/config"
	"understudy/epoch"
	"understudy/guest/client"
	"understudy/host"
	"understudy/ownership"
)

// savedMemory is the guest's: with room for what it reads.
const savedMemory = 192 * config.MiB

// library is what the guest reads, 32 MiB (image.Small).
const library = "library"

// enough of it has to be left out of a file: the kernel may have dropped some of it.
const enough = 0.9

// fewReads is what the disk may be asked for while the restored guest reads the same
// again, beside its other work: without its page cache it would ask 256 times.
const fewReads = 100

// Files of the story, on the host.
const (
	pinnedFile  = kept + "/pinned.ckpt"
	stoppedFile = kept + "/stopped.ckpt"
)

// saves tells the story.
func (s *story) saves(ctx context.Context) error {
	g, err := s.meet(ctx)
	if err != nil {
		return err
	}
	defer g.lines.Close()
	if err := s.alone(ctx); err != nil {
		return err
	}
	read, err := g.read(ctx)
	if err != nil {
		return err
	}
	s.tell("the guest has read %d files of %d MiB", read.Files, read.Bytes>>20)
	if err := s.working(ctx, g, func() error {
		if err := s.pinned(ctx, read); err != nil {
			return err
		}
		return s.stoppedAndOn(ctx, g, read)
	}); err != nil {
		return err
	}
	if err := s.rolledBack(ctx, read); err != nil {
		return err
	}
	if s.world.config.Guests[0].Type == config.TypePVH { // what xl saves of others is not taken
		if err := s.fromXl(ctx); err != nil {
			return err
		}
	}
	s.tell("every check held")
	return nil
}

// alone has the daemon not look for a backup, which there is none of: to be refused
// by one again and again takes much of the emulated processor.
func (s *story) alone(ctx context.Context) error {
	var now ownership.Guest
	err := s.command(ctx, "unprotect "+guestName, &now)
	if err == nil && now.Protection != ownership.ProtectionOff {
		err = fmt.Errorf("after unprotect the log says %+v", now)
	}
	return err
}

// read has the guest read the library through its page cache.
func (g *met) read(ctx context.Context) (r client.DiskRead, err error) {
	err = g.Control(ctx, func(ctx context.Context, c *client.Control) error {
		r, err = c.ReadDisk(ctx, library)
		return err
	})
	if err != nil {
		return r, fmt.Errorf("the guest reads its files: %w", err)
	}
	return r, nil
}

// words is one of the operator's commands, as the host's shell takes it.
func (s *story) words(of string) string {
	return fmt.Sprintf("%s/understudy --config %[1]s/%s --host %s --output json %s", share, configFile, hostA, of)
}

// command runs one of the operator's commands on the host, and reads what it answers.
func (s *story) command(ctx context.Context, words string, answer any) error {
	said, err := said(ctx, s.world.hosts[hostA], hostA, s.words(words))
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(said), answer); err != nil {
		return fmt.Errorf("understudy %s: %w: %.200q", words, err, said)
	}
	return nil
}

// save saves the guest, and has the file verified with its disk.
func (s *story) save(ctx context.Context, path, how string, read client.DiskRead) (r host.SaveResult, err error) {
	if err := s.command(ctx, "checkpoint save "+guestName+" "+path+" "+how, &r); err != nil {
		return r, err
	}
	p := r.Summary.Pages
	s.tell("saved (%s) in %d ms, %d ms of that a pause: %.1f MB for %.1f of memory; of %d pages %d are on the disk as traced, %d by content, %d zero, %d copies, %d packed, %d raw",
		how, r.Took.Milliseconds(), r.Pause.Milliseconds(), mb(r.FileBytes), mb(r.ImageBytes), p.Sum(), p.Mapped, p.Content, p.Zero+p.Hole, p.Copy, p.Packed, p.Raw)
	if least := uint64(float64(read.Bytes) / epoch.PageSize * enough); p.Mapped < least {
		return r, fmt.Errorf("%d pages are left out since they are on the disk, the guest has read %d", p.Mapped, uint64(read.Bytes)/epoch.PageSize)
	}
	return r, s.verify(ctx, path)
}

func mb(bytes uint64) float64 { return float64(bytes) / 1e6 }

// verify has the daemon read all that a restore would need.
func (s *story) verify(ctx context.Context, path string) error {
	var r host.VerifyFileResult
	if err := s.command(ctx, "checkpoint verify "+path, &r); err != nil {
		return err
	}
	if !r.Well() || !r.BlocksRead {
		return fmt.Errorf("%s: verified is %+v", path, r)
	}
	return nil
}

// pinned saves the guest while it runs on.
func (s *story) pinned(ctx context.Context, read client.DiskRead) error {
	r, err := s.save(ctx, pinnedFile, "--pin", read)
	if err == nil && len(r.Pins) == 0 {
		err = errors.New("no pin was armed")
	}
	return err
}

// stoppedAndOn saves the guest, whose domain is gone then, and lets it go on.
func (s *story) stoppedAndOn(ctx context.Context, g *met, read client.DiskRead) error {
	asked := time.Now()
	if _, err := s.save(ctx, stoppedFile, "--stop", read); err != nil {
		return err
	}
	if err := s.gone(ctx); err != nil {
		return err
	}
	if err := s.restore(ctx, stoppedFile); err != nil {
		return err
	}
	if err := s.goesOn(ctx, g, asked); err != nil {
		return err
	}
	return s.readsTheSame(ctx, g, read)
}

// goesOn waits until the guest's client hears it again.
func (s *story) goesOn(ctx context.Context, g *met, since time.Time) error {
	if err := g.lines.More(ctx, 100, patience); err != nil {
		return errors.Join(err, g.lines.Err())
	}
	_, err := s.lives(g, since)
	return err
}

// gone makes sure that the guest has no domain.
func (s *story) gone(ctx context.Context) error {
	said, err := said(ctx, s.world.hosts[hostA], hostA, "xl list | tail -n +3")
	if err == nil && strings.TrimSpace(said) != "" {
		err = fmt.Errorf("there is still a domain: %s", said)
	}
	return err
}

// Of the domain that xl runs: its name, and files on the host.
const (
	xlName = "xl-web"
	xlSave = kept + "/xl.save"
	xlFile = kept + "/xl.ckpt"
)

// fromXl has xl run the guest, which knows nothing of us then, and takes over what xl
// saves of it.
func (s *story) fromXl(ctx context.Context) error {
	var stopped ownership.Guest
	if err := s.command(ctx, "stop "+guestName, &stopped); err != nil {
		return err
	}
	if err := s.xlCreate(ctx); err != nil {
		return err
	}
	s.tell("xl runs the guest")
	g, err := s.meet(ctx)
	if err != nil {
		return err
	}
	defer g.lines.Close()
	read, err := g.read(ctx)
	if err != nil {
		return err
	}
	return s.working(ctx, g, func() error {
		asked := time.Now()
		if err := s.order(ctx, "xl save "+xlName+" "+xlSave+" && losetup -d /dev/loop0 && sync"); err != nil {
			return err
		}
		s.tell("xl has saved it in %d ms", time.Since(asked).Milliseconds())
		if err := s.imported(ctx, read); err != nil {
			return err
		}
		if err := s.restore(ctx, xlFile); err != nil {
			return err
		}
		if err := s.goesOn(ctx, g, asked); err != nil {
			return err
		}
		return s.readsTheSame(ctx, g, read)
	})
}

// xlCreate has xl run the guest on the disk that the daemon would serve it.
func (s *story) xlCreate(ctx context.Context) error {
	if err := s.order(ctx, "losetup /dev/loop0 "+kept+"/"+guestDisk); err != nil {
		return err
	}
	g := s.world.config.Guests[0]
	return s.world.xl(ctx, hostA, xlGuest{Name: xlName, Kind: g.Type, Kernel: g.Kernel, Initrd: g.Initrd, Append: g.Append, Memory: g.Memory, Disk: "/dev/loop0", MAC: g.NICs[0].MAC})
}

func (s *story) order(ctx context.Context, text string) error {
	return order(ctx, s.world.hosts[hostA], hostA, text)
}

// imported makes a checkpoint file of what xl has saved. Nobody traced that guest's
// reads: its disk is searched.
func (s *story) imported(ctx context.Context, read client.DiskRead) error {
	var r struct {
		checkpoint.Info
		Took time.Duration `json:"took_ns"`
	}
	if err := s.command(ctx, "checkpoint import "+xlSave+" "+xlFile+" --guest "+guestName, &r); err != nil {
		return err
	}
	p := r.Summary.Pages
	s.tell("imported in %d ms: %.1f MB for %.1f of memory; of %d pages %d are on the disk, %d zero", r.Took.Milliseconds(), mb(r.FileBytes), mb(r.ImageBytes), p.Sum(), p.Content, p.Zero+p.Hole)
	if least := uint64(float64(read.Bytes) / epoch.PageSize * enough); p.Content < least {
		return fmt.Errorf("%d pages are left out since they are on the disk, the guest has read %d", p.Content, uint64(read.Bytes)/epoch.PageSize)
	}
	return s.verify(ctx, xlFile)
}

// restore lets the guest go on from a file.
func (s *story) restore(ctx context.Context, path string) error {
	var r host.RestoreResult
	if err := s.command(ctx, "checkpoint restore "+guestName+" "+path, &r); err != nil {
		return err
	}
	if r.Log.Owner != ownership.HostID(hostA) || r.Log.Desired != ownership.Running {
		return fmt.Errorf("after the restore the log says %+v", r.Log)
	}
	s.tell("restored: it runs after %d ms, rolled back: %t", r.Ready.Milliseconds(), r.RolledBack)
	return nil
}

// readsTheSame has the guest read its files again, which are in its memory.
func (s *story) readsTheSame(ctx context.Context, g *met, read client.DiskRead) error {
	before, err := s.diskReads(ctx)
	if err != nil {
		return err
	}
	again, err := g.read(ctx)
	if err != nil {
		return err
	}
	after, err := s.diskReads(ctx)
	switch {
	case err != nil:
		return err
	case again != read:
		return fmt.Errorf("the guest reads %+v, it read %+v before", again, read)
	case after-before > fewReads:
		return fmt.Errorf("to read the same again the guest has asked its disk %d times: its page cache did not come with it", after-before)
	}
	s.tell("it reads the same %d MiB again, and asks its disk %d times", again.Bytes>>20, after-before)
	return nil
}

// diskReads is how often the guest has read from its disk since it was begun here.
func (s *story) diskReads(ctx context.Context) (uint64, error) {
	now, err := s.world.status(ctx, hostA)
	if err == nil && now.Disks == nil {
		err = fmt.Errorf("host %s serves the guest no disk: its role is %s", hostA, now.Role)
	}
	if err != nil {
		return 0, err
	}
	return now.Disks.Reads, nil
}

// rolledBack goes back to the pinned file: what was written since is gone, what was
// read is there.
func (s *story) rolledBack(ctx context.Context, read client.DiskRead) error {
	var stopped ownership.Guest
	if err := s.command(ctx, "stop "+guestName, &stopped); err != nil {
		return err
	}
	if err := s.verify(ctx, pinnedFile); err != nil {
		return err
	}
	if err := s.restore(ctx, pinnedFile); err != nil {
		return err
	}
	g := &met{Reach: reach()}
	pages, err := g.checkMemory(ctx)
	if err != nil {
		return err
	}
	s.tell("rolled back: %d pages of its memory are what it has written", pages)
	return s.readsTheSame(ctx, g, read)
}
