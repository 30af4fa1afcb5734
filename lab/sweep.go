package lab

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"understudy/netspace"
)

// Leftovers lists the namespaces, and the processes in them, of every lab with
// this prefix, whether its owner lives or not: after all labs are closed there
// is nothing. An empty list and no error is what a test wants to see.
func Leftovers(prefix string) ([]string, error) {
	spaces, err := spacesOf(prefix)
	if err != nil {
		return nil, err
	}
	var left []string
	for _, name := range spaces {
		left = append(left, "namespace "+name)
		pids, err := netspace.Processes(name)
		if err != nil {
			return left, err
		}
		for _, pid := range pids {
			comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)) // only to tell it to a person
			left = append(left, fmt.Sprintf("process %d (%.15s) in %s", pid, comm, name))
		}
	}
	return left, nil
}

// Sweep removes every lab with this prefix whose owner has died, with all
// processes in it, and returns the namespaces it removed. It leaves the labs
// of living processes alone.
func Sweep(prefix string) ([]string, error) {
	spaces, err := spacesOf(prefix)
	if err != nil {
		return nil, err
	}
	var removed []string
	var errs []error
	for _, name := range spaces {
		pid, start, _ := owner(prefix, name)
		if now, err := startTime(pid); err == nil && now == start {
			continue
		}
		if err := netspace.Kill(name); err != nil {
			errs = append(errs, err)
		}
		if err := netspace.Remove(name); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, name)
	}
	return removed, errors.Join(errs...)
}

// spacesOf lists the namespaces of every lab with this prefix.
func spacesOf(prefix string) ([]string, error) {
	names, err := netspace.Names(prefix + "-")
	return slices.DeleteFunc(names, func(name string) bool {
		_, _, ok := owner(prefix, name)
		return !ok
	}), err
}
