package main

// This file is what the hosts' daemons log, and what the guest says on its console:
// files that the hosts write to a directory that they share with us, read again and
// again, so that each line has the time it came here. The hosts' clocks are theirs.

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// line is one line of a daemon's log.
type line struct {
	came time.Time
	text string
	Msg  string `json:"msg"`
}

// counted is one line of the guest's console.
type counted struct {
	came time.Time
	n    int
}

// follower reads files that grow. It has one goroutine, which ends with stop.
type follower struct {
	dir  string
	quit chan struct{}
	done chan struct{}

	mu     sync.Mutex
	read   map[string]int64
	lines  map[string][]line    // by host
	counts map[string][]counted // by host
}

// often is how often the files are looked at: what a time is worth. Seldom is how
// often a host is asked, which costs it something.
const (
	often  = 5 * time.Millisecond
	seldom = 500 * time.Millisecond
)

func follow(dir string) *follower {
	f := &follower{dir: dir, quit: make(chan struct{}), done: make(chan struct{}), read: map[string]int64{}, lines: map[string][]line{}, counts: map[string][]counted{}}
	go func() {
		defer close(f.done)
		tick := time.NewTicker(often)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				f.look()
			case <-f.quit:
				return
			}
		}
	}()
	return f
}

func (f *follower) stop() {
	close(f.quit)
	<-f.done
}

func (f *follower) look() {
	for _, host := range []string{hostA, hostB} {
		f.grow(filepath.Join(f.dir, host+".log"), func(text string) {
			l := line{came: time.Now(), text: text}
			if json.Unmarshal([]byte(text), &l) == nil {
				f.lines[host] = append(f.lines[host], l)
			}
		})
		consoles, _ := filepath.Glob(filepath.Join(f.dir, host, "guest-"+guestName+"*.log"))
		for _, path := range consoles {
			f.grow(path, func(text string) {
				if number, ok := strings.CutPrefix(strings.TrimSpace(text), "count "); ok {
					if n, err := strconv.Atoi(number); err == nil {
						f.counts[host] = append(f.counts[host], counted{time.Now(), n})
					}
				}
			})
		}
	}
}

// grow gives take each whole line that has come to a file.
func (f *follower) grow(path string, take func(string)) {
	file, err := os.Open(path)
	if err != nil {
		return
	}
	defer func() { _ = file.Close() }()
	f.mu.Lock()
	defer f.mu.Unlock()
	buf := make([]byte, 64<<10)
	n, _ := file.ReadAt(buf, f.read[path])
	end := bytes.LastIndexByte(buf[:n], '\n') + 1
	for text := range strings.Lines(string(buf[:end])) {
		take(strings.TrimSuffix(text, "\n"))
	}
	f.read[path] += int64(end)
}

// find returns a host's first line of a kind.
func (f *follower) find(host string, is func(line) bool) (line, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range f.lines[host] {
		if is(l) {
			return l, true
		}
	}
	return line{}, false
}

// patience bounds the wait for anything but the boot.
const patience = 5 * time.Minute

// await waits until a host has said something.
func (f *follower) await(ctx context.Context, host, what string, is func(line) bool) error {
	err := f.until(ctx, often, func() bool { _, found := f.find(host, is); return found })
	if err != nil {
		return fmt.Errorf("host %s: wait until %s: %w", host, what, err)
	}
	return nil
}

// count waits until the guest has counted to n at a host, and returns what it said
// first from there on.
func (f *follower) count(ctx context.Context, host string, n int) (found counted, err error) {
	err = f.until(ctx, often, func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, c := range f.counts[host] {
			if c.n >= n {
				found = c
				return true
			}
		}
		return false
	})
	if err != nil {
		err = fmt.Errorf("wait until the guest counts to %d at host %s: %w", n, host, err)
	}
	return found, err
}

// last is the newest that the guest has said at a host.
func (f *follower) last(host string) counted {
	f.mu.Lock()
	defer f.mu.Unlock()
	if all := f.counts[host]; len(all) > 0 {
		return all[len(all)-1]
	}
	return counted{}
}

// until asks every so often, until the answer is yes.
func (f *follower) until(ctx context.Context, every time.Duration, yes func() bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errors.New("it takes too long"))
	defer cancel()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for !yes() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// says is a line of that message, which came since.
func says(msg string, since time.Time) func(line) bool {
	return func(l line) bool { return l.Msg == msg && l.came.After(since) }
}
