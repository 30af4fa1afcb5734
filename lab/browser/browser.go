// Package browser drives a real Chromium, for tests that read what a person would
// read. A browser is one process group with a profile of its own, niced, that is
// always ended; it resolves no names and reaches nothing but loopback.
//
//	browser.go   the process: Start, Close
//	devtools.go  Chromium's DevTools protocol, over two pipes
//	page.go      a page: go there, read, press keys, look
//	tree.go      what a screen reader gets of it
package browser

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// Options say how a browser is started.
type Options struct {
	// Program is the browser; "" is chromium.
	Program string
	// Pins are base64 SHA-256 hashes of public keys (SubjectPublicKeyInfo): the
	// servers that show one of these are trusted, and no others are beyond those
	// that the system trusts.
	Pins []string
}

// Browser is a running one.
type Browser struct {
	*wire
	cmd     *exec.Cmd
	profile string
	said    strings.Builder // what it said on its standard error
	ended   chan struct{}
}

// endTime is how long a browser may take to end by itself.
const endTime = 5 * time.Second

// Start starts a browser without a window.
func Start(ctx context.Context, o Options) (_ *Browser, err error) {
	if o.Program == "" {
		o.Program = "chromium"
	}
	profile, err := os.MkdirTemp("", "understudy-browser-")
	if err != nil {
		return nil, fmt.Errorf("a profile for the browser: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(profile))
		}
	}()
	args := []string{"-n", "15", o.Program,
		"--headless=new", "--remote-debugging-pipe", "--user-data-dir=" + profile,
		"--no-first-run", "--no-default-browser-check", "--disable-background-networking", "--disable-component-update",
		"--disable-sync", "--disable-extensions", "--disable-default-apps", "--disable-breakpad", "--disable-crash-reporter",
		"--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars", "--mute-audio", "--force-color-profile=srgb", "--lang=en-US",
		// Pages behind others are not slowed down: a test looks at one at a time.
		"--disable-background-timer-throttling", "--disable-renderer-backgrounding", "--disable-backgrounding-occluded-windows",
		"--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"}
	if len(o.Pins) > 0 {
		args = append(args, "--ignore-certificate-errors-spki-list="+strings.Join(o.Pins, ","))
	}
	if os.Geteuid() == 0 {
		args = append(args, "--no-sandbox") // Chromium's sandbox is not for root
	}
	// It reads commands from descriptor 3 and answers on 4.
	theirIn, ourOut, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	ourIn, theirOut, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, theirIn.Close(), ourOut.Close())
	}
	b := &Browser{profile: profile, ended: make(chan struct{})}
	b.cmd = exec.Command("nice", args...)
	b.cmd.Env = append(os.Environ(), "TZ=UTC", "LC_ALL=C.UTF-8", "HOME="+profile)
	b.cmd.ExtraFiles = []*os.File{theirIn, theirOut}
	b.cmd.Stderr = &b.said
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = b.cmd.Start()
	_, _ = theirIn.Close(), theirOut.Close() // its own now
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start %s (Debian's package chromium): %w", o.Program, err), ourIn.Close(), ourOut.Close())
	}
	b.wire = newWire(ourIn, ourOut)
	go func() {
		defer close(b.ended)
		_ = b.cmd.Wait() // it was told to end, or its answers have ended, which says so
	}()
	var version struct{ Product string }
	if err := b.call(ctx, "", "Browser.getVersion", nil, &version); err != nil {
		err = fmt.Errorf("%s does not answer: %w", o.Program, err)
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// Close ends the browser and removes its profile.
func (b *Browser) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), endTime)
	defer cancel()
	_ = b.call(ctx, "", "Browser.close", nil, nil) // it may have ended before
	select {
	case <-b.ended:
	case <-ctx.Done():
	}
	// Its helpers are in its group; it was the first there.
	_ = syscall.Kill(-b.cmd.Process.Pid, syscall.SIGKILL)
	<-b.ended
	b.wire.close()
	var err error
	for range 50 { // a helper that was killed may still be letting go of a file
		if err = os.RemoveAll(b.profile); err == nil {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("remove the browser's profile: %w", err)
}
