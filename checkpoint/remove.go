package checkpoint

// This file removes a checkpoint file, unless another builds on it:
//
//	its directory and those above it, where alone such files may lie ─> those
//	that name it as their parent ─> none: removed

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrNeeded is returned for a file that others build on.
var ErrNeeded = errors.New("other checkpoint files build on it")

// Remove removes the checkpoint file at path, if it is Removable.
func Remove(path string) error {
	if err := Removable(path); err != nil {
		return err
	}
	return os.Remove(path)
}

// Removable returns an error that wraps ErrNeeded and names them if files that
// can be found build on the one at path: a parent lies in its child's directory
// or below it. A child that knows that directory by another name (a bind mount,
// a link) is not found.
func Removable(path string) error {
	children, err := Children(path)
	if err != nil {
		return fmt.Errorf("remove checkpoint file %s: %w", path, err)
	}
	if len(children) > 0 {
		return fmt.Errorf("remove checkpoint file %s: %w, which could not be restored without it: remove first %s", path, ErrNeeded, strings.Join(children, ", "))
	}
	return nil
}

// Children returns the paths of the checkpoint files that build on the one at
// path, without what builds on those.
func Children(path string) (children []string, err error) {
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, fmt.Errorf("look for files that build on it: %w", err)
		}
		for _, e := range entries {
			name := filepath.Join(dir, e.Name())
			if e.Type().IsRegular() && buildsOn(name, path) {
				children = append(children, name)
			}
		}
		if dir == filepath.Dir(dir) {
			return children, nil
		}
	}
}

// buildsOn reports whether name is a checkpoint file whose parent is path. A
// damaged file builds on nothing: it could not be restored anyway.
func buildsOn(name, path string) bool {
	file, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	f := &File{path: name, f: file, records: newRecordCache()}
	err = errors.Join(f.load(), file.Close())
	p := f.head.Parent
	return err == nil && p != nil && filepath.Join(filepath.Dir(name), p.File) == path
}
