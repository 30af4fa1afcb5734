// Command dom0 boots a Xen host of the image that `make xen-dom0` makes, and
// carries out the lines of its standard input there, one after the other:
//
//	echo 'xl info' | go run ./guest/dom0
//
// It ends with the exit status of the first line that fails, or 0. The host is
// gone with it.
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"understudy/guest/image"
	"understudy/guest/xenhost"
)

func main() {
	dir := flag.String("image", "build/xen", "where the image is, or is made (see make xen-dom0)")
	share := flag.String("share", "", "a directory that the host sees as /mnt/share")
	limit := flag.Duration("limit", 10*time.Minute, "how long it may take to boot, and each line")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status, err := run(ctx, *dir, *share, *limit)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "dom0:", err)
		status = 1
	}
	os.Exit(status)
}

func run(ctx context.Context, images, share string, limit time.Duration) (int, error) {
	dom0, err := image.MakeDom0(ctx, images)
	if err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp("", "understudy-dom0-")
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	began := time.Now()
	bounded, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	host, err := xenhost.Boot(bounded, xenhost.Config{Dom0: dom0, Dir: dir, Share: share})
	if err != nil {
		return 0, err
	}
	defer func() { _ = host.Close() }()
	fmt.Fprintf(os.Stderr, "up after %.1f s\n", time.Since(began).Seconds())
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		status, err := line(ctx, host, lines.Text(), limit)
		if status != 0 || err != nil {
			return status, err
		}
	}
	return 0, nil
}

func line(ctx context.Context, host *xenhost.Host, text string, limit time.Duration) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	began := time.Now()
	out, status, err := host.Run(ctx, text)
	fmt.Print(out)
	fmt.Fprintf(os.Stderr, "# %s: %d, %.1f s\n", text, status, time.Since(began).Seconds())
	return status, err
}
