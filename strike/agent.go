package strike

// The agent. `understudyd strike RECORD` runs Agent in a session of its own: it
// reads the record, says that it is ready, strikes at the time the record says,
// and undoes it at the other. SIGTERM undoes it at once.
//
//	daemon: Begin ── record, agent ──> "ready" ──> answers the operator
//	agent:  ……… At: strike ……… Undo: undo, record removed
//
// A killed daemon is started by the agent, and that daemon, as any, undoes what
// records it finds as it starts: so it is the new daemon that removes the record.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// Acts are what is done to the machine (Real does it).
type Acts interface {
	// Signal sends s to exactly that process; os.ErrProcessDone if it has ended.
	Signal(p Process, s syscall.Signal) error
	// Cut cuts the cable, for that long at most. Mend undoes that; a cable that
	// is whole stays so.
	Cut(c Cable, limit time.Duration) error
	Mend() error
	// Start starts a daemon.
	Start(s Start) error
}

// startLimit is how long a daemon that was started again may take until it has
// undone its strike.
const startLimit = time.Minute

// ready is what an agent says when it is.
const ready = "ready\n"

// Agent carries out the record in file, and says so to told once it is about to.
// It ends when the strike is undone; the end of ctx makes that at once. Errors
// that ended it before it struck are also told.
func Agent(ctx context.Context, file string, told io.WriteCloser, acts Acts) error {
	r, err := Read(file)
	if err == nil && time.Until(r.Undo) > MaxFor+2*Lead {
		err = fmt.Errorf("the record of strike %s is for later: the clock was set back", r.ID)
	}
	if err != nil {
		_, _ = io.WriteString(told, err.Error()+"\n")
		return errors.Join(err, told.Close())
	}
	if _, err := io.WriteString(told, ready); err != nil { // the daemon is gone: nobody wants it any more
		return errors.Join(err, told.Close(), remove(filepath.Dir(file), r.ID))
	}
	_ = told.Close()
	if !sleepUntil(ctx, r.At) {
		return remove(filepath.Dir(file), r.ID)
	}
	if err := r.strike(acts); err != nil {
		if r.Kind == Kill && acts.Signal(r.Victims[0], 0) == nil {
			return errors.Join(err, remove(filepath.Dir(file), r.ID)) // the daemon lives: there is none to start
		}
		return errors.Join(err, r.finish(file, acts))
	}
	sleepUntil(ctx, r.Undo)
	return r.finish(file, acts)
}

// sleepUntil waits; false if ctx has ended.
func sleepUntil(ctx context.Context, t time.Time) bool {
	timer := time.NewTimer(time.Until(t))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// strike does it. The daemon comes first: it must not see its guest die.
func (r *Record) strike(acts Acts) error {
	switch r.Kind {
	case Kill:
		return r.signal(acts, syscall.SIGKILL)
	case Freeze:
		return r.signal(acts, syscall.SIGSTOP)
	case Cut:
		return acts.Cut(*r.Cable, time.Until(r.Undo))
	}
	return fmt.Errorf("a strike of kind %q", r.Kind)
}

func (r *Record) signal(acts Acts, s syscall.Signal) error {
	var wrong error
	for _, p := range r.Victims {
		if err := acts.Signal(p, s); err != nil && !errors.Is(err, os.ErrProcessDone) {
			wrong = errors.Join(wrong, fmt.Errorf("%v to process %d: %w", s, p.PID, err))
		}
	}
	return wrong
}

// undo undoes what can be undone without a daemon. Twice does no harm.
func (r *Record) undo(acts Acts) error {
	switch r.Kind {
	case Freeze:
		return r.signal(acts, syscall.SIGCONT)
	case Cut:
		return acts.Mend()
	case Kill:
	}
	return nil
}

// finish undoes the strike and sees to it that the record goes.
func (r *Record) finish(file string, acts Acts) error {
	dir := filepath.Dir(file)
	if r.Kind != Kill {
		if err := r.undo(acts); err != nil {
			return fmt.Errorf("undo strike %s; the next start of the daemon tries again: %w", r.ID, err)
		}
		if err := remove(dir, r.ID); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	if undone(file) {
		return nil // somebody has started the daemon already
	}
	if r.Start != nil {
		if err := acts.Start(*r.Start); err != nil {
			return fmt.Errorf("start the daemon that strike %s has killed; start it by hand: %w", r.ID, err)
		}
	}
	for end := time.Now().Add(startLimit); !undone(file); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("strike %s has killed the daemon, and after %v it is not back; start it by hand", r.ID, startLimit)
		}
	}
	return nil
}

// undone: the record is gone.
func undone(file string) bool {
	_, err := os.Lstat(file)
	return errors.Is(err, fs.ErrNotExist)
}

// Undo undoes what former strikes on this host have left, as its daemon starts,
// and returns their records. What cannot be undone stays, and is in the error.
func Undo(dir string, acts Acts) ([]Record, error) {
	all, wrong := List(dir)
	boot, err := bootID()
	if err != nil {
		return nil, errors.Join(wrong, err)
	}
	all = slices.DeleteFunc(all, func(r Record) bool {
		var err error
		if r.Boot == boot { // else nothing of it is left
			err = r.undo(acts)
		}
		if err == nil {
			err = remove(dir, r.ID)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			wrong = errors.Join(wrong, fmt.Errorf("undo strike %s: %w", r.ID, err))
			return true
		}
		return false
	})
	return all, wrong
}
